"""Looks: how often each image of an experience is read, counted by reader, and capped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data.samples import Samples, Store
from cil.errors import BudgetExceeded, ContractError

Images = NDArray[np.int64]  # numbers of images of the experience; -1: none of it
Shares = NDArray[np.float64]
ROUNDING = 1e-6  # of a raw image, in sums of shares
ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


class Looks:
    """Counts the looks at the images of one experience.

    A look is one read of an image for training: each time that it is served in a batch of a phase, and each time that a
    hook asks for its pixels. No looks are reads of exemplar memories, copying into one as many images as may be carried
    (further ones are), and further steps on the batch in hand (``trainer.updates_per_batch``).

    Args:
        images: Number of images of the experience.
        limit: Looks that each image may have; None: any number.
        method, experience: Who looks, at what, for messages.

    Attributes:
        counts: (images,) looks at each.
        by_reader: Looks in all by each reader.
        copies: Images that may be copied into memories without a look; None: any number.
    """

    def __init__(self, images: int, limit: int | None = None, method: str = "a strategy", experience: int = 0) -> None:
        self.counts: Images = np.zeros(images, dtype=np.int64)
        self.copies: int | None = None
        self._copied: Shares = np.zeros(images)  # of each image: what its copy weighs, in raw images
        self.by_reader: dict[str, int] = {}
        self.limit, self.method, self.experience = limit, method, experience
        self._reader = "a hook"

    @contextmanager
    def by(self, reader: str) -> Iterator[None]:
        """Looks inside the context are those of ``reader``: a hook, or a phase."""
        before, self._reader = self._reader, reader
        try:
            yield
        finally:
            self._reader = before

    def read(self, images: Images) -> None:
        """Count a look at each of some images.

        Raises:
            BudgetExceeded: where one has more looks than are allowed.
        """
        images = images[images >= 0]
        if not len(images):
            return
        np.add.at(self.counts, images, 1)
        self.by_reader[self._reader] = self.by_reader.get(self._reader, 0) + len(images)
        if self.limit is not None and (most := int(self.counts[images].max())) > self.limit:
            self._refuse(np.unique(images[self.counts[images] > self.limit]), most)

    def copy(self, images: Images, shares: Shares | None = None) -> None:
        """Count copies of some images: those beyond what may be carried serve to be read, and are looks.

        Args:
            shares: What each copy weighs, in raw images; None: one.
        """
        shares = np.ones(len(images)) if shares is None else shares
        images, places = np.unique(images, return_index=True)
        new = (images >= 0) & (self._copied[images] == 0)
        first, own = images[new], shares[places[new]]
        before = self._copied.sum()
        self._copied[first] = own
        if self.copies is not None:
            self.read(first[before + own.cumsum() > self.copies + ROUNDING])

    def allow_copies(self, most: int) -> None:
        """Say how many copies there may be without a look; what was copied beyond that is looked at now."""
        self.copies = most
        images = self._copied.nonzero()[0]
        self.read(images[self._copied[images].cumsum() > most + ROUNDING])

    def add(self, counts: Images) -> None:
        """Count looks that another run had in place of this one, (images,)."""
        self.counts += counts
        self.by_reader[self._reader] = self.by_reader.get(self._reader, 0) + int(counts.sum())

    def _refuse(self, images: Images, most: int) -> None:
        which = f"image {images[0]}" if len(images) == 1 else f"{len(images)} images, the first of them {images[0]},"
        raise BudgetExceeded(
            f"{self.method} reads {which} of experience {self.experience} for the {ORDINALS.get(most, f'{most}th')} "
            f"time, in {self._reader}; trainer.looks is {self.limit}: set trainer.looks={most} or free, or train less"
        )

    def summary(self) -> dict[str, Any]:
        """Looks an image: their mean, the most, and the mean of each reader. Plain data, for a record."""
        images = max(1, len(self.counts))
        return {
            "images": len(self.counts),
            "mean": round(int(self.counts.sum()) / images, 4),
            "most": int(self.counts.max(initial=0)),
            "by_reader": {reader: round(count / images, 4) for reader, count in self.by_reader.items()},
        }

    def __deepcopy__(self, memo: Any) -> Looks:
        """Itself: looks at a copy of the images are looks at them."""
        return self

    def __reduce__(self) -> Any:
        """Refuse: an image that was written down is read without a look.

        Raises:
            ContractError: naming the experience.
        """
        raise ContractError(
            f"{self.method}: images of experience {self.experience} are not pickled, as their looks are counted; hand "
            f"rows of experience.train to a phase or a memory"
        )

    def state(self) -> dict[str, Any]:
        copied = self._copied.nonzero()[0]
        kept = {"copied": copied.tolist(), "shares": self._copied[copied].tolist()}
        return {"counts": self.counts.tolist(), "by_reader": dict(self.by_reader), **kept}

    def load(self, state: Mapping[str, Any]) -> None:
        self.counts = np.array(state["counts"], dtype=np.int64)
        self.by_reader = dict(state["by_reader"])
        self._copied[:] = 0
        self._copied[state["copied"]] = state.get("shares", 1.0)


class CountedStore:
    """A store whose reads are looks; ``images`` has the number of the image in each of its rows."""

    def __init__(self, store: Store, images: Images, looks: Looks) -> None:
        self.uncounted = store  # for the engine, which counts what it serves, and for memories, which copy
        self.images, self.looks = images, looks
        self.shape, self.in_memory = store.shape, store.in_memory

    def __len__(self) -> int:
        return len(self.uncounted)

    def pixels(self, rows: Tensor) -> Tensor:
        self.looks.read(self.images[_numbers(rows)])
        return self.uncounted.pixels(rows)

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        self.looks.read(self.images[_numbers(rows)])
        return self.uncounted.training_pixels(rows, draws)

    def take(self, rows: Tensor) -> CountedStore:
        return CountedStore(self.uncounted.take(rows), self.images[_numbers(rows)], self.looks)

    def digest(self, rows: Tensor) -> bytes:
        return self.uncounted.digest(rows)


def counted(samples: Samples, looks: Looks) -> Samples:
    """The same samples; each read of an image is a look."""
    images: dict[int, Images] = {}
    start = 0
    for store, rows in samples.parts:
        own = images.setdefault(id(store), np.full(len(store), -1, dtype=np.int64))
        own[_numbers(rows)] = np.arange(start, start + len(rows))
        start += len(rows)
    stores = {id(store): CountedStore(store, images[id(store)], looks) for store, _ in samples.parts}
    return samples.over([(stores[id(store)], rows) for store, rows in samples.parts])


def uncounted(samples: Samples) -> tuple[Samples, Images | None, Looks | None]:
    """The same samples, of which reads are no looks; the number of the image in each row; and who counts.

    None and None where nobody does. Images of an experience that is over are none of those that are counted.
    """
    counting = [store.looks for store, _ in samples.parts if isinstance(store, CountedStore)]
    if not counting:
        return samples, None, None
    looks = max(counting, key=lambda each: each.experience)
    parts: list[tuple[Store, Tensor]] = []
    images = []
    for store, rows in samples.parts:
        parts.append((uncounted_store(store), rows))
        if isinstance(store, CountedStore) and store.looks is looks:
            images.append(store.images[_numbers(rows)])
        else:
            images.append(np.full(len(rows), -1, dtype=np.int64))
    return samples.over(parts), np.concatenate(images), looks


def uncounted_store(store: Store) -> Store:
    """The store, or the one beneath whose reads are no looks."""
    return store.uncounted if isinstance(store, CountedStore) else store


def _numbers(rows: Tensor) -> Images:
    return rows.to(torch.int64).cpu().numpy()
