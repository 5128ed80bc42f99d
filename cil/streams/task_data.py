"""Data of the tasks of a manifest: sources opened, labels read, splits made, images resized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cil.data import ArrayStore, Samples, Store, data_root
from cil.data.file_store import FileStore
from cil.data.tasks import SOURCES, SPLITS, Access, FileImages, Images, label_examples, open_source, split_rows
from cil.errors import DataError, StreamError
from cil.streams.manifest import Manifest, ManifestTask
from cil.streams.manifest_rules import refuses_download
from cil.streams.manifest_schema import is_inside


@dataclass(frozen=True)
class TaskData:
    """A task whose source is open: nothing is decoded yet.

    Attributes:
        images: Images of the source; cut out where the task says so.
        labels: (n,) class numbers or (n, L) of 0 and 1, by row of the source; -1 for rows that have gone.
        rows: Rows of the source in each split, ascending.
        dropped: Rows that were left out because they are exact copies of others.
    """

    task: ManifestTask
    images: Images
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    rows: dict[str, NDArray[np.int64]]
    dropped: tuple[int, ...] = ()


class TaskError(DataError):
    """The data of a task are missing or not as its manifest says.

    Attributes:
        path: Place in the manifest, such as ``splits``.
        reason: The message without the task's name.
    """

    def __init__(self, task: str, path: str, reason: str) -> None:
        super().__init__(f"{task}: {reason}")
        self.path, self.reason = path, reason


def open_task(
    task: ManifestTask, root: str | Path | None = None, *, offline: bool = False, accept: bool = False
) -> TaskData:
    """Open the source of a task, read its labels and split it.

    Args:
        offline: True: nothing is downloaded.
        accept: True: the licence is accepted for this call, whatever the manifest says.

    Raises:
        TaskError: where data are missing or not as the manifest says, or would need a download that is not allowed.
    """
    base, path = data_root(root), "source"
    access = _access(task, base, offline=offline, accept=accept)
    try:
        table = open_source(task.source, access)
        path = "classes"
        found = label_examples(table, task.kind, task.classes, task.transform)
        images, rows, labels = found.table.images, found.rows, found.labels
        path = "splits"
        gone: list[int] = []
        if task.splits.get("deduplicate"):
            stays = _first_copies(images, rows, labels)
            gone, rows, labels = rows[~stays].tolist(), rows[stays], labels[stays]
        columns = {name: values[rows] for name, values in found.table.columns.items()}
        placed = split_rows(task.splits, task.dataset, labels, columns, lambda name: _lines(base, name))
        own = {name: rows[place] for name, place in placed.items()}
        if task.splits.get("duplicates") == "drop":
            for where in copies_across(images, own).values():
                for name in list(where)[:-1]:  # the copy nearest to test stays
                    own[name] = np.setdiff1d(own[name], where[name])
                    gone += where[name]
    except DataError as error:
        if access.why_not and access.why_not in str(error) and not offline:
            path = "license.accept"
        raise TaskError(task.id, path, str(error)) from None
    full = np.full((len(images), *labels.shape[1:]), -1, dtype=np.int64)
    full[rows] = labels
    return TaskData(task, images, full, found.names, own, tuple(sorted(gone)))


def _access(task: ManifestTask, root: Path, *, offline: bool, accept: bool) -> Access:
    """Access to the source of a task: licences that nobody accepted allow no download."""
    if offline:
        return Access(root, why_not="offline was asked for")
    if refuses_download(task.license) and not accept:
        stated = task.license.get("name", "not stated")
        return Access(root, why_not=f"its licence ({stated}) is not accepted; read it, then set license.accept: true")
    return Access(root, download=True)


def load_task(task: ManifestTask, root: str | Path | None = None) -> dict[str, Samples]:
    """The samples of each split, resized and with the channels of the task; the same each time.

    Images are cut to their central square and resized to ``preprocess.resize``, as in NEVIS'22. Multilabel tasks have
    ``targets`` (N, L); their slots are 0 throughout and mean nothing.

    Raises:
        TaskError: see ``open_task``; also for images that cannot be read.
    """
    data = open_task(task, root)
    size, channels = task.preprocess.get("resize", 64), task.channels
    for name in ("train", "test"):  # without the others a stream may do
        if not len(data.rows[name]):
            raise TaskError(task.id, f"splits.{name}", "it has no example")
    splits = {}
    for name, rows in data.rows.items():
        try:
            store = _store(data.images, rows, size, channels, task.preprocess)
        except DataError as error:
            raise TaskError(task.id, "source", str(error)) from None
        labels = torch.from_numpy(data.labels[rows])
        if task.multilabel:
            slots = torch.zeros(len(rows), dtype=torch.int64)
            splits[name] = Samples(store, slots, targets=labels.to(torch.float32))
        else:
            splits[name] = Samples(store, labels)
    return splits


def available(manifest: Manifest) -> tuple[Manifest, list[str]]:
    """The manifest, or its fallback where packages are missing, and warnings about it.

    Raises:
        StreamError: where a package is missing and the manifest has no fallback.
    """
    lacking: dict[str, list[str]] = {}
    for task in manifest.tasks:
        kind = SOURCES[task.source["type"]]
        if kind.package and find_spec(kind.package) is None:
            lacking.setdefault(kind.install, []).append(task.id)
    if not lacking:
        return manifest, []
    notes = [f"{', '.join(ids)} need a package that is not installed: {install}" for install, ids in lacking.items()]
    if not manifest.stream.fallback:
        raise StreamError(f"stream '{manifest.stream.name}': {'; '.join(notes)}")
    left = manifest.select(ids=manifest.stream.fallback)
    notes.append(f"the stream '{manifest.stream.name}' is reduced to {', '.join(task.id for task in left)}")
    return replace(left, path=manifest.path), notes


def copies_across(images: Images, rows: Mapping[str, NDArray[np.int64]]) -> dict[bytes, dict[str, list[int]]]:
    """Rows by content and split, of exact copies that are in more than one split."""
    found: dict[bytes, dict[str, list[int]]] = {}
    for name in SPLITS:
        for row in rows.get(name, np.array([], dtype=np.int64)).tolist():
            found.setdefault(images.content(row), {}).setdefault(name, []).append(row)
    return {content: where for content, where in found.items() if len(where) > 1}


def _first_copies(images: Images, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) true for rows that are the first of their image and label."""
    seen: set[bytes] = set()
    stays = np.ones(len(rows), dtype=bool)
    for place, row in enumerate(rows.tolist()):
        key = images.content(row) + labels[place].tobytes()
        stays[place] = key not in seen
        seen.add(key)
    return stays


def _store(images: Images, rows: NDArray[np.int64], size: int, channels: int, preprocess: Mapping[str, Any]) -> Store:
    nearest = preprocess.get("interpolation") == "nearest"
    if isinstance(images, FileImages) and images.boxes is None and not nearest:
        files = FileStore([images.paths[row] for row in rows], size, channels, shorter=size)
        return files if preprocess.get("lazy") else ArrayStore(files.pixels(torch.arange(len(rows))))
    made = np.empty((len(rows), channels, size, size), np.uint8)
    for place, row in enumerate(rows.tolist()):
        made[place] = _central_square(images[row], size, channels, nearest)
    return ArrayStore(torch.from_numpy(made))


def _central_square(image: NDArray[np.uint8], size: int, channels: int, nearest: bool) -> NDArray[np.uint8]:
    """The central square of an image, resized: (C, size, size)."""
    from PIL import Image

    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    picture = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)
    array = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return array.transpose(2, 0, 1) if channels == 3 else array[None]


def _lines(root: Path, path: str) -> list[str]:
    file = root / path
    if not is_inside(path) or not file.is_file():
        raise DataError(f"list file {file} does not exist (splits.lists)")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
