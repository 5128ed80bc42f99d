"""Streams of tasks as text: a YAML file that lists data sets with their years, kinds, sources and splits.

Nothing here opens a file: ``manifest_files`` reads and writes manifests, ``manifest_rules`` checks what they say,
``task_data`` loads the data, ``manifest_data`` checks them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cil.errors import ConfigError, StreamError, nearest
from cil.streams.manifest_schema import DOMAINS, HEADS, KINDS, SHUFFLES, VERSION
from cil.streams.options import check_seed
from cil.values import is_whole

__all__ = [
    "DOMAINS", "HEADS", "KINDS", "SHUFFLES", "VERSION", "Manifest", "ManifestTask", "StreamInfo", "TaskFilter",
    "as_mapping",
]  # fmt: skip


@dataclass(frozen=True)
class ManifestTask:
    """One event of a stream: a data set at the time of its publication.

    Attributes:
        id: Name of the event, unique.
        dataset: Key of the data: tasks with the same key share source, split and head. In a file by default the id.
        year, date: Time of publication; the date (ISO, optional) gives a finer order.
        domain, kind: One of ``DOMAINS``, ``KINDS``.
        classes: Number of classes, or their names in order.
        source: ``type`` and what it needs, see ``cil.data.tasks.source_types``.
        splits: See ``cil.data.tasks.split_rows``. Also ``duplicates``: error, drop or warn, for exact copies of an
            image in two splits (drop leaves the copy nearest to ``test``), and ``deduplicate``: true to drop exact
            copies of image and label before anything is split.
        license: name, url, redistributable, accept.
        preprocess: resize (pixels; the stream's ``image_size`` where left out), interpolation (bilinear, nearest),
            hflip (true where a mirror image keeps its label), lazy (whole image files are decoded when needed).
        channels: 3 for RGB, 1 for grey.
        transform: Changes of labels, see ``cil.data.tasks.labelled``.
        label_names: ``sorted``, the order of class names that are not listed in ``classes``.
        empty_labels: True where images without any label are meant (multilabel).
        train_examples: Number as published, for ``min_size`` where the data are not opened.
        paper: title and venue of the publication of the task.
        note: Free text.
    """

    id: str
    dataset: str
    year: int
    domain: str
    kind: str
    classes: int | tuple[str, ...]
    source: Mapping[str, Any]
    splits: Mapping[str, Any] = field(default_factory=dict)
    license: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    channels: int = 3
    transform: Mapping[str, Any] = field(default_factory=dict)
    label_names: str = "sorted"
    empty_labels: bool = False
    train_examples: int | None = None
    paper: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def num_classes(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def multilabel(self) -> bool:
        return self.kind == "multilabel"

    @property
    def when(self) -> str:
        """Sort key of the order in time; a year alone comes before its days."""
        return self.date or str(self.year)

    @property
    def shared(self) -> dict[str, Any]:
        """Settings in which tasks of the same ``dataset`` must agree."""
        names = ("kind", "classes", "source", "splits", "transform", "channels", "preprocess")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class StreamInfo:
    """Settings of the stream as a whole.

    Attributes:
        default_splits: Splits that are evaluated after each task.
        final_year_from: Tasks from this year on are kept for the end; None: all are for development.
        image_size: Height and width in pixels of tasks that say nothing else.
        heads: ``per_task``, or ``offset``: class numbers run on from data set to data set.
        shuffle, seed: ``none`` (by year, then by place in the file), ``within_year`` or ``all``.
        fallback: Tasks that remain where a package is missing which others need.
        variants: Named choices of tasks: ids, each with the year that it has there, or None for its own.
        offsets: First class numbers of data sets, where they are not those of this file's own order (a selection of
            another file).
    """

    name: str = "stream"
    description: str = ""
    default_splits: tuple[str, ...] = ("dev_test",)
    final_year_from: int | None = None
    image_size: int = 64
    heads: str = "per_task"
    shuffle: str = "none"
    seed: int = 0
    fallback: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Choice of tasks; a task must pass all filters that are not None.

    Attributes:
        ids, domains, kinds: Names; only tasks that have one of them pass.
        years: First and last, both included; None: open.
        min_size: Least number of training examples.
        first, last: So many from either end, after the other filters and in order.
    """

    ids: Collection[str] | None = None
    domains: Collection[str] | None = None
    kinds: Collection[str] | None = None
    years: Sequence[int | None] | None = None
    min_size: int | None = None
    first: int | None = None
    last: int | None = None

    def __post_init__(self) -> None:
        for key, least in (("min_size", 0), ("first", 1), ("last", 1)):
            value = getattr(self, key)
            if value is not None and not (is_whole(value) and value >= least):
                raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number from {least} on, or null")
        if self.years is not None and not (
            len(self.years) == 2 and all(year is None or is_whole(year) for year in self.years)
        ):
            raise ConfigError(f"stream.years is {list(self.years)}; it must be [first, last], null for an open end")


