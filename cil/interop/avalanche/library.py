"""The library itself, imported when it is first used, and data sets in its form."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cil.data import Augment, Samples
from cil.data.samples import to_float
from cil.errors import ConfigError, in_words

TESTED = "0.6.0"  # the release that the lists of strategies were measured with


def require(wanted: str) -> None:
    """Refuse to go on without the library; it is looked for, not imported.

    Args:
        wanted: The key that asks for it, for the message.

    Raises:
        ConfigError: where it is not installed.
    """
    if find_spec("avalanche") is None:
        raise ConfigError(f"{wanted} needs the package avalanche-lib: pip install 'cil[avalanche]'")


def library(module: str) -> Any:
    """A module of Avalanche, ``training.supervised`` for example. The first import takes some seconds.

    Raises:
        ConfigError: where it is not installed, or cannot be imported.
    """
    require(f"avalanche.{module}")
    try:
        return import_module(f"avalanche.{module}")
    except ImportError as error:
        raise ConfigError(f"avalanche.{module} cannot be imported: {in_words(error)}") from error


class Images(Dataset[tuple[Tensor, int]]):
    """Samples as a torch data set: items are (C, H, W) uint8 pixels and the slot, each one read of its image."""

    def __init__(self, samples: Samples) -> None:
        self.targets = samples.slots.tolist()
        self._parts = samples.parts
        self._ends = list(accumulate(len(rows) for _, rows in samples.parts))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        part = bisect_right(self._ends, row)
        store, rows = self._parts[part]
        place = row - (self._ends[part] - len(rows))
        return store.pixels(rows[place : place + 1])[0], self.targets[row]


class ToInput:
    """Turns stored pixels into what a network is given: float in [0, 1], augmented, normalised where that is asked.

    Args:
        augment: Of training images; None: none.
        generator: Of the augmentation's draws, one image after the other.
        mean, std: One value a channel; None: values stay in [0, 1].
    """

    def __init__(
        self,
        augment: Augment | None = None,
        generator: torch.Generator | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.augment, self.generator = augment, generator or torch.Generator().manual_seed(0)
        self.scale = None if mean is None or std is None else (torch.tensor(mean), torch.tensor(std))

    def __call__(self, pixels: Tensor) -> Tensor:
        batch = pixels[None]
        image = (to_float(batch) if self.augment is None else self.augment(batch, self.generator))[0].contiguous()
        if self.scale is None:
            return image
        mean, std = (value[:, None, None] for value in self.scale)
        return (image - mean) / std


def dataset_of(
    samples: Samples,
    training: Callable[[Tensor], Tensor],
    evaluation: Callable[[Tensor], Tensor],
    attributes: Mapping[str, Sequence[int]] | None = None,
) -> Any:
    """Samples as a task-aware data set of Avalanche, which is what its plugins ask for.

    Args:
        training, evaluation: Pixels to the input of the network, in the two views of the data set.
        attributes: Further integers of each image, by name; they follow it into buffers.
    """
    make = library("benchmarks.utils.classification_dataset")._make_taskaware_classification_dataset
    views = {"train": (training, None), "eval": (evaluation, None)}
    data = make(Images(samples), transform_groups=views, task_labels=0)
    for name, values in (attributes or {}).items():
        data = data.update_data_attribute(name, list(values))
    return data
