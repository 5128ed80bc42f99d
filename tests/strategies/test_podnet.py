"""PODNet: pooled maps and features distilled, proxies of old classes held, tuned on a balanced set."""

import math

import pytest
import torch
from small_runs import ONE_STEP, PIXELS, bare, batch, bits, differing, observed, signatures
from torch import nn

from cil.errors import ConfigError
from cil.memory import Budget, herd
from cil.models import CosineHead, Output, extract
from cil.models.base import count_parameters
from cil.strategies.parts import balanced_set
from cil.strategies.parts.heads import freeze_rows
from cil.strategies.podnet import PODNet, nca, pod_spatial
from cil.streams import Experience
from cil.testing import toy_stream

Z = [[0.9, 0.1, 0.3]]
NO_TUNING = {"tune_epochs": 0}


def tensor(values):
    return torch.tensor(values)


class Given(nn.Module):
    """A network of fixed logits, features and maps, under a head of some scale."""

    def __init__(self, logits, features=((1.0, 0.0),), stages=(), scale=1.0):
        super().__init__()
        self.logits, self.features = nn.Parameter(tensor(logits)), nn.Parameter(tensor(features))
        self.maps = [tensor(stage) for stage in stages]
        self.head = CosineHead(2)
        nn.init.constant_(self.head.scale, scale)

    def forward(self, images):
        return Output(self.logits, self.features, tuple(self.maps))


def loss_of(net, *slots, teacher=None, old=0, classes=3, **hyperparameters):
    learner = bare("podnet", **hyperparameters)
    learner.net, learner.teacher, learner.old_classes, learner.num_classes = net, teacher, old, classes
    return learner.loss(batch(*slots))


# classification -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("margin", "on_all", "expected"), [(0.6, False, 0.598139), (0.0, False, -0.001861), (0.6, True, 0.692217)]
)
def test_the_loss_of_logits_09_01_03_by_hand(margin, on_all, expected):
    assert nca(tensor(Z), tensor([0]), margin, on_all).item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_of_both_public_codes_is_the_default():
    assert loss_of(Given(Z), 0)["classes"].item() == pytest.approx(0.692217, abs=1e-6)
    assert loss_of(Given(Z), 0, margin_on="target")["classes"].item() == pytest.approx(0.598139, abs=1e-6)


def test_by_default_the_loss_is_never_below_0_and_lets_go_of_what_is_told_apart():
    generator = torch.Generator().manual_seed(0)
    wild = Given((50 * torch.randn(200, 5, generator=generator)).tolist())
    slots = torch.randint(5, (200,), generator=generator).tolist()
    each = nca(wild.logits, tensor(slots), 0.6, on_all=True)
    assert each.min() >= 0 and loss_of(wild, *slots)["classes"] == each.mean()
    for gap in (0.5, 20.0):  # of the own logit above two others: log(1 + 2 exp(-gap))
        net, others = Given([[gap, 0.0, 0.0]]), 2 * math.exp(-gap)
        loss_of(net, 0)["classes"].backward()
        assert -net.logits.grad[0, 0].item() == pytest.approx(others / (1 + others), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("given", "bounded"),
    [
        ({}, True),
        ({"margin_on": "similarity", "hinge": True}, True),
        ({"margin_on": "similarity"}, False),
        ({"margin_on": "target"}, False),
    ],
)
def test_a_loss_without_lower_bound_is_warned_of(given, bounded):
    assert any("no lower bound" in warning for warning in bare("podnet", **given).warnings) != bounded
    loss = loss_of(Given([[1e3, 0.0, 0.0]], scale=1e3), 0, **given)["classes"]
    assert (loss >= 0) == bounded


def test_a_margin_that_cancels_is_warned_of_where_it_was_asked_for():
    given = [{}, {"margin": 0.2}, {"margin": 0.2, "margin_on": "similarity", "hinge": True}]
    told = [any("margin=0.2 has no effect" in warning for warning in bare("podnet", **one).warnings) for one in given]
    assert told == [False, True, False]


def test_the_papers_margin_moves_the_scale_until_the_gap_is_as_wide():
    """sigma (s_y - delta) under the hinge: d loss / d sigma is delta while the loss is above 0, and 0 after it."""
    for logits, teaches in ((Z, 0.6), ([[9.0, 0.1, 0.3]], 0.0)):
        net = Given(logits, scale=3.0)
        loss_of(net, 0, margin_on="similarity", hinge=True)["classes"].backward()
        assert net.head.scale.grad.item() == pytest.approx(teaches, abs=1e-6)


