"""SI: the path integral of the task loss's gradient, and a quadratic pull by what it found."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures

from cil.engine.recipe import Recipe
from cil.models.base import count_parameters
from cil.strategies.parts.importance import quadratic_penalty
from cil.strategies.si import SI
from cil.streams import Experience
from cil.testing.toy import toy_factory


def begin(learner):
    learner.prepare(Experience(signatures([1])[0], None))
    return learner


def two_outputs(**hyperparameters):
    """Logits that are the weights: with both at 0 the gradient of the cross-entropy is (-1/2, 1/2)."""
    learner = bare("si", classes=[2], **hyperparameters)
    learner.net = Fixed([[0.0, 0.0]])
    learner.importance = {name: torch.zeros_like(value) for name, value in learner.net.named_parameters()}
    return begin(learner)


def step(learner, optimizer, given):
    terms = learner.loss(given)
    sum(terms.values()).backward()
    learner.adjust_gradients(given)
    optimizer.step()
    optimizer.zero_grad()
    learner.after_step(given)
    return terms["new"].item()


# the path integral --------------------------------------------------------------------------------------------------


def test_a_step_of_a_tenth_down_a_gradient_of_a_half_adds_25_thousandths():
    learner = two_outputs()
    step(learner, torch.optim.SGD(learner.net.parameters(), lr=0.1), batch(0))
    assert learner.path["logits"].tolist() == [[pytest.approx(0.025)] * 2]  # 1/2 * 0.1 * 1/2


def test_it_is_the_change_that_was_made_and_not_the_gradient_that_counts():
    learner = two_outputs()
    with torch.no_grad():
        learner.net.logits += torch.tensor([[2.0, 2.0]])
    optimizer = torch.optim.SGD(learner.net.parameters(), lr=0.1, weight_decay=1.0, momentum=0.9)
    step(learner, optimizer, batch(0))
    # weights change by -0.1 (g + 2): by -0.15 and -0.25; minus g times that
    assert learner.path["logits"].tolist() == [[pytest.approx(-0.5 * 0.15), pytest.approx(0.5 * 0.25)]]
    before, path = learner.net.logits.detach().clone(), learner.path["logits"].clone()
    gradient = before.softmax(1) - torch.tensor([[1.0, 0.0]])
    step(learner, optimizer, batch(0))
    expected = path - gradient * (learner.net.logits.detach() - before)
    torch.testing.assert_close(learner.path["logits"], expected)


def test_down_small_steps_all_path_integrals_together_are_the_loss_that_went():
    learner = begin(bare("si", classes=[4], strength=0.0, heads=True))
    learner.net.eval()
    optimizer = torch.optim.SGD(learner.net.parameters(), lr=2e-3)
    losses = [step(learner, optimizer, batch(0, 1, 2, 3)) for _ in range(100)]
    with torch.no_grad():
        gone = losses[0] - learner.loss(batch(0, 1, 2, 3))["new"].item()
    assert gone > 0.05
    assert sum(value.sum().item() for value in learner.path.values()) == pytest.approx(gone, rel=0.03)


def test_the_gradient_on_the_path_is_that_of_the_task_loss_and_the_optimizers_that_of_both():
    learner = begin(bare("si", classes=[2, 2], strength=3.0, heads=True))
    for name, value in learner.importance.items():
        value += 0.5
        learner.anchor[name] -= 0.1
    given = batch(2, 3, 3)
    weights = dict(learner.net.named_parameters())
    learner.net.eval()
    terms = learner.loss(given)
    task = torch.autograd.grad(
        F.cross_entropy(learner.net(given.images).logits[:, 2:], given.slots - 2), weights.values()
    )
    penalty = 3.0 * quadratic_penalty(weights, learner.anchor, learner.importance)
    both = [a + b for a, b in zip(task, torch.autograd.grad(penalty, weights.values()), strict=True)]
    assert terms["penalty"].item() == pytest.approx(penalty.item()) and penalty.item() > 1
    (terms["new"] + terms["penalty"]).backward()
    learner.adjust_gradients(given)
    for (name, weight), alone, expected in zip(weights.items(), task, both, strict=True):
        torch.testing.assert_close(learner.gradients[name], alone)
        torch.testing.assert_close(weight.grad, expected)
    assert max((a - b).abs().max() for a, b in zip(task, both, strict=True)) > 0.1


def test_a_step_that_was_left_out_for_an_overflow_adds_nothing():
    learner = two_outputs()
    learner.loss(batch(0))["new"].backward()
    learner.net.logits.grad.fill_(float("inf"))
    learner.adjust_gradients(batch(0))
    learner.after_step(batch(0))
    assert learner.path["logits"].tolist() == [[0.0, 0.0]]


# importance and penalty ---------------------------------------------------------------------------------------------


def test_importance_is_the_path_integral_over_the_squared_way_and_adds_up():
    learner = two_outputs()
    learner.path["logits"] = torch.tensor([[0.3, -0.3]])
    with torch.no_grad():
        learner.net.logits += torch.tensor([[0.2, -0.5]])
    learner.importance["logits"] += 1
    learner.after_experience(None)
    assert learner.importance["logits"].tolist() == [[pytest.approx(1 + 0.3 / 0.14), pytest.approx(1 - 0.3 / 0.35)]]


def test_clamped_it_is_never_below_0():
    learner = two_outputs(clamp=True)
    learner.path["logits"] = torch.tensor([[0.3, -0.3]])
    learner.after_experience(None)
    assert learner.importance["logits"].tolist() == [[pytest.approx(3.0), 0.0]]


def test_the_penalty_is_c_times_importance_times_the_squared_way_without_a_half():
    learner = bare("si", classes=[1, 1], strength=0.1)
    learner.net = Fixed([[0.0, 0.0]])
    learner.net.head = torch.nn.Identity()  # without rows
    learner.importance = {"logits": torch.tensor([[2.0, 5.0]]), "features": torch.zeros(0)}
    begin(learner)
    with torch.no_grad():
        learner.net.logits[0, 0] = 0.3
    assert learner.loss(batch(1))["penalty"].item() == pytest.approx(0.1 * 2 * 0.09)


def test_the_first_experience_is_cross_entropy_alone():
    assert begin(bare("si", classes=[2])).loss(batch(0, 1)).keys() == {"new"}
    assert begin(bare("si", classes=[2, 2])).loss(batch(2, 3)).keys() == {"new", "penalty"}


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_penalty_and_pull_are_exactly_zero_when_an_experience_begins(learn, stream, heads):
    seen = []

    def see(when, learner, experience):
        if when in ("prepared", "trained") and experience.index:
            slot = learner.old_classes
            penalty = learner.loss(batch(slot, slot))["penalty"].item()
            learner.net.zero_grad()
            learner.adjust_gradients(batch(slot))
            pulled = any(p.grad is not None and p.grad.any() for p in learner.net.parameters())
            learner.net.zero_grad()
            seen.append((when, penalty, pulled))

    learn(observed("si", see), stream, hyperparameters={"heads": heads})
    for when, penalty, pulled in seen:
        assert (penalty == 0.0, pulled) == ((True, False) if when == "prepared" else (False, True))
    assert len(seen) == 4


@pytest.mark.parametrize("heads", [False, True])
def test_rows_of_old_classes_do_not_decay_unless_heads_are_pulled(heads):
    learner = begin(bare("si", classes=[2, 1], heads=heads))
    before, head = bits(learner.net.head), learner.net.head
    optimizer = torch.optim.SGD(learner.net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        step(learner, optimizer, batch(2))
    for name in ("weight", "bias"):
        assert torch.equal(getattr(head, name)[:2], before[name][:2]) == (not heads or name == "bias")  # biases are 0
    assert not torch.equal(head.weight[2:], before["weight"][2:])


class InTheLoss(SI):
    """The same method with the penalty's gradient taken by autograd, as a term of the loss."""

    def loss(self, batch):
        terms = super().loss(batch)
        if "penalty" in terms:
            terms["penalty"] = self.strength * quadratic_penalty(self._weights(), self.anchor, self.importance)
        return terms

    def adjust_gradients(self, batch):
        strength, self.strength = self.strength, 0
        super().adjust_gradients(batch)
        self.strength = strength


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"clip_norm": 0.5}, {"accumulate": 3, "clip_norm": 0.5}])
def test_the_pull_is_that_of_a_penalty_in_the_loss_when_gradients_are_accumulated_and_clipped(learn, options):
    given = {"hyperparameters": {"strength": 20.0}, "recipe": Recipe(epochs=3, batch_size=5, **options)}
    closed, graph = learn("si", **given), learn(InTheLoss, **given)
    weak = learn("si", **given | {"hyperparameters": {"strength": 0.0}})
    for name, value in closed.net(1).items():
        torch.testing.assert_close(value, graph.net(1)[name], rtol=1e-4, atol=1e-5)
    apart = [(value - weak.net(1)[name]).abs().max() for name, value in closed.net(1).items() if "num_b" not in name]
    assert max(apart) > 1e-3


