"""What a manifest must say, and may: every error with its task and its place, all of them at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from cil.data.tasks import GENERATORS, PARTS, SOURCES, SPLITS, parts_of, would_download
from cil.errors import nearest
from cil.streams.manifest import DOMAINS, HEADS, KINDS, SHUFFLES, VERSION, Manifest, StreamInfo, Task, is_date

Rule = Callable[[Any], str | None]  # None where the value is allowed, else what it must be
YEARS = (1900, 2100)


@dataclass(frozen=True)
class Problem:
    """Something wrong (``error``) or odd (``warning``) in a manifest or its data.

    Attributes:
        task: Its id; empty for the stream.
        path: Place in the file, as in ``source.root``.
    """

    task: str
    path: str
    message: str
    level: str = "error"

    def __str__(self) -> str:
        return f"{': '.join(item for item in (self.task, self.path) if item)}: {self.message}"


# --- rules for values ---


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from ``low`` to ``high``."""
    words = (
        f"it must be a whole number of {low} or more"
        if high is None
        else f"it must be a whole number from {low} to {high}"
    )

    def rule(value: Any) -> str | None:
        fits = (
            isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
        )
        return None if fits else words

    return rule


def one_of(*names: Any) -> Rule:
    """One of a few names."""
    return lambda value: None if value in names else nearest(value, names)


def a(kind: type | tuple[type, ...], words: str) -> Rule:
    """Of a type."""
    return lambda value: None if isinstance(value, kind) else f"it must be {words}"


def list_of(rule: Rule, least: int = 0) -> Rule:
    """A list whose items pass."""

    def judged(value: Any) -> str | None:
        if not isinstance(value, list) or len(value) < least:
            return f"it must be a list{f' of {least} or more' if least else ''}"
        return next((f"'{item}': {said}" for item in value if (said := rule(item)) is not None), None)

    return judged


def or_none(rule: Rule) -> Rule:
    """Null, or what passes."""
    return lambda value: None if value is None else rule(value)


def matches(pattern: str, words: str) -> Rule:
    """Text of a form."""
    return lambda value: None if isinstance(value, str) and re.fullmatch(pattern, value) else f"it must be {words}"


def _classes(value: Any) -> str | None:
    if isinstance(value, list):
        names = [item for item in value if isinstance(item, str) and item]
        return None if len(names) == len(value) == len(set(value)) >= 1 else "names must be texts, each once"
    return "it must be a number of classes of 1 or more, or a list of names" if whole(1)(value) else None


def _shares(value: Any) -> str | None:
    fits = (
        isinstance(value, dict)
        and value
        and all(
            name in SPLITS and isinstance(share, int | float) and not isinstance(share, bool) and share >= 0
            for name, share in value.items()
        )
    )
    return (
        None
        if fits and sum(value.values()) > 0
        else f"it must give a share to each of {', '.join(SPLITS)} or some of them"
    )


def _by_split(rule: Rule) -> Rule:
    def judged(value: Any) -> str | None:
        if not isinstance(value, dict) or not value:
            return f"it must have a key for each of {', '.join(SPLITS)} or some of them"
        for name, item in value.items():
            if name not in SPLITS:
                return nearest(name, SPLITS)
            if said := rule(item):
                return f"{name}: {said}"
        return None

    return judged


def _span(value: Any) -> str | None:
    fits = isinstance(value, list) and len(value) == 2 and all(whole(0)(item) is None for item in value)
    return None if fits and value[0] <= value[1] else "it must be [start, end], the end excluded"


text = a(str, "text")
flag = a(bool, "true or false")
section = a(dict, "a section with keys")
number = a((int, float), "a number")
slug = matches(r"[a-z0-9-]+", "small letters, digits and dashes")
anything: Rule = lambda value: None  # noqa: E731