@dataclass(frozen=True)
class Manifest:
    """A stream of tasks, in the order of its file. ``ordered`` gives the order in which a learner meets them."""

    stream: StreamInfo
    tasks: tuple[ManifestTask, ...]
    path: Path | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[ManifestTask]:
        return iter(self.tasks)

    def __getitem__(self, name: str) -> ManifestTask:
        for task in self.tasks:
            if task.id == name:
                return task
        raise ConfigError(f"the stream has no task '{name}'; {nearest(name, [task.id for task in self.tasks])}")

    @property
    def datasets(self) -> tuple[str, ...]:
        """Keys of the data, in order of first appearance."""
        return tuple(dict.fromkeys(task.dataset for task in self.ordered(shuffle="none")))

    @property
    def repeats(self) -> tuple[str, ...]:
        """Tasks whose data came before, in the order of the stream."""
        seen: set[str] = set()
        found = []
        for task in self.ordered():
            if task.dataset in seen:
                found.append(task.id)
            seen.add(task.dataset)
        return tuple(found)

    def ordered(self, shuffle: str | None = None, seed: int | None = None) -> tuple[ManifestTask, ...]:
        """By year or date, then by place in the file; shuffled within a year, or altogether, by a seed.

        Raises:
            ConfigError: for an unknown way to shuffle.
        """
        shuffle = self.stream.shuffle if shuffle is None else shuffle
        seed = self.stream.seed if seed is None else seed
        check_seed(seed)
        if shuffle not in SHUFFLES:
            raise ConfigError(f"no shuffle '{shuffle}' (stream.shuffle); {nearest(shuffle, SHUFFLES)}")
        tasks = sorted(self.tasks, key=lambda task: task.when)
        if shuffle != "none":
            order = np.random.Generator(np.random.PCG64(seed)).permutation(len(tasks))
            tasks = [tasks[place] for place in order]
        if shuffle == "within_year":
            tasks.sort(key=lambda task: task.year)
        return tuple(tasks)

    def offsets(self) -> dict[str, int]:
        """First class number of each data set under ``heads: offset``, in order of first appearance.

        Filtering keeps them: what is left has the numbers that it had.
        """
        if self.stream.offsets:
            return {name: self.stream.offsets[name] for name in self.datasets if name in self.stream.offsets}
        found: dict[str, int] = {}
        start = 0
        for task in self.ordered(shuffle="none"):
            if task.dataset not in found and not task.multilabel:
                found[task.dataset] = start
                start += task.num_classes
        return found

    def variant(self, name: str) -> Manifest:
        """The tasks of a variant that the manifest names, in the years that they have there; those of a year as listed.

        Raises:
            ConfigError: for an unknown name.
        """
        if name not in self.stream.variants:
            raise ConfigError(f"'{self.stream.name}' has no variant '{name}'; {nearest(name, self.stream.variants)}")
        listed = [(self[own], year) for own, year in self.stream.variants[name].items()]
        return self._reduced([task if year is None else replace(task, year=year, date=None) for task, year in listed])

    def select(self, *, sizes: Mapping[str, int] | None = None, **filters: Any) -> Manifest:
        """The tasks that pass all filters; class numbers of ``heads: offset`` stay as they were.

        Args:
            sizes: Training examples by task where they are known; else ``train_examples`` of the manifest.
            filters: Fields of ``TaskFilter``.

        Raises:
            ConfigError: for unknown names, or where a size is not known.
            StreamError: where nothing is left.
        """
        chosen = TaskFilter(**filters)
        named = {"ids": [task.id for task in self], "domains": DOMAINS, "kinds": KINDS}
        for key, known in named.items():
            for name in getattr(chosen, key) or ():
                if name not in known:
                    raise ConfigError(f"filter {key} has '{name}'; {nearest(name, known)}")
        low, high = chosen.years or (None, None)
        kept = [
            task
            for task in self.ordered(shuffle="none")
            if (chosen.ids is None or task.id in chosen.ids)
            and (chosen.domains is None or task.domain in chosen.domains)
            and (chosen.kinds is None or task.kind in chosen.kinds)
            and (low is None or task.year >= low)
            and (high is None or task.year <= high)
        ]
        if chosen.min_size is not None:
            known_sizes = {task.id: (sizes or {}).get(task.id, task.train_examples) for task in kept}
            unknown = [name for name, size in known_sizes.items() if size is None]
            if unknown:
                raise ConfigError(f"filter min_size: {unknown[0]} has no train_examples; give them, or a lock file")
            kept = [task for task in kept if (known_sizes[task.id] or 0) >= chosen.min_size]
        kept = kept[: chosen.first]
        return self._reduced(kept if chosen.last is None else kept[max(0, len(kept) - chosen.last) :])

    def _reduced(self, kept: Sequence[ManifestTask]) -> Manifest:
        """These tasks, with the offsets that their data had."""
        if not kept:
            raise StreamError(f"no task of '{self.stream.name}' passes the filters")
        ids = {task.id for task in kept}
        fallback = tuple(name for name in self.stream.fallback if name in ids)
        info = replace(self.stream, fallback=fallback, variants={}, offsets={})
        left = Manifest(info, tuple(kept), self.path)
        had = {name: start for name, start in self.offsets().items() if name in left.datasets}
        return left if had == left.offsets() else replace(left, stream=replace(info, offsets=had))


def as_mapping(manifest: Manifest) -> dict[str, Any]:
    """Plain data that ``parse`` reads back; defaults are left out."""
    return {
        "version": VERSION,
        "stream": _section(manifest.stream, always=("name",)),
        "tasks": [_section(task) for task in manifest.tasks],
    }


def _section(item: Any, always: Collection[str] = ()) -> dict[str, Any]:
    said = {}
    for own in fields(item):
        value = getattr(item, own.name)
        default = own.default_factory() if callable(own.default_factory) else own.default
        if own.name in always or value != default:
            said[own.name] = _plain(value)
    return said


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
