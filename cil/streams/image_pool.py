"""The images of one data set, dealt out to experiences by row, so that classes re-appear."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data import Dataset, Samples, load_dataset
from cil.data.columns import relabelled
from cil.streams.base import ExperienceData, Signature, Stream, fingerprint_of, take_rows
from cil.streams.class_incremental import class_incremental
from cil.streams.options import SplitOptions, channel_statistics, check_seed

_log = logging.getLogger("cil")
_PLACEHOLDER = 0.5  # stands for a mean or a deviation that is computed when the first experience is known
Rows = NDArray[Any]  # (n,) row numbers


@dataclass(frozen=True)
class ImagePool:
    """A data set before it is dealt out: its classes in order, capped, validation images set apart.

    Attributes:
        whole: The data set as a stream of one experience; slots are places in the class order.
        train, validation, test: Its samples; training and validation images reach no others.
        unknown: ``mean``, ``std``, both or neither: those that must be computed.
    """

    name: str
    options: SplitOptions
    whole: Stream
    train: Samples
    validation: Samples | None
    test: Samples
    unknown: frozenset[str]

    @property
    def slots(self) -> Rows:
        """(n,) place in the class order of each training image."""
        return self.train.slots.numpy()

    @property
    def num_classes(self) -> int:
        return len(self.whole.classes)

    def normalisation(self, first: Samples) -> list[Sequence[float]]:
        """Mean and deviation of each channel; the unknown ones are computed on the first experience."""
        computed = channel_statistics(first) if self.unknown else ([], [])
        pairs = zip(("mean", "std"), computed, (self.whole.mean, self.whole.std), strict=True)
        return [own if key in self.unknown else known for key, own, known in pairs]

    def deal(self, rows: Sequence[Rows], name: str, *key: Any) -> Stream:
        """The stream whose experience i has the training images ``rows[i]``, in that order.

        A class arrives in the first experience that has an image of it. Its test and validation images belong to that
        experience, whatever comes of it later: the test data of the experiences so far are those of all classes
        exposed. An experience without a new class adds none. One without images is left out, with a warning.

        Args:
            rows: Row numbers of training images, (n_i,) for experience i.
            key: Further values that the fingerprint depends on.
        """
        for index, dealt in enumerate(rows):
            if not len(dealt):
                _log.warning(f"stream '{name}': experience {index} would have no images and is left out")
        kept = [torch.from_numpy(np.ascontiguousarray(dealt)) for dealt in rows if len(dealt)]
        arriving = _first_occurrences(self.train.slots, kept)
        order = [place for new in arriving for place in new]
        slot_of = torch.full((self.num_classes,), -1)
        slot_of[order] = torch.arange(len(order))
        train, test = (relabelled(samples, slot_of) for samples in (self.train, self.test))
        held_out = self.validation
        held_out = None if held_out is None else held_out.with_slots(slot_of[held_out.slots])
        signatures, parts, seen = [], [], 0
        for index, (own, places) in enumerate(zip(kept, arriving, strict=True)):
            new = tuple(range(seen, seen + len(places)))
            seen += len(places)
            counts = train[own].counts()
            signatures.append(Signature(index, new, tuple(counts), counts, train.shape, seen))
            part = ExperienceData(partial(take_rows, train, own), partial(_of_slots, test, new))
            parts.append(part if held_out is None else replace(part, validation=partial(_of_slots, held_out, new)))
        whole, (mean, std) = self.whole, self.normalisation(train[kept[0]])
        stream = Stream(
            name=name,
            classes=[whole.classes[place] for place in order],
            order=[whole.order[place] for place in order],
            signatures=signatures,
            parts=parts,
            fingerprint=fingerprint_of(whole.fingerprint, repr(key), *kept),
            augment=whole.augment.in_order(order),
            official=whole.official,
            mean=mean,
            std=std,
        )
        origins = whole.provenance.origins
        stream.provenance = replace(whole.provenance, origins=tuple(origins[place] for place in order if origins))
        return stream


def image_pool(
    dataset: str | Sequence[Any] | Dataset, options: SplitOptions, dataset_options: Mapping[str, Any]
) -> ImagePool:
    """Choose classes and images of a data set as a class-incremental stream of one experience does.

    Raises:
        CilError: as ``class_incremental`` does.
    """
    given = isinstance(dataset, Dataset)
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, options.root, **dataset_options)
    unknown = frozenset(k for k in ("mean", "std") if getattr(options, k) is None and None in (data.mean, data.std))
    settings = vars(options) | dict.fromkeys(unknown, [_PLACEHOLDER] * data.train.shape[0])
    left = dataset_options if given else {}  # refused there: a data set has no options left
    whole = class_incremental(data, increment=_many(options.classes, len(data.classes)), **settings, **left)
    first = whole[0]
    return ImagePool(data.name, options, whole, first.train, first.validation, whole.test(0), unknown)


def _many(classes: int | Sequence[int | str] | None, all_classes: int) -> int:
    return len(classes) if isinstance(classes, Sequence) else classes or all_classes


def generator(seed: int, *purpose: int) -> np.random.RandomState:
    """Generator whose draws are the same on every platform and with every version of numpy.

    Raises:
        StreamError: for a seed out of range.
    """
    check_seed(seed)
    return np.random.RandomState([seed, *purpose])


def _first_occurrences(slots: Tensor, rows: Sequence[Tensor]) -> list[list[int]]:
    """Classes that each experience is the first to have, in class order."""
    seen: set[int] = set()
    found = []
    for own in rows:
        here: list[int] = torch.unique(slots[own]).tolist()
        found.append([slot for slot in here if slot not in seen])
        seen.update(here)
    return found


def _of_slots(samples: Samples, slots: Sequence[int]) -> Samples:
    return samples[torch.isin(samples.slots, torch.tensor(slots, dtype=torch.int64))]
