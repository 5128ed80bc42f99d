"""Task streams: unlike data sets one after the other, as a manifest lists them; the task is told, or not."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cil.data import Augment, Samples
from cil.errors import ConfigError, StreamError, nearest
from cil.streams.base import Part, Signature, Stream, TaskKey, fingerprint_of
from cil.streams.manifest import HEADS, Manifest, Task, as_mapping, read_manifest
from cil.streams.manifest_data import Lock, compared, known_lock, sizes_of
from cil.streams.manifest_schema import EVALUATED as SPLITS
from cil.streams.registry import register_stream
from cil.streams.tasks import available, load_task

_say = logging.getLogger("cil")
Opener = Callable[[], Samples]


@dataclass(frozen=True)
class Event:
    """What is known of an experience of a task stream beside its data.

    Attributes:
        task: Which question it asks; equal for experiences of one data set.
        id: Of the event.
        year, domain, kind: As in the manifest.
        final: Whether the event is of the years that are kept for the end.
        counts: Images of each split.
    """

    task: TaskKey
    id: str
    year: int
    domain: str
    kind: str
    final: bool
    counts: Mapping[str, int]

    def description(self) -> dict[str, Any]:
        """For the record."""
        own = {"id": self.id, "dataset": self.task.dataset, "year": self.year, "domain": self.domain, "kind": self.kind}
        more = {"classes": self.task.classes, "first_slot": self.task.first, "final": self.final}
        return own | more | {"counts": dict(self.counts)}


class TaskStream(Stream):
    """A stream of tasks whose identity is told at test time: one experience an event, one head a data set.

    Args:
        events: One for each experience.
        tests: The samples of each split that is evaluated, for each experience; the first split is the headline.
        reevaluate: ``none``: after each event its own task is evaluated; ``all_seen``: those of all events so far;
            ``every_N``: those of all so far after each N-th event, and after the last.
        facts: What else the record says of the stream.
        given: As of ``Stream``.
    """

    kind: ClassVar[str] = "tasks"

    def __init__(
        self,
        *,
        events: Sequence[Event],
        tests: Sequence[Mapping[str, Opener]],
        reevaluate: str = "none",
        facts: Mapping[str, Any] | None = None,
        **given: Any,
    ) -> None:
        super().__init__(**given, task_known_at_test=True)
        self._every = _every(reevaluate)
        self.events = tuple(events)
        self.reevaluate = reevaluate
        self.splits = tuple(tests[0])
        self._tests = tuple(tests)
        self._facts = dict(facts or {})

    def evaluated(self, index: int) -> range:
        """The events whose tasks are evaluated after event ``index``."""
        again = self._every and ((index + 1) % self._every == 0 or index + 1 == len(self))
        return range(0 if again else index, index + 1)

    def test(self, index: int, split: str | None = None) -> Samples:
        """The samples of one split, by default the headline; see ``Stream.test``."""
        return self._tests[index][split or self.splits[0]]()

    def training_half(self) -> TaskStream:
        half = super().training_half()
        assert isinstance(half, TaskStream)
        half._tests = tuple(dict.fromkeys(self.splits, part.test) for part in half._parts)
        return half

    def augment_of(self, index: int) -> Augment:
        return replace(self.augment, flip=self.augment.flip and self.events[index].task.mirrored)

    def description(self) -> dict[str, Any]:
        tasks = [event.description() for event in self.events]
        own = {"tasks": tasks, "heads": "per_task", "splits": list(self.splits), "reevaluate": self.reevaluate}
        return super().description() | own | self._facts


def _every(reevaluate: str) -> int:
    """After how many events those before are evaluated again; 0: never."""
    known = {"none": 0, "all_seen": 1}
    if reevaluate in known:
        return known[reevaluate]
    number = str(reevaluate).removeprefix("every_")
    if number == reevaluate or not number.isdecimal() or not int(number):
        raise ConfigError(f"stream.reevaluate is '{reevaluate}'; allowed: none, all_seen, or every_N, as every_5")
    return int(number)


@register_stream("task_stream")
def task_stream(
    manifest: str | Path | Manifest,
    *,
    heads: str | None = None,
    splits: Sequence[str] | None = None,
    reevaluate: str = "none",
    ids: Collection[str] | None = None,
    domains: Collection[str] | None = None,
    kinds: Collection[str] | None = None,
    years: Sequence[int | None] | None = None,
    min_size: int | None = None,
    first: int | None = None,
    last: int | None = None,
    shuffle: str | None = None,
    order_seed: int | None = None,
    image_size: int | None = None,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    augment: Augment | Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    root: str | Path | None = None,
) -> Stream:
    """The tasks of a manifest as a stream. What is None is as the manifest says.

    Every experience has its train split to train on and its dev split as ``validation``; what is evaluated is the rest.
    Data are read once a data set, when the stream is built; test data are out of reach of the training half. Where the
    manifest has a lock, ``min_size`` goes by it, and other counts than it has are refused.

    Args:
        manifest: File, name of one that is built in (``embedded_tasks``), or object.
        heads: ``per_task``: the task is told at test time, and a repeated data set meets its head again. ``offset``: a
            class-incremental stream, whose slots are classes in order of first arrival; a repeated data set brings
            training images alone, as its classes are evaluated already.
        splits: What is evaluated, of ``dev_test`` and ``test``; the first one is the headline. ``offset`` takes one.
        reevaluate: See ``TaskStream``; ``offset`` evaluates all classes seen anyway.
        ids, domains, kinds, years, min_size, first, last: Which tasks; see ``Manifest.select``.
        shuffle, order_seed: ``none``, ``within_year`` or ``all``, by that seed.
        image_size: Height and width of all tasks.
        train_per_class, test_per_class: Most images of a class in train, and in what is evaluated; of a multilabel
            task so many for each label in all.
        augment: Training augmentation, or its arguments; None: zero-padded crops by a sixteenth of the size, and
            mirror images where the task allows them, with ``offset`` where all do. NEVIS'22 has ``resized_crop`` and
            ``flip``.
        mean, std: Of each channel, for images in [0, 1]; None: 0.5, which gives [-1, 1], as in NEVIS'22.
        root: Data root; see ``cil.data.data_root``.

    Raises:
        ConfigError, StreamError, DataError: for unknown names, tasks that do not fit the heads, data that are missing
            or not those of the lock, a split without an example.

    Source:
        Bornschein et al., NEVIS'22, JMLR 24 (308), 2023; specification of task streams, sections 5 and 11.3.
    """
    whole = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    heads = heads or whole.stream.heads
    chosen = _splits(splits, whole, heads)
    lock = known_lock(whole.path, root) if whole.path else Lock()
    selected = whole.select(
        ids=ids, domains=domains, kinds=kinds, years=years, min_size=min_size, first=first, last=last,
        sizes=sizes_of(lock),
    )  # fmt: skip
    selected, notes = available(selected)
    for note in notes:
        _say.warning(note)
    tasks = _alike(selected.ordered(shuffle, order_seed), image_size)
    several = [task.id for task in tasks if task.multilabel]
    if several and heads == "offset":
        raise StreamError(
            f"stream.heads=offset needs one label an image, and {', '.join(several)} may have several; set "
            f"stream.kinds=[multiclass] or stream.heads=per_task"
        )
    data = {task.dataset: task for task in reversed(tasks)}
    caps = {"train": train_per_class, **dict.fromkeys(SPLITS, test_per_class)}
    loaded = {}
    for name, task in data.items():
        found = load_task(task, root)
        _check_lock(task, found, selected.offsets() if heads == "offset" else {}, lock, whole)
        loaded[name] = _capped(task, found, caps)
        for split in ("train", *chosen):
            if not len(loaded[name][split]):
                raise StreamError(f"{task.id}: no example in {split}; change its splits, or leave it out by stream.ids")
    keys, seen = _keys(tasks)
    shape = loaded[tasks[0].dataset]["train"].shape
    given: dict[str, Any] = {
        "name": selected.stream.name if len(selected) == len(whole) else f"{selected.stream.name}-{len(tasks)}",
        "classes": [f"{key.dataset}: {label}" for key in dict.fromkeys(keys) for label in _names(data[key.dataset])],
        "order": _labels(keys, selected, heads),
        "fingerprint": _fingerprint(selected, tasks, loaded, heads),
        "augment": _augment(augment, shape[1]),
        "mean": _channels("mean", mean, shape[0]),
        "std": _channels("std", std, shape[0]),
    }
    signatures, parts, events, tests = [], [], [], []
    for index, (task, key) in enumerate(zip(tasks, keys, strict=True)):
        own = {name: samples.with_slots(samples.slots + key.first) for name, samples in loaded[task.dataset].items()}
        new = tuple(range(key.first, key.first + key.classes)) if key not in keys[:index] else ()
        counts = own["train"].counts()
        known = key if heads == "per_task" else None
        signatures.append(Signature(index, new, tuple(counts), counts, shape, seen[index], known))
        if heads == "offset" and not new:  # its classes are evaluated with the experience that brought them
            own |= {name: own[name][:0] for name in (*chosen, "dev")}
        held = [partial(_same, own[name]) for name in ("train", chosen[0], "dev")]
        parts.append(Part(*held))
        tests.append({name: partial(_same, own[name]) for name in chosen})
        final = selected.stream.final_year_from
        events.append(
            Event(
                key, task.id, task.year, task.domain, task.kind, final is not None and task.year >= final,
                {name: len(samples) for name, samples in own.items()},
            )
        )  # fmt: skip
    if heads == "offset":
        flip = given["augment"].flip and all(key.mirrored for key in keys)  # classes of all tasks share batches
        given["augment"] = replace(given["augment"], flip=flip)
        return Stream(**given, signatures=signatures, parts=parts)
    return TaskStream(
        **given,
        signatures=signatures,
        parts=parts,
        events=events,
        tests=tests,
        reevaluate=reevaluate,
        facts={
            "manifest": _manifest_hash(selected),
            "lock": _lock_hash(lock, tasks),
            "shuffle": shuffle or selected.stream.shuffle,
        },
    )


def _splits(given: Sequence[str] | None, manifest: Manifest, heads: str) -> list[str]:
    if heads not in HEADS:
        raise ConfigError(f"stream.heads is '{heads}'; {nearest(heads, HEADS)}")
    chosen = list(given if given is not None else manifest.stream.default_splits)
    for name in chosen:
        if name not in SPLITS:
            raise ConfigError(f"stream.splits has '{name}'; {nearest(name, SPLITS)}")
    if not chosen or len(set(chosen)) != len(chosen) or (heads == "offset" and len(chosen) > 1):
        many = "one" if heads == "offset" else "one or both"
        raise ConfigError(f"stream.splits is {chosen}; with stream.heads={heads} give {many} of {', '.join(SPLITS)}")
    return chosen


def _alike(tasks: Sequence[Task], size: int | None) -> tuple[Task, ...]:
    """Tasks whose images have one shape.

    Raises:
        StreamError: where sizes differ and none is asked for.
    """
    if size is not None:
        tasks = [replace(task, preprocess={**task.preprocess, "resize": size}) for task in tasks]
    sizes = sorted({task.preprocess.get("resize", 64) for task in tasks})
    if len(sizes) > 1:
        raise StreamError(f"the tasks have images of {', '.join(map(str, sizes))} pixels; set stream.image_size")
    channels = max(task.channels for task in tasks)
    return tuple(replace(task, channels=channels) for task in tasks)


def _keys(tasks: Sequence[Task]) -> tuple[list[TaskKey], list[int]]:
    """The key of each task, slots in order of first arrival; and the slots seen after each."""
    found: dict[str, TaskKey] = {}
    keys, seen, start = [], [], 0
    for task in tasks:
        if task.dataset not in found:
            mirrored = bool(task.preprocess.get("hflip", True))
            found[task.dataset] = TaskKey(task.dataset, start, task.num_classes, task.multilabel, mirrored)
            start += task.num_classes
        keys.append(found[task.dataset])
        seen.append(start)
    return keys, seen


def _labels(keys: Sequence[TaskKey], manifest: Manifest, heads: str) -> list[int]:
    """Of each slot: its number within the data set, or with ``offset`` in the manifest, whatever was filtered out."""
    offsets = manifest.offsets() if heads == "offset" else {}
    return [offsets.get(key.dataset, 0) + label for key in dict.fromkeys(keys) for label in range(key.classes)]


def _names(task: Task) -> list[str]:
    return [str(label) for label in range(task.classes)] if isinstance(task.classes, int) else list(task.classes)


def _capped(task: Task, splits: Mapping[str, Samples], caps: Mapping[str, int | None]) -> dict[str, Samples]:
    """At most so many images, drawn by class; the draw depends on data set and split alone."""
    return {name: _few(samples, task, name, caps.get(name)) for name, samples in splits.items()}


def _few(samples: Samples, task: Task, split: str, most: int | None) -> Samples:
    if most is None:
        return samples
    number = hashlib.blake2b(f"{task.dataset}/{split}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(number, "big") >> 1)
    if task.multilabel:
        return samples[torch.randperm(len(samples), generator=generator)[: most * task.num_classes].sort().values]
    rows: list[Tensor] = []
    for label in range(task.num_classes):
        own = (samples.slots == label).nonzero().flatten()
        rows.append(own[torch.randperm(len(own), generator=generator)[:most]])
    return samples[torch.cat(rows).sort().values]


def _manifest_hash(manifest: Manifest) -> str:
    return hashlib.sha256(repr(as_mapping(manifest)).encode()).hexdigest()


def _lock_hash(lock: Lock, tasks: Sequence[Task]) -> str | None:
    """Of what the lock says of these tasks; None where it knows none of them."""
    known = {task.id: lock[task.id] for task in tasks if task.id in lock}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest() if known else None


def _check_lock(
    task: Task, splits: Mapping[str, Samples], offsets: Mapping[str, int], lock: Lock, manifest: Manifest
) -> None:
    """Refuse other numbers of examples than the lock has, by split and class, and other class numbers where there are
    any; contents are for ``validate --data``.

    Raises:
        StreamError: naming the first difference.
    """
    labels = {name: samples.slots if samples.targets is None else samples.targets for name, samples in splits.items()}
    found: dict[str, Any] = {
        "counts": {name: len(own) for name, own in labels.items()},
        "classes": {
            name: (own.bincount(minlength=task.num_classes) if own.ndim == 1 else own.sum(0).long()).tolist()
            for name, own in labels.items()
        },
    } | ({"offset": offsets[task.dataset]} if offsets else {})
    then = {key: value for key, value in lock.get(task.id, {}).items() if key in found}
    for problem in compared({task.id: found}, {task.id: then} if then.keys() == found.keys() else {}):
        raise StreamError(f"{problem}: cil stream validate {manifest.path} --data --relock")


def _fingerprint(
    manifest: Manifest, tasks: Sequence[Task], loaded: Mapping[str, Mapping[str, Samples]], heads: str
) -> str:
    values: list[Any] = [_manifest_hash(manifest), [task.id for task in tasks], heads]
    for name, splits in loaded.items():
        for split, samples in splits.items():
            values += [name, split, samples.slots if samples.targets is None else samples.targets]
            values += [store.digest(rows).hex() for store, rows in samples.parts]
    return fingerprint_of(*values)


def _augment(given: Augment | Mapping[str, Any] | None, size: int) -> Augment:
    if given is None:
        return Augment(crop_padding=size // 16, flip=True)
    if isinstance(given, Augment):
        return given
    known = Augment.__dataclass_fields__
    if not isinstance(given, Mapping):
        raise ConfigError(f"stream.augment is {given!r}; give its arguments ({', '.join(known)}) or null")
    for key in given:
        if key not in known:
            raise ConfigError(f"stream.augment.{key} is not known; {nearest(key, known)}")
    return Augment(**given)


def _channels(key: str, values: Sequence[float] | None, channels: int) -> list[float]:
    given = [0.5] * channels if values is None else [float(value) for value in values]
    if len(given) != channels or (key == "std" and min(given) <= 0):
        raise StreamError(f"stream.{key} is {given}; images have {channels} channels, and std must be above 0")
    return given


def _same(samples: Samples) -> Samples:
    return samples
