"""Several data sets as one: all their classes, images of one size and number of channels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cil.data.augment import Augment
from cil.data.augment_by_class import AugmentByClass
from cil.data.columns import relabelled
from cil.data.file_store import MOST_SIZE
from cil.data.registry import Dataset, dataset_options, load_dataset, register_dataset
from cil.data.samples import ArrayStore, Samples, Store, concatenated, view_of
from cil.errors import ConfigError, DataError

Shape = tuple[int, int, int]
Fit = Literal["resize", "pad"]
_PIECE = 2000  # images that are resized at a time


@register_dataset("pooled")
def pooled(
    root: Path, sets: Sequence[str | Mapping[str, Any] | Dataset], size: int | None = None, fit: Fit = "resize"
) -> Dataset:
    """Several data sets as one, which ``stream.dataset=[NAME, NAME, ...]`` stands for.

    The classes of the first set come first. A class name that several sets have becomes SET/NAME. Grey images get three
    channels where a set has colours. Augmentation is that of each image's own set; random resized crops are made only
    where all sets have the same. Mean and std are those of the stream
    as a whole: they are the same for all images, for else a test image would tell which set it is from. Columns of
    groups are those of one set, and left out.

    Args:
        sets: Names of data sets, or mappings with ``name`` and options of that set: ``path``, ``augment``, ...
        size: Height and width of all images in pixels; None: the largest of the sets.
        fit: How smaller images come to that size: ``resize``, or ``pad`` with black around them. Larger ones are
            resized in any case.

    Raises:
        ConfigError: for an unknown name or option, a set that is named twice, or fewer than two sets.
        DataError: for a set with several labels an image, or with two channels.
    """
    if isinstance(sets, str) or len(sets) < 2:
        raise ConfigError(f"stream.dataset is {sets!r}; a pool has two data sets or more, as in [mnist5k, digits]")
    if size is not None and not 1 <= size <= MOST_SIZE:
        raise ConfigError(f"stream.size is {size}; it must be from 1 to {MOST_SIZE} pixels, or null")
    return pool([_load(given, root, size) for given in sets], size, fit)


def pool(sets: Sequence[Dataset], size: int | None = None, fit: Fit = "resize") -> Dataset:
    """As ``pooled``, of data sets that are loaded."""
    names = [data.name for data in sets]
    if len(set(names)) < len(names):
        raise ConfigError(f"stream.dataset names {', '.join(names)}; name each data set once")
    for data in sets:
        if data.train.targets is not None:
            raise DataError(f"data set '{data.name}' has several labels an image; it cannot be in a pool")
        if data.train.shape[0] not in (1, 3):
            raise DataError(f"data set '{data.name}' has {data.train.shape[0]} channels; a pool takes 1 or 3")
    side = size or max(max(data.train.shape[1:]) for data in sets)
    shape = (max(data.train.shape[0] for data in sets), side, side)
    splits: dict[str, list[Samples]] = {"train": [], "test": []}
    first = 0
    for data in sets:
        for split, parts in splits.items():
            own: Samples = getattr(data, split)
            parts.append(relabelled(_fitted(own, shape, fit == "pad"), first + torch.arange(len(data.classes))))
        first += len(data.classes)
    official = None if any(data.official is None for data in sets) else all(data.official for data in sets)
    origins = [data.name for data in sets for _ in data.classes]
    count = Counter(name for data in sets for name in data.classes)
    return Dataset(
        name="+".join(names),
        train=concatenated(splits["train"]),
        test=concatenated(splits["test"]),
        classes=[f"{data.name}/{name}" if count[name] > 1 else name for data in sets for name in data.classes],
        official=official,
        augment=AugmentByClass.of([data.augment for data in sets], [names.index(origin) for origin in origins]),
        source="; ".join(data.source for data in sets if data.source),
        origins=origins,
    )


def _load(given: str | Mapping[str, Any] | Dataset, root: Path, size: int | None) -> Dataset:
    if isinstance(given, Dataset):
        return given
    options: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    if not isinstance(options.get("name"), str):
        raise ConfigError(f"stream.dataset has {given!r}; give a name, or a mapping with name and options of the set")
    name, augment = options.pop("name"), options.pop("augment", None)
    if size is not None and "size" in dataset_options(name):
        options.setdefault("size", size)  # files are decoded at the size that is wanted
    data = load_dataset(name, root, **options)
    if augment is None:
        return data
    if not isinstance(augment, Mapping) or not augment.keys() <= Augment.__dataclass_fields__.keys():
        known = ", ".join(Augment.__dataclass_fields__)
        raise ConfigError(f"stream.dataset: augment of '{data.name}' is {augment!r}; its arguments are {known}")
    return replace(data, augment=Augment(**augment))


def _fitted(samples: Samples, shape: Shape, pad: bool) -> Samples:
    """The samples with images of another shape; arrays at once, files when they are asked for."""
    if samples.shape == shape:
        return samples
    parts = []
    for store, rows in samples.parts:
        fitted: Store = FittedStore(store, shape, pad)
        fitted = ArrayStore(fitted.pixels(rows)) if store.in_memory else fitted.take(rows)
        parts.append(Samples(fitted, torch.zeros(len(rows), dtype=torch.int64)))
    return concatenated(parts).with_slots(samples.slots).with_extras(samples.extras)


class FittedStore:
    """Images of another store, brought to one ``shape`` (C, H, W): ``pad`` puts smaller ones on black, else resized."""

    in_memory = False

    def __init__(self, store: Store, shape: Shape, pad: bool) -> None:
        self.store, self.shape, self.pad = store, shape, pad

    def __len__(self) -> int:
        return len(self.store)

    def pixels(self, rows: Tensor) -> Tensor:
        pieces = [fit_to(self.store.pixels(piece), self.shape, self.pad) for piece in rows.split(_PIECE)]
        return torch.cat([torch.zeros(0, *self.shape, dtype=torch.uint8), *pieces])

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        return fit_to(self.store.training_pixels(rows, draws), self.shape, self.pad)

    def take(self, rows: Tensor) -> FittedStore:
        return FittedStore(self.store.take(rows), self.shape, self.pad)

    def row_keys(self, rows: Tensor) -> NDArray[np.uint64]:
        """Those of the other store: of files, which need not be decoded."""
        return Samples(self.store, torch.zeros(len(rows), dtype=torch.int64), rows).keys()

    @property
    def view(self) -> str:
        return f"{'padded' if self.pad else 'resized'} to {self.shape}: {view_of(self.store)}"

    def digest(self, rows: Tensor) -> bytes:
        return hashlib.sha256(self.store.digest(rows) + self.view.encode()).digest()


def fit_to(pixels: Tensor, shape: Shape, pad: bool = False) -> Tensor:
    """Images (n, c, h, w) uint8 in another shape (C, H, W): grey ones repeated, then padded or resized (bilinear)."""
    pixels = pixels.expand(-1, shape[0], -1, -1) if pixels.shape[1] == 1 else pixels
    height, width = pixels.shape[2:]
    if (height, width) == shape[1:]:
        return pixels.contiguous()
    if pad and height <= shape[1] and width <= shape[2]:
        top, left = (shape[1] - height) // 2, (shape[2] - width) // 2
        return F.pad(pixels, (left, shape[2] - width - left, top, shape[1] - height - top))
    resized = F.interpolate(pixels.float(), shape[1:], mode="bilinear", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).byte()
