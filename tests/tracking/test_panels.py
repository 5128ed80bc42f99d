"""Tables and pictures for dashboards: small ones that can be checked by hand; and what loggers do with them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cil.tracking.labels import budget_label, labels
from cil.tracking.loggers import Loggers
from cil.tracking.panels import (
    Picture,
    Table,
    confusion_panels,
    curves,
    ledger_tables,
    matrix_tables,
    new_points,
)


def test_the_ledger_is_bytes_by_kind_after_each_experience():
    ledger = [
        {"totals": {"exact": {"network": 100, "total": 100}, "training": {"gradients": 7}}},
        {"totals": {"exact": {"network": 120, "exemplars": 50, "total": 170}, "training": {"gradients": 8}}},
    ]
    carried, held = ledger_tables(ledger)
    assert carried.columns == ["experience", "network", "total", "exemplars"]
    assert carried.rows == [[0, 100, 100, 0], [1, 120, 170, 50]]
    assert held.rows == [[0, 7], [1, 8]]
    assert carried.points()["ledger/exemplars", 1] == 50


def test_the_accuracy_matrix_has_a_row_after_each_experience():
    [table] = matrix_tables([[90.0, None], [60.0, 80.0]])
    assert (table.columns, table.rows) == (["experience", "on_0", "on_1"], [[0, 90.0, None], [1, 60.0, 80.0]])
    assert ("accuracy_matrix/on_1", 0) not in table.points()


def test_curves_of_other_lengths_end_where_they_end_and_empty_ones_are_left_out():
    [table] = curves("spent", {"loss": [2.0], "exemplars": [4, 8], "given_up": None, "none": []})
    assert (table.columns, table.rows) == (["experience", "loss", "exemplars"], [[0, 2.0, 4], [1, None, 8]])
    assert curves("spent", {"loss": None}) == [] and matrix_tables([]) == [] and ledger_tables([]) == []


def test_confusion_and_the_accuracy_of_each_class():
    first = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    last = np.array([[1, 0, 3], [0, 2, 2], [0, 0, 4]])
    confusion, classes, *pictures = confusion_panels([first, last], ["cat", "dog", 7], [0, 0, 1])
    assert confusion.rows == [["cat", "cat", 1], ["cat", "7", 3], ["dog", "dog", 2], ["dog", "7", 2], ["7", "7", 4]]
    assert classes.columns == ["class", "0", "1"]
    assert classes.rows == [["cat", 75.0, 25.0], ["dog", 100.0, 50.0], ["7", None, 100.0]]
    assert [picture.pixels.shape for picture in pictures] == [(256, 256), (258, 258)]  # 2 and 3 classes were seen
    assert pictures[0].pixels[0, 0] == 64 and pictures[0].pixels[0, -1] == 191  # 255 * (1 - 3/4), 255 * (1 - 1/4)
    assert pictures[1].pixels[-1, -1] == 0 and pictures[1].pixels[-1, 0] == 255
    assert confusion_panels([], ["cat"], [0]) == []


def test_a_point_is_new_once():
    sent: set[tuple[str, int]] = set()
    picture = Picture("confusion", 0, np.zeros((2, 2), np.uint8))
    first = new_points([Table("ledger", ["experience", "total"], [[0, 5]], "columns"), picture], sent)
    assert first[0]["ledger/total"] == 5 and first[0]["pictures/confusion"].shape == (2, 2)
    assert new_points([Table("ledger", ["experience", "total"], [[0, 5], [1, 6]], "columns"), picture], sent) == {
        1: {"ledger/total": 6}
    }


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"exemplars": 2000}, "2,000 exemplars"),
        ({"per_class": 20, "caps": {"energy": 5000}}, "20 exemplars a class, energy up to 5,000"),
        ({"limits": [10, 2048], "convention": "exact"}, "2,048 bytes (exact)"),
        ({"exemplars": 5, "flops": 1e9, "updates": 40}, "5 exemplars, 1,000,000,000.0 FLOPs, 40 updates"),
    ],
)
def test_budgets_that_differ_are_called_differently(budget, words):
    assert budget_label(budget) == words


def test_a_reduced_setting_is_marked():
    assert labels({"stream": {"name": "digits"}, "scale": "quick"}, "lwf")["stream_name"] == "digits, scale=quick"


class Shows:
    """A logger that shows panels."""

    def __init__(self, fails=False):
        self.shown, self.fails, self.status = [], fails, None

    def start(self, identity, run_dir, name, group): ...
    def log(self, kind, values, axes): ...
    def table(self, name, columns, rows): ...

    def show(self, panels, final):
        if self.fails:
            raise OSError("disk is full")
        self.shown.append((panels, final))

    def finish(self, status):
        self.status = status


class Plain:
    """A logger of four methods, as other packages have."""

    def start(self, identity, run_dir, name, group): ...
    def log(self, kind, values, axes): ...
    def table(self, name, columns, rows): ...
    def finish(self, status): ...


def test_panels_are_made_only_where_one_logger_shows_them():
    def never():
        raise AssertionError

    Loggers([Plain()]).show(never, final=True)
    sink = Shows()
    Loggers([Plain(), sink]).show(lambda: [], final=True)
    assert sink.shown == [([], True)]


def test_before_the_end_showing_takes_next_to_nothing_of_the_time():
    sink = Shows()
    loggers = Loggers([sink])
    for final in (False, False, False, True):
        loggers.show(lambda: [time.sleep(0.02)], final=final)
    assert [final for _, final in sink.shown] == [False, True]


def test_a_failure_of_showing_leaves_the_logger_and_the_run(caplog):
    sink = Shows(fails=True)
    loggers = Loggers([sink])
    loggers.show(lambda: [], final=True)
    loggers.finish("finished")
    assert "could not be shown" in caplog.text and "disk is full" in caplog.text
    assert sink.status == "finished"
