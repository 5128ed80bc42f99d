"""Coil: optimal transport between class means, in both directions, on a cosine head."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import Fixed, bare, batch, bits, differing, observed, regrouped, signatures

from cil.contract import Progress
from cil.data import Samples
from cil.engine.recipe import Recipe
from cil.memory import Budget
from cil.models import CosineHead, extract
from cil.models.base import count_parameters
from cil.strategies.coil import Coil, cosines, transport_plan, transport_rows
from cil.streams import Experience
from cil.testing import toy_stream
from cil.testing.toy import toy_factory

# transport ----------------------------------------------------------------------------------------------------------


def test_the_plan_of_two_by_two_by_hand():
    plan = transport_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), 0.464)
    expected = torch.tensor([[0.448076, 0.051924], [0.051924, 0.448076]], dtype=torch.float64)
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 2), (5, 2), (3, 7), (1, 4), (4, 1), (90, 10)])
@pytest.mark.parametrize("regulariser", [0.05, 0.464, 10.0])
def test_rows_and_columns_of_a_plan_sum_to_uniform_marginals_of_mass_1(shape, regulariser):
    cost = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    plan = transport_plan(cost, regulariser)
    assert plan.shape == shape and (plan >= 0).all()
    torch.testing.assert_close(plan.sum(1), torch.full(shape[:1], 1 / shape[0], dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(plan.sum(0), torch.full(shape[1:], 1 / shape[1], dtype=torch.float64), rtol=0, atol=1e-8)


def test_a_plan_is_a_scaling_of_its_kernel():
    """What makes it the cheapest: log G + Q / regulariser is a sum of a row's and a column's number."""
    cost = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).double()
    potential = transport_plan(cost, 0.464).log() + cost / 0.464
    interaction = potential - potential[:1] - potential[:, :1] + potential[0, 0]
    assert interaction.abs().max() < 1e-9


def test_a_large_regulariser_gives_the_product_of_the_marginals_and_a_small_one_the_cheapest_pairs():
    cost = torch.tensor([[3.0, 1.0, 2.0], [1.0, 5.0, 4.0], [2.0, 2.5, 0.0]])
    torch.testing.assert_close(transport_plan(cost, 1e7), torch.full((3, 3), 1 / 9).double(), rtol=0, atol=1e-6)
    pairs = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).double() / 3
    torch.testing.assert_close(transport_plan(cost, 0.01), pairs, rtol=0, atol=1e-6)


def test_transported_rows_are_the_directions_of_the_classes_nearby_at_the_mean_norm():
    weights = torch.tensor([[0.0, 0.0, 8.0], [2.0, 0.0, 0.0]])  # mean norm 5
    means = torch.eye(3)[:2]
    rows = transport_rows(weights, means, means.flip(0), 0.01, 3.0)
    torch.testing.assert_close(rows, torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 5.0]]), rtol=0, atol=1e-5)


def test_transported_rows_mix_by_the_plan():
    """Distance 2^(1/3) between two axes in the 3-norm, so shares of 1 / (1 + exp(-2^(1/3) / 0.464)) and the rest."""
    weights, means = torch.tensor([[7.0, 0.0], [0.0, 7.0]]), torch.eye(2)
    share = 1 / (1 + math.exp(-(2 ** (1 / 3)) / 0.464))
    rows = transport_rows(weights, means, means, 0.464, 3.0)
    direction = torch.tensor([share, 1 - share]) / math.hypot(share, 1 - share)
    torch.testing.assert_close(rows, 7 * torch.stack([direction, direction.flip(0)]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(2, 5), (5, 2), (1, 3), (3, 1)])
def test_the_mean_norm_of_transported_rows_is_that_of_the_rows_they_come_from(old, new):
    g = torch.Generator().manual_seed(0)
    weights, means = torch.rand(old, 6, generator=g), F.normalize(torch.rand(old, 6, generator=g))
    rows = transport_rows(weights, means, F.normalize(torch.rand(new, 6, generator=g)), 0.464, 3.0)
    assert rows.shape == (new, 6)
    assert rows.norm(dim=1).mean().item() == pytest.approx(weights.norm(dim=1).mean().item(), rel=1e-5)


def test_autocast_does_not_round_what_is_transported():
    g = torch.Generator().manual_seed(0)
    weights, means = torch.randn(4, 6, generator=g), F.normalize(torch.randn(4, 6, generator=g))
    expected = transport_rows(weights, means, means[:3].flip(1), 0.464, 3.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = transport_rows(weights, means, means[:3].flip(1), 0.464, 3.0)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


# the loss -----------------------------------------------------------------------------------------------------------


def set_up(epoch=0, epochs=4, **hyperparameters):
    """Three classes, two of them old; logits (2, 0, 3) and (2, 0) by the teacher; features along the first axis."""
    learner = bare("coil", classes=[2, 1], **hyperparameters)
    learner.net, learner.teacher = Fixed([[2.0, 0.0, 3.0]], [[4.0, 0.0]]), Fixed([[2.0, 0.0]])
    learner.old_share, learner.rehearsed = 2 / 3, [0, 1]
    learner.forward_rows = torch.tensor([[0.0, 5.0]])
    learner.backward_rows = torch.tensor([[3.0, 0.0], [0.0, 2.0]])  # cosines 1 and 0
    learner.refreshed = [epoch, 0]
    learner.progress = Progress(epoch, epochs, 1, 10)
    return learner


def test_classes_and_distillation_have_the_shares_of_new_and_old_classes():
    terms = set_up().loss(batch(0))
    assert terms["classes"].item() == pytest.approx(1.349012 / 3, abs=1e-5)  # log(e^2 + 1 + e^3) - 2
    assert terms["distillation"].item() == pytest.approx(0.582203 * 2 / 3, abs=1e-5)


def test_in_the_first_epoch_new_logits_are_drawn_to_the_cosines_with_the_transported_rows():
    learner = set_up(prospective=0.1)
    learner.old_share = 1 / 3
    learner.net, learner.teacher = Fixed([[2.0, 1.0, 3.0]], [[0.0, 4.0]]), Fixed([[2.0]])
    learner.old_classes = 1
    learner.forward_rows = torch.tensor([[0.0, 5.0], [1.0, 0.0]])  # cosines 1 and 0: target shares by 0.5 and 0
    share = 1 / (1 + math.exp(-0.5))
    logs = [z / 2 - math.log(math.exp(0.5) + math.exp(1.5)) for z in (1.0, 3.0)]
    terms = learner.loss(batch(0))
    assert terms.keys() == {"classes", "distillation", "prospective"}
    assert terms["prospective"].item() == pytest.approx(-0.1 * (share * logs[0] + (1 - share) * logs[1]), abs=1e-6)
    given = [learner.net.logits, learner.net.features]
    reached = torch.autograd.grad(terms["prospective"], given, allow_unused=True)
    assert reached[1] is None and reached[0][0, 0] == 0 != reached[0][0, 1]  # the target stays put


@pytest.mark.parametrize(("epoch", "epochs"), [(1, 4), (3, 4), (1, 10)])
def test_in_later_epochs_features_answer_for_old_classes_by_the_transported_rows(epoch, epochs):
    learner = set_up(epoch, epochs, retrospective=0.5)
    terms = learner.loss(batch(0))
    assert terms.keys() == {"classes", "distillation", "retrospective"}
    teacher = 1 / (1 + math.exp(-1))  # (2, 0) at temperature 2
    log = -math.log(1 + math.exp(-0.5))  # cosines (1, 0) at temperature 2
    expected = -(teacher * log + (1 - teacher) * (log - 0.5))
    assert terms["retrospective"].item() == pytest.approx(0.5 * (epoch / epochs) ** 2 * expected, abs=1e-6)
    given = [learner.net.logits, learner.net.features]
    reached = torch.autograd.grad(terms["retrospective"], given, allow_unused=True)
    assert reached[0] is None and reached[1].abs().sum() > 0


def test_old_classes_without_exemplars_are_left_out_of_the_retrospective_term():
    learner = set_up(1, retrospective=1.0)
    learner.teacher = Fixed([[2.0, 9.0, 0.0]])
    learner.net = Fixed([[2.0, 0.0, 1.0, 3.0]], [[4.0, 0.0]])
    learner.old_classes, learner.num_classes, learner.rehearsed = 3, 4, [0, 2]
    expected = set_up(1, retrospective=1.0).loss(batch(0))["retrospective"].item()
    assert learner.loss(batch(0))["retrospective"].item() == pytest.approx(expected, abs=1e-6)


def test_the_first_experience_is_cross_entropy_alone():
    learner = bare("coil", classes=[2])
    learner.prepare(Experience(signatures([2])[0], toy_stream()[0].train))
    images = batch(0, 1)
    expected = F.cross_entropy(learner.net(images.images).logits, images.slots)
    assert torch.equal(learner.loss(images), expected)


@pytest.mark.parametrize("weight", ["prospective", "retrospective"])
def test_a_weight_of_0_trains_as_without_the_term(learn, weight):
    class Without(Coil):
        def loss(self, batch):
            found = super().loss(batch)
            return {k: v for k, v in found.items() if k != weight} if isinstance(found, dict) else found

    strong = {"prospective": 1.0, "retrospective": 1.0}
    zero = learn("coil", hyperparameters=strong | {weight: 0.0})
    without, full = learn(Without, hyperparameters=strong), learn("coil", hyperparameters=strong)
    for index in range(3):
        assert differing(zero.net(index), without.net(index)) == []
        assert bool(differing(zero.net(index), full.net(index))) == (index > 0)


# shares of old and new classes --------------------------------------------------------------------------------------


def test_the_share_of_old_classes_follows_uneven_experiences(learn):
    shares = []

    def see(when, learner, experience):
        if when == "done":
            shares.append(learner.old_share)

    learn(observed("coil", see), "uneven")
    assert shares == pytest.approx([0, 3 / 4, 4 / 6])


def test_old_classes_that_bring_images_again_count_as_new_ones(learn):
    shares, rows = [], []

    def see(when, learner, experience):
        if when == "done":
            shares.append(learner.old_share)
            rows.append(learner.forward_rows is not None)

    learn(observed("coil", see), regrouped((0, 1), (2, 3), (4, 5)))
    assert shares == pytest.approx([0, 1 / 2, 2 / 3]) and rows == [False, True, True]
    learner = bare("coil", classes=[2, 2])
    learner.teacher = learner.net
    train = toy_stream()[0].train
    again = Samples.from_arrays(train.pixels[:9], torch.tensor([1, 1, 1, 2, 2, 2, 3, 3, 3]))
    learner.prepare(Experience(signatures([2, 2])[1], again))
    assert learner.old_share == 1 / 4 and learner.rehearsed == [1]


# prospective transport ----------------------------------------------------------------------------------------------


def plan_by_scaling(cost, regulariser):
    """Sinkhorn's iteration on the kernel itself: another way to the same plan."""
    kernel = (-cost / regulariser).exp()
    v = torch.ones(cost.shape[1], dtype=torch.float64)
    for _ in range(2000):
        u = 1 / cost.shape[0] / (kernel @ v)
        v = 1 / cost.shape[1] / (kernel.T @ u)
    return u[:, None] * kernel * v


