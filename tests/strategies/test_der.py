"""DER: one backbone an experience, the older ones frozen, the newest helped by an auxiliary head."""

import math

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures
from torch import nn

from cil.models.base import count_parameters
from cil.strategies.der import DER
from cil.streams import Experience


def branch(learner_or_bits, index):
    """Parameters and buffers of one branch."""
    prefix = f"branches.{index}."
    return {k.removeprefix(prefix): v for k, v in learner_or_bits.items() if k.startswith(prefix)}


class FixedBranches(Fixed):
    branch_dim = 2


def with_auxiliary_head(**hyperparameters):
    """Five classes, three of them old; features of two branches, two numbers each."""
    learner = bare("der", **hyperparameters)
    learner.old_classes, learner.num_classes = 3, 5
    learner.net = FixedBranches([[0.0] * 5] * 4, [[50.0, 70.0, 0.0, 1.0]] * 4)
    learner.auxiliary_head = nn.Linear(2, 3)
    with torch.no_grad():
        learner.auxiliary_head.weight.copy_(torch.tensor([[9.0, 0.0], [9.0, math.log(2)], [9.0, math.log(3)]]))
        learner.auxiliary_head.bias.zero_()
    return learner


def test_the_auxiliary_target_is_0_for_any_old_class_and_counts_the_new_ones_from_1():
    # the newest features (0, 1) give the three outputs the shares 1/6, 2/6, 3/6
    learner = with_auxiliary_head()
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


def test_the_auxiliary_loss_sees_the_newest_branch_alone_and_has_the_weight_given():
    learner = with_auxiliary_head(auxiliary=0.25)
    loss = learner.loss(batch(0, 1, 2, 2))["auxiliary"]
    assert loss.item() == pytest.approx(0.25 * math.log(6), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, learner.net.features)
    assert not gradient[:, :2].any() and gradient[:, 3].all()


def test_the_first_experience_is_cross_entropy_alone():
    learner = bare("der", classes=[2])
    learner.prepare(Experience(signatures([2])[0], None))
    assert learner.auxiliary_head is None
    assert learner.loss(batch(0, 1)).keys() == {"classes"}


def test_the_auxiliary_head_starts_as_any_head_does():
    learner = bare("der", classes=[2, 3])
    learner.prepare(Experience(signatures([2, 3])[1], None))
    weight, bias = learner.auxiliary_head.weight, learner.auxiliary_head.bias
    assert weight.shape == (4, 32) and not bias.any()  # one for all old classes, one for each new one
    bound = math.sqrt(3 / 32)
    assert 0.9 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_older_branches_keep_their_parameters_and_statistics_bit_for_bit(learn, stream):
    seen = {}

    def see(when, learner, experience):
        seen[when] = bits(learner.net)
        if when == "trained":
            for old in range(experience.index):
                assert differing(branch(seen["prepared"], old), branch(seen["trained"], old)) == []
            newest = branch(seen["prepared"], experience.index), branch(seen["trained"], experience.index)
            assert len(differing(*newest)) == len(newest[0])  # all of it is trained, statistics too

    done = learn(observed("der", see), stream)
    for index in range(1, 3):
        earlier, later = ({k.removeprefix("net."): v for k, v in done.net(i).items()} for i in (index - 1, index))
        for old in range(index):
            assert differing(branch(earlier, old), branch(later, old)) == []


def test_the_newest_branch_starts_as_a_copy_and_old_features_never_change(learn):
    images = batch(*range(6)).images
    old = {}

    def see(when, learner, experience):
        if not learner.num_classes:
            return
        was = learner.net.training
        learner.net.eval()
        features = learner.net(images).features.detach().split(32, dim=1)
        learner.net.train(was)
        if when == "prepared" and experience.index:
            assert torch.equal(features[-1], features[-2])
        for index, known in old.items():
            assert torch.equal(features[index], known)
        if when == "done":
            assert len(features) == experience.index + 1
            old[experience.index] = features[-1]

    learn(observed("der", see))
    assert len(old) == 3 and not torch.equal(old[1], old[2])


def test_one_backbone_and_both_heads_are_trained(learn):
    def see(when, learner, experience):
        if when == "prepared":
            b, classes, new = experience.index + 1, learner.num_classes, len(experience.new_slots)
            backbone = count_parameters(learner.net.branches[0])
            head, auxiliary = b * 32 * classes + classes, (32 + 1) * (new + 1) if experience.index else 0
            assert sum(p.numel() for p in learner.trainable()) == backbone + head + auxiliary
            assert count_parameters(learner.net) == b * backbone + head

    learn(observed("der", see))


def test_the_auxiliary_head_is_billed_in_training_and_not_carried(learn):
    done = learn("der")
    for index in range(3):
        assert not [name for name in done.state(index).tensors if "auxiliary" in name]
        extra = [size for name, size in done.trained_with(index).items() if name.startswith("auxiliary_head")]
        assert sum(extra) == (4 * (32 + 1) * (2 + 1) if index else 0)
        assert done.learner(index).auxiliary_head is None


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_after_training_the_mean_norm_of_new_rows_is_that_of_old_ones(learn, stream):
    heads = {}

    def see(when, learner, experience):
        heads[when] = bits(learner.net.head)
        old = learner.old_classes
        if when == "done" and old:
            before, after = heads["trained"]["weight"], heads["done"]["weight"]
            norms = after.norm(dim=1)
            assert norms[old:].mean().item() == pytest.approx(norms[:old].mean().item(), rel=1e-6)
            assert torch.equal(before[:old], after[:old]) and not torch.equal(before, after)
            assert torch.equal(heads["trained"]["bias"], heads["done"]["bias"])
        elif when == "done":
            assert differing(heads["trained"], heads["done"]) == []

    learn(observed("der", see), stream)


def test_without_alignment_the_head_stays_as_trained(learn):
    heads = {}

    def see(when, learner, experience):
        heads[when, experience.index] = bits(learner.net)

    learn(observed("der", see), hyperparameters={"align": False})
    for index in range(3):
        assert differing(heads["trained", index], heads["done", index]) == []


def test_an_auxiliary_weight_of_0_trains_as_without_the_head(learn):
    class Without(DER):
        def loss(self, batch):
            return super().loss(batch)["classes"]

    zero, without, full = learn("der", hyperparameters={"auxiliary": 0.0}), learn(Without), learn("der")
    for index in range(3):
        assert differing(zero.net(index), without.net(index)) == []
        assert bool(differing(zero.net(index), full.net(index))) == (index > 0)
