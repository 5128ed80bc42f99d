"""A task's examples as they come from a source: images that are read when asked for, labels, further columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cil.errors import DataError

Pixels = NDArray[np.uint8]


class Images(Protocol):
    """Images by row, each (H, W) or (H, W, C) uint8 in its own size."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Pixels: ...

    def content(self, row: int) -> bytes:
        """SHA-256 of what is stored: equal for exact copies."""
        ...


class ArrayImages:
    """Images in memory, or made one at a time by ``get``."""

    def __init__(self, count: int, get: Callable[[int], Any]) -> None:
        self._count, self._get = count, get

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Pixels:
        return np.asarray(self._get(row))

    def content(self, row: int) -> bytes:
        image = np.ascontiguousarray(self[row])
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def in_memory(images: Sequence[Any] | NDArray[Any]) -> ArrayImages:
    """Arrays that are there already."""
    return ArrayImages(len(images), images.__getitem__)


class FileImages:
    """Image files, or boxes in them.

    Args:
        paths: One an example.
        boxes: (n, 4) left, top, right, bottom in pixels, or None for whole images.
    """

    def __init__(self, paths: Sequence[str], boxes: NDArray[Any] | None = None) -> None:
        self.paths, self.boxes = tuple(paths), boxes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Pixels:
        from PIL import Image

        try:
            with Image.open(self.paths[row]) as file:
                image = file.convert("RGB")
        except Exception as error:  # damaged bytes make decoders raise all sorts of things
            raise DataError(f"{self.paths[row]} cannot be read as an image ({error}); replace or remove it") from None
        if self.boxes is not None:
            image = image.crop(tuple(round(float(side)) for side in self.boxes[row]))
        return np.asarray(image)

    def content(self, row: int) -> bytes:
        path = Path(self.paths[row])
        if not path.is_file():
            raise DataError(f"{path} does not exist")
        box = b"" if self.boxes is None else np.asarray(self.boxes[row], dtype=np.float64).tobytes()
        return hashlib.sha256(path.read_bytes() + box).digest()


@dataclass(frozen=True)
class Table:
    """Examples of a task in the order of its source.

    Attributes:
        images: n of them.
        labels: (n,) class numbers, values or class names; (n, L) numbers, one column a label; or one tuple of names
            an example.
        columns: n values each; ``part`` is the official part (``all`` where there is none), ``name`` the file.
        names: Of the classes, where the source knows them.
    """

    images: Images
    labels: NDArray[Any] | list[tuple[str, ...]]
    columns: dict[str, NDArray[Any]]
    names: tuple[str, ...] | None = None
