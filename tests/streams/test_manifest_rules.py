"""What a manifest must say: one manifest that breaks it for every rule, and the place that is named."""

from __future__ import annotations

from copy import deepcopy

import pytest

from cil.streams.manifest_rules import errors_in, parse

GOOD = {
    "version": 1,
    "stream": {"name": "two", "image_size": 32},
    "task_defaults": {"license": {"name": "mine", "redistributable": True}, "splits": {"seed": 0}},
    "tasks": [
        {
            "id": "signs-2001",
            "dataset": "signs",
            "year": 2001,
            "domain": "object",
            "kind": "multiclass",
            "classes": 4,
            "source": {"type": "npz", "train": "signs/train.npz", "test": "signs/test.npz"},
            "splits": {"rule": "T"},
        },
        {
            "id": "findings-2005",
            "dataset": "findings",
            "date": "2005-06-01",
            "domain": "medical",
            "kind": "multilabel",
            "classes": ["effusion", "nodule"],
            "source": {"type": "csv", "file": "findings.csv", "label_column": "tags", "label_separator": ";"},
            "splits": {"rule": "X", "by": "group", "column": "patient", "shares": {"train": 3, "test": 1}},
        },
    ],
}
GONE = object()


def changed(**changes):
    """``GOOD`` with values at dotted places (``__`` for the dot); numbers are places in lists."""
    given = deepcopy(GOOD)
    for path, value in changes.items():
        *steps, last = [int(step) if step.isdecimal() else step for step in path.split("__")]
        at = given
        for step in steps:
            at = at[step]
        if value is GONE:
            del at[last]
        else:
            at[last] = value
    return given


def repeat(**changes):
    again = {**GOOD["tasks"][0], "id": "signs-again", "year": 2010, **changes}
    return {"tasks": [*deepcopy(GOOD["tasks"]), again]}


