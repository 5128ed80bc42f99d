"""What a record must look like to be read, and what is said where it does not."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
from filled import filled
from unsealed import unsealed

from cil import plugins
from cil.cli.main import main
from cil.memory import Budget
from cil.report import find_runs
from cil.testing.shifts import toy_adaptation, toy_shifts
from cil.testing.toy import toy_run, toy_stream, toy_tasks
from cil.tracking import SCHEMA_VERSION, Record, RecordError
from cil.tracking.schema import FILE, record_schema

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "experiments" / "records").rglob("record.json"))
LEDGER = {"entries": [], "totals": {"exact": {"total": 5}, "survey": {"total": 5}, "training": {}}, "public": 0}


def content_of(kind: str) -> dict:
    """A finished record with nothing in it but what its types ask for."""
    found = plugins.find("cil.kinds", kind)
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "finished",
        "error": None,
        "identity": filled({"kind": kind}, found.identity_type()),
        "environment": {},
        "results": filled({"ledger": [LEDGER]}, found.results_type()),
    }


@pytest.fixture
def written(tmp_path):
    """Write the content of a record, changed."""

    def write(change=lambda content: None, kind="classes", name="run"):
        content = content_of(kind)
        change(content)
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(json.dumps(content))
        return tmp_path / name

    return write


@pytest.mark.parametrize("kind", plugins.names("cil.kinds"))
def test_a_record_with_what_its_kind_asks_for_is_read(written, kind):
    assert Record.load(written(kind=kind)).kind == kind


def set_to(value, *path):
    """Put a value at a path of keys and indices."""

    def change(content):
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = value

    return change


def without(*path):
    """Take a key away."""

    def change(content):
        for step in path[:-1]:
            content = content[step]
        del content[path[-1]]

    return change


BAD = {
    "a stream that is a number": (set_to(3, "identity", "stream"), "identity.stream is 3, expected a dictionary"),
    "a ledger of numbers": (set_to([{"totals": 5}], "results", "ledger"), "has no results.ledger[0].entries"),
    "totals that are a number": (
        set_to(5, "results", "ledger", 0, "totals"), "results.ledger[0].totals is 5, expected a dictionary",
    ),
    "a curve of words": (
        set_to(["a", "b"], "results", "accuracy_curve"), 'results.accuracy_curve[0] is "a", expected a number',
    ),
    "a list of results": (set_to([1], "results"), "results is [1], expected a dictionary"),
    "an identity that is none": (set_to(None, "identity"), "identity is null, expected a dictionary"),
    "a kind that is no name": (set_to(5, "identity", "kind"), "identity.kind is 5, expected a string"),
    "no kind": (without("identity", "kind"), "has no identity.kind"),
    "no budget": (without("identity", "budget"), "has no identity.budget"),
    "no curve": (without("results", "accuracy_curve"), "has no results.accuracy_curve"),
    "operations that are a word": (
        set_to("many", "results", "flops", "total"),
        'results.flops.total is "many", expected a list or an integer',
    ),
    "operations of a part that are words": (
        set_to(["a"], "results", "flops", "training"), 'results.flops.training[0] is "a", expected an integer',
    ),
    "an environment that is a list": (set_to([], "environment"), "environment is [], expected a dictionary"),
    "another kind's results": (
        lambda content: content.update(results=content_of("adaptation")["results"]), "has no results.",
    ),
    "a number as text": (set_to("1", "identity", "seed"), 'identity.seed is "1", expected an integer'),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_naming_the_file_and_the_field(written, name, capsys):
    change, message = BAD[name]
    folder = written(change)
    with pytest.raises(RecordError) as refused:
        Record.load(folder)
    assert f"{folder}/record.json {message}" in str(refused.value)
    assert "\n" not in str(refused.value)
    for command in ("show", "evaluate"):
        assert main([command, str(folder)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("cil: ") and message in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize("name", [*BAD, "cut short"])
def test_a_report_leaves_a_bad_record_out_with_one_line_and_goes_on(written, name, caplog):
    good, bad = written(name="good"), written(BAD.get(name, [lambda content: None])[0], name="bad")
    if name == "cut short":
        path = bad / "record.json"
        path.write_text(path.read_text()[:100])
    assert [record.directory for record in find_runs(good.parent)] == [good]
    (line,) = caplog.messages
    assert "left out" in line and str(bad / "record.json") in line and "\n" not in line


def test_further_keys_are_allowed_everywhere(written):
    def more(content):
        for part in (content, content["identity"], content["identity"]["stream"], content["results"]):
            part["of_a_plugin"] = {"a": [1]}

    assert Record.load(written(more)).results["of_a_plugin"] == {"a": [1]}


def test_a_run_that_has_not_finished_may_lack_results_and_those_it_has_are_checked(written):
    def begun(content):
        content.update(status="running", results={"bills": []})

    assert Record.load(written(begun)).results == {"bills": []}
    with pytest.raises(RecordError, match=r"results\.bills is 3"):
        Record.load(written(lambda content: [begun(content), set_to(3, "results", "bills")(content)], name="bad"))


def test_a_record_of_a_kind_that_is_not_installed_is_read_unchecked(written):
    record = Record.load(written(lambda content: content.update(identity={"kind": "new"}, results={"x": "y"})))
    assert (record.kind, record.results) == ("new", {"x": "y"})


# earlier versions ---------------------------------------------------------------------------------------------------


def first_version(content):
    """As the first releases wrote it."""
    content["schema_version"] = 1
    del content["identity"]["kind"], content["results"]["peak_parameters"]
    del content["identity"]["budget"]["flops"], content["identity"]["budget"]["updates"]


@pytest.mark.parametrize("kind", ["classes", "tasks"])
def test_a_record_of_the_first_version_is_brought_up_to_this_one(written, kind):
    def old(content):
        first_version(content)
        if kind == "tasks":
            content["identity"]["stream"]["tasks"] = content_of("tasks")["identity"]["stream"]["tasks"]

    record = Record.load(written(old, kind))
    assert record.kind == kind
    assert record.results["peak_parameters"] is None and record.identity["budget"]["updates"] is None


def test_a_directory_of_the_first_version_is_gone_on_with_as_one_of_today(written):
    folder = written(lambda content: [first_version(content), content.update(status="interrupted")])
    record = Record.open(folder, content_of("classes")["identity"])
    record.save()
    record.close()
    assert json.loads((folder / "record.json").read_text())["schema_version"] == SCHEMA_VERSION
    assert Record.load(folder).identity == content_of("classes")["identity"]


def test_a_version_that_is_not_known_is_refused_by_name(written):
    with pytest.raises(RecordError, match="schema_version 3, this cil reads up to 2"):
        Record.load(written(set_to(3, "schema_version")))
    with pytest.raises(RecordError, match="schema_version or status is wrong"):
        Record.load(written(set_to(0, "schema_version"), name="none"))


def test_every_published_record_is_read():
    assert {Record.load(path.parent).kind for path in RECORDS} == {"classes", "tasks", "adaptation"}


# what runs write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["finished", "interrupted"])
@pytest.mark.parametrize("kind", ["classes", "tasks", "adaptation"])
def test_what_a_run_writes_is_what_the_types_of_its_kind_say(kind, status, tmp_path):
    runs = {
        "classes": partial(toy_run, "icarl", toy_stream(), budget=Budget(exemplars=8)),
        "tasks": partial(toy_run, "dynamic", toy_tasks()),
        "adaptation": partial(toy_adaptation, "tent", toy_shifts(), clean=True),
    }
    runs[kind](tmp_path).execute()
    content = json.loads((unsealed(tmp_path) / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps({**content, "status": status}))
    assert Record.load(tmp_path).kind == kind


# the schema ---------------------------------------------------------------------------------------------------------


def test_the_published_schema_is_that_of_the_types():
    assert json.loads((ROOT / FILE).read_text()) == record_schema(), "run: python -m cil.tracking.schema"


def test_the_schema_has_each_kind_finished_or_not():
    schema = copy.deepcopy(record_schema())
    found = [schema["$defs"][one["$ref"].rpartition("/")[2]]["properties"] for one in schema["anyOf"]]
    identities = [schema["$defs"][one["identity"]["$ref"].rpartition("/")[2]]["properties"] for one in found]
    assert [one["kind"]["const"] for one in identities] == [n for n in plugins.BUILT_IN["cil.kinds"] for _ in range(2)]
