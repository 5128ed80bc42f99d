"""Checks of what a manifest says: every error with its task and its place, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cil.data.tasks import GENERATORS, PARTS, SOURCES, parts_of, would_download
from cil.errors import nearest
from cil.streams.manifest import Manifest, ManifestTask, StreamInfo
from cil.streams.manifest_schema import (
    INNER,
    NEEDED,
    STREAM,
    TASK,
    TOP,
    VERSION,
    check_section,
    shares,
    short,
    source_keys,
)

Errors = Iterator[tuple[str, str]]  # place, message


@dataclass(frozen=True)
class Problem:
    """Something wrong (``error``) or odd (``warning``) in a manifest or its data.

    Attributes:
        task: Id of the task; empty for the stream.
        path: Place in the file, such as ``source.root``.
    """

    task: str
    path: str
    message: str
    level: str = "error"

    def __str__(self) -> str:
        return ": ".join(item for item in (self.task, self.path, self.message) if item)


def errors_in(problems: Iterable[Problem]) -> list[Problem]:
    """Problems that are errors, not warnings."""
    return [problem for problem in problems if problem.level == "error"]


def parse(given: Any) -> tuple[Manifest | None, list[Problem]]:
    """Make a manifest of plain data, and list everything that is wrong with it.

    Returns:
        The manifest, None where there is an error; and the problems, in order.
    """
    if not isinstance(given, dict):
        return None, [Problem("", "", "a manifest has the keys version, stream and tasks")]
    problems = [Problem("", *said) for said in check_section("", given, TOP)]
    for key in ("version", "tasks"):
        if key not in given:
            problems.append(Problem("", key, f"it is missing{f' (version: {VERSION})' if key == 'version' else ''}"))
    info, defaults = _section(given, "stream"), _section(given, "task_defaults")
    problems += [Problem("", *said) for said in check_section("stream", info, STREAM)]
    problems += [Problem("", *said) for said in check_section("task_defaults", defaults, TASK)]
    sound = {key: value for key, value in defaults.items() if key in TASK and TASK[key](value) is None}
    listed = given.get("tasks")
    written = [
        (str(own.get("id", f"tasks[{place}]")), _join(sound, own))
        for place, own in enumerate(listed if isinstance(listed, list) else [])
        if isinstance(own, dict)
    ]
    size = info.get("image_size", StreamInfo.image_size)
    for name, own in written:
        own["preprocess"] = {"resize": size, **_section(own, "preprocess")}
        problems += [Problem(name, *said) for said in _check_task(own)]
        if would_download(_section(own, "source")) and refuses_download(_section(own, "license")):
            said = "neither redistributable nor accepted, so a download will be refused; read it, then set accept: true"
            problems.append(Problem(name, "license.accept", said, "warning"))
    if errors_in(problems):
        return None, problems
    stated: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in info.items()}
    manifest = Manifest(StreamInfo(**stated), tuple(_make_task(own) for _, own in written))
    return manifest, problems + list(_check_tasks_together(manifest))


def refuses_download(license: Mapping[str, Any]) -> bool:
    """True for a licence under which data are fetched only after the user accepted it."""
    return not license.get("redistributable", False) and not license.get("accept", False)


def _section(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = given.get(key)
    return dict(found) if isinstance(found, dict) else {}


def _join(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a task over the defaults; sections are joined, key by key."""
    joined = {**defaults, **own}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            joined[key] = {**defaults[key], **value}
    return joined


def _make_task(own: Mapping[str, Any]) -> ManifestTask:
    """A task of settings that were checked."""
    made = {"dataset": own["id"], **own}
    made["year"] = own.get("year") or int(own["date"][:4])
    made["splits"] = {"rule": "A", **_section(own, "splits")}
    if isinstance(own["classes"], list):
        made["classes"] = tuple(own["classes"])
    return ManifestTask(**made)


def _check_task(own: Mapping[str, Any]) -> Errors:
    """Errors in one task, first key by key, then between keys."""
    found = list(check_section("", own, TASK))
    found += [(key, "it is missing") for key in NEEDED if key not in own]
    if "year" not in own and own.get("date") is None:
        found.append(("year", "it is missing; give year, or date"))
    for path, rules in INNER.items():
        inner: Any = own
        for step in path.split("."):
            inner = inner.get(step) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            found += check_section(path, inner, rules)
    if isinstance(own.get("license"), dict) and "name" not in own["license"]:
        found.append(("license.name", "it is missing; write what the publisher states, or 'not stated'"))
    if isinstance(own.get("source"), dict):
        found += _check_source(own["source"])
    yield from found
    if found:
        return
    if own.get("date") and own.get("year", int(own["date"][:4])) != int(own["date"][:4]):
        yield "date", f"{own['date']} is not in the year {own['year']}"
    yield from _check_splits({"rule": "A", **_section(own, "splits")}, own["source"])
    yield from _check_transform(_section(own, "transform"), own)


