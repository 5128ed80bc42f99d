"""Summaries of domain streams, corruption errors and groups."""

import numpy as np
import pytest

from cil.errors import ShapeError
from cil.metrics import corruption_error, domain_summary, group_summary

NAN = float("nan")
R = np.array([[90.0, 10, 5], [70, 80, 15], [60, 70, 85]])


def test_a_domain_stream_has_four_means():
    in_domain, next_domain, backward, forward = domain_summary(R)
    assert (in_domain, next_domain, forward) == (85, 12.5, 10)
    assert backward == pytest.approx(66.6667, abs=5e-5)


def test_one_domain_has_no_neighbours():
    np.testing.assert_equal(tuple(domain_summary([[70.0]])), (70, NAN, NAN, NAN))


def test_a_missing_domain_makes_only_the_means_it_enters_undefined():
    holes = R.copy()
    holes[0, 2] = NAN
    summary = domain_summary(holes)
    assert np.isnan(summary.forward)
    assert (summary.in_domain, summary.next_domain) == (85, 12.5)


def test_an_unfinished_domain_stream_is_the_stream_cut():
    assert domain_summary(R[:2]) == (85, 10, 70, 10)


def test_corruption_errors_are_summed_before_they_are_divided():
    assert corruption_error([[10, 20]], [[20, 20]]).tolist() == [0.75]
    ratios = corruption_error([[10, 20], [30, 30]], [[20, 20], [40, 80]])
    assert ratios.tolist() == [0.75, 0.5]
    assert ratios.mean() == 0.625


def test_the_relative_error_is_what_the_corruption_adds():
    assert corruption_error([[10, 20]], [[20, 20]], clean=5, reference_clean=10).tolist() == [1]


def test_a_reference_without_errors_leaves_the_ratio_undefined():
    np.testing.assert_equal(corruption_error([[10], [NAN]], [[0], [5]]), [NAN, NAN])
    with pytest.raises(ShapeError, match="must be the same"):
        corruption_error([[10, 20]], [[20]])


def test_the_worst_group_and_the_spread():
    summary = group_summary([90, 80, 65], [100, 100, 100])
    assert (summary.worst_group_accuracy, summary.disparity, summary.worst_group) == (65, 25, 2)
    assert summary.unranked.tolist() == []


def test_groups_of_fewer_than_ten_samples_are_listed_not_ranked():
    summary = group_summary([0, 90, 80], [9, 10, 11])
    assert (summary.worst_group_accuracy, summary.disparity, summary.worst_group) == (80, 10, 2)
    assert summary.unranked.tolist() == [0]
    assert group_summary([0, 90, 80], [9, 10, 11], smallest=1).worst_group == 0


def test_groups_that_cannot_be_ranked_have_no_worst():
    for accuracy, tested in (([50, 60], [1, 2]), ([50, NAN], [20, 20]), ([], [])):
        summary = group_summary(accuracy, tested)
        assert np.isnan(summary[:2]).all()
        assert summary.worst_group is None
    assert group_summary([50, NAN], [20, 2]).worst_group_accuracy == 50
