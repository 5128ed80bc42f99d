"""Streams that are reduced for checks keep the contract; those with other tests have the same training data."""

from __future__ import annotations

import pytest
import torch

from cil.streams import rotated_domains
from cil.testing import check_stream, toy_shifts, toy_stream, toy_tasks
from cil.testing.toy import long_stream, long_tasks


def _domains():
    return rotated_domains("digits", angles=[0, 90, 180], train_per_class=6, test_per_class=4)


@pytest.mark.parametrize("make", [toy_stream, _domains])
def test_a_reduced_stream_keeps_the_contract_of_streams(make):
    small = make().reduced(2, 20)
    check_stream(small)
    assert len(small) == 2 and small.fingerprint != make().fingerprint
    assert all(count <= 10 for signature in small.signatures for count in signature.counts.values())


def test_a_reduced_stream_of_tasks_has_its_events_and_splits():
    small = toy_tasks().reduced(2, 6)
    assert [event.task.dataset for event in small.events] == ["a", "b"]
    assert len(small[0].train) == sum(small.signatures[0].counts.values()) == 6
    assert {split: len(small.test(1, split)) for split in small.splits} == {"dev_test": 6, "test": 6}


def test_a_reduced_shift_stream_ends_after_a_reset():
    small = toy_shifts(resets=()).reduced(2, 5)
    assert [segment.reset for segment in small.segments] == [False, True]
    assert [len(segment.samples()) for segment in small.segments] == [5, 5]


@pytest.mark.parametrize("make", [toy_stream, toy_tasks])
def test_with_other_tests_the_training_data_are_the_same(make):
    old, new = make(), make().with_tests(lambda samples: samples[:3])
    assert len(new.test(0)) == 3 < len(old.test(0))
    assert torch.equal(old[0].train.pixels, new[0].train.pixels)


@pytest.mark.parametrize("make", [long_stream, long_tasks])
def test_long_toys_differ_where_they_say(make):
    """Another past: the last three experiences are the same. Another future: the last but one is."""
    plain, past, future = make(), make(seed=5), make(longer=True)

    def same(one, other):
        return [torch.equal(one[i].train.pixels, other[i].train.pixels) for i in range(len(plain))]

    assert len(plain) == 6 and same(plain, past) == [False] * 3 + [True] * 3
    assert len(future) == 7 and same(plain, future) == [True] * 5 + [False]
    assert future.signatures[:5] == plain.signatures[:5]