def unit_mean(net, samples):
    """By hand: the unit mean of unit features."""
    features = extract(net, samples).double()
    mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_new_rows_start_where_transport_takes_the_old_ones(learn, stream):
    done = learn("coil", stream)
    seen = []

    def see(when, learner, experience):
        if when != "prepared" or not experience.index:
            return
        before = done.learner(experience.index - 1)  # nothing but exemplars of old classes
        old, new = before.num_classes, experience.signature.new_slots
        a = torch.stack([unit_mean(before.net, before.memory.of_class(slot)) for slot in range(old)])
        b = torch.stack([unit_mean(before.net, experience.train.of_class(slot)) for slot in new])
        cost = ((a[:, None] - b[None]).abs() ** 3).sum(2) ** (1 / 3)
        weight = before.net.head.weight.detach().double()
        rows = plan_by_scaling(cost, 0.464).T @ F.normalize(weight)
        rows = rows / rows.norm(dim=1).mean() * weight.norm(dim=1).mean()
        found = learner.net.head.weight.detach()
        torch.testing.assert_close(found[old:].double(), rows, rtol=1e-4, atol=1e-6)
        assert torch.equal(found[old:], learner.forward_rows) and torch.equal(found[:old], before.net.head.weight)
        seen.append(experience.index)

    learn(observed("coil", see), stream)
    assert seen == [1, 2]


