"""Old and new classes, transfer, intransigence; intervals, tests and ranks over seeds; streams together, by hand."""

from __future__ import annotations

import json

import pytest

from cil.kinds.classes.plasticity import plasticity_scores
from cil.kinds.classes.seeds import ranking
from cil.report import table, to_json, to_markdown, to_text, write_html
from cil.report.verdicts import Score

R = ((90.0, None, None), (70.0, 80.0, None), (60.0, 70.0, 85.0))
AWARE = [[90.0, None, None], [92.0, 96.0, None], [88.0, 92.0, 94.0]]
COUNTS = [50, 50, 50, 50, 100, 100]  # 100, 100 and 200 test images of the experiences
THREE = {
    "experiences": 3, "classes": list("abcdef"), "new_slots": [[0, 1], [2, 3], [4, 5]], "train_counts": [9, 9, 9]
}  # fmt: skip


def three(run, strategy="icarl", matrix=R, **results):
    """A run on three experiences."""
    found = {"class_counts": COUNTS, "accuracy_matrix_task_aware": AWARE, "backward_transfer": -20.0} | results
    return run(strategy, matrix=matrix, stream_changes=THREE, results=found)


def titled(content, heading):
    (found,) = [one for section in content.sections for one in section.tables if one.heading == heading]
    return {line.name: dict(zip(found.grid.heads, found.grid.cells(line), strict=True)) for line in found.grid.lines}


def test_old_and_new_classes_and_what_joint_training_reaches(run):
    """The specification's example: old (60 + 70) / 2, new 85, H 73.67; joint training has 92, 88 and 90."""
    joint = three(run, "joint", matrix=((92.0, None, None), (0.0, 88.0, None), (0.0, 0.0, 90.0)))
    records = [
        three(run, task_identification_curve=[100.0, 90.0, 80.0]), joint, run("icarl", name="elsewhere")
    ]  # fmt: skip
    content = table(records)
    found = titled(content, "Old and new classes, tasks and classes within them")
    assert found["icarl"] == {
        "old %": "65.00", "new %": "85.00", "harmonic": "73.67", "BWT": "-20.00", "intransigence": "5.00",
        "within task %": "92.00", "task found %": "80.00",
    }  # fmt: skip
    assert found["joint"]["intransigence"] == "–" and found["joint"]["new %"] == "90.00"
    entry = next(entry for entry in content.sections[0].entries if entry["label"] == "icarl")
    assert (entry["old_accuracy"], entry["intransigence"], entry["forward_transfer"]) == (65.0, 5.0, None)
    assert "intransigence" in to_markdown(content) and "73.67" in to_text(content)


def test_joint_training_of_another_network_or_seed_is_no_reference(run):
    matrix = ((92.0, None, None), (0.0, 88.0, None), (0.0, 0.0, 90.0))
    other = run("joint", matrix=matrix, stream_changes=THREE, config={"model": {"name": "resnet32"}})
    later = run("joint", 1, matrix=matrix, stream_changes=THREE)
    for joint in (other, later):
        found = titled(table([three(run), joint]), "Old and new classes, tasks and classes within them")
        assert found["icarl"].get("intransigence", "–") == "–"


def test_forward_transfer_where_experiences_to_come_are_evaluated(run):
    """Guesses among all six classes: ((10 - 100 / 6) + (15 - 100 / 6)) / 2; old and new are no classes here."""
    changes = THREE | {"new_slots": [[0, 1, 2, 3, 4, 5], [], []], "domains": ["a", "b", "c"]}
    full = ((90.0, 10.0, 5.0), (70.0, 80.0, 15.0), (60.0, 70.0, 85.0))
    means = {"names": ["a", "b", "c"], "in_domain": 85.0, "next_domain": 12.5, "backward": 66.7, "forward": 10.0}
    record = run(matrix=full, stream_changes=changes, results={"domains": means, "class_counts": COUNTS})
    row = table([record]).sections[0].rows[0]
    scores = plasticity_scores(row, [])
    assert scores["FWT"].mean == pytest.approx(12.5 - 100 / 6) and "old %" not in scores