def test_where_every_logit_has_the_margin_it_cancels_and_a_wrong_target_counts_as_one():
    one, other = (nca(tensor(Z), tensor([1]), margin, on_all=True).item() for margin in (0.0, 5.0))
    # own logit 0.1, shifted by 0.9: -0.8 above; below 1 for the largest, exp(0) for the own one, exp(-0.6)
    assert one == other == pytest.approx(0.8 + math.log(1 + 1 + math.exp(-0.6)), abs=1e-6)


def test_on_similarities_the_margin_grows_with_the_scale_and_teaches_it():
    net = Given(Z, scale=3.0)
    loss = loss_of(net, 0, margin_on="similarity")["classes"]
    assert loss.item() == pytest.approx(-0.001861 + 3 * 0.6, abs=1e-6)
    loss.backward()
    assert net.head.scale.grad.item() == pytest.approx(0.6, abs=1e-6)


def test_the_loss_is_the_mean_of_the_images_each_at_least_0_with_a_hinge():
    two = Given([[0.9, 0.1, 0.3], [5.0, 0.0, 0.0]])
    easy = -(5 - 0.6) + math.log(2)
    target = {"margin_on": "target"}
    assert loss_of(two, 0, 0, **target)["classes"].item() == pytest.approx((0.598139 + easy) / 2, abs=1e-6)
    assert loss_of(two, 0, 0, **target, hinge=True)["classes"].item() == pytest.approx(0.598139 / 2, abs=1e-6)


def test_a_single_class_costs_nothing_and_has_finite_gradients():
    net = Given([[0.7], [-0.2]])
    loss = loss_of(net, 0, 0, classes=1)["classes"]
    loss.backward()
    assert loss.item() == 0 and not net.logits.grad.any()


# distillation -------------------------------------------------------------------------------------------------------

MAP = [[[[1.0, -2.0], [3.0, 4.0]]]]  # squares 1 4 9 16: 5 25 over W, 10 20 over H; length sqrt(1150)
POINT = [[[[1.0, 0.0], [0.0, 0.0]]]]  # 1 0 and 1 0; length sqrt(2)
COSINE = 15 / math.sqrt(1150 * 2)


def test_pooled_squares_are_summed_over_each_side_and_compared_at_unit_length():
    expected = math.sqrt(2 - 2 * COSINE)
    assert pod_spatial([tensor(MAP)], [tensor(POINT)]).item() == pytest.approx(expected, abs=1e-6)
    assert pod_spatial([7 * tensor(MAP)], [-tensor(POINT)]).item() == pytest.approx(expected, abs=1e-6)


def test_it_is_the_mean_over_images_and_stages():
    maps, points = tensor(MAP), tensor(POINT)
    both = pod_spatial([torch.cat([maps, points]), maps], [torch.cat([points, points]), maps])
    assert both.item() == pytest.approx(math.sqrt(2 - 2 * COSINE) / 4, abs=1e-6)


def test_a_non_square_map_of_two_channels_is_pooled_channel_by_channel():
    one, other = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3)
    one[0, 0, 1, 2], other[0, 1, 1, 2] = 2.0, 3.0  # the same place in another channel: nothing in common
    assert pod_spatial([one], [other]).item() == pytest.approx(math.sqrt(2), abs=1e-6)
    other[0, 0, 1, 0], other[0, 1] = 1.0, 0.0  # the same row in another column: one of two sums agrees
    assert pod_spatial([one], [other]).item() == pytest.approx(1.0, abs=1e-6)


def test_pooled_maps_are_never_further_apart_than_sqrt_2():
    for key in range(20):
        draw = torch.Generator().manual_seed(key)
        a, b = (torch.randn(4, 3, 5, 2, generator=draw) ** 3 for _ in range(2))
        assert 0 < pod_spatial([a], [b]).item() <= math.sqrt(2)


@pytest.mark.parametrize(("old", "classes", "factor"), [(50, 60, 2.449490), (2, 4, 1.414214), (6, 6, 2.449490)])
def test_distillation_weighs_sqrt_c_over_c_n(old, classes, factor):
    student, teacher = Given(Z, [[3.0, 4.0]], [MAP]), Given(Z, [[2.0, 0.0]], [POINT])
    terms = loss_of(student, 0, teacher=teacher, old=old, classes=classes)
    assert terms["spatial"].item() == pytest.approx(factor * 5 * math.sqrt(2 - 2 * COSINE), abs=1e-4)
    assert terms["flat"].item() == pytest.approx(factor * 0.4, abs=1e-5)
    terms = loss_of(student, 0, teacher=teacher, old=old, classes=classes, spatial=3.0, flat=0.5)
    assert terms["spatial"].item() == pytest.approx(factor * 3 * math.sqrt(2 - 2 * COSINE), abs=1e-4)
    assert terms["flat"].item() == pytest.approx(factor * 0.2, abs=1e-5)


