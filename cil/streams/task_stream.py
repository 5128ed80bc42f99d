"""Task streams: unlike data sets one after the other, as a manifest lists them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from cil.data import Augment, Samples
from cil.data.samples import itself
from cil.errors import ConfigError, StreamError, nearest
from cil.streams.base import ExperienceData, Signature, Stream, TaskKey, changed_samples, fingerprint_of, first_of_each
from cil.streams.manifest import Manifest, ManifestTask, TaskFilter, as_mapping
from cil.streams.manifest_data import Lock, compare_with_lock, known_lock, sizes_of
from cil.streams.manifest_files import read_manifest
from cil.streams.manifest_schema import EVALUATED as SPLITS
from cil.streams.manifest_schema import HEADS
from cil.streams.options import ImageOptions, accepts, check_channels, check_choice, check_counts, take
from cil.streams.registry import register_stream
from cil.streams.task_data import TaskError, available, load_task

_log = logging.getLogger("cil")
MISSING = ("error", "skip")
Opener = Callable[[], Samples]


@dataclass(frozen=True)
class Event:
    """Facts about an experience of a task stream, beside its data.

    Attributes:
        task: Identity of the task; equal for experiences of one data set.
        id: Name of the event.
        year, domain, kind: Those of the manifest.
        final: True for the years that are kept for the end.
        counts: Number of images in each split.
    """

    task: TaskKey
    id: str
    year: int
    domain: str
    kind: str
    final: bool
    counts: Mapping[str, int]

    def description(self) -> dict[str, Any]:
        own = {"id": self.id, "dataset": self.task.dataset, "year": self.year, "domain": self.domain, "kind": self.kind}
        more = {"classes": self.task.classes, "first_slot": self.task.first, "final": self.final}
        return own | more | {"counts": dict(self.counts)}


class TaskStream(Stream):
    """A stream of tasks whose identity is known at test time: one experience an event, one head a data set.

    Args:
        tests: The samples of each split that is evaluated, for each experience; the first split is the headline.
        reevaluate: ``none``: after each event its own task is evaluated; ``all_seen``: those of all events so far;
            ``every_N``: those of all so far after each N-th event, and after the last.
        facts: Further entries of the record.
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
        super().__init__(**given)
        self._every = _parse_reevaluate(reevaluate)
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

    def reduced(self, experiences: int = 6, images: int = 48) -> Self:
        other = super().reduced(experiences, images)
        pick = partial(first_of_each, count=images)
        other.events = self.events[:experiences]
        other._tests = tuple(
            {split: partial(changed_samples, load, pick) for split, load in splits.items()}
            for splits in self._tests[:experiences]
        )
        return other

    def with_tests(self, change: Callable[[Samples], Samples]) -> Self:
        other = super().with_tests(change)
        other._tests = tuple(
            {split: partial(changed_samples, load, change) for split, load in splits.items()} for splits in self._tests
        )
        return other

    def augment_of(self, index: int) -> Augment:
        return replace(self.augment, flip=self.augment.flip and self.events[index].task.mirrored)

    def description(self) -> dict[str, Any]:
        tasks = [event.description() for event in self.events]
        own = {"tasks": tasks, "heads": "per_task", "splits": list(self.splits), "reevaluate": self.reevaluate}
        return super().description() | own | self._facts


def _parse_reevaluate(reevaluate: str) -> int:
    """Number of events after which those before are evaluated again; 0: never."""
    known = {"none": 0, "all_seen": 1}
    if reevaluate in known:
        return known[reevaluate]
    number = str(reevaluate).removeprefix("every_")
    if number == reevaluate or not number.isdecimal() or not int(number):
        raise ConfigError(f"stream.reevaluate is '{reevaluate}'; allowed: none, all_seen, or every_N, as every_5")
    return int(number)