SIGNS, FINDINGS = "signs-2001", "findings-2005"
BOX = ["left", "top", "right", "bottom"]
ERRORS = {
    # keys
    "unknown key": ({"streams": {}}, "", "streams", "unknown key; did you mean 'stream'"),
    "unknown key of the stream": ({"stream__nam": "x"}, "", "stream.nam", "did you mean 'name'"),
    "unknown key of a task": ({"tasks__0__yeer": 2001}, SIGNS, "yeer", "did you mean 'year'"),
    "unknown key of a section": ({"tasks__0__splits__sed": 1}, SIGNS, "splits.sed", "did you mean 'seed'"),
    "unknown key of a source": ({"tasks__0__source__trein": "x"}, SIGNS, "source.trein", "did you mean 'train'"),
    "unknown key of a transformation": (
        {"tasks__0__transform": {"bucket": {}}}, SIGNS, "transform.bucket", "did you mean 'buckets'"),
    "unknown key of the defaults": ({"task_defaults__kinds": 1}, "", "task_defaults.kinds", "did you mean 'kind'"),
    "no version": ({"version": GONE}, "", "version", "it is missing"),
    "another version": ({"version": 2}, "", "version", "known: 1"),
    "no tasks": ({"tasks": []}, "", "tasks", "a list of 1 or more"),
    "no id": ({"tasks__1__id": GONE}, "tasks[1]", "id", "it is missing"),
    "no domain": ({"tasks__0__domain": GONE}, SIGNS, "domain", "it is missing"),
    "no year": ({"tasks__0__year": GONE}, SIGNS, "year", "give year, or date"),
    # values
    "an id in capitals": ({"tasks__0__id": "Signs"}, "Signs", "id", "small letters, digits and dashes"),
    "the same id": ({"tasks__1__id": SIGNS}, SIGNS, "id", "more than once"),
    "a year before photography": ({"tasks__0__year": 1899}, SIGNS, "year", "from 1900 to 2100"),
    "a date in another year": ({"tasks__1__year": 2006}, FINDINGS, "date", "is not in the year 2006"),
    "no such day": ({"tasks__1__date": "2005-02-30"}, FINDINGS, "date", "as in '2004-06-01'"),
    "a domain": ({"tasks__0__domain": "objects"}, SIGNS, "domain", "did you mean 'object'"),
    "a kind": ({"tasks__0__kind": "multi"}, SIGNS, "kind", "known: multiclass, multilabel"),
    "no classes": ({"tasks__0__classes": 0}, SIGNS, "classes", "1 or more"),
    "the same name twice": ({"tasks__0__classes": ["a", "a"]}, SIGNS, "classes", "each once"),
    "channels": ({"tasks__0__channels": 4}, SIGNS, "channels", "known: 1, 3"),
    "order of names": ({"tasks__0__label_names": "as found"}, SIGNS, "label_names", "known: sorted"),
    "a split": ({"stream__default_splits": ["val"]}, "", "stream.default_splits", "dev_test"),
    "a split to train on": ({"stream__default_splits": ["dev"]}, "", "stream.default_splits", "known: dev_test, test"),
    "a split twice": ({"stream__default_splits": ["test", "test"]}, "", "stream.default_splits", "each split once"),
    "heads": ({"stream__heads": "one"}, "", "stream.heads", "offset, per_task"),
    "a shuffle": ({"stream__shuffle": "years"}, "", "stream.shuffle", "within_year"),
    "a fallback": ({"stream__fallback": ["sign-2001"]}, "", "stream.fallback", f"did you mean '{SIGNS}'"),
    "a variant": ({"stream__variants": {"tiny": {"x": None}}}, "", "stream.variants.tiny", "'x'"),
    "a number of pixels": ({"tasks__0__preprocess": {"resize": 0}}, SIGNS, "preprocess.resize", "1 or more"),
    "a flag": ({"tasks__0__preprocess": {"hflip": "no"}}, SIGNS, "preprocess.hflip", "true or false"),
    # sources
    "a source type": ({"tasks__0__source": {"type": "zip"}}, SIGNS, "source.type", "npz"),
    "no file": ({"tasks__0__source": {"type": "npz"}}, SIGNS, "source.file", "give file, or train and test"),
    "no folder": ({"tasks__0__source": {"type": "imagefolder"}}, SIGNS, "source.root", "it is missing"),
    "an absolute path": ({"tasks__0__source__train": "/data/x.npz"}, SIGNS, "source.train", "inside the data root"),
    "a path that leads out": ({"tasks__1__source__root": "a/../.."}, FINDINGS, "source.root", "without '..'"),
    "a path out in a part": (
        {"tasks__0__source__test": {"file": "../x.npz"}}, SIGNS, "source.test", "inside the data root"),
    "a hub without a revision": (
        {"tasks__0__source": {"type": "hf", "path": "a/b", "train": "train", "test": "test"}},
        SIGNS, "source.revision", "pin one"),
    "a branch of the hub": (
        {"tasks__0__source": {"type": "hf", "path": "a/b", "revision": "main", "train": "train", "test": "test"}},
        SIGNS, "source.revision", "branches and tags move"),
    "a folder in place of the hub": (
        {"tasks__0__source": {"type": "hf", "path": "a/..", "revision": "0" * 40, "train": "train", "test": "test"}},
        SIGNS, "source.path", "as owner/name"),
    "a generator": (
        {"tasks__0__source": {"type": "synthetic", "generator": "shape"}}, SIGNS, "source.generator", "'shapes'"),
    # splits
    "a rule": ({"tasks__0__splits__rule": "B"}, SIGNS, "splits.rule", "known: A, T, V, X"),
    "a rule without its part": ({"tasks__0__splits__rule": "V"}, SIGNS, "source.val", "splits.rule V needs it"),
    "a table without parts": (
        {"tasks__1__splits": {"rule": "T"}}, FINDINGS, "source.split_column", "splits.rule T needs it"),
    "X without a way": ({"tasks__1__splits": {"rule": "X"}}, FINDINGS, "splits.by", "rule X needs it"),
    "a key of X": ({"tasks__0__splits__column": "who"}, SIGNS, "splits.column", "it belongs to rule X"),
    "no ranges": (
        {"tasks__0__splits": {"rule": "X", "by": "index_ranges"}}, SIGNS, "splits.ranges", "it is missing"),
    "a range backwards": (
        {"tasks__0__splits": {"rule": "X", "by": "index_ranges", "ranges": {"train": [[4, 2]]}}},
        SIGNS, "splits.ranges", "[start, end]"),
    "no lists": ({"tasks__0__splits": {"rule": "X", "by": "list"}}, SIGNS, "splits.lists", "it is missing"),
    "a list outside": (
        {"tasks__0__splits": {"rule": "X", "by": "list", "lists": {"train": "/etc/list"}}},
        SIGNS, "splits.lists", "inside the data root"),
    "groups and shares": (
        {"tasks__1__splits__groups": {"train": ["ann"]}}, FINDINGS, "splits.groups", "either groups or shares"),
    "negative shares": (
        {"tasks__1__splits__shares": {"train": -1, "test": 2}}, FINDINGS, "splits.shares", "0 or more"),
    "shares of a domain": (
        {"tasks__0__splits": {"rule": "X", "by": "column", "shares": {"photo": {"trian": 1}}}},
        SIGNS, "splits.shares.photo", "did you mean 'train'"),
    "duplicates": ({"tasks__0__splits__duplicates": "keep"}, SIGNS, "splits.duplicates", "drop, error, warn"),
    "cuts of a catalogue": ({"tasks__0__splits__catalogue": True}, SIGNS, "splits.catalogue", "compat: nevis"),
    "labels in two ways": (
        {"tasks__1__source__label_columns": ["a"]}, FINDINGS, "source.label_columns", "not both"),
    # licences
    "no licence": ({"task_defaults__license": GONE}, SIGNS, "license", "it is missing"),
    "a licence without a name": ({"task_defaults__license": {}}, SIGNS, "license.name", "or 'not stated'"),
    # transformations
    "buckets of a multilabel task": (
        {"tasks__1__transform": {"buckets": {"n": 2}}}, FINDINGS, "transform.buckets", "the kind is multilabel"),
    "buckets without a number": (
        {"tasks__0__transform": {"buckets": {"column": "x"}}}, SIGNS, "transform.buckets", "it needs n, or"),
    "another number of buckets": (
        {"tasks__0__transform": {"buckets": {"n": 5}}}, SIGNS, "transform.buckets", "5 buckets, but classes is 4"),
    "edges that go down": (
        {"tasks__0__transform": {"buckets": {"mode": "edges", "edges": [3, 2, 5]}}},
        SIGNS, "transform.buckets.edges", "they must ascend"),
    "no threshold": (
        {"tasks__0__transform": {"binarise": {}}}, SIGNS, "transform.binarise.threshold", "it is missing"),
    "boxes of arrays": ({"tasks__0__transform": {"crop": {"columns": BOX}}}, SIGNS, "transform.crop", "type csv"),
    "three sides": (
        {"tasks__1__transform": {"crop": {"columns": BOX[:3]}}}, FINDINGS, "transform.crop.columns", "four columns"),
    "classes that go": (
        {"tasks__1__transform": {"drop_classes_below": 3}}, FINDINGS, "transform.drop_classes_below", "multiclass"),
    # between tasks
    **{f"the same data, other {key}": (repeat(**{key: value}), "signs-again", key, f"that of {SIGNS}")
       for key, value in {
           "kind": "multilabel", "classes": 5, "splits": {"rule": "T", "seed": 1},
           "source": {"type": "npz", "train": "other.npz", "test": "signs/test.npz"}}.items()},
    "class numbers of no data set": (
        {"stream__offsets": {"signs": 0, "sings": 4}}, "", "stream.offsets.sings", "did you mean 'signs'"),
    "class numbers of some data sets": (
        {**repeat(dataset="more"), "stream__offsets": {"signs": 0}}, "", "stream.offsets.more", "it is missing"),
    "class numbers of two data sets": (
        {**repeat(dataset="more"), "stream__offsets": {"more": 5, "signs": 2}}, "", "stream.offsets.more",
        "5 is one of 'signs', which has 2 to 5"),
    "multilabel with offset": ({"stream__heads": "offset"}, FINDINGS, "kind", "stream.heads: offset"),
}  # fmt: skip


