"""Digits whose pixels are shuffled, all in the same way: a stream on which convolutions help little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cil import Samples, Stream, class_incremental, load_dataset
from cil.data import ArrayStore


def shuffled_digits(
    *, increment: int = 2, pixel_seed: int = 0, root: str | Path | None = None, **options: Any
) -> Stream:
    """scikit-learn's digits, every image with the same permutation of its pixels."""
    data = load_dataset("digits", root)
    _, height, width = data.train.shape
    order = torch.randperm(height * width, generator=torch.Generator().manual_seed(pixel_seed))

    def shuffled(samples: Samples) -> Samples:
        pixels = samples.pixels.flatten(1)[:, order].reshape(-1, *data.train.shape)
        return Samples(ArrayStore(pixels), samples.slots)

    changed = replace(data, name="shuffled_digits", train=shuffled(data.train), test=shuffled(data.test), official=None)
    return class_incremental(changed, increment=increment, **options)
