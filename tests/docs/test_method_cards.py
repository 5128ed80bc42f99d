"""Each strategy has a measured card; its page shows it; the figures on it are those of the measured lines."""

from __future__ import annotations

import json

import cards
import pytest
from markdown_pages import ROOT
from scripts import load_script

measuring = load_script(ROOT / "benchmarks" / "method_cards.py")
BYTES = {"backbone": 1_000, "learned": 200, "stored": 30, "total": 1_230, "public": 0}
LINES = [
    {"strategy": "finetune", "seed": 0, "cpu_seconds": 2.0, "last": 20.0},
    {"strategy": "finetune", "seed": 1, "cpu_seconds": 4.0, "last": 22.0},
    {"strategy": "mine", "seed": 0, "cpu_seconds": 6.0, "last": 50.0},
    {"strategy": "mine", "seed": 1, "cpu_seconds": 1.0, "last": 10.0},  # measured again below
    {"strategy": "mine", "seed": 1, "cpu_seconds": 9.0, "last": 53.0},
]
SAME = {
    "setting": "digits", "words": ["strategy=mine", "trainer.epochs=5"], "date": "2026-01-02", "version": "1.2",
    "bytes": BYTES, "flops": 1_500_000_000, "peak_training_bytes": 4_096, "average": 70.0,
}  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({**SAME, **line}) + "\n" for line in LINES))
    return cards.read(path)["mine"]


def test_each_strategy_has_a_card():
    left = sorted({name for _, name, _ in measuring.missing(seeds=(0,))})
    assert not left, f"not measured: {', '.join(left)}; run {cards.COMMAND}, then python docs/make_methods.py"


def test_the_page_of_a_strategy_shows_its_card():
    for name, card in cards.read().items():
        page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
        assert "\n".join(cards.lines_of(card)) in page, f"{name}: run python docs/make_methods.py"


def test_bytes_on_a_card_add_up():
    for name, card in cards.read().items():
        for line in card.lines:
            parts = [line["bytes"][part] for part in ("backbone", "learned", "stored")]
            assert sum(parts) == line["bytes"]["total"] and min(parts) >= 0, name


def test_a_card_is_the_mean_over_seeds_of_the_latest_lines(mine):
    assert mine.accuracy("last") == "51.5 % (50.0 to 53.0)"
    assert mine.time == "3.0"  # the quickest: 6 s against 2 s
    assert mine.operations == "1.50"
    assert mine.bytes("total") == "1,230"


def test_a_card_names_its_setting_and_the_commands(mine):
    text = "\n".join(cards.lines_of(mine))
    for words in ("8x8 pixels", "Seed 0 and 1", "cil 1.2, 2026-01-02", f"{cards.COMMAND} --methods mine"):
        assert words in text
    assert "cil run strategy=mine trainer.epochs=5 seed=0" in text


def test_figures_are_read_off_a_record():
    results = {
        "ledger": [{"totals": {"exact": {"parameters": 900, "exemplars": 64, "labels": 6, "total": 1_000},
                               "survey": {"parameters": 800, "exemplars": 64, "total": 864}}, "public": 0}],
        "flops": {"training": [40, 80], "evaluation": [5, 15], "total": 95}, "peak_training_bytes": 5_000,
        "last_accuracy": 30.125, "average_incremental_accuracy": 60.0, "average_accuracy": 31.0,
    }  # fmt: skip
    found = measuring.figures(results)
    assert found["bytes"] == {"backbone": 800, "learned": 130, "stored": 70, "total": 1_000, "public": 0}
    assert found["flops"] == 80
    assert (found["last"], found["average"]) == (30.12, 60.0)