def test_transport_draws_on_old_classes_with_exemplars_alone():
    learner = bare("coil", classes=[2, 2])
    learner.teacher = learner.net
    with torch.no_grad():
        learner.net.head.weight[0] = 1e6  # of a class without exemplars: it must not be heard
    stream = toy_stream()
    learner.memory.add(1, stream[0].train.of_class(1))
    learner.prepare(Experience(signatures([2, 2])[1], stream[1].train))
    assert learner.rehearsed == [1]
    row = learner.net.head.weight[1]
    torch.testing.assert_close(learner.net.head.weight[2:], torch.stack([row, row]))


def test_without_any_exemplar_new_rows_start_as_any_head_does_and_nothing_is_transported(learn):
    seen = []

    def see(when, learner, experience):
        if when == "prepared" and experience.index:
            assert learner.forward_rows is None
            assert learner.net.head.weight[learner.old_classes :].abs().max() <= 32**-0.5
        if when == "done":
            assert learner.backward_rows is None
            seen.append(experience.index)

    done = learn(observed("coil", see), budget=Budget(exemplars=1))
    assert seen == [0, 1, 2]
    lines = [line["values"] for line in done.record.lines() if line["kind"] == "epoch"]
    assert not any({"prospective", "retrospective"} & line.keys() for line in lines)