def test_the_first_experience_is_classification_alone():
    assert loss_of(Given(Z, stages=[MAP]), 0).keys() == {"classes"}
    assert bare("podnet", classes=[2]).teacher is None


def test_a_network_without_maps_is_refused_or_distilled_by_features_alone():
    net = Given(Z)
    with pytest.raises(ConfigError, match=r"model\.options\.stages=true, or strategy\.spatial=0"):
        loss_of(net, 0, teacher=Given(Z))
    assert loss_of(net, 0, teacher=Given(Z), spatial=0.0).keys() == {"classes", "flat"}


def test_a_network_without_maps_is_refused_before_the_first_experience_is_trained():
    experience = Experience(signatures([2])[0], toy_stream()[0].train)
    for spatial in (5.0, 0.0):
        learner = bare("podnet", classes=[2], spatial=spatial)
        learner.net = Given(Z)
        if spatial:
            with pytest.raises(ConfigError, match=r"model\.options\.stages=true, or strategy\.spatial=0"):
                learner.prepare(experience)
        else:
            learner.prepare(experience)


def test_maps_are_compared_exactly_under_autocast_and_their_squares_do_not_overflow():
    g = torch.Generator().manual_seed(0)
    one = torch.randn(8, 16, 8, 8, generator=g).bfloat16()
    other = (one.float() + 0.01 * torch.randn(8, 16, 8, 8, generator=g)).bfloat16()
    exact = pod_spatial([one.float()], [other.float()]).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert pod_spatial([one], [other]).item() == pytest.approx(exact, rel=1e-4)
    large = 300 * tensor(MAP)
    assert pod_spatial([large.half()], [large.half()]).item() == 0


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_when_an_experience_begins_nothing_is_lost_yet(learn, stream):
    checked = []

    def see(when, learner, experience):
        if when == "prepared" and experience.index:
            learner.net.eval()
            terms = learner.loss(next(experience.train.batches(8)))
            assert abs(terms["spatial"].item()) < 1e-5 and abs(terms["flat"].item()) < 1e-5
            checked.append(experience.index)

    learn(observed("podnet", see), stream, recipe=ONE_STEP)
    assert checked == [1, 2]


# the head -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxies", [1, 4])
def test_logits_are_at_most_the_scale_and_one_proxy_is_a_plain_cosine_head(proxies):
    learner = bare("podnet", classes=[2, 3], proxies=proxies)
    learner.net.eval()
    with torch.no_grad():
        learner.net.head.scale.fill_(-3.0)
    output = learner.net(batch(*range(5)).images)
    assert learner.net.head.weight.shape == (5 * proxies, 32)
    assert output.logits.abs().max() <= 3.0 + 1e-5
    cosines = nn.functional.cosine_similarity(output.features[:, None], learner.net.head.weight[None], dim=2)
    if proxies == 1:
        torch.testing.assert_close(output.logits, -3 * cosines)
    else:  # each class has the mean of its own rows, weighed by their softmax
        rows = cosines[2, 3 * proxies : 4 * proxies]
        assert output.logits[2, 3].item() == pytest.approx(-3 * (rows.softmax(0) * rows).sum().item(), abs=1e-5)


class Watched(PODNet):
    """Notes the network at the start and after every phase, and what each phase is."""

    told: list  # set by a test: strategies are made anew for every experience

    def phases(self, experience):
        self.told.append((experience.index, "start", bits(self.net), None))
        for phase in super().phases(experience):
            yield phase
            self.told.append((experience.index, phase.name, bits(self.net), phase))


def watched(learn, stream="toy", **hyperparameters):
    kind = type("Watched", (Watched,), {"told": []})
    learn(kind, stream, hyperparameters=hyperparameters)
    found = {}
    for index, when, weights, phase in kind.told:
        found[index, when] = weights, phase
    return found


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_old_proxies_stay_bit_for_bit_in_the_main_phase_while_all_else_moves(learn, stream):
    found = watched(learn, stream, proxies=3)
    for index, old in ((1, {"toy": 2, "uneven": 3}[stream]), (2, 4)):
        before, after = found[index, "start"][0], found[index, "main"][0]
        assert torch.equal(before["head.weight"][: 3 * old], after["head.weight"][: 3 * old])
        assert (before["head.weight"][3 * old :] != after["head.weight"][3 * old :]).any(1).all()
        assert set(differing(before, after)) == set(before)


