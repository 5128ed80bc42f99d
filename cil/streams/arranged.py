"""Streams that deal out the images of one data set by row, so that classes re-appear."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data import Dataset, Samples, load_dataset
from cil.errors import ConfigError, StreamError
from cil.streams.base import Part, Signature, Stream, fingerprint_of
from cil.streams.class_incremental import channel_statistics, class_incremental

_say = logging.getLogger("cil")
UNKNOWN = 0.5  # stands for a mean or a deviation that is computed when the first experience is known


@dataclass(frozen=True)
class Whole:
    """A data set with its classes in order, capped and with its validation images set apart, before it is dealt out.

    Attributes:
        name: Of the data set.
        stream: It as one experience; slots are places in the class order.
        train, validation, test: Its samples; training and validation images reach no others.
        unknown: Which of ``mean`` and ``std`` nobody said, so that they must be computed.
    """

    name: str
    stream: Stream
    train: Samples
    validation: Samples | None
    test: Samples
    unknown: frozenset[str]

    @property
    def slots(self) -> np.ndarray[Any, Any]:
        """(n,) place in the class order of each training image."""
        return self.train.slots.numpy()

    @property
    def num_classes(self) -> int:
        return len(self.stream.classes)

    def normalisation(self, first: Samples) -> dict[str, Any]:
        """Mean and deviation of each channel, computed on the first experience where nobody said them."""
        known = {"mean": self.stream.mean, "std": self.stream.std}
        computed = dict(zip(known, channel_statistics(first), strict=True)) if self.unknown else {}
        return {key: computed[key] if key in self.unknown else value for key, value in known.items()}


def whole(
    dataset: str | Dataset,
    *,
    root: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **given: Any,
) -> Whole:
    """Choose classes and images of a data set as a class-incremental stream of one experience does.

    Args:
        dataset, root, classes, mean, std: As of ``class_incremental``.
        options: Of the data set, where it is given by name.
        given: ``order``, ``order_seed``, ``validation``, ``train_per_class``, ``test_per_class``, ``augment`` of it.

    Raises:
        CilError: as of ``class_incremental``.
    """
    more = dict(options or {})
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, root, **more)
    said: dict[str, Any] = {"mean": mean, "std": std}
    own = {"mean": data.mean, "std": data.std}
    unknown = frozenset(key for key in said if said[key] is None and None in own.values())
    said |= dict.fromkeys(unknown, [UNKNOWN] * data.train.shape[0])
    many = len(data.classes) if classes is None or not isinstance(classes, int) else classes
    left = more if isinstance(dataset, Dataset) else {}  # refused: a data set has no options left
    stream = class_incremental(data, increment=many, classes=classes, **said, **given, **left)
    experience = stream[0]
    return Whole(data.name, stream, experience.train, experience.validation, stream.test(0), unknown)


def arranged(given: Whole, rows: Sequence[np.ndarray[Any, Any]], name: str, *key: Any) -> Stream:
    """The stream whose experience i has the training images ``rows[i]``, in that order.

    A class arrives in the first experience that has an image of it. Its test and its validation images belong to that
    experience, whatever comes of it later: the test data of the experiences so far are those of all classes exposed.
    An experience without a new class adds none. One without images is left out, with a warning.

    Args:
        given: What is dealt out.
        rows: Row numbers of its training images, (n_i,).
        name: Of the stream.
        key: What else the fingerprint depends on.
    """
    for index, dealt in enumerate(rows):
        if not len(dealt):
            _say.warning(f"stream '{name}': experience {index} would have no images and is left out")
    kept = [torch.from_numpy(np.ascontiguousarray(dealt)) for dealt in rows if len(dealt)]
    arriving = _arriving(given.train.slots, kept)
    order = [place for new in arriving for place in new]
    slot_of = torch.full((given.num_classes,), -1)
    slot_of[order] = torch.arange(len(order))
    train, test = (samples.with_slots(slot_of[samples.slots]) for samples in (given.train, given.test))
    held = given.validation
    held = None if held is None else held.with_slots(slot_of[held.slots])
    signatures, parts, seen = [], [], 0
    for index, (own, places) in enumerate(zip(kept, arriving, strict=True)):
        new = tuple(range(seen, seen + len(places)))
        seen += len(places)
        slots, counts = train.slots[own].unique(return_counts=True)
        each = dict(zip(slots.tolist(), counts.tolist(), strict=True))
        signatures.append(Signature(index, new, tuple(each), each, train.shape, seen))
        part = Part(partial(_rows, train, own), partial(_of, test, new))
        parts.append(part if held is None else Part(part.train, part.test, partial(_of, held, new)))
    return Stream(
        name=name,
        classes=[given.stream.classes[place] for place in order],
        order=[given.stream.order[place] for place in order],
        signatures=signatures,
        parts=parts,
        fingerprint=fingerprint_of(given.stream.fingerprint, repr(key), *kept),
        augment=given.stream.augment,
        official=given.stream.official,
        **given.normalisation(train[kept[0]]),
    )


def generator(seed: int, *purpose: int) -> np.random.RandomState:
    """Draws that are the same on every platform and with every version of numpy.

    Raises:
        StreamError: for a seed out of range.
    """
    if not 0 <= seed < 2**32:
        raise StreamError(f"stream.order_seed is {seed}; it must be in 0 to 2^32 - 1")
    return np.random.RandomState([seed, *purpose])


def check_whole(least: int, most: int | None = None, **values: Any) -> None:
    """Refuse what is no whole number in a range.

    Raises:
        ConfigError: naming the key.
    """
    for key, value in values.items():
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        if not fits or (most is not None and value > most):
            wanted = f"from {least} on" if most is None else f"from {least} to {most}"
            raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number {wanted}")


def _arriving(slots: Tensor, rows: Sequence[Tensor]) -> list[list[int]]:
    """Classes that each experience is the first to have, in class order."""
    seen: set[int] = set()
    found = []
    for own in rows:
        here = slots[own].unique().tolist()
        found.append([slot for slot in here if slot not in seen])
        seen.update(here)
    return found


def _rows(samples: Samples, rows: Tensor) -> Samples:
    return samples[rows]


def _of(samples: Samples, slots: Sequence[int]) -> Samples:
    return samples[torch.isin(samples.slots, torch.tensor(slots, dtype=torch.int64))]
