"""The keys of a manifest and their values: a rule returns None for an allowed value, else a message about it."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from cil.data.tasks import SOURCES, SPLITS
from cil.errors import nearest
from cil.values import Rule, is_finite, is_whole, when

Section = dict[str, Rule]

VERSION = 1
YEARS = (1900, 2100)
DOMAINS = (
    *("object", "scene", "texture", "face", "ocr", "shape", "satellite", "medical", "quality", "counting", "action"),
    *("art", "sketch", "other"),
)
KINDS = ("multiclass", "multilabel")
HEADS = ("per_task", "offset")
EVALUATED = ("dev_test", "test")  # splits
SHUFFLES = ("none", "within_year", "all")


# --- kinds of values ---


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number from ``low`` to ``high``."""
    words = f"it must be a whole number {f'of {low} or more' if high is None else f'from {low} to {high}'}"

    def rule(value: Any) -> str | None:
        fits = is_whole(value) and value >= low
        return None if fits and (high is None or value <= high) else words

    return rule


def one_of(*names: Any) -> Rule:
    return lambda value: None if value in names and not isinstance(value, bool) else nearest(str(value), names)


def a(kind: type | tuple[type, ...], words: str) -> Rule:
    return lambda value: None if isinstance(value, kind) else f"it must be {words}"


def list_of(rule: Rule, least: int = 0) -> Rule:
    """A list whose items pass a rule."""

    def check(value: Any) -> str | None:
        if not isinstance(value, list) or len(value) < least:
            return f"it must be a list{f' of {least} or more' if least else ''}"
        return next((f"'{item}': {said}" for item in value if (said := rule(item))), None)

    return check


def either(first: Rule, second: Rule) -> Rule:
    return lambda value: (
        None if first(value) is None or second(value) is None else f"{first(value)}; or {second(value)}"
    )


def or_none(rule: Rule) -> Rule:
    return lambda value: None if value is None else rule(value)


def matches(pattern: str, words: str) -> Rule:
    return lambda value: None if isinstance(value, str) and re.fullmatch(pattern, value) else f"it must be {words}"


