"""Confidence against accuracy: by hand, and against loops over bins."""

import numpy as np
import pytest

from cil.errors import DataError, ShapeError
from cil.metrics import binned_error, calibration

FOUR = ([0.95, 0.85, 0.65, 0.55], [1, 1, 0, 1])


def test_the_worked_example_depends_on_the_number_of_bins():
    assert binned_error(*FOUR, bins=10) == pytest.approx(((0.05 + 0.15 + 0.65 + 0.45) / 4, 0.65))
    assert binned_error(*FOUR, bins=2) == pytest.approx((0, 0))  # one bin: 75 % sure, 75 % right


def test_a_bin_has_its_lower_end_and_the_last_one_both():
    assert binned_error([0.5, 1.0], [0, 1], bins=2) == pytest.approx((0.25, 0.25))  # both above the middle
    assert binned_error([0.49, 1.0], [0, 1], bins=2) == pytest.approx((0.245, 0.49))
    assert binned_error([0.29, 0.295], [1, 0], bins=100) == pytest.approx((0.2075, 0.2075))  # 0.29 * 100 is below 29


def test_likelihood_and_brier_by_hand():
    found = calibration([[0.8, 0.2], [0.6, 0.4]], [0, 1], bins=10)
    assert found.brier == pytest.approx((0.08 + 0.72) / 2)
    assert found.nll == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    assert (found.ece, found.mce) == pytest.approx(((0.2 + 0.6) / 2, 0.6))
    assert calibration([[1.0, 0.0]], [1]).nll == np.inf


def test_against_a_loop_over_bins():
    draws = np.random.default_rng(0)
    p = draws.dirichlet(np.ones(4) / 2, 200)
    true = draws.integers(0, 4, 200)
    sure, right = p.max(1), p.argmax(1) == true
    inside = [(sure >= low / 15) & (sure < (low + 1) / 15) for low in range(15)]
    apart = [(own.sum(), abs(right[own].mean() - sure[own].mean())) for own in inside if own.any()]
    found = calibration(p, true)
    assert found.ece == pytest.approx(sum(many * gap for many, gap in apart) / 200)
    assert found.mce == pytest.approx(max(gap for _, gap in apart)) and 0 <= found.ece <= found.mce <= 1
    assert found.brier == pytest.approx(np.mean(((p - np.eye(4)[true]) ** 2).sum(1)))
    mixed = draws.permutation(200)
    assert calibration(p[mixed], true[mixed]) == pytest.approx(found)


def test_nothing_is_undefined_and_what_is_no_probability_is_refused():
    assert np.isnan(calibration(np.zeros((0, 3)), np.zeros(0, np.int64))).all()
    for rows in ([[2.0, -1.0]], [[0.5, 0.2]], [[np.nan, 1.0]]):
        with pytest.raises(DataError):
            calibration(rows, [0])
    with pytest.raises(DataError, match="bins is 0"):
        binned_error(*FOUR, bins=0)
    with pytest.raises(ShapeError):
        binned_error([0.5], [1, 0])
