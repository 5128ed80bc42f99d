"""Streams for tuning: judged on validation data, without a way to the test data."""

from __future__ import annotations

from functools import partial

from cil.data import Samples
from cil.errors import StreamError
from cil.streams.base import ExperienceData, Stream, fingerprint_of


def for_tuning(stream: Stream, first: int | None = None) -> Stream:
    """The first experiences, evaluated on the validation part of their training data.

    It is made of the training half, so nothing that is done with it can open a test image. Learners get no
    validation data: it judges them.

    Args:
        stream: A stream with validation data; where classes come back, those of their first experience are enough.
        first: Number of experiences; None: all.

    Raises:
        StreamError: where no experience holds validation data.

    Source: Cha and Cho 2025 (two phases); Lee et al. 2024 (the first experiences).
    """
    half = stream.training_half()
    signatures = half.signatures[:first]
    if all(half[signature.index].validation is None for signature in signatures):
        raise StreamError(
            f"stream '{stream.name}' holds no validation data, and tuning is judged on them: set stream.validation, "
            "where the stream has it"
        )
    seen = signatures[-1].num_classes
    return Stream(
        name=f"{stream.name}_tuning" if first is None else f"{stream.name}_tuning_first{first}",
        classes=half.classes[:seen],
        order=half.order[:seen],
        signatures=signatures,
        parts=[ExperienceData(partial(_train, half, s.index), partial(_held_out, half, s.index)) for s in signatures],
        fingerprint=fingerprint_of("judged on validation data", stream.fingerprint, str(first)),
        augment=half.augment,
        mean=half.mean,
        std=half.std,
        official=half.official,
    )


def _train(half: Stream, index: int) -> Samples:
    return half[index].train


def _held_out(half: Stream, index: int) -> Samples:
    experience = half[index]
    return experience.train[:0] if experience.validation is None else experience.validation