def mapping_of(rule: Rule) -> Rule:
    """A section whose values pass."""

    def check(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "it must be a section with keys"
        return next((f"{key}: {said}" for key, item in value.items() if (said := rule(item))), None)

    return check


def by_split(rule: Rule) -> Rule:
    """A section with a key for splits, whose values pass."""

    def check(value: Any) -> str | None:
        if not isinstance(value, dict) or not value:
            return f"it must have a key for each of {', '.join(SPLITS)} or some of them"
        unknown = next((name for name in value if name not in SPLITS), None)
        return mapping_of(rule)(value) if unknown is None else f"'{unknown}': {nearest(str(unknown), SPLITS)}"

    return check


def both(first: Rule, test: Callable[[Any], object], words: str) -> Rule:
    """A value that passes a rule, and then a test."""
    return lambda value: first(value) or when(test, words)(value)


def is_date(value: Any) -> bool:
    """True for a day such as 2004-06-01."""
    try:
        return bool(datetime.date.fromisoformat(value).isoformat() == value)
    except (TypeError, ValueError):
        return False


def is_inside(path: str) -> bool:
    """True for a relative path that does not lead out of its folder.

    >>> is_inside("faces/train"), is_inside("/faces"), is_inside("faces/../.."), is_inside("C:/faces")
    (True, False, False, False)
    """
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    outside = posix.is_absolute() or bool(windows.drive or windows.root) or path.startswith("~")
    return not outside and ".." not in (*posix.parts, *windows.parts)


text = a(str, "text")
flag = a(bool, "true or false")
section = a(dict, "a section with keys")
slug = matches(r"[a-z0-9-]+", "small letters, digits and dashes")
filled = when(lambda value: isinstance(value, str) and value.strip(), "it must be text that says something")
number = when(is_finite, "it must be a number")
inside = when(
    lambda value: isinstance(value, str) and is_inside(value),
    "it must be a path inside the data root: relative, without '..'",
)
hub_name = matches(r"\w[\w.-]*(/\w[\w.-]*)?", "a name on the hub, as owner/name")  # a path could be a local folder
named = both(
    list_of(when(lambda item: isinstance(item, str) and item, "no text"), 1), lambda v: len(set(v)) == len(v), "twice"
)
evaluated = both(list_of(one_of(*EVALUATED), 1), lambda value: len(set(value)) == len(value), "name each split once")
share = when(lambda value: is_finite(value) and value >= 0, "it must be 0 or more")
shares = both(by_split(share), lambda value: sum(value.values()) > 0, "one share at least must be above 0")
span = both(
    when(lambda value: isinstance(value, list) and len(value) == 2, "it must be [start, end], the end excluded"),
    lambda value: list_of(whole(0))(value) is None and value[0] <= value[1],
    "it must be [start, end], the end excluded",
)
four_columns = both(list_of(text), lambda v: len(v) == 4, "four columns are needed: left, top, right, bottom")
ascending = both(list_of(number, 1), lambda value: sorted(set(value)) == value, "they must ascend")
day = when(is_date, "it must be a day in quotes, as in '2004-06-01'")


def classes(value: Any) -> str | None:
    if isinstance(value, list):
        return "names must be texts (in quotes), each once" if named(value) else None
    return "it must be a number of classes of 1 or more, or a list of names" if whole(1)(value) else None


# --- keys ---

TOP: Section = {"version": one_of(VERSION), "stream": section, "task_defaults": section, "tasks": list_of(section, 1)}
STREAM: Section = {
    "name": filled,
    "description": text,
    "default_splits": evaluated,
    "final_year_from": or_none(whole(*YEARS)),
    "image_size": whole(1),
    "heads": one_of(*HEADS),
    "shuffle": one_of(*SHUFFLES),
    "seed": whole(0),
    "fallback": list_of(text),
    "variants": mapping_of(mapping_of(or_none(whole(*YEARS)))),
    "offsets": mapping_of(whole(0)),
}
TASK: Section = {
    "id": slug,
    "dataset": slug,
    "year": whole(*YEARS),
    "date": or_none(day),
    "domain": one_of(*DOMAINS),
    "kind": one_of(*KINDS),
    "classes": classes,
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
NEEDED = ("id", "domain", "kind", "classes", "source", "license")
INNER: dict[str, Section] = {
    "license": {"name": filled, "url": text, "redistributable": flag, "accept": flag},
    "preprocess": {"resize": whole(1), "hflip": flag, "interpolation": one_of("bilinear", "nearest"), "lazy": flag},
    "paper": {"title": text, "venue": text},
    "transform": {
        "label_map": section,
        "buckets": section,
        "binarise": section,
        "crop": section,
        "drop_classes_below": whole(1),
    },
    "transform.buckets": {"column": text, "n": whole(1), "mode": one_of("equal_mass", "edges"), "edges": ascending},
    "transform.binarise": {"threshold": number},
    "transform.crop": {"columns": four_columns, "min_side": number},
    "splits": {
        "rule": one_of("A", "T", "V", "X"),
        "seed": whole(0),
        "compat": one_of("nevis"),
        "catalogue": flag,
        "duplicates": one_of("error", "drop", "warn"),
        "deduplicate": flag,
        "by": one_of("column", "list", "index_ranges", "group"),
        "column": text,
        "values": by_split(list_of(a((str, int, float), "a value of the column"))),
        "groups": by_split(list_of(a((str, int, float), "a value of the column"))),
        "shares": section,
        "lists": by_split(either(list_of(a((str, int), "a row number or a name")), inside)),
        "ranges": by_split(list_of(span)),
    },
}
_SOURCE: Section = {
    **dict.fromkeys(("name", "config", "generator", "obtain", "label_attr"), filled),
    **dict.fromkeys(("images", "labels", "split", "image_column", "label_column", "label_separator"), filled),
    **dict.fromkeys(("file", "root"), inside),
    "path": hub_name,
    "revision": matches(r"[0-9a-f]{7,40}", "the hash of a commit (7 to 40 digits): branches and tags move"),
    "split_column": filled,
    "label_columns": list_of(text, 1),
    "args": section,
    "params": section,
    "download": flag,
    "seed": whole(0),
}


def npz_part(value: Any) -> str | None:
    """A file, or a section with ``file`` and names of arrays."""
    keys = {"file": inside, "images": text, "labels": text, "split": text}
    if not isinstance(value, dict):
        return inside(value)
    if unknown := next((key for key in value if key not in keys), None):
        return f"unknown key '{unknown}'; {nearest(str(unknown), keys)}"
    return (
        "file: it is missing" if "file" not in value else next((s for k, v in value.items() if (s := keys[k](v))), None)
    )


_PARTS: dict[str, Rule] = {
    "torchvision": either(section, list_of(section, 1)),
    "imagefolder": inside,
    "npz": npz_part,
    "hf": filled,
}


def source_keys(kind: str) -> Section:
    """The keys of a type of source."""
    known = SOURCES[kind]
    return {key: _SOURCE.get(key) or _PARTS[kind] for key in (*known.needed, *known.optional)}


def check_section(path: str, given: Mapping[Any, Any], rules: Section) -> Iterator[tuple[str, str]]:
    """Place and message of unknown keys, and of values that are not allowed."""
    for key, value in given.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in rules:
            yield where, f"unknown key; {nearest(str(key), rules)}"
        elif said := rules[key](value):
            yield where, f"{short(value)}: {said}"


def short(value: Any) -> str:
    """A value in a few letters."""
    said = f"a list of {len(value)}" if isinstance(value, list | tuple) else str(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
