"""Samples: images with their slots, read from disk when needed where they are large; and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data.crops import crop_resized
from cil.errors import DataError, ShapeError

T = TypeVar("T")


class Store(Protocol):
    """Source of pixels: an array in memory, or files that are decoded when asked for."""

    shape: tuple[int, int, int]  # (C, H, W) of one image in the evaluation view
    in_memory: bool

    # Where ``digest`` is of something else than the pixels, as of files: ``view``, a property, is a text that says how
    # both views are made of it. Equal digests and views are equal images.

    def __len__(self) -> int: ...

    def pixels(self, rows: Tensor) -> Tensor:
        """Evaluation view of ``rows``: (n, C, H, W) uint8."""

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Training view of ``augment.resized_crop``: random parts (``crop_box``) by ``draws`` (n, 4) in [0, 1)."""

    def take(self, rows: Tensor) -> Store:
        """A store that holds ``rows`` alone, and cannot reach the others."""

    def digest(self, rows: Tensor) -> bytes:
        """SHA-256 over the content of ``rows``, in that order."""


def view_of(store: Store) -> str | None:
    """How a store makes its views of what it digests; empty: these are its pixels, None: nobody knows."""
    return getattr(store, "view", "" if store.in_memory else None)


class ArrayStore:
    """Pixels as one uint8 tensor (N, C, H, W)."""

    in_memory = True

    def __init__(self, pixels: Tensor) -> None:
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ShapeError(f"pixels must be uint8 (N, C, H, W), not {pixels.dtype} {tuple(pixels.shape)}")
        self.tensor = pixels
        self.shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])

    def __len__(self) -> int:
        return len(self.tensor)

    def pixels(self, rows: Tensor) -> Tensor:
        return self.tensor[rows.to(self.tensor.device)]

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        return crop_resized(self.pixels(rows), draws)

    def take(self, rows: Tensor) -> ArrayStore:
        return ArrayStore(self.pixels(rows))  # indexing copies

    def digest(self, rows: Tensor) -> bytes:
        return hashlib.sha256(self.pixels(rows).contiguous().cpu().numpy().data).digest()


