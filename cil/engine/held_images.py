"""How many images there are in what a learner holds, whatever their layout, scale or wrapping."""

from __future__ import annotations

import io
import math
from array import array
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cil.contract.reachable import reachable_data
from cil.contract.unkept import DATA
from cil.data import Samples
from cil.data.looks import CountedStore
from cil.memory.exemplars import EncodedStore

RAW = (bytes, bytearray, memoryview, array, io.BytesIO)
CLOSE, ROUNDED = 1e-4, 5e-3  # moments of an image as it is, and as bytes or half precision
PART = 4  # of the images of a batch: where one in so many is found again, a block of numbers holds images


@dataclass
class HeldImages:
    """Counts images.

    Images in their own shape are known by it, in any order of dimensions. Others are known by the batch in hand: where
    a block of numbers has images of it, all blocks of that form hold images. They are found by two numbers each, the
    third and fourth standardised moment of the pixels, which neither their order nor scale and shift change.

    Args:
        shape: Of an image of the stream.
        images: The batch in hand, (N, C, H, W).
    """

    shape: tuple[int, int, int]
    images: Tensor
    _known: set[int] = field(default_factory=set)  # identities of the layers that were looked at
    _blocks: dict[Hashable, int] = field(default_factory=dict)  # images that there are, if any, by form
    _found: set[Hashable] = field(default_factory=set)  # forms of blocks that have images of the batch

    def __post_init__(self) -> None:
        self.pixels = math.prod(self.shape)
        size = math.prod(self.images.shape[1:])  # a crop may be of another size
        self._batch = _moments(self.images.detach().reshape(-1, size)) if size == self.pixels else torch.zeros(0, 2)

    def count(self, roots: Iterable[Any]) -> int:
        """Images in all that can be reached; once for each object."""
        in_shape = self._inside(roots)
        return in_shape + sum(self._blocks[form] for form in self._found)

    def _inside(self, roots: Iterable[Any]) -> int:
        return sum(map(self._count, reachable_data(roots, is_data=self._is_data)))

    def _is_data(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return bool(value) and len(value) % self.pixels == 0 and isinstance(value[0], int | float)
        return isinstance(value, (*DATA, *RAW))

    def _count(self, found: Any) -> int:
        if isinstance(found, Samples):
            stores = [store for store, _ in found.parts if not isinstance(store, CountedStore | EncodedStore)]
            return len(found) if any(tuple(store.shape) == self.shape for store in stores) else 0
        if isinstance(found, nn.Module):
            total = 0
            for layer in found.modules():  # parameters, buffers, attributes and hooks
                if id(layer) not in self._known:
                    self._known.add(id(layer))
                    total += self._inside(value for name, value in vars(layer).items() if name != "_modules")
            return total
        if isinstance(found, Tensor | np.ndarray) and sorted(found.shape[-3:]) == sorted(self.shape):
            return math.prod(found.shape[:-3])
        for block in _numbers(found):
            self._note(type(found), block)
        return 0

    def _note(self, kind: type, block: Tensor) -> None:
        """Note a block of numbers of another shape: images one after the other, or one a column."""
        if block.numel() < self.pixels or block.numel() % self.pixels or not len(self._batch):
            return
        layouts = {"rows": block.reshape(-1, self.pixels)}
        if block.ndim > 1 and len(block) == self.pixels:
            layouts["columns"] = block.reshape(self.pixels, -1).t()
        least = min(len(self._batch), max(2, len(self._batch) // PART))
        for layout, images in layouts.items():
            form = (kind, block.dtype, layout)
            self._blocks[form] = self._blocks.get(form, 0) + len(images)
            if form not in self._found:
                near = torch.cdist(self._batch, _moments(images)).min(1).values < (
                    CLOSE if block.dtype in (torch.float32, torch.float64) else ROUNDED
                )
                if int(near.sum()) >= least:
                    self._found.add(form)


def _numbers(found: Any) -> Iterator[Tensor]:
    """A value as blocks of numbers: of raw bytes as each of the two types that images have."""
    if isinstance(found, Tensor):
        yield found.detach()
    elif isinstance(found, np.ndarray):
        if found.dtype.kind in "uif" and found.size:
            yield torch.from_numpy(found.astype(np.float32))
    elif isinstance(found, list | tuple):
        if all(isinstance(value, int | float) for value in found):
            yield torch.tensor(found, dtype=torch.float32)
    elif isinstance(found, RAW):
        content = found.getvalue() if isinstance(found, io.BytesIO) else bytes(found)
        if content:
            raw = np.frombuffer(content, np.uint8)
            yield torch.from_numpy(raw.copy())
            if len(raw) % 4 == 0:
                yield torch.from_numpy(raw.view(np.float32).copy())


def _moments(rows: Tensor) -> Tensor:
    """Third and fourth standardised moment of each row, (n, 2) on the CPU; constant rows are like no other."""
    values = rows.real if rows.is_complex() else rows
    centred = values.double() - values.double().mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    standard = centred / spread
    found = torch.stack([standard.pow(3).mean(1), standard.pow(4).mean(1)], 1)
    return torch.where(spread > 1e-6, found, torch.nan).nan_to_num(torch.inf, torch.inf, torch.inf).cpu()