def _check_source(source: Mapping[str, Any]) -> Errors:
    kind = source.get("type")
    if kind not in SOURCES:
        yield "source.type", f"{kind}: {nearest(str(kind), SOURCES)}"
        return
    keys = source_keys(kind)
    yield from check_section("source", {key: value for key, value in source.items() if key != "type"}, keys)
    for key in SOURCES[kind].needed:
        if key not in source:
            why = "; pin one, so that the data cannot change under the stream" if key == "revision" else ""
            yield f"source.{key}", f"it is missing{why}"
    if kind == "npz" and "file" not in source and not parts_of(source):
        yield "source.file", "it is missing; give file, or train and test"
    if "label_columns" in source and "label_separator" in source:
        yield "source.label_columns", "give label_columns, or label_separator, not both"
    if kind in GENERATORS and source.get("generator") not in (None, *GENERATORS[kind]):
        yield "source.generator", f"{short(source['generator'])}: {nearest(str(source['generator']), GENERATORS[kind])}"


def _check_splits(splits: Mapping[str, Any], source: Mapping[str, Any]) -> Errors:
    rule, by = splits["rule"], splits.get("by")
    if source["type"] == "csv":
        needed: tuple[str, ...] = ("split_column",) if PARTS.get(rule) else ()
    else:
        needed = () if "split" in source else PARTS.get(rule, ())
    for key in needed:
        if key not in source:
            yield f"source.{key}", f"it is missing, splits.rule {rule} needs it"
    if "catalogue" in splits and "compat" not in splits:
        yield "splits.catalogue", "it belongs to compat: nevis"
    if rule != "X":
        for key in ("by", "column", "values", "groups", "shares", "lists", "ranges"):
            if key in splits:
                yield f"splits.{key}", f"it belongs to rule X, the rule is {rule}"
        return
    wants = {"column": (), "list": ("lists",), "index_ranges": ("ranges",), "group": ("column",)}
    if by is None:
        yield "splits.by", f"it is missing, rule X needs it; {nearest('', wants)}"
        return
    for key in wants[by]:
        if key not in splits:
            yield f"splits.{key}", f"it is missing, by: {by} needs it"
    if by == "group" and ("groups" in splits) == ("shares" in splits):
        yield "splits.groups", "by: group needs either groups or shares"
    divided = splits.get("shares", {})
    for path, own in {"": divided}.items() if by == "group" and divided else divided.items():
        if said := shares(own):
            yield f"splits.shares{f'.{path}' if path else ''}", said


def _check_transform(transform: Mapping[str, Any], own: Mapping[str, Any]) -> Errors:
    multilabel, classes = own["kind"] == "multilabel", own["classes"]
    how = transform.get("buckets")
    if how is not None:
        by_edges = how.get("mode", "equal_mass") == "edges"
        many = len(how.get("edges", ())) + 1 if by_edges else how.get("n")
        if multilabel:
            yield "transform.buckets", "buckets are classes, the kind is multilabel"
        if by_edges != ("edges" in how) or by_edges == ("n" in how):
            yield "transform.buckets", "it needs n, or mode: edges with edges"
        elif many != (classes if isinstance(classes, int) else len(classes)):
            yield "transform.buckets", f"{many} buckets, but classes is {short(classes)}"
    if "binarise" in transform and "threshold" not in transform["binarise"]:
        yield "transform.binarise.threshold", "it is missing"
    if "crop" in transform:
        if "columns" not in transform["crop"]:
            yield "transform.crop.columns", "it is missing: left, top, right, bottom"
        if own["source"]["type"] != "csv":
            yield "transform.crop", "boxes are columns of a table: source type csv"
    if multilabel and "drop_classes_below" in transform:
        yield "transform.drop_classes_below", "it is for multiclass tasks"


def _check_tasks_together(manifest: Manifest) -> Iterator[Problem]:
    """Errors between tasks, and in names of tasks."""
    first: dict[str, ManifestTask] = {}
    ids: set[str] = set()
    for task in manifest.tasks:
        if task.id in ids:
            yield Problem(task.id, "id", "it occurs more than once")
        ids.add(task.id)
        earlier = first.setdefault(task.dataset, task)
        for key, value in task.shared.items():
            if value != earlier.shared[key]:
                said = f"it differs from that of {earlier.id}, which has the same dataset '{task.dataset}'"
                yield Problem(task.id, key, f"{said}; other data need another key")
        if manifest.stream.heads == "offset" and task.multilabel:
            yield Problem(task.id, "kind", "multilabel has no class numbers under stream.heads: offset; filter it out")
    yield from _check_offsets(manifest)
    named = {"fallback": manifest.stream.fallback}
    named |= {f"variants.{variant}": tuple(years) for variant, years in manifest.stream.variants.items()}
    for where, names in named.items():
        for name in names:
            if name not in ids:
                yield Problem("", f"stream.{where}", f"'{name}': {nearest(name, ids)}")


def _check_offsets(manifest: Manifest) -> Iterator[Problem]:
    """Errors in the class numbers that a manifest gives itself: each data set has its own."""
    given = manifest.stream.offsets
    sizes = {task.dataset: task.num_classes for task in manifest.tasks if not task.multilabel}
    for name in given:
        if name not in sizes:
            yield Problem("", f"stream.offsets.{name}", f"no multiclass data set; {nearest(name, sizes)}")
    for name in sizes if given else ():
        if name not in given:
            yield Problem("", f"stream.offsets.{name}", "it is missing; give those of all data sets, or none")
    placed = sorted((start, name) for name, start in given.items() if name in sizes)
    for (start, name), (after, other) in pairwise(placed):
        if after < start + sizes[name]:
            said = f"{after} is one of '{name}', which has {start} to {start + sizes[name] - 1}"
            yield Problem("", f"stream.offsets.{other}", said)
