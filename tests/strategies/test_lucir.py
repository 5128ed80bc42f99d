"""LUCIR: a cosine head, less-forget and margin ranking, held rows, imprinting, balanced tuning of the head."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import ONE_STEP, PIXELS, bare, batch, bits, differing, observed

from cil.memory import Budget
from cil.models import CosineHead, Output, extract
from cil.models.base import count_parameters
from cil.strategies.lucir import LUCIR
from cil.strategies.parts import cosine_distance, margin_ranking
from cil.strategies.replay import Replay

OFF = {"strength": 0.0, "ranking": 0.0}
ROW = [0.6, 0.2, 0.5, -0.1, 0.3]  # cosines with two old classes and three new ones


def tensor(*values):
    return torch.tensor(values)


# terms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "negatives", "margin", "expected"),
    [
        ([0], 2, 0.5, (0.4 + 0.2) / 2),  # 0.5 - 0.6 + 0.5 and 0.5 - 0.6 + 0.3
        ([1], 2, 0.5, (0.8 + 0.6) / 2),
        ([0], 1, 0.5, 0.4),
        ([0], 9, 0.5, (0.4 + 0.2 + 0.0) / 3),  # as many as there are; the third keeps its distance
        ([0], 2, 0.1, 0.0),  # every margin holds
        ([2], 2, 0.5, 0.0),  # an image of the first new class has no part
    ],
)
def test_old_images_are_ranked_against_the_nearest_new_classes(slots, negatives, margin, expected):
    loss = margin_ranking(tensor(ROW), torch.tensor(slots), 2, negatives, margin)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_ranking_is_the_mean_over_old_images_alone():
    loss = margin_ranking(tensor(ROW, ROW, ROW), torch.tensor([0, 2, 1]), 2)
    assert loss.item() == pytest.approx((0.3 + 0.7) / 2, abs=1e-6)


def test_the_ranking_draws_to_the_own_class_and_pushes_off_the_nearest_new_ones():
    cosines = tensor(ROW).requires_grad_()
    margin_ranking(cosines, torch.tensor([0]), 2).backward()
    assert cosines.grad.tolist() == [[-1.0, 0.0, 0.5, 0.0, 0.5]]


def test_without_new_classes_or_old_images_nothing_is_ranked_and_gradients_are_0():
    for slots, old in (([0], 5), ([4], 2)):
        cosines = tensor(ROW).requires_grad_()
        loss = margin_ranking(cosines, torch.tensor(slots), old)
        loss.backward()
        assert loss.item() == 0 and not cosines.grad.any()


def test_the_distance_of_features_is_one_minus_their_cosine_and_blind_to_length():
    one, other = tensor([3.0, 4.0], [1.0, 0.0]), tensor([2.0, 0.0], [0.0, 5.0])
    assert cosine_distance(one, other).item() == pytest.approx((0.4 + 1.0) / 2, abs=1e-6)
    assert cosine_distance(10 * one, other).item() == pytest.approx(0.7, abs=1e-6)


def test_the_distance_of_features_is_exact_under_autocast():
    g = torch.Generator().manual_seed(0)
    one = torch.randn(8, 64, generator=g)
    other = one + 0.05 * torch.randn(8, 64, generator=g)
    exact = cosine_distance(one.bfloat16().float(), other.bfloat16().float()).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert cosine_distance(one.bfloat16(), other.bfloat16()).item() == pytest.approx(exact, rel=1e-4)


class Given(torch.nn.Module):
    """A network of fixed features on a cosine head."""

    def __init__(self, features, rows, scale=1.0):
        super().__init__()
        self.features = torch.nn.Parameter(torch.tensor(features))
        self.head = CosineHead(2)
        self.head.grow(len(rows))
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor(rows))
            self.head.scale.fill_(scale)

    def forward(self, images):
        return Output(self.head(self.features), self.features)


def between(scale=1.0, old=2, classes=3, **hyperparameters):
    learner = bare("lucir", **hyperparameters)
    learner.net = Given([[3.0, 4.0]], [[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]], scale)  # cosines 0.6, -0.6, 0.8
    learner.teacher = Given([[2.0, 0.0]], [[1.0, 0.0]])
    learner.old_classes, learner.num_classes = old, classes
    return learner


def test_the_loss_has_three_terms():
    terms = between().loss(batch(0))
    classes = math.log(math.exp(0.6) + math.exp(-0.6) + math.exp(0.8)) - 0.6
    assert terms["classes"].item() == pytest.approx(classes, abs=1e-6)
    assert terms["features"].item() == pytest.approx(5 * math.sqrt(2) * 0.4, abs=1e-5)
    assert terms["ranking"].item() == pytest.approx(0.5 - 0.6 + 0.8, abs=1e-6)
    assert terms.keys() == {"classes", "features", "ranking"}


@pytest.mark.parametrize(("old", "classes", "weight"), [(50, 60, 11.18034), (10, 20, 5.0), (3, 3, 5 * 3**0.5)])
def test_the_less_forget_term_weighs_lambda_base_sqrt_of_old_over_new_classes(old, classes, weight):
    assert between(old=old, classes=classes).loss(batch(0))["features"].item() == pytest.approx(weight * 0.4, abs=1e-4)


def test_the_ranking_is_of_cosines_and_its_weight_is_the_one_given():
    one, other = (between(scale=scale, ranking=0.5).loss(batch(0)) for scale in (1.0, 20.0))
    assert one["ranking"].item() == other["ranking"].item() == pytest.approx(0.35, abs=1e-6)
    assert one["classes"].item() != other["classes"].item()


def test_the_first_experience_is_cross_entropy_alone():
    learner = bare("lucir", classes=[2])
    assert learner.loss(batch(0, 1)).keys() == {"classes"} and learner.teacher is None


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_when_an_experience_begins_no_feature_has_moved(learn, stream):
    checked = []

    def see(when, learner, experience):
        if when == "prepared" and experience.index:
            learner.net.eval()
            terms = learner.loss(next(experience.train.batches(8)))
            assert abs(terms["features"].item()) < 1e-5
            checked.append(experience.index)

    learn(observed("lucir", see), stream, recipe=ONE_STEP)
    assert checked == [1, 2]


# the head -----------------------------------------------------------------------------------------------------------


def test_logits_are_at_most_eta_and_do_not_see_the_length_of_features_or_rows(learn):
    done = learn("lucir")
    net = done.learner(2).net.eval()
    output = net(done.stream.test(2).images)
    eta = net.head.scale.abs().item()
    assert 0 < output.logits.abs().max().item() <= eta * (1 + 1e-5)
    torch.testing.assert_close(net.head(7 * output.features), output.logits, rtol=1e-5, atol=1e-5)


def see_head(seen):
    def see(when, learner, experience):
        seen[experience.index, when] = bits(learner.net)

    return see


@pytest.mark.parametrize(("hyperparameters", "held"), [({}, True), ({"hold_old": False}, False),
                                                       ({"strength": 0.0}, False)])  # fmt: skip
def test_old_rows_stay_bit_for_bit_while_the_less_forget_term_is_on(learn, hyperparameters, held):
    seen = {}
    learn(observed("lucir", see_head(seen)), hyperparameters=hyperparameters)
    for index, old in ((1, 2), (2, 4)):
        before, after = (seen[index, when]["head.weight"] for when in ("prepared", "trained"))
        assert torch.equal(before[:old], after[:old]) == held
        assert (before[old:] != after[old:]).any(1).all()
        assert not torch.equal(seen[index, "prepared"]["head.scale"], seen[index, "trained"]["head.scale"])


def test_imprinted_rows_are_the_mean_directions_of_their_classes_at_the_norm_of_the_old_rows(learn):
    seen, checked = {}, []

    def see(when, learner, experience):
        seen[when] = bits(learner.net)
        if when == "prepared" and experience.index:
            old = learner.old_classes
            rows, norms = learner.net.head.weight, seen["before"]["head.weight"].norm(dim=1)
            assert torch.equal(rows[:old], seen["before"]["head.weight"])
            for slot in experience.new_slots:
                unit = F.normalize(extract(learner.net, experience.train.of_class(slot)))
                torch.testing.assert_close(rows[slot], norms.mean() * F.normalize(unit.mean(0), dim=0))
            checked.append(experience.index)

    imprinted = learn(observed("lucir", see), "uneven", hyperparameters={"imprint": True}, recipe=ONE_STEP)
    assert checked == [1, 2]
    plain = learn("lucir", "uneven", recipe=ONE_STEP)
    assert not differing(plain.net(0), imprinted.net(0)) and differing(plain.net(1), imprinted.net(1))


def test_tuning_moves_every_row_of_the_head_and_nothing_else(learn):
    notes = []

    class Watched(LUCIR):
        def phases(self, experience):
            for phase in super().phases(experience):
                yield phase
                notes.append((experience.index, phase, bits(self.net)))

    learn(Watched, hyperparameters={"tune_epochs": 3, "tune_lr": 0.5})
    assert [(index, phase.name) for index, phase, _ in notes] == [
        (0, "main"), (1, "main"), (1, "tune"), (2, "main"), (2, "tune"),
    ]  # fmt: skip
    for at in (1, 3):
        (_, _, before), (_, phase, after) = notes[at], notes[at + 1]
        assert differing(before, after) == ["head.scale", "head.weight"]
        assert (before["head.weight"] != after["head.weight"]).any(1).all()
        assert phase.data.counts() == {1: dict.fromkeys(range(4), 5), 3: dict.fromkeys(range(6), 2)}[at]
        assert (phase.epochs, phase.lr, phase.schedule) == (3, 0.5, "cosine")


def test_without_exemplars_there_is_no_tuning(learn):
    done = learn("lucir", budget=Budget(exemplars=0), hyperparameters={"tune_epochs": 3}, recipe=ONE_STEP)
    assert {line["phase"] for line in done.record.lines() if line["kind"] == "epoch"} == {"main"}


# what it is without its terms ---------------------------------------------------------------------------------------


class CosineReplay(Replay):
    def build_net(self):
        return self.make_net(head="cosine")


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_without_both_terms_it_is_replay_on_a_cosine_head_bit_for_bit(learn, stream):
    replay, none = learn(CosineReplay, stream), learn("lucir", stream, hyperparameters=OFF)
    for index in range(3):
        assert differing(dict(replay.state(index).tensors), dict(none.state(index).tensors)) == []
        assert not [name for name in none.trained_with(index) if name.startswith("teacher")]
    for more in ({"strength": 5.0}, {"ranking": 1.0}):
        other = learn("lucir", stream, hyperparameters=OFF | more)
        assert not differing(replay.net(0), other.net(0)) and differing(replay.net(1), other.net(1))


def test_carried_bytes_are_those_of_the_formula(learn):
    """4 (P + d C + 1), 4 B, and floor(M / C) exemplars a class."""
    done = learn("lucir")
    backbone = done.learner(0).net.backbone
    p, b = count_parameters(backbone), sum(buffer.numel() for buffer in backbone.buffers())
    for index, held in enumerate((10, 8, 6)):
        expected = {"parameters": 4 * (p + 32 * 2 * (index + 1) + 1), "buffers": 4 * b}
        assert done.ledger(index) == expected | {"exemplars": PIXELS * held, "labels": held}
        assert done.state(index).meta == {}
