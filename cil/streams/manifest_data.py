"""Whether the data are as a manifest says, and still the same: checks over opened sources, and the lock file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cil.data import data_root
from cil.data.tasks import SPLITS
from cil.errors import DataError, StreamError
from cil.streams.manifest import SHIPPED, Manifest
from cil.streams.manifest_rules import Problem, errors_in
from cil.streams.tasks import TaskData, TaskError, available, open_task

Lock = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """What a validation found.

    Attributes:
        manifest: What was looked at.
        problems: Errors and warnings, in order.
        opened: What was found in the data of each task that could be opened.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    opened: Lock = field(default_factory=dict)

    @property
    def errors(self) -> list[Problem]:
        return errors_in(self.problems)

    @property
    def lock(self) -> Lock:
        """Of the tasks without an error in their data."""
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
    """Open the sources and look at labels, splits and contents.

    Args:
        root: The data root.
        lock: What the data were before; a difference is an error.
        offline: Whether nothing may be downloaded.
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
            problems += checked(data)
            damaged = list(unreadable(data))
            problems += damaged
            if damaged:
                continue
            found[task.id] = entry(data) | ({"offset": offsets[task.dataset]} if task.dataset in offsets else {})
        except TaskError as error:
            problems.append(Problem(task.id, error.path, error.reason))
        except DataError as error:  # a file that is damaged
            problems.append(Problem(task.id, "source", str(error)))
    problems += compared(found, lock or {})
    return Report(manifest, tuple(problems), found)


def checked(data: TaskData) -> Iterator[Problem]:
    """What the labels and splits of one task break."""
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
        copies = data.copies()
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


def entry(data: TaskData) -> dict[str, Any]:
    """What the lock file says of a task: counts and class histograms by split, and a hash over all examples."""
    return {
        "counts": {name: len(data.rows[name]) for name in SPLITS},
        "classes": {name: _histogram(data, name).tolist() for name in SPLITS},
        "sha256": _digest(data),
    }


def _histogram(data: TaskData, name: str) -> np.ndarray[Any, Any]:
    labels = data.labels[data.rows[name]]
    if data.task.multilabel:
        return labels.sum(axis=0)
    return np.bincount(labels, minlength=len(data.names))


def _digest(data: TaskData) -> str:
    """SHA-256 over the sorted hashes of the examples: split, content and label of each."""
    each = []
    for name in SPLITS:
        for row in data.rows[name].tolist():
            label = np.atleast_1d(data.labels[row]).astype("<i8").tobytes()
            each.append(hashlib.sha256(name.encode() + data.images.content(row) + label).digest())
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()


def compared(found: Lock, lock: Lock) -> Iterator[Problem]:
    """Where the data differ from the lock."""
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
    """Where the lock of a manifest is: beside it; in the data root for a manifest that comes with the package."""
    name = f"{manifest.stem}.lock.json"
    return data_root(root) / "locks" / name if manifest.parent == SHIPPED else manifest.with_name(name)


def known_lock(manifest: Path, root: str | Path | None = None) -> Lock:
    """What the data of a manifest were: by its lock, else by the one that comes with the package.

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
        tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        return {str(name): dict(entry) for name, entry in dict(tasks).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StreamError(f"{path} is no lock file ({error}); remove it, then validate with --data") from None


def lock_text(lock: Lock) -> str:
    """The lock file: the same text for the same data."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(lock[name], sort_keys=True)}" for name in sorted(lock))
    return f'{{"version": 1, "tasks": {{\n{lines}\n}}}}\n'


def write_lock(path: Path, lock: Lock) -> None:
    """Write it whole or not at all.

    Raises:
        StreamError: where the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(lock_text(lock), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise StreamError(f"{path} cannot be written ({error.strerror}); choose a place with --lock FILE") from None


def sizes_of(lock: Lock) -> dict[str, int]:
    """Training examples of each task in a lock, for ``Manifest.select(min_size=...)``."""
    return {name: int(item["counts"]["train"]) for name, item in lock.items() if "counts" in item}


__all__ = [
    "Lock",
    "Report",
    "checked",
    "compared",
    "entry",
    "known_lock",
    "lock_path",
    "lock_text",
    "read_lock",
    "sizes_of",
    "validate_data",
    "write_lock",
]