@register_stream("task_stream")
@accepts(TaskFilter, ImageOptions, only=True)
def task_stream(
    manifest: str | Path | Manifest,
    *,
    heads: str | None = None,
    splits: Sequence[str] | None = None,
    reevaluate: str = "none",
    variant: str | None = None,
    missing: str = "error",
    shuffle: str | None = None,
    order_seed: int | None = None,
    image_size: int | None = None,
    **options: Any,
) -> Stream:
    """The tasks of a manifest as a stream. An argument that is None is taken from the manifest.

    Every experience has its train split to train on and its dev split as ``validation``; the rest is evaluated. Data
    are read once a data set, when the stream is built; test data are out of reach of the training half. Where the
    manifest has a lock, ``min_size`` goes by it, and other counts than it has are refused.

    Args:
        manifest: File, name of one that is built in (``embedded_tasks``), or object.
        heads: ``per_task``: the task is known at test time, and a repeated data set meets its head again. ``offset``: a
            class-incremental stream, whose slots are classes in order of first arrival; a repeated data set brings
            training images alone, as its classes are evaluated already.
        splits: Splits that are evaluated, of ``dev_test`` and ``test``; the first one is the headline. ``offset`` takes
            one.
        reevaluate: See ``TaskStream``; ``offset`` evaluates all classes seen anyway.
        variant: Tasks that the manifest lists under this name, in the years that they have there; filters come after.
        missing: Data that are not there, or cannot be read: ``error``, or ``skip`` their tasks, with a warning.
        shuffle, order_seed: ``none``, ``within_year`` or ``all``, by that seed.
        image_size: Height and width of all tasks.
        options: Fields of ``TaskFilter``; and of ``ImageOptions``, where caps hold for train and for the splits that
            are evaluated (of a multilabel task so many for each label in all), mean and std are by default 0.5, which
            gives [-1, 1] as in NEVIS'22, and ``augment`` is by default zero-padded crops by a sixteenth of the size,
            and mirror images where the task allows them, with ``offset`` where all do. NEVIS'22 has ``resized_crop``
            and ``flip``.

    Raises:
        ConfigError, StreamError, DataError: for unknown names, tasks that do not fit the heads, data that are missing
            or not those of the lock, a split without an example.

    Source: Bornschein et al., NEVIS'22, JMLR 24 (308), 2023.
    """
    filters, wanted = take(TaskFilter, options), ImageOptions(**options)
    if missing not in MISSING:
        raise ConfigError(f"stream.missing is '{missing}'; {nearest(missing, MISSING)}")
    whole = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    heads = whole.stream.heads if heads is None else heads
    chosen = _check_splits(splits, whole, heads)
    lock = known_lock(whole.path, wanted.root) if whole.path else Lock()
    selected = _select(whole if variant is None else whole.variant(variant), filters, lock)
    tasks = _in_one_shape(selected.ordered(shuffle, order_seed), image_size)
    _check_heads(tasks, heads)
    data = {task.dataset: task for task in reversed(tasks)}
    offsets = selected.offsets() if heads == "offset" else {}
    loaded = {}
    for task, found in _read(data.values(), wanted.root, missing):
        _check_lock(task, found, offsets, lock, whole)
        loaded[task.dataset] = _cap(task, found, wanted, ("train", *chosen))
    if not loaded:
        raise StreamError(f"no data set of '{selected.stream.name}' is there, of {len(data)} (stream.missing=skip)")
    tasks = tuple(task for task in tasks if task.dataset in loaded)
    keys, seen = _task_keys(tasks)
    shape = loaded[tasks[0].dataset]["train"].shape
    augment = wanted.augmentation(Augment(crop_padding=shape[1] // 16, flip=True))
    given: dict[str, Any] = {
        "name": selected.stream.name if len(tasks) == len(whole) else f"{selected.stream.name}-{len(tasks)}",
        "classes": [f"{key.dataset}: {label}" for key in dict.fromkeys(keys) for label in _names(data[key.dataset])],
        "order": _labels_of_slots(keys, selected, heads),
        "fingerprint": _fingerprint(selected, tasks, loaded, heads),
    }
    given["mean"], given["std"] = _normalisation(wanted, shape[0])
    steps = [_step(index, keys, seen, loaded[task.dataset], chosen, heads) for index, task in enumerate(tasks)]
    given["signatures"], given["parts"], tests, counts = zip(*steps, strict=True)
    if heads == "offset":  # classes of all tasks share batches
        return Stream(**given, augment=replace(augment, flip=augment.flip and all(key.mirrored for key in keys)))
    events = _events(keys, tasks, counts, selected.stream.final_year_from)
    shuffled = shuffle or selected.stream.shuffle
    facts = {"manifest": _manifest_hash(selected), "lock": _lock_hash(lock, tasks), "shuffle": shuffled}
    return TaskStream(**given, augment=augment, events=events, tests=tests, reevaluate=reevaluate, facts=facts)


def _normalisation(wanted: ImageOptions, channels: int) -> list[tuple[float, ...]]:
    """Mean and std of each channel, by default 0.5, which gives [-1, 1]."""
    mean, std = ([0.5] * channels if values is None else values for values in (wanted.mean, wanted.std))
    return check_channels(mean, std, channels)


def _events(
    keys: Sequence[TaskKey], tasks: Sequence[ManifestTask], counts: Sequence[Mapping[str, int]], final: int | None
) -> list[Event]:
    """The events of tasks, of which those from year ``final`` on are the final ones."""
    return [
        Event(key, task.id, task.year, task.domain, task.kind, final is not None and task.year >= final, own)
        for key, task, own in zip(keys, tasks, counts, strict=True)
    ]


def _select(manifest: Manifest, filters: TaskFilter, lock: Lock) -> Manifest:
    """The tasks that a stream is made of; what is left out is told in a warning."""
    selected, notes = available(manifest.select(sizes=sizes_of(lock), **vars(filters)))
    for note in notes:
        _log.warning(note)
    return selected


def _read(
    tasks: Iterable[ManifestTask], root: str | Path | None, missing: str
) -> Iterator[tuple[ManifestTask, dict[str, Samples]]]:
    """Tasks and the samples of their splits, without those that cannot be read where ``missing`` is ``skip``."""
    for task in tasks:
        try:
            found = load_task(task, root)
        except TaskError as error:
            if missing == "error":
                raise
            _log.warning(f"{error}; left out, as stream.missing=skip")
        else:
            yield task, found


def _step(
    index: int, keys: Sequence[TaskKey], seen: Sequence[int], data: Mapping[str, Samples], evaluated: Sequence[str],
    heads: str,
) -> tuple[Signature, ExperienceData, dict[str, Opener], dict[str, int]]:  # fmt: skip
    """Signature and data of one experience, the splits it is evaluated on, and the number of images in each split."""
    key = keys[index]
    own = {name: samples.with_slots(samples.slots + key.first) for name, samples in data.items()}
    new = tuple(range(key.first, key.first + key.classes)) if key not in keys[:index] else ()
    counts = own["train"].counts()
    known = key if heads == "per_task" else None
    signature = Signature(index, new, tuple(counts), counts, data["train"].shape, seen[index], known)
    if heads == "offset" and not new:  # its classes are evaluated with the experience that brought them
        own |= {name: own[name][:0] for name in (*evaluated, "dev")}
    openers = {name: partial(itself, samples) for name, samples in own.items()}
    part = ExperienceData(openers["train"], openers[evaluated[0]], openers["dev"])
    return signature, part, {name: openers[name] for name in evaluated}, {name: len(own[name]) for name in own}


def _check_splits(given: Sequence[str] | None, manifest: Manifest, heads: str) -> list[str]:
    check_choice("heads", heads, HEADS)
    chosen = list(given if given is not None else manifest.stream.default_splits)
    for name in chosen:
        if name not in SPLITS:
            raise ConfigError(f"stream.splits has '{name}'; {nearest(name, SPLITS)}")
    if not chosen or len(set(chosen)) != len(chosen) or (heads == "offset" and len(chosen) > 1):
        many = "one" if heads == "offset" else "one or both"
        raise ConfigError(f"stream.splits is {chosen}; with stream.heads={heads} give {many} of {', '.join(SPLITS)}")
    return chosen


def _check_heads(tasks: Sequence[ManifestTask], heads: str) -> None:
    several = [task.id for task in tasks if task.multilabel]
    if several and heads == "offset":
        raise StreamError(
            f"stream.heads=offset needs one label an image, and {', '.join(several)} may have several; set "
            f"stream.kinds=[multiclass] or stream.heads=per_task"
        )


def _in_one_shape(tasks: Sequence[ManifestTask], size: int | None) -> tuple[ManifestTask, ...]:
    """Tasks whose images have one shape; refused where sizes differ and none is asked for."""
    check_counts(image_size=size)
    if size is not None:
        tasks = [replace(task, preprocess={**task.preprocess, "resize": size}) for task in tasks]
    sizes = sorted({task.preprocess.get("resize", 64) for task in tasks})
    if len(sizes) > 1:
        raise StreamError(f"the tasks have images of {', '.join(map(str, sizes))} pixels; set stream.image_size")
    channels = max(task.channels for task in tasks)
    return tuple(replace(task, channels=channels) for task in tasks)


def _task_keys(tasks: Sequence[ManifestTask]) -> tuple[list[TaskKey], list[int]]:
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


def _labels_of_slots(keys: Sequence[TaskKey], manifest: Manifest, heads: str) -> list[int]:
    """Label of each slot: its number within the data set, or with ``offset`` in the manifest before filtering."""
    offsets = manifest.offsets() if heads == "offset" else {}
    return [offsets.get(key.dataset, 0) + label for key in dict.fromkeys(keys) for label in range(key.classes)]


def _names(task: ManifestTask) -> list[str]:
    return [str(label) for label in range(task.classes)] if isinstance(task.classes, int) else list(task.classes)


def _cap(
    task: ManifestTask, splits: Mapping[str, Samples], wanted: ImageOptions, needed: Sequence[str]
) -> dict[str, Samples]:
    """At most so many images of a class in train and in what is evaluated; a split without any is refused."""
    caps = {"train": wanted.train_per_class, **dict.fromkeys(SPLITS, wanted.test_per_class)}
    capped = {name: _choose(samples, task, name, caps.get(name)) for name, samples in splits.items()}
    for name in needed:
        if not len(capped[name]):
            raise StreamError(f"{task.id}: no example in {name}; change its splits, or leave it out by stream.ids")
    return capped


def _choose(samples: Samples, task: ManifestTask, split: str, most: int | None) -> Samples:
    """At most so many images, drawn by class; the draw depends on data set and split alone."""
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


def _lock_hash(lock: Lock, tasks: Sequence[ManifestTask]) -> str | None:
    """SHA-256 of the entries of these tasks in the lock; None where it has none of them."""
    known = {task.id: lock[task.id] for task in tasks if task.id in lock}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest() if known else None


def _check_lock(
    task: ManifestTask, splits: Mapping[str, Samples], offsets: Mapping[str, int], lock: Lock, manifest: Manifest
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
    for problem in compare_with_lock({task.id: found}, {task.id: then} if then.keys() == found.keys() else {}):
        raise StreamError(f"{problem}: cil stream validate {manifest.path} --data --relock")


def _fingerprint(
    manifest: Manifest, tasks: Sequence[ManifestTask], loaded: Mapping[str, Mapping[str, Samples]], heads: str
) -> str:
    values: list[Any] = [_manifest_hash(manifest), [task.id for task in tasks], heads]
    for name, splits in loaded.items():
        for split, samples in splits.items():
            values += [name, split, samples.slots if samples.targets is None else samples.targets]
            values += [store.digest(rows).hex() for store, rows in samples.parts]
    return fingerprint_of(*values)