def test_the_balanced_phase_holds_old_proxies_too_or_moves_the_whole_head_alone(learn):
    found = watched(learn, proxies=3)
    for index in (1, 2):
        (before, _), (after, phase) = found[index, "main"], found[index, "tune"]
        assert set(differing(before, after)) == set(before)
        moved = (before["head.weight"] != after["head.weight"]).any(1)
        assert moved.tolist() == [False] * 6 * index + [True] * 6
        assert (phase.epochs, phase.lr, phase.schedule, phase.main) == (2, 0.005, "cosine", False)
    assert (0, "tune") not in found
    found = watched(learn, tuned="head")
    for index in (1, 2):
        before, after = found[index, "main"][0], found[index, "tune"][0]
        assert differing(before, after) == ["head.scale", "head.weight"]  # statistics stay too
        assert (before["head.weight"] != after["head.weight"]).any(1).all()


@pytest.mark.parametrize(("stream", "counts"), [
    ("toy", {1: [5] * 4, 2: [2] * 6}), ("uneven", {1: [3] * 4, 2: [2] * 6}),
])  # fmt: skip
def test_the_balanced_set_has_floor_m_over_c_o_of_each_class_herded_with_the_network_as_it_is(learn, stream, counts):
    checked = []

    def see(when, learner, experience):
        if when != "trained" or not experience.index:
            return
        held = {slot: learner.memory.of_class(slot).pixels for slot in range(learner.old_classes)}
        found = balanced_set(learner, experience)
        assert list(found.counts().values()) == counts[experience.index]
        for slot in range(learner.num_classes):
            expected = held.get(slot)
            if slot in experience.new_slots:
                images = experience.train.of_class(slot)
                features = extract(learner.net, images)
                rows = herd(features / features.norm(dim=1, keepdim=True), counts[experience.index][slot])
                expected = images[rows].pixels
            assert torch.equal(found.of_class(slot).pixels, expected)
        assert learner.memory.counts().keys() == held.keys()  # what is carried is not touched
        checked.append(experience.index)

    learn(observed("podnet", see), stream, recipe=ONE_STEP)
    assert checked == [1, 2]


def test_without_exemplars_or_epochs_there_is_no_balanced_phase(learn):
    for options in ({"budget": Budget(exemplars=0)}, {"hyperparameters": NO_TUNING}):
        done = learn("podnet", recipe=ONE_STEP, **options)
        assert {line["phase"] for line in done.record.lines() if line["kind"] == "epoch"} == {"main"}


# what it is without its terms ---------------------------------------------------------------------------------------


class Plain(PODNet):
    """Rehearsal with the classification loss and held proxies: no word of distillation or tuning."""

    def phases(self, experience):
        yield from super(PODNet, self).phases(experience)

    def loss(self, batch):
        return nca(self.net(batch.images).logits, batch.slots, 0.6, on_all=True).mean()

    def adjust_gradients(self, batch):
        pass

    def after_step(self, batch):
        if self.teacher is not None:
            freeze_rows(self.net.head.weight, self.teacher.head.weight)


def test_without_distillation_and_tuning_it_is_rehearsal_with_held_proxies_bit_for_bit(learn):
    off = {"spatial": 0.0, "flat": 0.0, "tune_epochs": 0}
    plain, none = learn(Plain), learn("podnet", hyperparameters=off)
    for index in range(3):
        assert differing(plain.net(index), none.net(index)) == []
    for more in ({"spatial": 5.0}, {"flat": 1.0}, {"tune_epochs": 1}):
        other = learn("podnet", hyperparameters=off | more)
        assert not differing(none.net(0), other.net(0)) and differing(none.net(1), other.net(1))


# what is carried ----------------------------------------------------------------------------------------------------


def test_carried_bytes_are_those_of_the_formula(learn):
    """4 (P + K d C + 1), 4 B, and floor(M / C) exemplars a class."""
    done = learn("podnet")
    backbone = done.learner(0).net.backbone
    p, b = count_parameters(backbone), sum(buffer.numel() for buffer in backbone.buffers())
    for index, held in enumerate((10, 8, 6)):
        c = 2 * (index + 1)
        expected = {"parameters": 4 * (p + 10 * 32 * c + 1), "buffers": 4 * b}
        assert done.ledger(index) == expected | {"exemplars": PIXELS * held, "labels": held}
        assert done.state(index).meta == {}
        survey = done.record.results["ledger"][index]["totals"]["survey"]
        assert survey["total"] == 4 * p + PIXELS * held


def test_an_experience_of_one_class_first_and_one_without_new_classes_are_learned():
    learner = bare("podnet", classes=[1, 2, 0])
    learner.teacher = bare("podnet", classes=[1, 2]).net
    terms = learner.loss(batch(0, 1, 2))
    assert all(term.isfinite() for term in terms.values())
    learner.prepare(Experience(signatures([1, 2, 0])[2], None))
    assert learner.old_classes == learner.num_classes == 3
