"""GEM: gradients projected to where no old task's loss on its exemplars rises."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from small_runs import ONE_STEP, bare, batch, bits, differing, observed, signatures
from torch import Tensor

from cil.data import Samples
from cil.engine.recipe import Recipe
from cil.kinds.classes.subject import StrategySubject
from cil.memory import Budget
from cil.strategies.gem import GEM, nearest_in_cone, project
from cil.testing.rules import a_resumed_run_ends_where_the_straight_run_ends, same_seed_same_bits

# the projection -----------------------------------------------------------------------------------------------------


def projected(gradient: list[float], *rows: list[float], margin: float = 0.0) -> list[float] | None:
    found = project(torch.tensor(gradient), torch.tensor(rows), margin)
    return None if found is None else found.tolist()


@pytest.mark.parametrize(
    ("gradient", "expected"), [([-1.0, 1.0], [0.0, 1.0]), ([-1.0, -2.0], [0.0, 0.0]), ([2.0, -3.0], [2.0, 0.0])]
)
def test_the_quadrant_between_two_axes(gradient, expected):
    assert projected(gradient, [1.0, 0.0], [0.0, 1.0]) == pytest.approx(expected, abs=1e-6)


def test_the_dual_variables_of_minus_1_and_1_are_1_and_0():
    found = nearest_in_cone(torch.eye(2).double(), torch.tensor([-1.0, 1.0]).double())
    assert found.tolist() == pytest.approx([1.0, 0.0])


def test_without_a_violation_nothing_is_done():
    assert projected([1.0, 2.0], [1.0, 0.0], [0.0, 1.0]) is None
    assert projected([1.0, 0.0], [0.0, 1.0]) is None  # at a right angle
    assert projected([1.0, 0.0], [0.0, 0.0]) is None


def test_one_constraint_takes_away_the_part_against_it():
    # g - <g, g1> / |g1|^2 g1 with <g, g1> = -4 and |g1|^2 = 20
    assert projected([2.0, -2.0], [2.0, 4.0]) == pytest.approx([2.4, -1.2])


def test_constraints_that_hold_may_become_tight_and_slack_ones_do_not_pull():
    # <g, row 2> = 0.5 before; with row 1 alone it would be -0.5, so both are met with equality: only 0 is left in 2-D
    assert projected([-1.0, 0.5], [1.0, 0.0], [-1.0, -0.0]) == pytest.approx([0.0, 0.5])
    assert projected([-1.0, 3.0], [1.0, 0.0], [-1.0, 1.0]) == pytest.approx([0.0, 3.0])


def test_the_margin_is_added_to_every_dual_variable_after_a_violation_only():
    assert projected([-1.0, 1.0], [1.0, 0.0], [0.0, 1.0], margin=0.5) == pytest.approx([0.5, 1.5])
    assert projected([1.0, 1.0], [1.0, 0.0], [0.0, 1.0], margin=0.5) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_no_number_is_left_to_whoever_looks_for_it(bad):
    assert projected([-1.0, bad], [1.0, 1.0]) is None
    assert projected([-1.0, 1.0], [1.0, bad]) is None


def random_cases():
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        tasks, size = 1 + seed % 19, 5 + 7 * (seed % 6)
        rows = torch.randn(tasks, size, generator=generator) + torch.randn(size, generator=generator)
        if seed % 4 == 1:
            rows = torch.cat([rows, rows[:1], 2 * rows[-1:], torch.zeros(1, size)])  # singular
        if seed % 4 == 2:
            rows[0] *= 1e-6  # of other sizes
        if seed % 8 == 3:
            rows = torch.cat([rows, -rows[:1]])  # opposite
        yield rows, -rows.mean(0) * (seed % 3) + torch.randn(size, generator=generator)


def test_what_comes_out_is_in_the_cone_no_longer_than_before_and_the_nearest():
    met = 0
    for rows, gradient in random_cases():
        found = project(gradient, rows)
        if found is None:
            assert (rows @ gradient >= 0).all()
            continue
        met += 1
        norms = rows.norm(dim=1) * gradient.norm() + 1e-30
        assert ((rows @ found) / norms).min() > -1e-5
        assert found.norm() <= gradient.norm() * (1 + 1e-6)
        # the nearest in a cone: the step to it is at a right angle to it, and made of constraints alone
        assert abs(found @ (gradient - found)) <= 1e-5 * gradient.norm() ** 2
    assert met > 20


def test_the_dual_is_solved_as_a_quadratic_programme_solver_does():
    solvers = pytest.importorskip("qpsolvers")
    pytest.importorskip("quadprog")
    for rows, gradient in random_cases():
        wide, g = rows.double(), gradient.double()
        gram, products = wide @ wide.T, wide @ g
        if len(rows) > rows.shape[1] or torch.linalg.cond(gram) > 1e8:
            continue
        expected = solvers.solve_qp(gram.numpy(), products.numpy(), lb=0 * products.numpy(), solver="quadprog")
        torch.testing.assert_close(nearest_in_cone(gram, products), torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


# the gradients of old tasks -----------------------------------------------------------------------------------------


def with_exemplars(per_class: int = 3, **hyperparameters) -> GEM:
    """Three experiences of 2, 1 and 2 classes; exemplars of the first two."""
    learner = bare("gem", classes=[2, 1, 2], **hyperparameters)
    pixels = torch.randint(0, 256, (3 * per_class, 3, 12, 12), generator=torch.Generator().manual_seed(3)).byte()
    learner.memory.replace([Samples.from_arrays(pixels, torch.arange(3).repeat(per_class))])
    return learner


@pytest.mark.parametrize(("task", "start", "stop"), [(0, 0, 2), (1, 2, 3)])
def test_a_tasks_loss_is_cross_entropy_with_all_outputs_but_its_own_masked(task, start, stop):
    learner = with_exemplars(statistics="running")
    learner.net.train()
    own = learner.memory.samples()
    own = own[((own.slots >= start) & (own.slots < stop)).nonzero().flatten()]
    found = learner._gradient_of(start, stop)
    learner.net.eval()
    mask = torch.full((5,), -1e9)
    mask[start:stop] = 0
    loss = F.cross_entropy(learner.net(own.images).logits + mask, own.slots)
    expected = torch.cat([g.flatten() for g in learner.gradient(loss)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert bool(found.any()) == (task == 0)  # a task of one class has nothing to lose within itself


def test_tasks_are_the_experiences_that_brought_classes():
    learner = bare("gem", classes=[3, 1, 2])
    assert list(pairwise(learner.bounds)) == [(0, 3), (3, 4), (4, 6)]
    nothing_new = type(signatures([1])[0])(3, (), (1, 2), {1: 4, 2: 4}, (3, 12, 12), 6)
    learner.grow(nothing_new)
    assert list(pairwise(learner.bounds)) == [(0, 3), (3, 4), (4, 6)] and learner.old_classes == 6


def test_every_old_task_with_exemplars_is_a_row_and_the_one_that_is_learned_is_none(monkeypatch):
    learner = with_exemplars()
    asked = []
    real = GEM._gradient_of
    monkeypatch.setattr(GEM, "_gradient_of", lambda self, *task: asked.append(task) or real(self, *task))
    learner.loss(batch(3, 4)).backward()
    assert asked == [(0, 2), (2, 3)]
    learner.loss(batch(3, 4)).backward()  # the second batch of a step that accumulates
    learner.adjust_gradients(batch(3, 4))
    assert asked == [(0, 2), (2, 3)]
    assert learner.constraints.shape == (2, sum(p.numel() for p in learner.net.parameters()))
    learner.memory.replace([learner.memory.samples()[:3]])  # of the first task alone
    learner.loss(batch(3, 4))
    assert learner.constraints.shape[0] == 1


def test_running_statistics_see_old_tasks_in_one_pass_each_and_then_the_new_images(monkeypatch):
    monkeypatch.setattr("cil.strategies.gem.AT_ONCE", 2)
    learner = with_exemplars(4)
    learner.net.train()
    norm = next(m for m in learner.net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    sizes, means, expected = [], [], torch.zeros(norm.num_features)
    norm.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    norm.register_forward_hook(lambda module, given, out: means.append(given[0].detach().mean((0, 2, 3))))
    for _ in range(2):
        learner.loss(batch(3, 4, 3)).backward()
        learner.adjust_gradients(batch(3, 4, 3))
    assert sizes == [8, 4, 3] * 2  # two old tasks of two classes and one, then the batch
    for mean in means:  # the batch comes last, so that it has the most weight
        expected = (1 - norm.momentum) * expected + norm.momentum * mean
    torch.testing.assert_close(norm.running_mean, expected)


def test_many_exemplars_pass_in_parts_of_one_mean(monkeypatch):
    whole = with_exemplars(7, statistics="running")._gradient_of(0, 2)
    monkeypatch.setattr("cil.strategies.gem.AT_ONCE", 4)
    parts = with_exemplars(7, statistics="running")._gradient_of(0, 2)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("statistics", "moved"), [("batch", True), ("running", False)])
def test_running_statistics_see_exemplars_or_do_not(statistics, moved):
    learner = with_exemplars(statistics=statistics)
    learner.net.train()
    before = bits(learner.net)
    learner._gradient_of(0, 2)
    assert bool(differing(before, bits(learner.net))) == moved
    assert all(layer.training for layer in learner.net.modules())


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_a_single_exemplar_is_enough(statistics):
    learner = with_exemplars(1, statistics=statistics)
    learner.memory.replace([learner.memory.samples()[:1]])
    learner.net.train()
    found = learner._gradient_of(0, 2)
    assert found is not None and found.isfinite().all() and found.abs().sum() > 0


def test_a_random_batch_of_exemplars_is_another_one_at_every_step(monkeypatch):
    learner = with_exemplars(9, constraint_batch=4)
    drawn = []
    monkeypatch.setattr(learner, "gradient", lambda loss: [torch.zeros(1)])
    forward = learner.net.forward
    monkeypatch.setattr(learner.net, "forward", lambda images: drawn.append(images) or forward(images))
    learner.context.generator = lambda purpose: torch.Generator().manual_seed(sum(purpose.encode()))
    for _ in range(2):
        for learner.progress.step in (0, 1):
            learner._gradient_of(0, 2)
    assert [len(images) for images in drawn] == [4] * 4
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3]) and not torch.equal(drawn[0], drawn[1])


# runs ---------------------------------------------------------------------------------------------------------------


def flat(learner) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.trainable()])


class Watched(GEM):
    """Notes every step: products with the constraints before and after, and the gradients."""

    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]]

    def adjust_gradients(self, batch):
        before = flat(self)
        super().adjust_gradients(batch)
        assert int(batch.slots.min()) >= self.old_classes  # exemplars are never mixed in
        if self.constraints is not None:
            type(self).steps.append((self.constraints @ before, self.constraints @ flat(self), before, flat(self)))


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_no_step_goes_against_a_constraint_and_one_that_did_not_is_left_alone(learn, stream, statistics):
    Watched.steps = []
    learn(Watched, stream, hyperparameters={"statistics": statistics}, recipe=Recipe(epochs=4, batch_size=8))
    violated = [bool((before < 0).any()) for before, *_ in Watched.steps]
    assert 0 < sum(violated) < len(violated)
    for (_, after, old, new), was in zip(Watched.steps, violated, strict=True):
        assert torch.equal(old, new) != was or not old.any()
        assert after.min() >= -1e-5 * max(1, old.norm())
        assert new.norm() <= old.norm() * (1 + 1e-5)


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_without_exemplars_it_is_finetune_bit_for_bit_and_so_is_the_first_experience(learn, stream):
    plain, bound = learn("finetune", stream), learn("gem", stream)
    free = learn("gem", stream, budget=Budget(exemplars=0))
    for index in range(3):
        assert differing(plain.net(index), free.net(index)) == []
        assert bool(differing(plain.net(index), bound.net(index))) == (index > 0)


def test_the_main_phase_sees_new_data_alone(learn):
    def see(when, learner, experience):
        if when == "prepared":
            (phase,) = learner.phases(experience)
            assert torch.equal(phase.data.pixels, experience.train.pixels)
            assert (len(learner.memory) > 0) == (experience.index > 0)

    learn(observed("gem", see))


def test_the_gradient_matrix_is_billed_in_training_and_the_boundaries_of_tasks_are_free(learn):
    done = learn("gem", recipe=ONE_STEP)
    for index in range(3):
        weights = done.ledger(index)["parameters"]
        assert done.trained_with(index).get("constraints", 0) == index * weights
        assert set(done.ledger(index)) == {"parameters", "buffers", "exemplars", "labels"}
        assert done.state(index).meta == {}
        assert done.learner(index).bounds == [0, 2, 4, 6][: index + 2]


def test_the_operations_of_old_tasks_gradients_are_counted(learn):
    plain, bound = learn("finetune"), learn("gem")
    training = [done.record.results["flops"]["training"] for done in (plain, bound)]  # summed up
    assert training[0][0] == training[1][0]
    images, steps = 24 * 2, 6  # two epochs of 24 images in batches of 8
    each = (training[0][1] - training[0][0]) / images
    more = training[1][1] - training[0][1] - (training[1][0] - training[0][0])
    assert more == pytest.approx(steps * 10 * each, rel=0.05)  # ten exemplars at every step


@pytest.mark.parametrize("given", [{"constraint_batch": 3}, {"statistics": "running", "margin": 0.5}])
def test_the_contract_holds_for_the_other_choices(given):
    subject = StrategySubject("gem", given)
    same_seed_same_bits(subject)
    a_resumed_run_ends_where_the_straight_run_ends(subject)
