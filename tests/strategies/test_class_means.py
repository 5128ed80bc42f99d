"""What PASS and SSRE share: a mean for each class, taken once."""

import pytest
import torch

from cil.models import extract


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("name", ["pass", "ssre"])
def test_means_are_those_of_the_network_when_a_class_arrived_and_never_change(learn, name, stream):
    """Of SSRE: of the folded network."""
    done = learn(name, stream)
    known = {}
    for index in range(3):
        learner = done.learner(index)
        for slot in done.stream.signatures[index].new_slots:
            known[slot] = extract(learner.net, done.stream[index].train.of_class(slot)).mean(0)
        assert len(learner.means) == len(known)
        for slot, mean in known.items():
            torch.testing.assert_close(learner.means[slot], mean, rtol=1e-5, atol=1e-6)
            if index and slot < len(done.learner(index - 1).means):
                assert torch.equal(done.learner(index - 1).means[slot], learner.means[slot])
