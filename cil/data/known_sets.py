"""Well-known data sets without their images: shapes and numbers, for what a stream's structure tells."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data.registry import Dataset, dataset_options
from cil.data.samples import Samples
from cil.errors import DataError

MNIST = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
SVHN = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)


class KnownSet(NamedTuple):
    """Shape (C, H, W) of the images of a data set, and training images of each class."""

    shape: tuple[int, int, int]
    counts: tuple[int, ...]


KNOWN = {
    "cifar10": KnownSet((3, 32, 32), (5000,) * 10),
    "cifar100": KnownSet((3, 32, 32), (500,) * 100),
    "mnist": KnownSet((1, 28, 28), MNIST),
    "fashion_mnist": KnownSet((1, 28, 28), (6000,) * 10),
    "kmnist": KnownSet((1, 28, 28), (6000,) * 10),
    "svhn": KnownSet((3, 32, 32), SVHN),
    "tiny_imagenet": KnownSet((3, 64, 64), (500,) * 200),
    "imagenet100": KnownSet((3, 224, 224), (1300,) * 100),
    "imagenet1000": KnownSet((3, 224, 224), (1300,) * 1000),  # a tenth of the classes have fewer
}


class Unread:
    """Store of images that were not read: it has a shape, and no pixels."""

    in_memory = False

    def __init__(self, name: str, shape: tuple[int, int, int], count: int) -> None:
        self.name, self.shape, self.count = name, shape, count

    def __len__(self) -> int:
        return self.count

    def pixels(self, rows: Tensor) -> Tensor:
        raise DataError(f"the images of {self.name} were not read")

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        return self.pixels(rows)

    def take(self, rows: Tensor) -> Unread:
        return Unread(self.name, self.shape, len(rows))

    def row_keys(self, rows: Tensor) -> NDArray[np.uint64]:
        """No two images are alike, as far as is known."""
        first = int.from_bytes(self.digest(rows)[:8], "little")
        return np.uint64(first) + rows.numpy().astype(np.uint64)

    def digest(self, rows: Tensor) -> bytes:
        return hashlib.sha256(f"{len(rows)} images of {self.name} that were not read".encode()).digest()


def with_unread_sets(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of a stream builder with data sets that have structure and no image; None where none is known.

    Args:
        given: ``dataset``, a name or a list as of a pool, and the other arguments of the builder.
    """
    named = given.get("dataset")
    if isinstance(named, list | tuple):
        return _pool_of_unread_sets(given, named)
    known = KNOWN.get(str(named))
    if known is None:
        return None
    found = _with_channels(given, known.shape[0])
    if isinstance(size := found.get("size"), int):
        known = known._replace(shape=(known.shape[0], size, size))
    for option in dataset_options(str(named)):
        found.pop(option, None)
    if _has_names(given):
        if len(set(known.counts)) > 1:  # which classes are meant is not known
            return None
        many = given["classes"] if isinstance(given.get("classes"), int | None) else len(given["classes"])
        found |= {"classes": many, "order": "seed"}
    return found | {"dataset": _unread(str(named), known)}


def _pool_of_unread_sets(given: Mapping[str, Any], sets: Sequence[Any]) -> dict[str, Any] | None:
    """Of the sets that are known; the others are read."""
    known = [KNOWN.get(one) if isinstance(one, str) else None for one in sets]
    channels = {one.shape[0] for one in known if one is not None}
    if not channels or (3 not in channels and None in known) or _has_names(given):
        return None
    unread = [one if found is None else _unread(one, found) for one, found in zip(sets, known, strict=True)]
    return _with_channels(given, max(channels)) | {"dataset": unread}


def _unread(name: str, known: KnownSet) -> Dataset:
    """A data set without images, and with one test image of each class."""
    labels = torch.arange(len(known.counts))
    train = labels.repeat_interleave(torch.tensor(known.counts))
    training, test = (Samples(Unread(name, known.shape, len(slots)), slots) for slots in (train, labels))
    return Dataset(name, training, test, classes=[str(label) for label in labels.tolist()], official=True)


def _with_channels(given: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Mean and deviation of the channels are of images; any do where there are none."""
    return {**given, **{key: given.get(key) or [0.5] * channels for key in ("mean", "std")}}


def _has_names(given: Mapping[str, Any]) -> bool:
    """True where classes are chosen or ordered by their names, and not by number."""
    lists = (given.get(key) for key in ("classes", "order"))
    return any(isinstance(item, str) for one in lists if isinstance(one, list | tuple) for item in one)
