"""Adaptation runs in tables and on the page, on numbers that can be checked in the head."""

from __future__ import annotations

import csv
import io
import json

import pytest
from filled import filled

from cil import plugins
from cil.report import find_runs, table, to_csv, to_json, to_markdown, to_text, write_html
from cil.tracking import Record

STREAM = {
    "name": "toy_c",
    "kind": "shifts",
    "segments": ["fog", "snow", "fog (round 2)"],
    "counts": [100, 100, 50],
    "domains": ["fog", "snow"],
    "classes": ["ant", "bee"],
    "image_shape": [3, 8, 8],
    "fingerprint": "f" * 64,
    "data": "no official checksum known",
    "severity": 5,
}

CELLS = ["tent", "1", "20.00", "1,200", "900", "9,000", "3.00e1", "0.250", "5.00", "6.50", "30.0", "10.0"]


@pytest.fixture
def adapted(tmp_path):
    """Leave an adaptation run under ``tmp_path / "runs"``."""

    def leave(adapter="tent", seed=0, errors=(30.0, 10.0), *, status="finished", error=None, peak=9000, source="net",
              clean=(None, None), config=None, stream=None, results=None):  # fmt: skip
        identity = {
            "kind": "adaptation",
            "config": {"seed": seed, "adapter": {"_target_": adapter, "lr": 0.1}, "adaptation": {"batch_size": 50}}
            | (config or {}),
            "adapter": adapter,
            "seed": seed,
            "source": {"kind": "weights", "name": source},
            "stream": STREAM | (stream or {}),
            "batch_size": 50,
            "versions": {"torch": "2.9.0"},
            "device": "cpu",
            "threads": 1,
            "precision": "fp32",
        }
        folder = tmp_path / "runs" / f"{adapter}-{seed}-{source}-{len(list((tmp_path / 'runs').glob('*')))}"
        kind = plugins.find("cil.kinds", "adaptation")
        record = Record.open(folder, filled(identity, kind.identity_type()), {"cores": 2})
        totals = {"exact": {"parameters": 1000, "optimizer": 200, "total": 1200}, "survey": {"total": 900}}
        found = {
            "domain_errors": list(errors),
            "mean_error": None if None in errors else sum(errors) / len(errors),
            "segment_errors": [errors[0], errors[1], errors[0]],
            "online_error": 20.0,
            "clean_error_before": clean[0],
            "clean_error_after": clean[1],
            "ledger": [{"entries": [], "totals": totals, "public": 0}] * 4,
            "flops": {"source": 0, "deploy": 0, "adapt": [10, 20, 30], "total": 30},
            "seconds": {"per_batch": 0.25, "total": 3.0},
            "peak_training_bytes": peak,
        } | (results or {})  # fmt: skip
        record.update(filled(found, kind.results_type(), missing=status == "finished"))
        record.set_status(status, error)
        record.close()
        return Record.load(folder)

    return leave


def test_seeds_become_one_row_with_mean_and_deviation(adapted):
    found = table([adapted(seed=0, errors=(30.0, 10.0)), adapted(seed=1, errors=(32.0, 12.0)), adapted("source")])
    (section,) = found.sections
    assert [row.label for row in section.rows] == ["source", "tent"]  # 20 and 21: lowest error first
    tent = section.rows[1]
    assert (tent.score("mean_error").mean, round(tent.score("mean_error").std, 4)) == (21.0, 1.4142)
    assert [tent.score("domain_errors", domain).mean for domain in range(2)] == [31.0, 11.0]
    assert (tent.carried(), tent.peak_training_bytes) == (1200, 9000)
    assert section.entries[1]["seconds_per_batch"] == 0.25
    (verdict,) = section.verdicts
    assert verdict.winner is None and "no winner is called on one seed" in verdict.text
    assert "One seed only: source. A difference from it may be chance." in section.warnings


