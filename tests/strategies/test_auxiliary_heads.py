"""What DER and MEMO share: an auxiliary head on the newest branch, and rows that are aligned after training."""

import math

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures
from torch import nn

from cil.strategies import find
from cil.streams import Experience

NAMES = ("der", "memo")
pytestmark = pytest.mark.parametrize("name", NAMES)


class FixedBranches(Fixed):
    branch_dim = 2


def with_auxiliary_head(name, **hyperparameters):
    """Five classes, three of them old; features of two branches, two numbers each."""
    learner = bare(name, **hyperparameters)
    learner.old_classes, learner.num_classes = 3, 5
    learner.net = FixedBranches([[0.0] * 5] * 4, [[50.0, 70.0, 0.0, 1.0]] * 4)
    learner.auxiliary_head = nn.Linear(2, 3)
    with torch.no_grad():
        learner.auxiliary_head.weight.copy_(torch.tensor([[9.0, 0.0], [9.0, math.log(2)], [9.0, math.log(3)]]))
        learner.auxiliary_head.bias.zero_()
    return learner


def test_the_auxiliary_target_is_0_for_any_old_class_and_counts_the_new_ones_from_1(name):
    # the newest features (0, 1) give the three outputs the shares 1/6, 2/6, 3/6
    learner = with_auxiliary_head(name)
    for slots, expected in (
        ((0, 1, 2, 2), math.log(6)),
        ((3, 3, 3, 3), math.log(3)),
        ((4, 4, 4, 4), math.log(2)),
        ((0, 2, 3, 4), (2 * math.log(6) + math.log(3) + math.log(2)) / 4),
    ):
        terms = learner.loss(batch(*slots))
        assert terms["auxiliary"].item() == pytest.approx(expected, abs=1e-5)
        assert terms["classes"].item() == pytest.approx(math.log(5), abs=1e-5)
        assert terms.keys() == {"classes", "auxiliary"}


def test_the_auxiliary_loss_sees_the_newest_branch_alone_and_has_the_weight_given(name):
    learner = with_auxiliary_head(name, auxiliary=0.25)
    loss = learner.loss(batch(0, 1, 2, 2))["auxiliary"]
    assert loss.item() == pytest.approx(0.25 * math.log(6), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, learner.net.features)
    assert not gradient[:, :2].any() and gradient[:, 3].all()


def test_the_first_experience_is_cross_entropy_alone(name):
    learner = bare(name, classes=[2])
    learner.prepare(Experience(signatures([2])[0], None))
    assert learner.auxiliary_head is None
    assert learner.loss(batch(0, 1)).keys() == {"classes"}


def test_the_auxiliary_head_starts_as_any_head_does(name):
    learner = bare(name, classes=[2, 3])
    learner.prepare(Experience(signatures([2, 3])[1], None))
    weight, bias = learner.auxiliary_head.weight, learner.auxiliary_head.bias
    assert weight.shape == (4, 32) and not bias.any()  # one for all old classes, one for each new one
    bound = math.sqrt(3 / 32)
    assert 0.9 * bound < weight.abs().max() <= bound


def test_an_auxiliary_weight_of_0_trains_as_without_the_head(learn, name):
    class Without(find(name)):
        def loss(self, batch):
            return super().loss(batch)["classes"]

    zero, without, full = learn(name, hyperparameters={"auxiliary": 0.0}), learn(Without), learn(name)
    for index in range(3):
        assert differing(zero.net(index), without.net(index)) == []
        assert bool(differing(zero.net(index), full.net(index))) == (index > 0)


def test_the_auxiliary_head_is_billed_in_training_and_not_carried(learn, name):
    done = learn(name)
    for index in range(3):
        assert not [key for key in done.state(index).tensors if "auxiliary" in key]
        extra = [size for key, size in done.trained_with(index).items() if key.startswith("auxiliary_head")]
        assert sum(extra) == (4 * (32 + 1) * (2 + 1) if index else 0)
        assert done.learner(index).auxiliary_head is None


@pytest.mark.parametrize(("stream", "align"), [("toy", True), ("uneven", True), ("toy", False)])
def test_after_training_the_mean_norm_of_new_rows_is_that_of_old_ones(learn, name, stream, align):
    heads = {}

    def see(when, learner, experience):
        heads[when] = bits(learner.net.head)
        old = learner.old_classes
        if when == "done" and old and align:
            norms = heads["done"]["weight"].norm(dim=1)
            assert norms[old:].mean().item() == pytest.approx(norms[:old].mean().item(), rel=1e-6)
            assert torch.equal(heads["trained"]["weight"][:old], heads["done"]["weight"][:old])
            assert differing(heads["trained"], heads["done"]) == ["weight"]
        elif when == "done":
            assert differing(heads["trained"], heads["done"]) == []

    learn(observed(name, see), stream, hyperparameters={"align": align})
