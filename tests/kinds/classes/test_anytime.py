"""Any-time metrics in tables and pages, where runs were evaluated inside experiences."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from cil.report import table, to_csv, to_json, to_markdown, to_text, write_html


def watched(worst: float, gap: float | None = 20.0, **changes: Any) -> dict[str, Any]:
    """What a record says of evaluations every 5 steps: at steps 5 and 10 of two experiences."""
    told = {
        "every": 5, "unit": "steps", "images": None, "updates": [5, 10], "experiences": [0, 1],
        "accuracy": [80.0, 60.0], "average_anytime_accuracy": 70.0, "min_accuracy": 40.0,
        "worst_case_accuracy": worst, "stability_gap": gap, "a_auc": 65.0, "online_accuracy": None,
        "windowed_forgetting": {"10": 12.5, "100": None}, "windowed_plasticity": {"10": 30.0, "100": None},
    }  # fmt: skip
    return {"anytime": told | changes}


@pytest.fixture
def records(run):
    return [
        run("icarl", 0, results=watched(50.0)),
        run("icarl", 1, results=watched(54.0)),
        run("wa", results=watched(45.0, gap=None)),
    ]


def test_the_text_has_a_table_of_them_with_what_is_known(records):
    said = to_text(table(records), 120)
    below = said[said.index("Inside experiences: evaluated every 5 steps") :].splitlines()
    assert " ".join(below[2].split()) == "strategy AAA % min-ACC % WC-ACC % stability gap WF10 WP10 A_AUC %"
    lines = {line.split()[0]: line for line in below[4:] if line}
    assert "52.00 ± 2.83" in lines["icarl"] and "20.00" in lines["icarl"]
    assert "45.00" in lines["wa"] and "–" in lines["wa"]  # no stability gap is known
    assert "online %" not in said and "WF100" not in said  # known of no row


def test_markdown_csv_json_and_page_have_them_too(records, tmp_path):
    found = table(records)
    assert "Inside experiences: evaluated every 5 steps:" in to_markdown(found)
    assert "| icarl | 70.00 ± 0.00 | 40.00 ± 0.00 | 52.00 ± 2.83 | 20.00 ± 0.00 |" in to_markdown(found)
    entries = {entry["label"]: entry for entry in csv.DictReader(io.StringIO(to_csv(found)))}
    assert float(entries["icarl"]["anytime_worst_case_accuracy"]) == 52
    assert entries["icarl"]["anytime_every"] == "5" and entries["wa"]["anytime_stability_gap"] == ""
    assert json.loads(to_json(found))["sections"][0]["rows"][0]["anytime_windowed_forgetting_10"] == 12.5
    page = write_html(records, tmp_path / "page.html").read_text()
    for words in ("Inside experiences: evaluated every 5 steps", "Accuracy inside experiences", "<dt>WC-ACC %</dt>"):
        assert words in page


def test_rows_that_were_evaluated_at_other_steps_say_so(run):
    runs = [run("icarl", results=watched(50.0)), run("wa", results=watched(45.0, every=1, images=100)), run("ewc")]
    said = to_text(table(runs), 200)
    assert "evaluated every" not in said and "these numbers depend on how often" in said
    assert "every 5 steps" in said and "every step, on 100 test images of each experience" in said
    below = said[said.index("Inside experiences") :]
    assert "ewc" not in below


def test_without_such_runs_nothing_is_said_of_it(run, tmp_path):
    records = [run("icarl"), run("wa")]
    found = table(records)
    assert all("nytime" not in text and "nside experiences" not in text for text in (
        to_text(found), to_markdown(found), to_csv(found), to_json(found)
    ))  # fmt: skip
    assert "WC-ACC" not in write_html(records, tmp_path / "page.html").read_text()