def _keys_of(flat: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(n, P) bytes to (n,) hashes: a sum of mixed 64-bit words, each with an odd weight of its own."""
    words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view(np.uint64)
    weights = (np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    mixed = (words ^ (words >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    keys: NDArray[np.uint64] = ((mixed ^ (mixed >> np.uint64(32))) * weights).sum(1, dtype=np.uint64)
    return keys


@dataclass(frozen=True)
class Batch:
    """Images and labels of one training or evaluation step, as a loss gets them.

    Attributes:
        images: (N, C, H, W) float in [0, 1], augmented in training.
        slots: (N,) int64, place of the class in the order of arrival.
        targets: (N, L) float 0/1 for multi-label tasks, else None.
        fetch: Function that gathers ``pixels`` when asked for.
        rows: (N,) int64, place in the phase's data.
        extras: Stored side data of the rows (replayed logits and the like).
        streams: Further batches of the same step, where a phase has several streams; also reachable as attributes
            (``batch.memory``).
    """

    images: Tensor
    slots: Tensor
    targets: Tensor | None = None
    fetch: Callable[[], Tensor] | None = None
    rows: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Mapping[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> Tensor:
        """(N, C, H, W) uint8 before augmentation; an online memory inserts these."""
        if self.fetch is None:
            raise DataError("this batch has no pixels before augmentation")
        return self.fetch()

    def __getattr__(self, name: str) -> Batch:
        streams: Mapping[str, Batch] = self.__dict__.get("streams", {})
        if name in streams:
            return streams[name]
        raise AttributeError(f"a batch has no stream '{name}'; it has: {', '.join(streams) or 'one unnamed stream'}")


def batch_bounds(count: int, size: int) -> list[tuple[int, int]]:
    """Where the batches of an epoch start and stop; a last batch of one joins the batch before it.

    Batch statistics of a single image are undefined in some networks.

    >>> batch_bounds(7, 3), batch_bounds(8, 3)
    ([(0, 3), (3, 7)], [(0, 3), (3, 6), (6, 8)])
    """
    bounds = [(start, min(start + size, count)) for start in range(0, count, size)]
    if len(bounds) > 1 and size > 1 and bounds[-1][1] - bounds[-1][0] == 1:
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


def to_float(pixels: Tensor) -> Tensor:
    """uint8 to float in [0, 1], channels last in memory."""
    if pixels[:1].is_contiguous(memory_format=torch.channels_last):  # as those of one channel are
        return pixels.to(torch.float32).div_(255)
    return channels_last_floats(pixels).div_(255)


def channels_last_floats(pixels: Tensor) -> Tensor:
    """(N, C, H, W) uint8 to float, channels last in memory."""
    floats = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device, memory_format=torch.channels_last)
    if pixels.shape[1] > 4:
        return floats.copy_(pixels)
    for channel in range(pixels.shape[1]):  # each plane as a whole: twice as quick as one copy
        floats[:, channel] = pixels[:, channel]
    return floats


class Samples:
    """Images and slots, as rows of one or more stores. Immutable; adding and picking share the pixels.

    Args:
        store: Source of the pixels.
        slots: (N,) int64, one for each row of ``rows``.
        rows: (N,) row numbers in the store; all rows in order where left out.
        targets: (N, L) 0/1 for multi-label tasks.
        extras: Side data by name, each with N rows.

    Raises:
        ShapeError: where the numbers of rows differ.
    """

    def __init__(
        self,
        store: Store,
        slots: Tensor,
        rows: Tensor | None = None,
        targets: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        rows = torch.arange(len(store)) if rows is None else rows
        if slots.ndim != 1 or len(slots) != len(rows):
            raise ShapeError(f"{len(rows)} images but slots of shape {tuple(slots.shape)}")
        for name, values in (dict(extras or {}) | ({} if targets is None else {"targets": targets})).items():
            if len(values) != len(rows):
                raise ShapeError(f"{len(rows)} images but {len(values)} rows of {name}")
        self._parts: tuple[tuple[Store, Tensor], ...] = ((store, rows),)
        self.slots = slots.to(torch.int64)
        self.targets = targets
        self.extras: dict[str, Tensor] = dict(extras or {})

    @classmethod
    def from_arrays(cls, pixels: Tensor, slots: Tensor, targets: Tensor | None = None) -> Samples:
        """Samples of a uint8 tensor (N, C, H, W) in memory."""
        return cls(ArrayStore(pixels), torch.as_tensor(slots), targets=targets)

    def __len__(self) -> int:
        return len(self.slots)

    def __repr__(self) -> str:
        return f"Samples({len(self)} images {self.shape}, {len(torch.unique(self.slots))} slots)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self._parts[0][0].shape

    @property
    def in_memory(self) -> bool:
        """True where all pixels are arrays in memory."""
        return all(store.in_memory for store, _ in self._parts)

    @property
    def parts(self) -> tuple[tuple[Store, Tensor], ...]:
        """The stores and the rows taken of each, in order."""
        return self._parts

    @property
    def pixels(self) -> Tensor:
        """All images in the evaluation view, (N, C, H, W) uint8."""
        pieces = [store.pixels(rows) for store, rows in self._parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @property
    def images(self) -> Tensor:
        """All images as a loss or ``predict`` gets them: (N, C, H, W) float in [0, 1]."""
        return to_float(self.pixels)

    def __add__(self, other: Samples) -> Samples:
        """Both, one after the other. Side data are kept where both have them; empty samples change nothing."""
        if len(other) == 0:
            return self
        if len(self) == 0:
            return other
        if self.shape != other.shape:
            raise ShapeError(f"cannot join images of shape {self.shape} and {other.shape}")
        if (self.targets is None) != (other.targets is None):
            raise DataError("cannot join samples with and without multi-label targets")
        targets = None
        if self.targets is not None and other.targets is not None:
            targets = torch.cat([self.targets, other.targets])
        shared = self.extras.keys() & other.extras.keys()
        extras = {name: torch.cat([self.extras[name], other.extras[name]]) for name in sorted(shared)}
        parts = [*self._parts]
        for store, rows in other._parts:
            if parts and parts[-1][0] is store:  # neighbours of one store are one part: read, or decoded, together
                parts[-1] = (store, torch.cat([parts[-1][1], rows]))
            else:
                parts.append((store, rows))
        return self._make(tuple(parts), torch.cat([self.slots, other.slots]), targets, extras)

    def __getitem__(self, rows: Tensor | slice | Sequence[int]) -> Samples:
        """The samples of ``rows``: int64 row numbers, a boolean mask or a slice, in that order."""
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows).cpu().reshape(-1)
            rows = rows if len(rows) else rows.long()  # an empty list would be float
        index = torch.arange(len(self))[rows].contiguous()
        parts, start = [], 0
        if len(self._parts) == 1:
            store, own = self._parts[0]
            parts = [(store, own[index])]
        else:  # keep the order asked for: one part a run of rows of the same store
            bounds = torch.tensor([0] + [len(own) for _, own in self._parts]).cumsum(0)
            which = torch.bucketize(index, bounds[1:], right=True)
            for stop in [*(which.diff().nonzero().flatten() + 1).tolist(), len(index)]:
                if stop > start:
                    k = int(which[start])
                    parts.append((self._parts[k][0], self._parts[k][1][index[start:stop] - bounds[k]]))
                start = stop
        targets = None if self.targets is None else self.targets[index]
        extras = {name: values[index.to(values.device)] for name, values in self.extras.items()}
        return self._make(tuple(parts) or ((self._parts[0][0], index),), self.slots[index], targets, extras)

    def with_slots(self, slots: Tensor) -> Samples:
        """The same images under other slots (N,).

        Raises:
            ShapeError: where their number differs.
        """
        if slots.shape != self.slots.shape:
            raise ShapeError(f"{len(self)} images but slots of shape {tuple(slots.shape)}")
        return self._make(self._parts, slots.to(torch.int64), self.targets, self.extras)

    def with_extras(self, extras: Mapping[str, Tensor]) -> Samples:
        """The same images with further side data, N rows each, in place of those of the same name.

        Raises:
            ShapeError: where the number of rows differs.
        """
        for name, values in extras.items():
            if len(values) != len(self):
                raise ShapeError(f"{len(self)} images but {len(values)} rows of {name}")
        return self._make(self._parts, self.slots, self.targets, {**self.extras, **extras})

    def keys(self) -> NDArray[np.uint64]:
        """A number for each image, (N,): the same for equal images or files, and as good as never for others."""
        found = [np.zeros(0, np.uint64)]
        for store, rows in self._parts:
            if hasattr(store, "row_keys"):  # files need not be decoded
                found.append(store.row_keys(rows))
            else:
                found += [_keys_of(store.pixels(piece).cpu().flatten(1).numpy()) for piece in rows.split(2000)]
        return np.concatenate(found)

    def over(self, parts: Sequence[tuple[Store, Tensor]]) -> Samples:
        """The same samples over other stores that hold the same images."""
        return self._make(tuple(parts), self.slots, self.targets, self.extras)

    def of_class(self, slot: int) -> Samples:
        """The samples of one slot, in order."""
        return self[(self.slots == slot).nonzero().flatten()]

    def counts(self) -> dict[int, int]:
        """Number of samples of each slot present."""
        slots, counts = torch.unique(self.slots, return_counts=True)
        return dict(zip(slots.tolist(), counts.tolist(), strict=True))

    def sealed(self) -> Samples:
        """The same samples over stores that hold nothing else: other rows of the data set cannot be reached."""
        parts = tuple((store.take(rows), torch.arange(len(rows))) for store, rows in self._parts)
        return self._make(parts, self.slots, self.targets, self.extras)

    def joined(self) -> Samples:
        """The same samples with the pixels of arrays in one tensor, so that a batch is one gather."""
        if not self.in_memory or (len(self._parts) == 1 and len(self._parts[0][0]) == len(self)):
            return self
        return Samples(ArrayStore(self.pixels), self.slots, targets=self.targets, extras=self.extras)

    def batches(
        self, size: int = 500, device: torch.device | str | None = None, joined: bool = False
    ) -> Iterator[Batch]:
        """Batches in order in the evaluation view: no augmentation, no shuffling.

        Args:
            joined: Whether a last batch of one joins the batch before it, as in training.
        """
        starts = range(0, len(self), size)
        for start, stop in batch_bounds(len(self), size) if joined else ((start, start + size) for start in starts):
            part = self[start:stop]
            pixels = part.pixels
            if device is not None:
                pixels = pixels.to(device, non_blocking=True)
            yield Batch(
                to_float(pixels),
                part.slots.to(pixels.device),
                None if part.targets is None else part.targets.to(pixels.device),
                partial(itself, pixels),
                torch.arange(start, start + len(part)),
                {name: values.to(pixels.device) for name, values in part.extras.items()},
            )

    @classmethod
    def _make(
        cls,
        parts: tuple[tuple[Store, Tensor], ...],
        slots: Tensor,
        targets: Tensor | None,
        extras: Mapping[str, Tensor],
    ) -> Samples:
        made = cls.__new__(cls)
        made._parts, made.slots, made.targets, made.extras = parts, slots, targets, dict(extras)
        return made


def concatenated(parts: Sequence[Samples]) -> Samples:
    """One or more samples, one after the other: ``+`` over them, without copying the first ones again for each."""
    while len(parts) > 1:
        pairs = [parts[place : place + 2] for place in range(0, len(parts), 2)]
        parts = [pair[0] + pair[1] if len(pair) > 1 else pair[0] for pair in pairs]
    return parts[0]


def itself(value: T) -> T:
    """What it is given: for a function that hands over what is there already."""
    return value
