"""Checks of the data of a manifest: labels, splits and contents of opened sources, and the lock file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.data import data_root
from cil.data.arrays import replacing
from cil.data.tasks import SPLITS
from cil.errors import DataError, StreamError
from cil.streams.manifest import Manifest
from cil.streams.manifest_files import SHIPPED
from cil.streams.manifest_rules import Problem, errors_in
from cil.streams.task_data import TaskData, TaskError, available, copies_across, open_task

Lock = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """Result of a validation.

    Attributes:
        opened: Lock entries of the tasks whose data could be opened.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    opened: Lock = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        return errors_in(self.problems)

    @property
    def lock(self) -> Lock:
        """Lock entries of the tasks without an error in their data."""
        named = {problem.task for problem in self.errors}
        wrong = {task.dataset for task in self.manifest if task.id in named}
        return {task.id: self.opened[task.id] for task in self.manifest
                if task.id in self.opened and task.dataset not in wrong}  # fmt: skip


def validate_data(
    manifest: Manifest,
    root: str | Path | None = None,
    *,
    lock: Lock | None = None,
    offline: bool = False,
    accept: Collection[str] = (),
) -> Report:
    """Open the sources and check labels, splits and contents.

    Args:
        lock: Lock of the data as they were before; a difference is an error.
        accept: Tasks whose licence the user accepts here.
    """
    problems: list[Problem] = []
    if manifest.stream.fallback:
        manifest, notes = available(manifest)
        problems += [Problem("", "stream.fallback", note, "warning") for note in notes]
    found: Lock = {}
    offsets, first = manifest.offsets(), dict[str, str]()
    for task in manifest.ordered(shuffle="none"):
        before = first.setdefault(task.dataset, task.id)
        if before != task.id:  # the same data once more
            found |= {task.id: found[before]} if before in found else {}
            continue
        try:
            data = open_task(task, root, offline=offline, accept=task.id in accept)
            problems += check_task(data)
            damaged = list(unreadable(data))
            problems += damaged
            if damaged:
                continue
            found[task.id] = {
                "counts": {name: len(data.rows[name]) for name in SPLITS},
                "classes": {name: _histogram(data, name).tolist() for name in SPLITS},
                "sha256": _digest(data),
                **({"offset": offsets[task.dataset]} if task.dataset in offsets else {}),
            }
        except TaskError as error:
            problems.append(Problem(task.id, error.path, error.reason))
        except DataError as error:  # a file that is damaged
            problems.append(Problem(task.id, "source", str(error)))
    problems += compare_with_lock(found, lock or {})
    return Report(manifest, tuple(problems), found)


def check_task(data: TaskData) -> Iterator[Problem]:
    """Problems of the labels and splits of one task."""
    task = data.task
    for name in SPLITS:
        if not len(data.rows[name]):
            yield Problem(task.id, f"splits.{name}", "it has no example")
    counts = {name: _histogram(data, name) for name in SPLITS}
    for name in ("train", "test"):
        lacking = [data.names[place] for place in np.flatnonzero(counts[name] == 0)]
        if lacking and len(data.rows[name]):
            what = "no positive example" if task.multilabel else "no example"
            more = f" and {len(lacking) - 3} more classes" if len(lacking) > 3 else ""
            yield Problem(task.id, f"splits.{name}", f"{what} of {', '.join(lacking[:3])}{more}", "warning")
    if task.multilabel and not task.empty_labels:
        none = sum(int((data.labels[rows].sum(axis=1) == 0).sum()) for rows in data.rows.values())
        if none:
            said = f"{none} images have no label at all; where that is meant, set empty_labels: true"
            yield Problem(task.id, "empty_labels", said, "warning")
    how = task.splits.get("duplicates", "error")
    if how != "drop":
        copies = copies_across(data.images, data.rows)
        if copies:
            where = next(iter(copies.values()))
            example = " and ".join(f"{name} (row {rows[0]})" for name, rows in where.items())
            said = f"{len(copies)} images are in more than one split, one in {example}; splits.duplicates: drop or warn"
            yield Problem(task.id, "splits.duplicates", said, "warning" if how == "warn" else "error")


