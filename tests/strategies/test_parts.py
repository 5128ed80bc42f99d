"""Losses, penalties and memory updates that strategies share, on numbers done by hand."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import bare, bits, differing, signatures
from torch import Tensor

from cil.data import Samples
from cil.engine.recipe import Recipe
from cil.memory import Allowance, Budget, ExemplarMemory
from cil.models import NetFactory, build_backbone, extract
from cil.strategies.parts import distillation, draw_batch, features, new_class_cross_entropy, store_exemplars
from cil.strategies.parts.importance import quadratic_penalty
from cil.streams import Experience, class_incremental
from cil.testing import toy_run, toy_stream
from cil.testing.toy import toy_dataset


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values)


def entropy(logits: Tensor, temperature: float) -> float:
    p = (logits.double() / temperature).softmax(1)
    return float(-(p * p.log()).sum(1).mean())


# distillation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "expected"),
    [([2.0, 0.0], 0.582203), ([0.0, 0.0], 0.693147), ([0.0, 2.0], 0.731059 * 1.313262 + 0.268941 * 0.313262)],
)
def test_distillation_from_a_teacher_of_logits_2_and_0_at_temperature_2(student, expected):
    assert distillation(rows(student), rows([2.0, 0.0])).item() == pytest.approx(expected, abs=1e-5)


def test_the_divergence_of_0_0_from_a_teacher_of_2_0_is_0110944():
    loss = distillation(rows([0.0, 0.0]), rows([2.0, 0.0]))
    assert loss.item() - entropy(rows([2.0, 0.0]), 2) == pytest.approx(0.110944, abs=1e-5)


def test_the_target_is_the_teachers_softmax_and_not_the_students():
    # softmax (1/2, 1/2) against log softmax of (1, 0): log(1 + e) - 1/2
    assert distillation(rows([2.0, 0.0]), rows([0.0, 0.0])).item() == pytest.approx(0.813262, abs=1e-5)


def test_the_temperature_softens_both_sides_and_multiplies_nothing():
    student, teacher = rows([1.0, -3.0, 0.5]), rows([2.0, 0.0, -1.0])
    for temperature in (1.0, 2.0, 4.0):
        p = [math.exp(z / temperature) for z in teacher[0].tolist()]
        q = [math.exp(z / temperature) for z in student[0].tolist()]
        by_hand = -sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
        assert distillation(student, teacher, temperature).item() == pytest.approx(by_hand, abs=1e-5)


def test_distillation_is_the_mean_over_the_batch():
    loss = distillation(rows([2.0, 0.0], [0.0, 0.0]), rows([2.0, 0.0], [2.0, 0.0]))
    assert loss.item() == pytest.approx((0.582203 + 0.693147) / 2, abs=1e-5)


matrices = st.lists(st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3), min_size=1, max_size=4)


@given(matrices, st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 5.0]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_distillation_is_least_and_flat_where_the_student_is_the_teacher(teacher, key, temperature):
    given_by_teacher = torch.tensor(teacher)
    own = given_by_teacher.clone().requires_grad_()
    at_teacher = distillation(own, given_by_teacher, temperature)
    at_teacher.backward()
    assert at_teacher.item() == pytest.approx(entropy(given_by_teacher, temperature), abs=1e-5)
    assert own.grad is not None and own.grad.abs().max() < 1e-6
    other = torch.randn(given_by_teacher.shape, generator=torch.Generator().manual_seed(key))
    assert distillation(other, given_by_teacher, temperature).item() >= at_teacher.item() - 1e-5


# cross-entropy over new outputs -------------------------------------------------------------------------------------


def test_new_class_cross_entropy_sees_the_new_outputs_alone():
    # over outputs (1, 3), the second is right: log(1 + e^-2)
    loss = new_class_cross_entropy(rows([9.0, 1.0, 3.0]), torch.tensor([2]), old_classes=1)
    assert loss.item() == pytest.approx(0.126928, abs=1e-5)


def test_new_class_cross_entropy_is_over_all_outputs_while_none_is_old():
    # -log softmax(0, 1, 3) of the second: log(1 + e + e^3) - 1
    loss = new_class_cross_entropy(rows([0.0, 1.0, 3.0]), torch.tensor([1]), old_classes=0)
    assert loss.item() == pytest.approx(2.169846, abs=1e-5)


def test_old_logits_get_exactly_no_gradient_and_new_ones_softmax_minus_target():
    logits = rows([9.0, 1.0, 3.0], [-4.0, 0.0, 0.0]).requires_grad_()
    new_class_cross_entropy(logits, torch.tensor([2, 1]), old_classes=1).backward()
    assert logits.grad is not None
    assert logits.grad[:, 0].tolist() == [0.0, 0.0]
    assert logits.grad[:, 1:].flatten().tolist() == pytest.approx([0.059601, -0.059601, -0.25, 0.25], abs=1e-5)


# the quadratic penalty ----------------------------------------------------------------------------------------------


def test_the_penalty_is_importance_times_squared_distance_over_the_old_rows_of_a_grown_head():
    anchor = {"head": rows([1.0, 2.0]), "bias": torch.tensor([0.5])}
    importance = {"head": rows([2.0, 3.0], [7.0, 7.0]), "bias": torch.tensor([10.0, 7.0])}
    weights = {"head": rows([1.5, 1.0], [99.0, 99.0]).requires_grad_(), "bias": torch.tensor([0.7, 99.0])}
    penalty = quadratic_penalty(weights, anchor, importance)  # 2 * 0.25 + 3 * 1 + 10 * 0.04
    assert penalty.item() == pytest.approx(3.9, abs=1e-5)
    penalty.backward()
    assert weights["head"].grad.tolist() == [[2.0, -6.0], [0.0, 0.0]]


def test_a_tensor_that_grew_in_both_directions_is_penalised_in_its_old_corner():
    weights, importance = {"w": torch.ones(3, 4)}, {"w": torch.full((3, 4), 2.0)}
    assert quadratic_penalty(weights, {"w": torch.zeros(2, 1)}, importance).item() == 4.0


def test_a_scalar_is_penalised_too_and_without_anchors_nothing_is():
    scalar = {"scale": torch.tensor(3.0)}
    assert quadratic_penalty(scalar, {"scale": torch.tensor(1.0)}, {"scale": torch.tensor(0.5)}).item() == 2.0
    assert quadratic_penalty(scalar, {}, {}).item() == 0.0


def test_where_nothing_moved_penalty_and_gradient_are_exactly_zero():
    weights = {"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()}
    anchor, importance = {"w": weights["w"].detach()[:2].clone()}, {"w": torch.full((4, 3), 1e-4)}
    penalty = quadratic_penalty(weights, anchor, importance)
    penalty.backward()
    assert penalty.item() == 0.0 and not weights["w"].grad.any()


# features and memories ----------------------------------------------------------------------------------------------


def images(count: int, slot: int) -> Samples:
    generator = torch.Generator().manual_seed(slot)
    pixels = torch.randint(0, 256, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)
    return Samples.from_arrays(pixels, torch.full((count,), slot))


def experience(samples: Samples, signature) -> Experience:
    return Experience(signature, samples)


def test_features_are_those_of_evaluation_mode_and_leave_the_network_as_it_was():
    learner = bare("replay", classes=[2])
    learner.net.train()
    before = bits(learner.net)
    seen = features(learner, images(5, 0))
    assert differing(before, bits(learner.net)) == [] and learner.net.training
    learner.net.eval()
    assert torch.equal(seen, learner.net(images(5, 0).images).features.detach())
    assert torch.equal(seen, extract(learner.net, images(5, 0)))


@pytest.mark.parametrize(
    ("slots", "held"), [(0, {}), (1, {}), (5, {0: 2, 1: 2}), (9, {0: 4, 1: 3}), (99, {0: 7, 1: 3})]
)
def test_memories_hold_floor_m_over_c_of_each_class_and_small_classes_whole(slots, held):
    learner = bare("replay", classes=[2], budget=Budget(exemplars=slots))
    (signature,) = signatures([2])
    store_exemplars(learner, experience(images(7, 0) + images(3, 1), signature))
    assert learner.memory.counts() == held


def test_exemplars_of_variable_size_keep_old_classes_that_are_larger_than_any_new_one():
    learner = bare("replay", classes=[1], budget=Budget(limits=[10**6]), codec="jpeg:50")
    first, second = signatures([1, 1])
    store_exemplars(learner, experience(images(9, 0), first))
    learner.grow(second)
    store_exemplars(learner, experience(images(4, 1), second))
    assert learner.memory.counts() == {0: 9, 1: 4}


def test_exemplars_of_variable_size_are_held_to_a_count_as_well():
    learner = bare("replay", classes=[2], budget=Budget(exemplars=6, limits=[10**6]), codec="jpeg:50")
    (signature,) = signatures([2])
    store_exemplars(learner, experience(images(9, 0) + images(9, 1), signature))
    assert learner.memory.counts() == {0: 3, 1: 3}


def test_exemplars_of_variable_size_fill_the_bytes_that_are_left_by_their_actual_size():
    learner = bare("replay", classes=[2], codec="jpeg:50")
    learner.image_shape = (3, 48, 48)  # 6,912 bytes raw, under a thousand as a plain JPEG
    pixels = torch.arange(18, dtype=torch.uint8)[:, None, None, None].expand(18, *learner.image_shape) * 10
    pool = Samples.from_arrays(pixels.contiguous(), torch.tensor([0, 1] * 9))
    whole = ExemplarMemory("jpeg:50")
    whole.replace([pool])
    size = sum(tensor.numel() * tensor.element_size() for tensor, _ in whole.tensors(2).values())
    assert size < 18 * 1000
    (signature,) = signatures([2])
    for spare, held in ((0, {0: 9, 1: 9}), (-1, {0: 9, 1: 8})):
        learner.memory = ExemplarMemory("jpeg:50")
        learner.budget = Allowance(Budget(limits=[learner.fixed_bytes() + size + spare]))
        store_exemplars(learner, experience(pool, signature))
        assert learner.memory.counts() == held
        assert learner.state().bytes <= learner.budget.limit


# exemplars of which there is one ------------------------------------------------------------------------------------


class Normed(torch.nn.Module):
    """Maps of one pixel, so that batch statistics of one image are undefined."""

    feature_dim, survey_parameters = 3, 12

    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(3, 3), torch.nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(self.layer(images.mean((2, 3)))[:, :, None, None]).flatten(1), ()


@pytest.mark.parametrize("name", ["agem", "derpp", "er_ace"])
def test_a_single_exemplar_can_be_rehearsed_on_maps_of_one_pixel(tmp_path, name):
    stream = class_incremental(toy_dataset(), increment=1, classes=3)
    run = toy_run(name, stream, tmp_path / "run", budget=Budget(exemplars=1), recipe=Recipe(epochs=1, batch_size=8))
    run.work.learners.make_factory = partial(NetFactory, Normed)
    assert run.execute().results["exemplars"][:1] == [1]


def test_a_single_sample_is_drawn_twice_and_several_once_each():
    learner = bare("er_ace", classes=[2])
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 12, 12)
    samples = Samples.from_arrays(pixels.clone(), torch.tensor([0, 1, 0, 1]))
    one = draw_batch(learner, samples[[3]], 5, "x")
    assert one.slots.tolist() == [1, 1] and torch.equal(*one.images)
    assert draw_batch(learner, samples, 1, "x").slots.shape == (2,)
    assert draw_batch(learner, samples[[]], 5, "x") is None
    several = draw_batch(learner, samples, 3, "x")
    assert len(several) == 3 and len(several.images.flatten(1).unique(dim=0)) == 3


# weights that do not learn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ewc", "si", "mas"])
def test_frozen_weights_have_no_importance_and_stay(tmp_path, name):
    def half_frozen():
        backbone = build_backbone("smallconv", 3, 12)
        backbone.stages[0].requires_grad_(False)
        return backbone

    run = toy_run(name, toy_stream(), tmp_path / "run", keep="all")
    run.work.learners.make_factory = partial(NetFactory, half_frozen)
    run.execute()
    start, tensors = run.work.learners.rebuilt(0, None).net.state_dict(), run.checkpoints.state(2).tensors
    importance = [key.split(".", 1)[1] for key in tensors if key.startswith(("fisher.", "importance."))]
    assert any("stages.1." in key for key in importance) and not any("stages.0." in key for key in importance)
    for key in ("backbone.stages.0.0.weight", "backbone.stages.0.0.bias"):
        assert torch.equal(tensors[f"net.{key}"], start[key])
    assert not torch.equal(tensors["net.backbone.stages.1.0.weight"], start["backbone.stages.1.0.weight"])