def test_seeds_give_intervals_and_tests_corrected_for_their_number(run):
    """icarl leads wa by 10, 9 and 11: t = 17.3, p = 0.0033, times three; bic by 0, 1 and -1."""
    last = {"icarl": (70, 72, 74), "wa": (60, 63, 63), "bic": (70, 71, 75)}
    records = [
        run(name, seed, matrix=((80.0, None), (value, value))) for name, values in last.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    content = table(records)
    found = titled(content, "Over seeds")
    assert found["icarl"]["Last, 95 % interval"] == "67.03 to 76.97"
    assert [found[name]["not told apart from"] for name in ("icarl", "bic", "wa")] == ["bic", "icarl", "none"]
    assert "mean rank" not in found["icarl"]  # three seeds are too few
    pairs = json.loads(to_json(content))["sections"][0]["paired_tests"]
    tests = {frozenset(pair["rows"]): pair["p_holm"] for pair in pairs}
    assert tests[frozenset(("icarl", "wa"))] == pytest.approx(0.00995, abs=1e-5)
    assert not any(one.heading == "Over seeds" for one in table(records[:2]).sections[0].tables)


def test_ranks_over_enough_seeds():
    scores = {name: Score(dict(enumerate(values))) for name, values in {
        "a": (5, 5, 5, 5, 5), "b": (4, 4, 4, 4, 6), "c": (1, 1, 1, 1, 1)
    }.items()}  # fmt: skip
    ranks, words = ranking(scores)
    assert ranks == {"a": 1.2, "b": 1.8, "c": 3.0}
    assert "critical difference 1.48" in words and "Not told apart by their ranks: a, b; b, c." in words
    assert ranking({"a": scores["a"], "b": scores["b"]}) == ({}, "")


def test_streams_together_by_who_reaches_the_target_cheaply(run, tmp_path):
    """Targets are the medians: 60 on each stream. On the second wa takes twice the operations; lwf misses both."""

    def costing(name, last, stream, times):
        parts = {"training": [10**9, times * 10**9], "consolidation": [0, 0], "evaluation": [5, 5]}
        return run(name, matrix=((80.0, None), (last, last)), stream_changes={"name": stream},
                   results={"flops": parts | {"total": 1}})  # fmt: skip

    records = [
        costing("icarl", 60.0, "one", 2), costing("wa", 65.0, "one", 1), costing("lwf", 20.0, "one", 1),
        costing("icarl", 70.0, "two", 1), costing("wa", 60.0, "two", 6), costing("lwf", 30.0, "two", 1),
    ]  # fmt: skip
    content = table(records)
    section = content.sections[-1]
    assert section.title == "2 streams: time to target"
    cells = {
        line.name: dict(zip(section.grid.heads, section.grid.cells(line), strict=True)) for line in section.grid.lines
    }
    assert cells == {
        "icarl": {"reached": "2 of 2", "within 1x": "0.50", "within 1.5x": "0.50", "within 2x": "1.00",
                  "within 4x": "1.00", "score": "0.833"},
        "wa": {"reached": "2 of 2", "within 1x": "0.50", "within 1.5x": "0.50", "within 2x": "0.50",
               "within 4x": "0.50", "score": "0.500"},
        "lwf": {"reached": "0 of 2", "within 1x": "0.00", "within 1.5x": "0.00", "within 2x": "0.00",
                "within 4x": "0.00", "score": "0.000"},
    }  # fmt: skip
    page = write_html(records, tmp_path / "page.html").read_text()
    assert "Performance profiles" in page and "time to target" in page
    assert "time to target" not in to_text(table(records[:3]))


def test_open_set_scores_have_a_table_and_pictures(run, tmp_path):
    curves = {"auroc": [0.75, 0.5, None], "oscr": [0.5, 0.4, None], "fpr95": [0.9, 0.7, None],
              "aupr_unknown": [0.5, 0.5, None], "aupr_known": [0.5, 0.5, None]}  # fmt: skip
    open_set = {"score": "max_logit", **curves, "unknown": [32, 16, 0], "mean_auroc": 0.625, "mean_oscr": 0.45}
    records = [three(run, open_set=open_set, validation_curve=[90.0, 80.0, 70.0]), three(run, "wa")]
    content = table(records)
    assert titled(content, "Known and unknown classes") == {
        "icarl": {"AUROC": "0.625", "OSCR": "0.450", "FPR95": "0.800", "Avg %": "78.89"}
    }
    page = write_html(records, tmp_path / "page.html").read_text()
    titles = ("Old and new classes", "Known and unknown classes", "Accuracy on held-out training images",
              "Last accuracy against compute")  # fmt: skip
    assert all(f"<h3>{title}</h3>" in page for title in titles)
    assert "Norms of the classifier" not in page  # these records have no arrays
