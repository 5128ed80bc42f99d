"""What a learner does not take of an experience, it is not given."""

import pytest
import torch

from cil.data import Samples
from cil.engine.lifecycle import admit, sample_experience
from cil.errors import ContractError
from cil.memory import Budget, NextBoundary
from cil.streams import Experience, Signature


class Taking:
    def __init__(self, taken):
        self.taken = taken

    def accepts(self, signature):
        return signature.counts if self.taken is None else self.taken


SIGNATURE = Signature(1, (2, 3), (2, 3), {2: 6, 3: 4}, (3, 2, 2), 4)


def experience():
    """Ten images that are their row number all over."""
    pixels = torch.arange(10).byte().view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Experience(SIGNATURE, Samples.from_arrays(pixels, torch.tensor([2, 3, 2, 3, 2, 2, 3, 2, 3, 2])))


def rows(found):
    return found.train.pixels[:, 0, 0, 0].tolist()


def test_the_allowance_knows_what_is_given_up():
    learner = Taking({2: 5, 3: 1})
    taken = admit(learner, SIGNATURE, Budget())
    assert learner.budget.boundary == NextBoundary(1, 4, 12, classes=4)
    assert taken.counts == {2: 5, 3: 1} and (taken.new_slots, taken.present) == ((2, 3), (2, 3))
    learner = Taking(None)
    assert admit(learner, SIGNATURE, Budget()) is SIGNATURE and learner.budget.boundary.given_up == 0


@pytest.mark.parametrize("taken", [{2: 7, 3: 4}, {2: 0, 3: 4}, {2: 6}, {2: 6, 3: 4, 4: 1}, {2: -1, 3: 4}])
def test_more_than_there_is_or_none_of_a_class_cannot_be_taken(taken):
    with pytest.raises(ContractError, match=r"Taking\.accepts gives .* at experience 1"):
        admit(Taking(taken), SIGNATURE, Budget())


def test_images_are_drawn_once_each_and_in_their_order_and_the_others_are_out_of_reach():
    whole = experience()
    taken = admit(Taking({2: 3, 3: 2}), SIGNATURE, Budget())
    found = sample_experience(whole, taken, torch.Generator().manual_seed(0))
    assert found.train.counts() == {2: 3, 3: 2} and found.signature == taken
    assert rows(found) == sorted(set(rows(found)))
    assert all(
        whole.train.slots[row] == slot for row, slot in zip(rows(found), found.train.slots.tolist(), strict=True)
    )
    assert [len(store) for store, _ in found.train.parts] == [5]


def test_every_image_is_drawn_as_often_as_any_other():
    taken = admit(Taking({2: 3, 3: 1}), SIGNATURE, Budget())
    count = torch.zeros(10)
    for seed in range(800):
        count[rows(sample_experience(experience(), taken, torch.Generator().manual_seed(seed)))] += 1
    shares = count / 800
    expected = torch.tensor([0.5 if slot == 2 else 0.25 for slot in experience().train.slots.tolist()])
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.07)


def test_an_experience_that_is_taken_whole_is_handed_over_as_it_is():
    whole = experience()
    assert sample_experience(whole, SIGNATURE, torch.Generator()) is whole