def test_a_winner_needs_seeds_and_a_lower_error(adapted):
    for seed in range(3):
        adapted("tent", seed, (40.0 + seed, 20.0))
        last = adapted("cotta", seed, (20.0 + seed, 10.1 + 0.1 * seed))
    (section,) = table(find_runs(last.directory.parent)).sections
    (verdict,) = section.verdicts
    assert verdict.winner == "cotta" == section.rows[0].label
    assert verdict.text.startswith("Online accuracy (100 − mean error): cotta is best; tent is 14.9")


def test_other_sources_or_images_have_tables_of_their_own(adapted):
    records = [adapted(), adapted("source"), adapted(source="other"), adapted(stream={"fingerprint": "e" * 64})]
    found = table(records)
    assert sorted(len(section.rows) for section in found.sections) == [1, 1, 2]
    assert all(not section.verdicts for section in found.sections if len(section.rows) == 1)


def test_rows_of_one_adapter_are_told_apart_by_what_differs(adapted):
    records = [adapted(), adapted(config={"adapter": {"_target_": "tent", "lr": 0.2}})]
    labels = {row.label for row in table(records).sections[0].rows}
    assert labels == {"tent (lr=0.1)", "tent (lr=0.2)"}


def test_what_did_not_finish_has_no_numbers_and_says_why(adapted):
    records = [adapted(), adapted("sar", errors=(30.0, None), status="failed", error="scores that are not numbers")]
    text = to_text(table(records))
    assert "* sar: 1 of 1 seeds failed: scores that are not numbers" in text
    row = next(line for line in text.splitlines() if line.startswith("sar *"))
    assert row.split()[2:4] == ["0", "–"]


def test_every_form_shows_the_same_numbers(adapted):
    found = table([adapted(clean=(5.0, 6.5)), adapted("source", errors=(50.0, 25.0), clean=(5.0, 5.0))])
    text = to_text(found, 200)
    assert text.splitlines()[0] == "toy_c: 250 images in 3 segments; source net"
    tent = next(line for line in text.splitlines() if line.startswith("tent"))
    assert tent.split() == CELLS
    assert f"| {' | '.join(CELLS)} |" in to_markdown(found)
    (first, second) = csv.DictReader(io.StringIO(to_csv(found)))
    assert (first["label"], first["mean_error"], first["error_snow"]) == ("tent", "20.0", "10.0")
    assert (second["mean_error"], second["clean_error_after"]) == ("37.5", "5.0")
    assert [entry["label"] for entry in json.loads(to_json(found))["sections"][0]["rows"]] == ["tent", "source"]


def test_the_page_has_the_error_over_time(adapted, tmp_path):
    records = [adapted(), adapted(seed=1), adapted("source")]
    page = write_html(records, tmp_path / "a.html").read_text()
    assert page == write_html(reversed(records), tmp_path / "b.html").read_text()
    assert "Error over time" in page and "fog (round 2)" in page
    assert "How to read adaptation runs" in page and "How to read this" not in page
    assert "3 runs, 2 adapters" in page and ">segments</th>" in page


def test_strategies_beside_adapters_stay_what_they_are(adapted, run, tmp_path):
    strategy = [run("icarl"), run("icarl", 1), run("wa")]
    mixed = table([*strategy, adapted()])
    alone = table(strategy)
    assert mixed.sections[:-1] == alone.sections
    assert to_text(mixed).startswith(to_text(alone).rstrip("\n"))
    first, *_, last = csv.DictReader(io.StringIO(to_csv(mixed)))
    assert (first["label"], first["last_accuracy"], first["mean_error"]) == ("icarl", "65.0", "")
    assert (last["label"], last["last_accuracy"], last["mean_error"]) == ("tent", "", "20.0")
    page = write_html([*strategy, adapted()], tmp_path / "mixed.html").read_text()
    assert "How to read this" in page and "How to read adaptation runs" in page
    assert "2 strategies, 1 adapter," in page


def test_a_record_without_its_source_is_left_out(adapted, caplog):
    record = adapted()
    other = adapted("source")
    content = json.loads((other.directory / "record.json").read_text())
    del content["identity"]["source"]
    (other.directory / "record.json").write_text(json.dumps(content))
    assert [found.directory.name for found in find_runs(record.directory.parent)] == [record.directory.name]
    assert "has no identity.source" in caplog.text
