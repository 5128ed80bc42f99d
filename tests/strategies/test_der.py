"""DER: one backbone an experience, the older ones frozen, the newest helped by an auxiliary head."""

import pytest
import torch
from small_runs import batch, below, bits, differing, observed

from cil.models.base import count_parameters


def branch(held, index):
    return below(held, f"branches.{index}")


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
