"""Replay: cross-entropy over all outputs, on new data and exemplars."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import Fixed, bare, batch, differing, observed

from cil.memory import Budget
from cil.strategies.finetune import Finetune


class AllOutputs(Finetune):
    """Finetune with the cross-entropy over all outputs."""

    def loss(self, batch):
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


@pytest.mark.parametrize("name", ["replay", "joint", "gdumb"])
def test_the_loss_is_over_all_outputs_old_ones_too(name):
    learner = bare(name, classes=[1, 2])
    learner.net = Fixed([[0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
    # log(1 + e + e^3) = 3.169846, minus the right logit: 3 of a new image, 0 of an exemplar
    assert learner.loss(batch(2, 0)).item() == pytest.approx((0.169846 + 3.169846) / 2, abs=1e-5)


def test_without_exemplars_it_is_finetune_with_the_cross_entropy_over_all_outputs(learn):
    none, same, new_only = learn("replay", budget=Budget(exemplars=0)), learn(AllOutputs), learn("finetune")
    for index in range(3):
        assert differing(none.net(index), same.net(index)) == []
        assert bool(differing(none.net(index), new_only.net(index))) == (index > 0)
    assert none.record.results["exemplars"] == [0, 0, 0]


def test_with_room_for_all_it_trains_on_what_joint_trains_on(learn):
    seen = {"replay": [], "joint": []}
    for name, found in seen.items():

        def see(when, learner, experience, found=found):
            if when == "prepared":
                found.append(learner.training_set(experience))

        learn(observed(name, see), budget=Budget(exemplars=1000))
    for replayed, joint in zip(seen["replay"], seen["joint"], strict=True):
        assert replayed.counts() == joint.counts()
        for slot in joint.counts():
            some, all_ = (set(map(bytes, s.of_class(slot).pixels.flatten(1).numpy())) for s in (replayed, joint))
            assert some == all_ and len(all_) == 12


def test_the_training_set_is_new_data_and_exemplars_without_balancing(learn):
    counts = []

    def see(when, learner, experience):
        if when == "prepared":
            counts.append(learner.training_set(experience).counts())

    learn(observed("replay", see))
    assert counts == [{0: 12, 1: 12}, {0: 5, 1: 5, 2: 12, 3: 12}, {0: 2, 1: 2, 2: 2, 3: 2, 4: 12, 5: 12}]


def test_the_rule_of_selection_is_the_one_given(learn):
    herded, drawn = learn("replay"), learn("replay", hyperparameters={"selection": "random"})
    names = ("memory.images", "memory.slots")
    one, other = ({name: done.state(0).tensors[name] for name in names} for done in (herded, drawn))
    assert differing(one, other) == ["memory.images"]
    assert torch.equal(one["memory.slots"], other["memory.slots"])
