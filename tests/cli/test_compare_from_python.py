"""``cil.compare``: what the command does, from Python."""

from __future__ import annotations

import csv

import pytest
from safetensors.torch import load_file

import cil
from cil.errors import ConfigError
from cil.testing import toy_stream

SETTINGS = {"model": "smallconv", "epochs": 1, "batch_size": 16, "device": "cpu", "progress": False}


def test_strategies_seeds_and_budgets_make_one_table_and_one_page(tmp_path):
    budgets = [cil.Budget(exemplars=6), cil.Budget(exemplars=12)]
    done = cil.compare(["finetune", "replay"], toy_stream(), budget=budgets, seeds=[0, 1], out=tmp_path, **SETTINGS)
    assert len(done.records) == 8 and not done.failed
    assert {record.status for record in done.records} == {"finished"}
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert {(row["label"], row["n"]) for row in rows} == {("finetune", "2"), ("replay", "2")} and len(rows) == 4
    assert done.page.read_text().startswith("<!DOCTYPE html>") and "replay" in str(done)
    again = cil.compare(["finetune", "replay"], toy_stream(), budget=budgets, seeds=[0, 1], out=tmp_path, **SETTINGS)
    assert [record.directory for record in again.records] == [record.directory for record in done.records]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategies": []}, "strategies is empty, so there is nothing to compare"),
        ({"stream": []}, "stream is empty"),
        ({"budget": []}, "budget is empty"),
        ({"seeds": []}, "seeds is empty"),
        ({"strategies": "finetune"}, "strategies is 'finetune'; cil.compare takes a list of them"),
    ],
)
def test_nothing_to_compare_is_refused(changes, says, tmp_path):
    given = {"strategies": ["finetune"], "stream": toy_stream(), "out": tmp_path / "out", **SETTINGS, **changes}
    with pytest.raises(ConfigError, match=f"^{says}"):
        cil.compare(**given)
    assert not (tmp_path / "out").exists()


def _bits(path):
    """The bytes of each tensor of a file but the wall-clock time."""
    return {name: value.numpy().tobytes() for name, value in load_file(path).items() if name != "seconds"}


def test_first_phases_are_shared_as_by_the_command_and_no_bit_moves(tmp_path):
    given = {"stream": toy_stream(), "budget": cil.Budget(exemplars=6), **SETTINGS}
    shared = cil.compare(["replay", "icarl"], out=tmp_path / "one/on", **given)
    alone = cil.compare(["replay", "icarl"], out=tmp_path / "other/off", reuse=None, **given)
    assert (
        len(list((tmp_path / "one/on/phases").glob("*.safetensors"))) == 1
        and not (tmp_path / "other/off/phases").exists()
    )
    assert not list(tmp_path.rglob("reused.json")), "both were trained"
    for first, second in zip(shared.records, alone.records, strict=True):
        states = [sorted(record.directory.rglob("*.safetensors")) for record in (first, second)]
        assert [path.name for path in states[0]] == [path.name for path in states[1]] and states[0]
        assert [_bits(path) for path in states[0]] == [_bits(path) for path in states[1]]


def test_bytes_may_be_those_of_another_strategy(tmp_path):
    budget = cil.Budget.aligned("der", exemplars=6)
    done = cil.compare(["replay"], toy_stream(), budget=budget, out=tmp_path, **SETTINGS)
    (record,) = done.records
    asked = record.identity["budget"]
    assert (asked["kind"], asked["to"], asked["to_model"]) == ("aligned", "der", "smallconv")
    assert record.results["ledger"][-1]["totals"]["exact"]["total"] <= asked["limits"][-1]


def test_a_wrong_run_is_refused_before_any_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="no strategy 'replai'"):
        cil.compare(["finetune", "replai"], toy_stream(), out=tmp_path, **SETTINGS)
    assert not list(tmp_path.iterdir())


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert cil.__version__ == version("cil")


def test_several_streams_and_budgets_in_bytes_give_rows_areas_and_a_page_elsewhere(tmp_path):
    streams = [toy_stream(), toy_stream(seed=1)]
    budgets = [cil.Budget(limits=[size]) for size in (30_000, 60_000)]
    asked = (["replay"], streams, SETTINGS["model"], budgets)
    given = {key: value for key, value in SETTINGS.items() if key != "model"} | {"out": tmp_path}
    ahead = cil.compare(*asked, dry_run=True, **given)
    assert "runs: 4; finished before: 0" in str(ahead) and not ahead.records
    done = cil.compare(*asked, **given)
    assert len(done.rows) == 4 and {row["label"] for row in done.rows} == {"replay"}
    assert len(done.areas) == 2 and all(area["limits"] == [30_000, 60_000] for area in done.areas)
    first = done.areas[0]
    mean = sum(first["accuracy_a"]) / 200
    assert first["auc_a"] == pytest.approx(mean * 30_000 / 2**20)  # one trapezoid
    assert "My title" in done.write_page(tmp_path / "other" / "page.html", "My title").read_text()
    pytest.importorskip("pandas")
    assert list(done.frame()["label"]) == ["replay"] * 4