def test_growing_keeps_the_importance_of_old_rows_and_gives_new_rows_none():
    learner = bare("si", classes=[2], heads=True)
    learner.importance["head.bias"] += torch.tensor([0.25, -0.5])
    learner.grow(signatures([2, 1])[1])
    assert learner.importance["head.bias"].tolist() == [0.25, -0.5, 0.0]
    assert {n: v.shape for n, v in learner.importance.items()} == {
        n: p.shape for n, p in learner.net.named_parameters()
    }


# what it costs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [False, True])
def test_importances_are_carried_at_the_size_of_the_backbone_or_of_all_weights(learn, heads):
    done = learn("si", hyperparameters={"heads": heads})
    backbone = count_parameters(toy_factory(done.stream, seed=0).backbone())
    for index in range(3):
        held = 4 * (backbone + (33 * 2 * (index + 1) if heads else 0))
        assert set(done.ledger(index)) == {"parameters", "buffers", "statistics"}
        assert done.ledger(index)["statistics"] == held
        lines = done.trained_with(index)
        for extra in ("anchor.", "path.", "gradients.", "before."):
            assert sum(size for name, size in lines.items() if name.startswith(extra)) == held


def test_nothing_but_importances_moves_at_the_boundary(learn):
    seen = {}

    def see(when, learner, experience):
        seen[when] = bits(learner.net) | {f"importance.{n}": v.clone() for n, v in learner.importance.items()}
        if when == "done":
            moved = differing(seen["trained"], seen["done"])
            assert moved and all(name.startswith("importance.backbone.") for name in moved)
            assert [n for n in differing(seen["prepared"], seen["trained"]) if n.startswith("importance")] == []

    learn(observed("si", see))
