"""Images that were decoded once into a file: as quick as arrays in memory, and memory stays flat."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data.arrays import replacing
from cil.data.crops import crop_resized
from cil.errors import DataError

Shape = tuple[int, int, int]
Pixels = NDArray[np.uint8]


class MappedStore:
    """Rows of a file of images, (C, H, W) uint8 one after the other. The file is mapped while a batch is read.

    Args:
        shape: (C, H, W).
        sums: (n, 32) SHA-256 of the content of each image, whatever it is counted of.
        rows: (n,) places in the file; all in order where left out.
    """

    in_memory = False

    def __init__(self, path: Path, shape: Shape, sums: Pixels, rows: Tensor | None = None) -> None:
        self.path, self.shape, self.sums = path, shape, sums
        self.rows = torch.arange(len(sums)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def view(self) -> str:
        return f"decoded {self.shape} {self.path.name}"

    def pixels(self, rows: Tensor) -> Tensor:
        size = int(np.prod(self.shape))
        try:
            file: Pixels = np.asarray(np.memmap(self.path, np.uint8, "r")).reshape(-1, size)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}, the decoded images, cannot be read ({error}); remove it to make it anew"
            ) from None
        return torch.from_numpy(file[self.rows[rows].numpy()]).view(-1, *self.shape)

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        return crop_resized(self.pixels(rows), draws)

    def take(self, rows: Tensor) -> MappedStore:
        return MappedStore(self.path, self.shape, self.sums[rows.numpy()], self.rows[rows])

    def digest(self, rows: Tensor) -> bytes:
        return hashlib.sha256(self.sums[rows.numpy()].tobytes()).digest()

    def row_keys(self, rows: Tensor) -> NDArray[np.uint64]:
        return np.ascontiguousarray(self.sums[rows.numpy()]).view(np.uint64)[:, 0]


def write_images(path: Path, pieces: Iterable[Tensor], count: int, shape: Shape) -> None:
    """Write images to a file for ``MappedStore``, in one piece or not at all.

    Args:
        pieces: Images (n_i, C, H, W) uint8, ``count`` in all.

    Raises:
        DataError: where there is no room, or the folder cannot be written.
    """
    size = count * int(np.prod(shape))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise DataError(
                f"decoded images take {size:,} bytes and {path.parent} has {free:,} left; set data_root (CIL_DATA), a "
                f"smaller stream.size, or stream.in_memory=false"
            )
        with replacing(path) as part, part.open("wb") as file:
            for piece in pieces:
                file.write(piece.contiguous().numpy().data)
    except OSError as error:
        raise DataError(f"decoded images cannot be kept in {path.parent}: {error.strerror}; set data_root") from None
