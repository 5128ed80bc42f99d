"""Runs on streams of tasks: error against operations, by hand-made records; and what tables say of tuning."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cil.kinds.tasks.timeline import write_timeline
from cil.report import find_runs, table, to_csv, to_json, to_markdown, to_text
from cil.report.page import html
from cil.tracking import Record
from cil.tracking.arrays import Part

TASKS = [
    {"id": "digits", "dataset": "digits", "year": 1995, "domain": "ocr", "kind": "multiclass", "classes": 10,
     "first_slot": 0, "final": False, "counts": {"train": 1000, "test": 300}},
    {"id": "shapes", "dataset": "shapes", "year": 2004, "domain": "shape", "kind": "multilabel", "classes": 4,
     "first_slot": 10, "final": False, "counts": {"train": 400, "test": 100}},
    {"id": "digits-again", "dataset": "digits", "year": 2019, "domain": "ocr", "kind": "multiclass", "classes": 10,
     "first_slot": 0, "final": True, "counts": {"train": 1000, "test": 300}},
]  # fmt: skip
PARTS = ("training", "search", "validation", "consolidation", "probe", "evaluation")


@pytest.fixture
def task_run(run: Callable[..., Record]) -> Callable[..., Record]:
    """Leave a run on three tasks: its errors, and what each part of an event costs (training, search, ...)."""

    def leave(strategy: str, errors: list[float], each: list[int], *, seed: int = 0, sources: Any = None,
              results: dict[str, Any] | None = None, **more: Any):  # fmt: skip
        stream = {"name": "toys", "experiences": 3, "tasks": TASKS, "splits": ["test"], "heads": "per_task",
                  "reevaluate": "none", "task_known_at_test": True, "fingerprint": "abc"}  # fmt: skip
        own = sum(each[:-1])
        found = {
            "errors": {"test": errors},
            "mean_error": {"test": sum(errors) / 3},
            "mean_error_by": {"test": {"multiclass": (errors[0] + errors[2]) / 2, "multilabel": errors[1],
                                       "development": (errors[0] + errors[1]) / 2, "final": errors[2]}},
            "area_under_errors": {"test": 1.0},
            "events": [{"flops_so_far": own * (i + 1), "search": [{}, {}],
                        "findings": {"source": sources[i]} if sources and sources[i] else {}} for i in range(3)],
            "flops": {part: [n * (i + 1) for i in range(3)] for part, n in zip(PARTS, each, strict=True)}
            | {"total": 3 * sum(each)},
            "peak_parameters": 70,
        } | (results or {})  # fmt: skip
        return run(strategy, seed, stream_changes=stream, results=found, **more)

    return leave


@pytest.fixture
def three(task_run) -> list[Record]:
    return [
        task_run("independent", [40.0, 20.0, 40.0], [10, 80, 10, 0, 0, 5]),
        task_run("previous", [40.0, 20.0, 20.0], [10, 80, 10, 0, 0, 5]),
        task_run("dynamic", [40.0, 10.0, 10.0], [10, 80, 10, 0, 100, 5], sources=[None, "digits", "digits"]),
        task_run("cumulative", [40.0, 30.0, 40.0], [100, 80, 10, 5, 0, 5]),
    ]


def test_a_stream_of_tasks_has_a_table_of_its_own_lowest_error_first(three, run):
    found = table([*three, run("icarl")])
    classes, section = found.sections
    assert [row.label for row in classes.rows] == ["icarl"]
    assert [row.label for row in section.rows] == ["dynamic", "previous", "independent", "cumulative"]
    assert [row.error.mean for row in section.rows] == pytest.approx([20, 80 / 3, 100 / 3, 110 / 3])


def test_operations_are_those_of_the_whole_stream_without_evaluation(three):
    rows = {row.label: row for row in table(three).sections[0].rows}
    assert rows["previous"].spent == 3 * 100 and rows["dynamic"].spent == 3 * 200
    assert rows["dynamic"].flops["probe"] == 300 and rows["dynamic"].flops["evaluation"] == 15
    assert rows["dynamic"].so_far == [200, 400, 600]


def test_the_front_is_of_what_no_other_beats_in_both(three):
    rows = {row.label: row.front for row in table(three).sections[0].rows}
    assert rows == {"dynamic": True, "previous": True, "independent": False, "cumulative": False}


def test_errors_relative_to_independent_are_a_mean_over_tasks(three):
    rows = {row.label: row.relative.mean for row in table(three).sections[0].rows}
    assert rows["independent"] == 0
    assert rows["previous"] == pytest.approx(100 * (0 + 0 - 0.5) / 3)
    assert rows["dynamic"] == pytest.approx(100 * (0 - 0.5 - 0.75) / 3)


def test_scores_are_normalised_between_a_guess_and_the_best_row_of_each_task(three, task_run):
    (section,) = table(three).sections
    rows = {row.label: row.normalised.mean for row in section.rows}
    assert section.facts["tuning"] == "per_task, 2 trials a task judged on dev"
    guesses = section.tables[0].grid.column("chance")
    assert guesses == ["90.0", "–", "90.0"], "no record says what a guess at several labels is worth"
    assert rows["dynamic"] == 100 and rows["previous"] == pytest.approx(100 * (1 + 70 / 80) / 2)
    assert rows["independent"] == pytest.approx(100 * (1 + 50 / 80) / 2)
    told = [{"splits": {"test": {"chance_error": chance}}, "flops_so_far": 1} for chance in (90, 60, 90)]
    (section,) = table([*three, task_run("lwf", [90.0, 60.0, 90.0], [1] * 6, results={"events": told})]).sections
    rows = {row.label: row.normalised.mean for row in section.rows}
    assert rows["lwf"] == 0 and rows["independent"] == pytest.approx(100 * (1 + 40 / 50 + 50 / 80) / 3)


def test_without_independent_nothing_is_relative(three):
    assert all(row.relative.mean is None for row in table(three[1:]).sections[0].rows)
    assert "E_rel" not in to_text(table(three[1:]))


def test_the_text_has_errors_by_task_operations_by_part_and_sources(three):
    said = to_text(table(three), 200)
    for words in ("toys: 3 tasks, 1995 to 2019", "development %", "multilabel %", "2019 digits-again *", "probe",
                  "The task that each task started from", "evaluation"):  # fmt: skip
        assert words in said
    line = next(line for line in said.splitlines() if line.startswith("1995 digits"))
    assert line.split()[2:5] == ["10", "1,000", "90.0"]  # classes, training images, a guess
    assert "| 2004 shapes (several labels) |" in to_markdown(table(three))
    assert "2019 digits-again (repeat, final)" in to_markdown(table(three))


def test_seeds_are_one_row_and_a_missing_seed_is_told(task_run):
    task_run("previous", [40.0, 20.0, 30.0], [1] * 6)
    task_run("previous", [40.0, 20.0, 36.0], [1] * 6, seed=1)
    records = [task_run("previous", [0.0, 0.0, 0.0], [1] * 6, seed=2, status="failed", error="no room")]
    records = find_runs(records[0].directory.parent)
    (row,) = table(records).sections[0].rows
    assert row.seeds == (0, 1) and row.error.mean == pytest.approx(31)
    assert "previous: 1 of 3 seeds failed: no room" in to_text(table(records))


def test_budgets_of_operations_stand_side_by_side_and_say_which(task_run):
    none = {"kind": "none", "exemplars": None, "limits": None, "convention": "exact", "at": "end"}
    small = task_run("previous", [40.0, 20.0, 30.0], [1] * 6, budget={**none, "flops": 1e9, "updates": None})
    large = task_run("previous", [40.0, 20.0, 10.0], [9] * 6, budget={**none, "flops": None, "updates": 500})
    labels = [row.label for row in table([small, large]).sections[0].rows]
    assert labels == ["previous, 500 updates an experience", "previous, 1.00e9 FLOPs an experience"]


def test_csv_has_one_line_a_row_and_the_columns_of_all_kinds(three, run):
    rows = list(csv.DictReader(io.StringIO(to_csv(table(three)))))
    assert rows[0]["label"] == "dynamic" and float(rows[0]["flops_probe"]) == 300 and rows[0]["front"] == "True"
    assert float(rows[0]["error_digits-again"]) == 10
    assert json.loads(to_json(table(three)))["sections"][0]["rows"][0]["mean_error"] == 20
    first, *others = csv.DictReader(io.StringIO(to_csv(table([*three, run("icarl")]))))
    assert (first["label"], first["last_accuracy"], first["mean_error"]) == ("icarl", "65.0", "")
    assert [(row["label"], row["last_accuracy"]) for row in others] == [(row["label"], "") for row in rows]


def test_the_page_shows_the_front_first_and_needs_nothing_from_outside(three):
    page = html(table(three), "tasks")
    assert page.index("Error against compute") < page.index("<table") < page.index("The stream, task by task")
    assert (
        "How to read task streams" in page
        and page.count("<script") == 1
        and "http:" not in page
        and "https:" not in page
    )
    assert page == html(table(three), "tasks")


def test_the_timeline_is_one_page_with_a_strip_a_task(tmp_path):
    path = write_timeline("toys", TASKS, [b"one", b"two", b"three"], tmp_path / "deep/timeline.html")
    text = path.read_text()
    assert text.count("data:image/png;base64,") == 3 and "b25l" in text  # base64 of one
    assert "3 tasks, 1995 to 2019, 1 of them of a data set that came before" in text
    assert "2019 (final)" in text and "<td>1,000</td><td>300</td>" in text
    assert "http:" not in text and "https:" not in text


def test_the_page_has_the_timeline_and_the_images_that_runs_kept(task_run):
    first = task_run("previous", [40.0, 20.0, 20.0], [1] * 6)
    second = task_run("previous", [40.0, 20.0, 20.0], [1] * 6, seed=1)
    tables = html(table([first, second]), "tasks")
    timeline = tables[tables.index('<table class="timeline">') :]
    assert "one of 10 classes" in timeline and "any of 4 labels" in timeline and "1,000" in timeline
    assert "2019 (final)" in timeline and "again digits" in timeline and "image/png" not in timeline
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    keep(second, {"thumbnails.0": images, "thumbnails.2": images})
    page = html(table([first, second]), "tasks")
    pictures = re.findall(r'alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert [name for name, _ in pictures] == ["digits", "digits-again"]  # none was kept of the task between
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0][1]))))
    assert (shown == np.concatenate(list(images), axis=1)).all()


def keep(record: Record, arrays: dict[str, Any]) -> None:
    """Arrays as an engine leaves them."""
    open_again = Record.open(record.directory, record.identity)
    open_again.add_arrays("images", {name: Part(array) for name, array in arrays.items()})
    open_again.close()


def test_a_further_budget_is_a_column_and_a_row_over_it_says_so(task_run):
    carbon = {"caps": {"carbon": {"limit": 5, "unit": "g", "measured": [2.5, 4.0, 6.25]}}}
    said = to_text(table([task_run("previous", [40.0, 20.0, 20.0], [1] * 6, results=carbon)]), 250)
    assert "carbon (g)" in said and "6.25" in said
    assert "* previous: over carbon: 6.25 g, limit 5" in said


def searched(flops: list[int], chosen: int) -> list[dict[str, Any]]:
    return [{"flops": count} | ({"chosen": True} if trial == chosen else {}) for trial, count in enumerate(flops)]


def test_operations_of_a_search_are_those_of_chosen_trials_and_of_others(task_run):
    record = task_run("previous", [40.0, 20.0, 20.0], [0, 80, 10, 0, 0, 5])  # a search of 3 x 80 = 240
    record.results["events"] = [{"flops_so_far": 1, "search": searched([30, 50], i % 2)} for i in range(3)]
    found = table([record])
    assert found.sections[0].rows[0].chosen == 30 + 50 + 30
    said = to_text(found, 200)
    head, _, line = said[said.index("Operations over the stream") :].splitlines()[2:5]
    assert head.split()[1:6] == ["chosen", "trials", "other", "trials", "validation"]
    assert line.split()[1:6] == ["1.10e2", "1.30e2", "3.00e1", "2.70e2", "1.50e1"]  # and their sum, and evaluation
    assert "the training of what is evaluated unless it was refit" in " ".join(said.split())
    assert "consolidation" not in head and "training" not in head  # they took nothing
    assert next(csv.DictReader(io.StringIO(to_csv(found))))["flops_chosen_trials"] == "110.0"
    assert '<p class="note">chosen trials: ' in html(found, "tasks")


def test_a_search_whose_trials_do_not_say_what_they_took_stays_whole(three):
    said = to_text(table(three), 200)
    assert "all trials" in said and "chosen trials" not in said.replace("chosen trials:", "")


EXEMPLARS = {"kind": "exemplars", "exemplars": 200, "limits": None, "convention": "exact", "at": "end"}


def test_a_budget_of_exemplars_is_none_for_learners_that_keep_none(task_run):
    alone = table([task_run("previous", [40.0, 20.0, 20.0], [1] * 6, budget=EXEMPLARS, exemplars=0)])
    assert alone.sections[0].heading == "toys: 3 tasks, 1995 to 2019; no budget"
    assert alone.sections[0].facts["budget"] == "200 exemplars (previous: a cap on exemplars, of which none are kept)"
    assert "exemplars" not in to_text(alone, 200)
    both = [
        task_run("independent", [40.0, 20.0, 20.0], [1] * 6, budget=EXEMPLARS, exemplars=0),
        task_run("task_replay", [40.0, 20.0, 20.0], [1] * 6, budget=EXEMPLARS, exemplars=150),
        task_run("cumulative", [40.0, 20.0, 20.0], [1] * 6, budget=EXEMPLARS, exemplars=900, bound=True),
    ]
    (section,) = table(both).sections
    assert section.heading.endswith("; no budget (independent) | 200 exemplars (task_replay)")
    assert {row.label: row.exemplars for row in section.rows} == {
        "independent": 0, "task_replay": 150, "cumulative": 900,
    }  # fmt: skip
    assert "cumulative: a bound is not held to it" in section.facts["budget"]


def test_where_earlier_tasks_are_met_again_the_table_has_the_end_and_backward_transfer(task_run):
    plain = task_run("previous", [40.0, 20.0, 20.0], [1] * 6)
    found = {"errors_at_end": {"test": [60.0, 30.0, 30.0]}, "backward_transfer": -15.0}
    met = task_run("dynamic", [40.0, 20.0, 20.0], [1] * 6, results=found)
    met.identity["stream"]["reevaluate"] = "all_seen"
    assert "BWT" not in to_text(table([plain]), 200)
    (section,) = table([plain, met]).sections
    rows = {row.label: (row.at_end.mean, row.score("backward_transfer").mean) for row in section.rows}
    assert rows == {"previous": (None, None), "dynamic": (40.0, -15.0)}
    ways = {"earlier tasks are not evaluated again", "all tasks so far after each event"}
    assert set(section.facts["evaluated"].removeprefix("test; ").split(" | ")) == ways
    assert any("Rows differ in when earlier tasks are evaluated again" in warning for warning in section.warnings)
    assert "E at end %" in to_text(table([met]), 200)


def test_trials_that_a_budget_of_compute_left_out_are_told(task_run):
    record = task_run("previous", [40.0, 20.0, 20.0], [1] * 6)
    record.identity.setdefault("config", {})["strategy"] = {"search": {"trials": 4}}
    (section,) = table([record]).sections
    assert "previous: a budget of compute left 6 of 12 trials over the stream." in section.warnings


def test_rows_of_two_budgets_are_told_apart_by_what_applies(task_run):
    budgets = [EXEMPLARS, {**EXEMPLARS, "flops": 1e9, "updates": None}]
    runs = [task_run("previous", [40.0, 20.0, 20.0], [1] * 6, budget=one, exemplars=0) for one in budgets]
    labels = {row.label for row in table(runs).sections[0].rows}
    assert labels == {"previous, no budget", "previous, 1.00e9 FLOPs an experience"}
    same = [EXEMPLARS, {**EXEMPLARS, "exemplars": 100}]  # no budget for either, so both say what was asked
    runs = [task_run("previous", [40.0, 20.0, 20.0], [1] * 6, budget=one, exemplars=0) for one in same]
    assert {row.label for row in table(runs).sections[0].rows} == {"previous, 200 exemplars", "previous, 100 exemplars"}


def test_marks_of_tasks_are_explained_below_a_text_table(three):
    said = to_text(table(three), 200)
    assert "* several labels: 2004 shapes" in said and "* repeat: 2019 digits-again" in said
