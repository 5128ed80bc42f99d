"""Which directories count as runs, and what is said of those that do not."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from cil.errors import ConfigError
from cil.kinds.classes.sample_table import samples_of
from cil.report import find_runs
from cil.report.runs import RunSummary
from cil.tracking import Record
from cil.tracking.arrays import Part


def test_runs_are_found_at_and_under_a_path_each_once_and_in_order(run, tmp_path):
    for strategy in ("wa", "icarl"):
        run(strategy, name=f"sweep/{strategy}")
    run("inner", name="sweep/wa/checkpoint")  # what lies inside a run is part of it
    single = tmp_path / "runs" / "sweep" / "wa"
    found = find_runs([single, tmp_path, str(single)])
    assert [record.identity["strategy"] for record in found] == ["icarl", "wa"]
    assert [record.directory for record in find_runs(single)] == [single]


def test_a_damaged_record_is_left_out_with_a_warning_of_one_line(run, tmp_path, caplog):
    run("icarl", name="good")
    for name, content in (("cut", '{"schema_version": 1, "sta'), ("empty", "")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "record.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        found = find_runs([tmp_path])
    assert [record.directory.name for record in found] == ["good"]
    assert len(caplog.records) == 2
    assert all("\n" not in entry.getMessage() and "left out" in entry.getMessage() for entry in caplog.records)


def test_a_record_without_what_a_table_needs_is_left_out_by_name(run, tmp_path, caplog):
    run("icarl", name="good")
    bad = run("wa", name="bad").directory / "record.json"
    content = json.loads(bad.read_text())
    del content["identity"]["budget"]
    bad.write_text(json.dumps(content))
    assert len(find_runs([tmp_path])) == 1
    assert "bad/record.json has no identity.budget" in caplog.text


def test_arrays_that_are_damaged_or_missing_are_said_and_leave_the_rest_of_a_page(tmp_path, caplog):
    """Not those of records that are kept without pictures, as ``record.json`` alone."""
    record = Record.open(tmp_path / "run", {"kind": "none"}, {})
    record.add_arrays("boundary-000", {"confusion": Part(np.eye(2))})
    assert list(RunSummary(record).arrays(["confusion", "images"])) == ["confusion"]
    record.log = {"arrays": "0" * 64}  # as of a finished run whose index is not the one that was written
    assert RunSummary(record).arrays(["confusion"]) == {} and samples_of(RunSummary(record)) is None
    record.close()
    assert "without pictures: " in caplog.text and "index.jsonl is damaged or missing" in caplog.text
    caplog.clear()
    for name in ("metrics.jsonl", "arrays/index.jsonl"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert RunSummary(record).arrays(["confusion"]) == {} and not caplog.text


@pytest.mark.parametrize(("name", "message"), [("nowhere", "does not exist"), ("", "no run at or under")])
def test_without_a_run_there_is_one_clear_line(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message) as refused:
        find_runs([tmp_path / name])
    assert "\n" not in str(refused.value)


def test_trials_are_no_results(run):
    kept = run("icarl")
    trial = run("icarl", seed=3, role="trial")
    found = find_runs(kept.directory.parent)
    assert [record.identity["seed"] for record in found] == [0]
    assert [record.identity["seed"] for record in find_runs(trial.directory)] == [3]
