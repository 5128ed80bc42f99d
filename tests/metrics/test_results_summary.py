"""The accuracy part of a record's results."""

import json
import subprocess
import sys

import numpy as np
import pytest

from cil.errors import ShapeError
from cil.metrics import accuracy_curve, forgetting, summary

NAN = float("nan")
OWNER = [0, 0, 1]
# 10 + 10 test images of experience 0, 40 of experience 1
CONFUSION = np.array([[[8, 2, 0], [1, 9, 0], [0, 0, 0]], [[6, 2, 2], [1, 7, 2], [0, 10, 30]]])
AWARE = np.array([[85, NAN], [75, 100]])


def test_a_finished_run_has_every_field():
    assert summary(CONFUSION, AWARE, OWNER, initial=[5, 10]) == {
        "accuracy_matrix": [[85, None], [65, 75]],
        "accuracy_matrix_task_aware": [[85, None], [75, 100]],
        "accuracy_curve": [85, pytest.approx(100 * 43 / 60)],
        "average_incremental_accuracy": pytest.approx((85 + 100 * 43 / 60) / 2),
        "last_accuracy": pytest.approx(100 * 43 / 60),
        "average_accuracy": 70,
        "forgetting": 20,
        "backward_transfer": -20,
        "forward_transfer": None,
        "class_counts": [10, 10, 40],
    }


def test_an_unfinished_run_reports_what_it_has():
    for aware in (AWARE[:1], AWARE):  # rows to come may be there already
        results = summary(CONFUSION[:1], aware, OWNER)
        assert results["accuracy_matrix"] == results["accuracy_matrix_task_aware"] == [[85, None]]
        assert results["accuracy_curve"] == [85]
        assert results["average_incremental_accuracy"] == results["last_accuracy"] == results["average_accuracy"] == 85
        assert results["forgetting"] is results["backward_transfer"] is results["forward_transfer"] is None
        assert results["class_counts"] == [10, 10, None]


def test_nothing_learned_yet_is_all_null():
    results = summary(np.empty((0, 3, 3), int), np.empty((0, 2)), OWNER, initial=[5, 10])
    assert results["accuracy_matrix"] == results["accuracy_matrix_task_aware"] == results["accuracy_curve"] == []
    assert results["class_counts"] == [None, None, None]
    assert {results[key] for key in ("last_accuracy", "average_accuracy", "forgetting", "forward_transfer")} == {None}


def test_results_go_through_json_and_back_into_the_metrics():
    results = json.loads(json.dumps(summary(CONFUSION, AWARE, OWNER), allow_nan=False))
    assert forgetting(results["accuracy_matrix"]) == results["forgetting"]
    assert accuracy_curve(results["accuracy_matrix"], [20, 40]).tolist() == results["accuracy_curve"]
    assert all(type(count) is int for count in results["class_counts"])


def test_numbering_the_slots_within_an_experience_otherwise_changes_nothing():
    order = [1, 0, 2]
    swapped = CONFUSION[:, order][:, :, order]
    before, after = summary(CONFUSION, AWARE, OWNER), summary(swapped, AWARE, OWNER)
    assert before == after


def test_forward_transfer_is_given_where_unseen_experiences_can_be_answered():
    counts = ([[45, 10, 10], [35, 80, 30], [30, 70, 170]], [50, 100, 200])
    confusion = np.ones((3, 2, 2), int)
    results = summary(confusion, np.full((3, 3), NAN), [0, 0], initial=[NAN, 8, 10], counts=counts)
    assert results["accuracy_matrix"] == [[90, 10, 5], [70, 80, 15], [60, 70, 85]]
    assert results["forward_transfer"] == 3.5
    assert results["forgetting"] == 20
    assert results["average_accuracy"] == pytest.approx(71.6667, abs=5e-5)
    assert results["accuracy_curve"] == pytest.approx([90, 115 / 1.5, 270 / 3.5])
    assert results["class_counts"] == [2, 2]


def test_arrays_of_different_streams_are_refused():
    with pytest.raises(ShapeError, match="task_aware"):
        summary(CONFUSION, AWARE[:1], OWNER)
    with pytest.raises(ShapeError, match="experience_of_slot"):
        summary(CONFUSION, AWARE, [0, 1])
    with pytest.raises(ShapeError, match="confusion has shape"):
        summary(CONFUSION[0], AWARE, OWNER)
    with pytest.raises(ShapeError, match="counts give R"):
        summary(CONFUSION, AWARE, OWNER, counts=([[1, 2]], [5, 5]))


def test_metrics_load_neither_torch_nor_scipy():
    code = "import sys, cil.metrics; print([name for name in ('torch', 'scipy', 'sklearn') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