TOP: dict[str, Rule] = {
    "version": one_of(VERSION),
    "stream": section,
    "task_defaults": section,
    "tasks": list_of(section, 1),
}
STREAM: dict[str, Rule] = {
    "name": text,
    "description": text,
    "default_splits": list_of(one_of(*SPLITS), 1),
    "final_year_from": or_none(whole(*YEARS)),
    "image_size": whole(1),
    "heads": one_of(*HEADS),
    "shuffle": one_of(*SHUFFLES),
    "seed": whole(0),
    "fallback": list_of(text),
    "offsets": section,
}
TASK: dict[str, Rule] = {
    "id": slug,
    "dataset": slug,
    "year": whole(*YEARS),
    "date": or_none(lambda value: None if is_date(value) else "it must be a day, as in 2004-06-01"),
    "domain": one_of(*DOMAINS),
    "kind": one_of(*KINDS),
    "classes": _classes,
    "source": section,
    "splits": section,
    "license": section,
    "preprocess": section,
    "channels": one_of(1, 3),
    "transform": section,
    "label_names": one_of("sorted"),
    "empty_labels": flag,
    "train_examples": or_none(whole(1)),
    "paper": section,
    "note": text,
}
NEEDED = ("id", "dataset", "domain", "kind", "classes", "source")
INNER: dict[str, dict[str, Rule]] = {
    "license": {"name": text, "url": text, "redistributable": flag, "accept": flag},
    "preprocess": {"resize": whole(1), "hflip": flag, "interpolation": one_of("bilinear", "nearest"), "lazy": flag},
    "paper": {"title": text, "venue": text},
    "transform": {
        "label_map": section,
        "buckets": section,
        "binarise": section,
        "crop": section,
        "drop_classes_below": whole(1),
    },
    "transform.buckets": {
        "column": text,
        "n": whole(1),
        "mode": one_of("equal_mass", "edges"),
        "edges": list_of(number, 1),
    },
    "transform.binarise": {"threshold": number},
    "transform.crop": {
        "columns": lambda value: list_of(text)(value) or (None if len(value) == 4 else "four columns are needed"),
        "min_side": number,
    },
    "splits": {
        "rule": one_of("A", "T", "V", "X"),
        "seed": whole(0),
        "compat": one_of("nevis"),
        "catalogue": flag,
        "duplicates": one_of("error", "drop", "warn"),
        "deduplicate": flag,
        "by": one_of("column", "list", "index_ranges", "group"),
        "column": text,
        "values": _by_split(list_of(anything)),
        "groups": _by_split(list_of(anything)),
        "shares": section,
        "lists": _by_split(
            lambda value: None if isinstance(value, list | str) else "it must be a list, or a text file"
        ),
        "ranges": _by_split(list_of(_span)),
    },
}


# --- the reading ---


