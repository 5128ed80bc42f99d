"""A task's examples as they come from a source: images that are read when asked for, labels, further columns.

Also what all kinds of source share: permissions, the keys of their parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cil.data.file_store import read_image
from cil.errors import DataError

Pixels = NDArray[np.uint8]
PART_NAMES = ("all", "train", "val", "test")


@dataclass(frozen=True)
class Access:
    """Permissions for opening a source.

    Attributes:
        root: The data root; paths are relative to it.
        download: True: data that are not there may be fetched.
        why_not: The reason where they may not.
    """

    root: Path
    download: bool = False
    why_not: str = ""


def parts_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """The publisher's parts (train, val, test) that a source names, in order."""
    return {name: source[name] for name in PART_NAMES if name in source}


def origin_hint(source: Mapping[str, Any]) -> str:
    """End of a message about missing data: where they can be obtained, if the source says so."""
    return f" ({source['obtain']})" if source.get("obtain") else ""


class Images(Protocol):
    """Images by row, each (H, W) or (H, W, C) uint8 in its own size."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Pixels: ...

    def content(self, row: int) -> bytes:
        """SHA-256 of the stored image: equal for exact copies."""


class _HashedImages:
    """Images whose content is hashed once: splitting, checks and the lock file all ask for it."""

    def __init__(self) -> None:
        self._contents: dict[int, bytes] = {}

    def content(self, row: int) -> bytes:
        if row not in self._contents:
            self._contents[row] = hashlib.sha256(self._bytes(row)).digest()
        return self._contents[row]

    def _bytes(self, row: int) -> bytes:
        raise NotImplementedError


class ArrayImages(_HashedImages):
    """Images in memory, or made one at a time by ``get``."""

    def __init__(self, count: int, get: Callable[[int], Any]) -> None:
        super().__init__()
        self._count, self._get = count, get

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Pixels:
        return np.asarray(self._get(row))

    def _bytes(self, row: int) -> bytes:
        image = np.ascontiguousarray(self[row])
        return repr(image.shape).encode() + image.tobytes()


def in_memory(images: Sequence[Any] | NDArray[Any]) -> ArrayImages:
    """Images of arrays in memory."""
    return ArrayImages(len(images), images.__getitem__)


class FileImages(_HashedImages):
    """Image files, or boxes in them.

    Args:
        boxes: (n, 4) left, top, right, bottom in pixels, or None for whole images.
    """

    def __init__(self, paths: Sequence[str], boxes: NDArray[Any] | None = None) -> None:
        super().__init__()
        self.paths, self.boxes = tuple(paths), boxes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Pixels:
        image = read_image(self.paths[row])
        if self.boxes is not None:
            left, top, right, bottom = (round(float(side)) for side in self.boxes[row])
            image = image.crop((left, top, right, bottom))
        return np.asarray(image)

    def _bytes(self, row: int) -> bytes:
        path = Path(self.paths[row])
        if not path.is_file():
            raise DataError(f"{path} does not exist")
        box = b"" if self.boxes is None else np.asarray(self.boxes[row], dtype=np.float64).tobytes()
        return path.read_bytes() + box


@dataclass(frozen=True)
class ExampleTable:
    """Examples of a task in the order of its source: images, labels and further columns.

    Attributes:
        images: n images.
        labels: (n,) class numbers, values or class names; (n, L) numbers, one column a label; or one tuple of names
            an example.
        columns: n values each; ``part`` is the publisher's part (``all`` where there is none), ``name`` the file.
        names: Names of the classes, where the source knows them.
    """

    images: Images
    labels: NDArray[Any] | list[tuple[str, ...]]
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.columns.setdefault("part", np.full(len(self.images), "all"))


def join_tables(pieces: Sequence[tuple[str, ExampleTable]]) -> ExampleTable:
    """Join the tables of parts, one after the other; column ``part`` has the name of the part."""
    tables = [table for _, table in pieces]
    starts = np.cumsum([0, *(len(table.images) for table in tables)])

    def get(row: int) -> Any:
        which = int(np.searchsorted(starts, row, side="right")) - 1
        return tables[which].images[row - int(starts[which])]

    labels: Any
    if all(isinstance(table.labels, list) for table in tables):
        labels = [label for table in tables for label in table.labels]
    else:
        labels = np.concatenate([np.asarray(table.labels) for table in tables])
    shared = set.intersection(*(set(table.columns) for table in tables)) - {"part"}
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in sorted(shared)}
    columns["part"] = np.concatenate([np.full(len(table.images), name) for name, table in pieces])
    images: Images = ArrayImages(int(starts[-1]), get)
    if all(isinstance(table.images, FileImages) for table in tables):  # which can be decoded later
        images = FileImages([path for table in tables for path in getattr(table.images, "paths", ())])
    if len({table.names for table in tables}) > 1:
        raise DataError("the parts of the source have different classes")
    return ExampleTable(images, labels, columns, tables[0].names)
