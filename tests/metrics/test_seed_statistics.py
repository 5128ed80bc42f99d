"""Intervals and paired comparisons over seeds."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind, ttest_rel

from cil.errors import DataError, ShapeError
from cil.metrics import ci, paired

A, B = (70, 72, 74, 71, 73), (69, 70, 73, 70, 71)
accuracies = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=12)


def test_three_seeds_have_a_wide_interval():
    result = ci([70, 72, 74])
    assert (result["n"], result["mean"], result["std"], result["level"]) == (3, 72, 2, 0.95)
    assert result["half_width"] == pytest.approx(4.968275, abs=5e-7)
    assert (result["low"], result["high"]) == pytest.approx((67.031725, 76.968275), abs=5e-7)


def test_a_higher_level_is_wider():
    assert ci([70, 72, 74], level=0.99)["half_width"] == pytest.approx(9.924843 * 2 / np.sqrt(3), abs=1e-5)
    for level in (0, 1, 95):
        with pytest.raises(DataError, match="level"):
            ci([70, 72, 74], level=level)


def test_fewer_than_three_seeds_have_no_interval():
    two, one, none = ci([70, 72]), ci([70]), ci([])
    assert (two["mean"], two["std"]) == pytest.approx((71, np.sqrt(2)))
    assert np.isnan([two["half_width"], two["low"], two["high"]]).all()
    assert one["mean"] == 70
    assert np.isnan([one["std"], one["half_width"], none["mean"], none["std"]]).all()
    assert (two["n"], one["n"], none["n"]) == (2, 1, 0)


def test_a_failed_seed_is_not_left_out():
    result = ci([70, np.nan, 74])
    assert np.isnan([result["mean"], result["std"], result["half_width"]]).all()
    assert np.isnan(paired([70, np.nan, 74], [1, 2, 3])["p"])


def test_pairing_finds_what_an_unpaired_test_does_not():
    result = paired(A, B)
    assert result["n"] == 5
    assert result["mean_difference"] == pytest.approx(1.4)
    assert result["t"] == pytest.approx(5.715476, abs=5e-7)
    assert result["p"] == pytest.approx(0.004636, abs=5e-7)
    assert ttest_ind(A, B).pvalue == pytest.approx(0.190902, abs=5e-7)


def test_swapping_the_methods_turns_the_sign_only():
    forth, back = paired(A, B), paired(B, A)
    assert (back["t"], back["mean_difference"]) == (-forth["t"], -forth["mean_difference"])
    assert (back["p"], back["std_difference"]) == (forth["p"], forth["std_difference"])


@given(accuracies)
def test_the_test_is_the_paired_t_test(pairs):
    a, b = np.array(pairs).T
    if np.ptp(a - b) == 0:
        assert np.isnan([paired(a, b)["t"], paired(a, b)["p"]]).all()
    else:
        expected = ttest_rel(a, b)
        assert paired(a, b)["t"] == pytest.approx(expected.statistic)
        assert paired(a, b)["p"] == pytest.approx(expected.pvalue)


@given(accuracies, st.randoms(use_true_random=False))
def test_the_order_of_seeds_changes_nothing(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    before, after = (paired(*zip(*some, strict=True)) for some in (pairs, shuffled))
    assert before == pytest.approx(after, nan_ok=True)


def test_equal_differences_prove_nothing_even_after_rounding():
    a = np.array([70.1, 5.3, 33.7])
    assert np.isnan(paired(a, a - 0.1)["p"])
    assert np.isnan(paired(a, a)["t"])


def test_one_seed_cannot_be_tested_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan([paired([1], [2])["t"], paired([1], [2])["p"], paired([], [])["mean_difference"]]).all()
    with pytest.raises(ShapeError, match="must be the same"):
        paired([1, 2], [1])