class _Judge:
    """Collects problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, task: str, path: str, message: str, level: str = "error") -> None:
        self.problems.append(Problem(task, path, message, level))

    def section(self, task: str, path: str, given: Mapping[Any, Any], rules: Mapping[str, Rule]) -> None:
        """Unknown keys, and values out of range."""
        for key, value in given.items():
            where = f"{path}.{key}" if path else str(key)
            if key not in rules:
                self.add(task, where, f"unknown key; {nearest(key, rules)}")
            elif said := rules[key](value):
                self.add(task, where, f"{_short(value)}: {said}")


def parse(given: Any) -> tuple[Manifest | None, list[Problem]]:
    """A manifest out of plain data, and everything that is wrong with what is written.

    Returns:
        The manifest, None where a task could not be understood; and the problems, in order.
    """
    judge = _Judge()
    if not isinstance(given, dict):
        judge.add("", "", "a manifest has the keys version, stream and tasks")
        return None, judge.problems
    judge.section("", "", given, TOP)
    for key in ("version", "tasks"):
        if key not in given:
            judge.add("", key, f"it is missing{' (version: 1)' if key == 'version' else ''}")
    info = given.get("stream") if isinstance(given.get("stream"), dict) else {}
    judge.section("", "stream", info or {}, STREAM)
    stream = _stream(info or {})
    defaults = given.get("task_defaults") if isinstance(given.get("task_defaults"), dict) else {}
    judge.section("", "task_defaults", defaults or {}, TASK)
    tasks: list[Task] = []
    for place, own in enumerate(given.get("tasks") if isinstance(given.get("tasks"), list) else ()):
        if isinstance(own, dict):
            task = _task(own, defaults or {}, place, stream, judge)
            if task is not None:
                tasks.append(task)
    if any(problem.level == "error" for problem in judge.problems):
        return None, judge.problems
    manifest = Manifest(stream, tuple(tasks))
    _across(manifest, judge)
    return manifest, judge.problems


def _stream(given: Mapping[str, Any]) -> StreamInfo:
    known = {own.name for own in fields(StreamInfo)}
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if key in known}
    return StreamInfo(**made)


def _task(
    own: Mapping[str, Any], defaults: Mapping[str, Any], place: int, stream: StreamInfo, judge: _Judge
) -> Task | None:
    name = own.get("id") if isinstance(own.get("id"), str) else f"tasks[{place}]"
    before = len(judge.problems)
    given = dict(defaults)
    for key, value in own.items():  # sections are joined, key by key
        joined = isinstance(value, dict) and isinstance(given.get(key), dict)
        given[key] = {**given[key], **value} if joined else value
    judge.section(name, "", given, TASK)
    for key in NEEDED:
        if key not in given:
            judge.add(name, key, "it is missing")
    if "year" not in given and not is_date(given.get("date")):
        judge.add(name, "year", "a year, or a date, is missing")
    for path, rules in INNER.items():
        value: Any = given
        for step in path.split("."):
            value = value.get(step) if isinstance(value, dict) else None
        if isinstance(value, dict):
            judge.section(name, path, value, rules)
    if isinstance(given.get("source"), dict):
        _source(name, given["source"], judge)
    if len(judge.problems) > before:
        return None
    if given.get("date"):
        given.setdefault("year", int(given["date"][:4]))
        if given["year"] != int(given["date"][:4]):
            judge.add(name, "date", f"{given['date']} is not in the year {given['year']}")
    given["splits"] = {"rule": "A", **given.get("splits", {})}
    given["preprocess"] = {"resize": stream.image_size, **given.get("preprocess", {})}
    _splits(name, given["splits"], given["source"], judge)
    _license(name, given.get("license", {}), given["source"], judge)
    _transform(name, given, judge)
    if isinstance(given["classes"], list):
        given["classes"] = tuple(given["classes"])
    return Task(**given)


def _source(name: str, source: Mapping[str, Any], judge: _Judge) -> None:
    kind = source.get("type")
    if kind not in SOURCES:
        judge.add(name, "source.type", f"{kind}: {nearest(str(kind), SOURCES)}")
        return
    known = SOURCES[kind]
    keys = ("type", *known.needed, *known.optional)
    for key in source:
        if key not in keys:
            judge.add(name, f"source.{key}", f"unknown key of type {kind}; {nearest(key, keys)}")
    for key in known.needed:
        if not source.get(key):
            why = "; pin one, so that the data cannot change under the stream" if key == "revision" else ""
            judge.add(name, f"source.{key}", f"it is missing{why}")
    if kind == "npz" and not source.get("file") and not parts_of(source):
        judge.add(name, "source.file", "it is missing; give file, or train and test")
    if kind in GENERATORS and source.get("generator") and source["generator"] not in GENERATORS[kind]:
        judge.add(
            name, "source.generator", f"'{source['generator']}': {nearest(source['generator'], GENERATORS[kind])}"
        )
    for key in known.paths:
        value = source.get(key)
        path = value.get("file") if isinstance(value, dict) else value
        if isinstance(path, str) and not is_inside(path):
            judge.add(name, f"source.{key}", f"'{path}' must be a path inside the data root: relative, without '..'")


def is_inside(path: str) -> bool:
    """Whether a path is relative and does not lead out.

    >>> is_inside("faces/train"), is_inside("/faces"), is_inside("faces/../.."), is_inside("C:/faces")
    (True, False, False, False)
    """
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    out = posix.is_absolute() or windows.drive or windows.root or path.startswith("~")
    return not out and ".." not in (*posix.parts, *windows.parts)


def _splits(name: str, splits: Mapping[str, Any], source: Mapping[str, Any], judge: _Judge) -> None:
    rule, by = splits["rule"], splits.get("by")
    given = parts_of(source)
    if rule in ("T", "V") and (given or source["type"] == "imagefolder"):
        for part in PARTS[rule]:
            if part not in given:
                judge.add(name, f"source.{part}", f"splits.rule {rule} needs the part '{part}' of the source")
    if rule != "X":
        for key in ("by", "column", "values", "groups", "shares", "lists", "ranges"):
            if key in splits:
                judge.add(name, f"splits.{key}", f"it belongs to rule X, the rule is {rule}")
        return
    wants = {"column": (), "list": ("lists",), "index_ranges": ("ranges",), "group": ("column",)}
    if by is None:
        judge.add(name, "splits.by", f"rule X needs it; {nearest('', wants)}")
        return
    for key in wants[by]:
        if key not in splits:
            judge.add(name, f"splits.{key}", f"by: {by} needs it")
    if by == "group" and ("groups" in splits) == ("shares" in splits):
        judge.add(name, "splits.groups", "by: group needs either groups or shares")
    if "shares" in splits:
        shares = splits["shares"]
        if by == "column":
            for value, own in shares.items():
                if said := _shares(own):
                    judge.add(name, f"splits.shares.{value}", said)
        elif said := _shares(shares):
            judge.add(name, "splits.shares", said)
    for split, listed in (splits.get("lists") or {}).items():
        if isinstance(listed, str) and not is_inside(listed):
            judge.add(name, f"splits.lists.{split}", f"'{listed}' must be a path inside the data root")


def _license(name: str, license: Mapping[str, Any], source: Mapping[str, Any], judge: _Judge) -> None:
    if not license.get("name"):
        judge.add(name, "license.name", "it is missing; write what the publisher states, or 'not stated'")
    elif refuses_download(license) and would_download(source):
        said = "not redistributable and not accepted: a download will be refused; read it, then set accept: true"
        judge.add(name, "license.accept", said, "warning")


def refuses_download(license: Mapping[str, Any]) -> bool:
    """Whether data under this licence may be fetched only after the user accepted it."""
    return not license.get("redistributable", False) and not license.get("accept", False)


def _transform(name: str, given: Mapping[str, Any], judge: _Judge) -> None:
    transform, multilabel = given.get("transform", {}), given["kind"] == "multilabel"
    how = transform.get("buckets")
    if how is not None:
        if multilabel:
            judge.add(name, "transform.buckets", "buckets are classes, the kind is multilabel")
        many = len(how.get("edges", ())) + 1 if how.get("mode") == "edges" else how.get("n")
        if many is None or (how.get("mode") == "edges" and "edges" not in how):
            judge.add(name, "transform.buckets", "it needs n, or mode: edges with edges")
        elif many != (given["classes"] if isinstance(given["classes"], int) else len(given["classes"])):
            judge.add(name, "transform.buckets", f"{many} buckets, but classes is {_short(given['classes'])}")
        elif how.get("edges") and sorted(set(how["edges"])) != how["edges"]:
            judge.add(name, "transform.buckets.edges", "they must ascend")
    if "binarise" in transform and "threshold" not in transform["binarise"]:
        judge.add(name, "transform.binarise.threshold", "it is missing")
    if "crop" in transform:
        if "columns" not in transform["crop"]:
            judge.add(name, "transform.crop.columns", "it is missing: left, top, right, bottom")
        if given["source"]["type"] != "csv":
            judge.add(name, "transform.crop", "boxes are columns of a table: source type csv")
    if multilabel and "drop_classes_below" in transform:
        judge.add(name, "transform.drop_classes_below", "it is for multiclass tasks")


def _across(manifest: Manifest, judge: _Judge) -> None:
    """What tasks must agree in."""
    seen: set[str] = set()
    first: dict[str, Task] = {}
    for task in manifest.tasks:
        if task.id in seen:
            judge.add(task.id, "id", "it occurs more than once")
        seen.add(task.id)
        earlier = first.setdefault(task.dataset, task)
        for key, value in task.shared.items():
            if value != earlier.shared[key]:
                judge.add(
                    task.id, key, f"it differs from {earlier.id}, which has the same dataset '{task.dataset}': other data"
                    " need another key"
                )  # fmt: skip
        if manifest.stream.heads == "offset" and task.multilabel:
            judge.add(
                task.id, "kind", "multilabel tasks have no class numbers under stream.heads: offset; filter them out"
            )
    for name in manifest.stream.fallback:
        if name not in seen:
            judge.add("", "stream.fallback", f"'{name}': {nearest(name, seen)}")


def _short(value: Any) -> str:
    said = str(value) if not isinstance(value, Sequence) or isinstance(value, str) else f"a list of {len(value)}"
    return said if len(said) <= 60 else f"{said[:57]}..."