# retrospective transport --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refresh", [1, 3, 200])
def test_old_rows_are_transported_at_the_start_of_each_epoch_but_the_first_and_every_so_many_steps(learn, refresh):
    calls = []

    class Counting(Coil):
        @torch.no_grad()
        def _rows_of_old_classes(self):
            before = self.backward_rows
            rows = super()._rows_of_old_classes()
            if rows is not before:
                calls.append((self.progress.epoch, self.progress.step))
            return rows

    recipe = Recipe(epochs=3, batch_size=8, log_every=1)
    learn(Counting, recipe=recipe, hyperparameters={"refresh": refresh})
    steps = {1: 34, 2: 32}  # images: 24 and the exemplars of 2 or 4 classes, 10 and 8
    expected = []
    for images in steps.values():
        count = math.ceil(images / 8)
        expected += [(e, e * count + s) for e in (1, 2) for s in range(0, count, refresh)]
    assert calls == expected


def test_transported_old_rows_are_those_of_the_network_as_it_is(learn):
    """New rows as they are now, means by the backbone as it is now, and the plan from new to old."""
    seen = []

    class Watching(Coil):
        @torch.no_grad()
        def _rows_of_old_classes(self):
            before = self.backward_rows
            rows = super()._rows_of_old_classes()
            if rows is not before:
                old = self.old_classes
                a = torch.stack([unit_mean(self.net, self.memory.of_class(slot)) for slot in range(old)])
                new = range(old, self.num_classes)
                b = torch.stack([unit_mean(self.net, self.data.of_class(slot)) for slot in new])
                cost = ((b[:, None] - a[None]).abs() ** 3).sum(2) ** (1 / 3)
                weight = self.net.head.weight.double()[old:]
                expected = plan_by_scaling(cost, 0.464).T @ F.normalize(weight)
                expected = expected / expected.norm(dim=1).mean() * weight.norm(dim=1).mean()
                torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-6)
                assert self.net.training and rows.shape == (old, 32) and not rows.requires_grad
                seen.append(self.progress.step)
            return rows

    learn(Watching)
    assert len(seen) == 2


# what is carried ----------------------------------------------------------------------------------------------------


def test_carried_bytes_are_those_of_the_formula(learn):
    """4 (P + d C + 1) weights: a cosine head has a scale and no biases; nothing of the transport is carried."""
    done = learn("coil")
    backbone = toy_factory(done.stream, seed=0).backbone()
    p, b = count_parameters(backbone), sum(buffer.numel() for buffer in backbone.buffers())
    for index, held in enumerate([10, 8, 6]):
        c = 2 * (index + 1)
        expected = {"parameters": 4 * (p + 32 * c + 1), "buffers": 4 * b, "exemplars": 432 * held, "labels": held}
        assert done.ledger(index) == expected and done.state(index).meta == {}
        assert done.record.results["ledger"][index]["totals"]["survey"]["total"] == 4 * p + 432 * held
        lines = done.trained_with(index)
        assert lines.get("forward_rows", 0) == (4 * 32 * 2 if index else 0)
        assert lines.get("backward_rows", 0) == 4 * 32 * 2 * index


def test_the_head_is_a_cosine_head_whatever_the_model_says():
    learner = bare("coil", classes=[2])
    assert isinstance(learner.net.head, CosineHead)
    features = torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(cosines(features, torch.tensor([[10.0, 0.0], [0.0, 0.1]])), torch.tensor([[0.6, 0.8]]))


def test_the_teacher_does_not_move_with_the_network(learn):
    held = {}

    def see(when, learner, experience):
        if experience.index:
            held[when] = bits(learner.teacher)
            if when == "done":
                assert differing(held["before"], held["done"]) == []
                assert differing(held["done"], bits(learner.net))
                assert held["done"]["head.weight"].shape[0] == learner.old_classes

    learn(observed("coil", see))
    assert held
