"""The stream as tuning meets it: judged on validation data, and no way to the test data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cil.errors import StreamError
from cil.streams import Stream, class_incremental
from cil.streams.tuning import for_tuning


@pytest.fixture
def stream() -> Stream:
    return class_incremental("digits", increment=2, validation=0.2, train_per_class=20)


def _shut(stream: Stream) -> Stream:
    """The same stream, whose test data cannot be opened."""

    def opened():
        raise AssertionError("the test data were opened")

    stream._parts = tuple(replace(part, test=opened) for part in stream._parts)
    return stream


def test_it_is_evaluated_on_validation_data_and_trains_on_the_rest(stream):
    tuned = for_tuning(stream)
    for index, experience in enumerate(stream):
        assert torch.equal(tuned.test(index).pixels, experience.validation.pixels)
        assert torch.equal(tuned.test(index).slots, experience.validation.slots)
        assert torch.equal(tuned[index].train.pixels, experience.train.pixels)
        assert tuned[index].validation is None  # it judges the learner, who is not handed it


def test_no_use_of_it_opens_the_test_data(stream):
    tuned = for_tuning(_shut(stream))
    assert all(len(tuned.test(index)) and len(tuned[index].train) for index in range(len(tuned)))
    with pytest.raises(AssertionError, match="were opened"):
        stream.test(0)


def test_the_first_experiences_alone(stream):
    first = for_tuning(stream, 2)
    assert len(first) == 2 and first.classes == stream.classes[:4] and first.order == stream.order[:4]
    assert first.signatures == stream.signatures[:2]
    assert max(first.test(1).slots) == 3


def test_it_is_another_stream_than_the_one_reported(stream):
    prints = {stream.fingerprint, for_tuning(stream).fingerprint, for_tuning(stream, 1).fingerprint}
    assert len(prints) == 3 and for_tuning(stream, 1).fingerprint == for_tuning(stream, 1).fingerprint


def test_without_validation_data_it_is_refused():
    with pytest.raises(StreamError, match="holds no validation data, and tuning is judged"):
        for_tuning(class_incremental("digits", increment=5, train_per_class=5))


def test_an_experience_that_holds_none_is_judged_on_nothing(stream):
    stream._parts = (*stream._parts[:1], replace(stream._parts[1], validation=lambda: None), *stream._parts[2:])
    tuned = for_tuning(stream)
    assert len(tuned.test(1)) == 0 and len(tuned[1].train) == 32