def test_the_good_one_is_good():
    manifest, problems = parse(GOOD)
    assert problems == [] and [task.id for task in manifest] == [SIGNS, FINDINGS]
    assert manifest["signs-2001"].preprocess == {"resize": 32}
    assert manifest["findings-2005"].year == 2005


@pytest.mark.parametrize("what", ERRORS)
def test_one_broken_rule_is_one_error_at_its_place(what):
    changes, task, path, message = ERRORS[what]
    _, problems = parse(changed(**changes))
    found = [problem for problem in errors_in(problems) if (problem.task, problem.path) == (task, path)]
    assert found and message in found[0].message, [str(problem) for problem in problems]
    others = {(problem.task, problem.path) for problem in errors_in(problems)} - {(task, path)}
    assert not others or what in ("no licence", "a licence without a name"), others  # which both tasks then lack


def test_all_errors_come_at_once_each_with_task_and_place():
    manifest, problems = parse(changed(tasks__0__year=3000, tasks__0__domain="x", tasks__1__source__file="/x"))
    assert manifest is None
    assert [(item.task, item.path) for item in problems] == [
        (SIGNS, "year"), (SIGNS, "domain"), (FINDINGS, "source.file")
    ]  # fmt: skip
    assert str(problems[0]) == f"{SIGNS}: year: 3000: it must be a whole number from 1900 to 2100"


@pytest.mark.parametrize("given", [None, [], "text", 3])
def test_what_is_no_section_is_said(given):
    manifest, problems = parse(given)
    assert manifest is None and str(problems[0]) == "a manifest has the keys version, stream and tasks"


@pytest.mark.parametrize(
    ("license", "warned"),
    [
        ({"name": "x", "redistributable": False}, True),
        ({"name": "x", "redistributable": False, "accept": True}, False),
        ({"name": "x", "redistributable": True}, False),
    ],
)
@pytest.mark.parametrize("kind", ["torchvision", "npz"])
def test_a_download_needs_an_accepted_licence(license, warned, kind):
    given = changed(task_defaults__license=license)
    if kind == "torchvision":
        parts = {"train": {"train": True}, "test": {"train": False}}
        given["tasks"][0]["source"] = {"type": "torchvision", "name": "MNIST", **parts}
    manifest, problems = parse(given)
    assert manifest is not None
    expected = [(SIGNS, "license.accept", "warning")] if warned and kind == "torchvision" else []
    assert [(item.task, item.path, item.level) for item in problems] == expected