def unreadable(data: TaskData, most: int = 3) -> Iterator[Problem]:
    """Images of a task that cannot be decoded, a few of them by name."""
    rows = sorted({row for name in SPLITS for row in data.rows[name].tolist()})
    found = 0
    for row in rows:
        try:
            data.images[row]
        except DataError as error:
            found += 1
            if found <= most:
                yield Problem(data.task.id, "source", str(error))
    if found > most:
        yield Problem(data.task.id, "source", f"{found - most} more images cannot be read")


def _histogram(data: TaskData, name: str) -> NDArray[np.int64]:
    labels = data.labels[data.rows[name]]
    return labels.sum(axis=0) if data.task.multilabel else np.bincount(labels, minlength=len(data.names))


def _digest(data: TaskData) -> str:
    """SHA-256 over the sorted hashes of the examples: split, content and label of each."""
    each = []
    for name in SPLITS:
        for row in data.rows[name].tolist():
            label = np.atleast_1d(data.labels[row]).astype("<i8").tobytes()
            each.append(hashlib.sha256(name.encode() + data.images.content(row) + label).digest())
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()


def compare_with_lock(found: Lock, lock: Lock) -> Iterator[Problem]:
    """Differences between the data and the lock."""
    for name, now in found.items():
        then = lock.get(name)
        if then is None:
            continue
        for key in ("counts", "classes", "offset", "sha256"):
            if now.get(key) != then.get(key):
                what = _difference(then.get(key), now.get(key))
                yield Problem(name, f"lock.{key}", f"{what}; where that is meant, write the lock anew with --relock")
                break


def _difference(then: Any, now: Any) -> str:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        split = next(name for name in (*then, *now) if then.get(name) != now.get(name))
        if isinstance(then.get(split), int):
            return f"{split} was {then.get(split)}, is {now.get(split)}"
        return f"the class histogram of {split} is another"
    return f"it was {str(then)[:12]}, is {str(now)[:12]}"


def lock_path(manifest: Path, root: str | Path | None = None) -> Path:
    """Path of the lock of a manifest: beside it, or in the data root for a manifest that comes with the package."""
    name = f"{manifest.stem}.lock.json"
    return data_root(root) / "locks" / name if manifest.parent == SHIPPED else manifest.with_name(name)


def known_lock(manifest: Path, root: str | Path | None = None) -> Lock:
    """The lock of a manifest, else the one that comes with the package; empty where there is neither.

    Raises:
        StreamError: where it is damaged.
    """
    return read_lock(lock_path(manifest, root)) or read_lock(manifest.with_name(f"{manifest.stem}.lock.json"))


def read_lock(path: Path) -> Lock:
    """The lock file, empty where there is none.

    Raises:
        StreamError: where it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tasks, version = content["tasks"], content["version"]
        if version != 1:
            raise ValueError(f"its version is {version}, and 1 is read here")
        return {str(name): dict(entry) for name, entry in dict(tasks).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StreamError(f"{path} is no lock file ({error}); remove it, then validate with --data") from None


def lock_text(lock: Lock) -> str:
    """The lock file: the same text for the same data."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(lock[name], sort_keys=True)}" for name in sorted(lock))
    return f'{{"version": 1, "tasks": {{\n{lines}\n}}}}\n'


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock file, whole or not at all.

    Raises:
        StreamError: where the folder cannot be written.
    """
    try:
        with replacing(path) as part:
            part.write_text(lock_text(lock), encoding="utf-8")
    except OSError as error:
        raise StreamError(f"{path} cannot be written ({error.strerror}); choose a place with --lock FILE") from None


def sizes_of(lock: Lock) -> dict[str, int]:
    """Training examples of each task in a lock, for ``Manifest.select(min_size=...)``."""
    return {name: int(item["counts"]["train"]) for name, item in lock.items() if "counts" in item}
