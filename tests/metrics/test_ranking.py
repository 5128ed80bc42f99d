"""Several methods on several workloads, and several tests at once."""

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from cil.errors import DataError
from cil.metrics import alike, critical_difference, friedman, holm

SCORES = np.array([[80, 75, 70], [60, 65, 50], [90, 85, 80], [70, 68, 60]])


def test_the_worked_example():
    found = friedman(SCORES)
    assert found.ranks.tolist() == [1.25, 1.75, 3.0]
    assert found.chi2 == pytest.approx(6.5) and found.p == pytest.approx(0.038774, abs=5e-7)
    assert found.f == pytest.approx(13.0) and found.f_p == pytest.approx(0.006592, abs=5e-7)


def test_ties_share_their_ranks_and_are_corrected_for():
    scores = np.array([[1, 1, 0], [2, 1, 0], [3, 3, 3], [5, 4, 4]])
    found = friedman(scores)
    assert found.ranks.tolist() == [(1.5 + 1 + 2 + 1) / 4, (1.5 + 2 + 2 + 2.5) / 4, (3 + 3 + 2 + 2.5) / 4]
    assert (found.chi2, found.p) == pytest.approx(friedmanchisquare(*scores.T))


def test_who_is_always_first_leaves_no_doubt():
    found = friedman([[3, 2, 1]] * 4)
    assert found.chi2 == pytest.approx(8) and found.f == np.inf and found.f_p == 0


def test_equal_scores_are_no_evidence():
    found = friedman([[1, 1, 1]] * 3)
    assert found.ranks.tolist() == [2, 2, 2] and np.isnan([found.chi2, found.p, found.f, found.f_p]).all()


@pytest.mark.parametrize("scores", [[[1, 2]] * 3, [[1, 2, 3]], [[1, 2, np.nan], [1, 2, 3]]])
def test_what_cannot_be_ranked_is_refused(scores):
    with pytest.raises(DataError, match="at least 2 x 3"):
        friedman(scores)


@pytest.mark.parametrize(
    ("methods", "quantile"),
    [(2, 1.960), (3, 2.344), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.948), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_quantiles_are_those_of_demsars_table(methods, quantile):
    assert critical_difference(methods, 1) / np.sqrt(methods * (methods + 1) / 6) == pytest.approx(quantile, abs=6e-4)


def test_critical_differences_by_hand():
    assert critical_difference(3, 4) == pytest.approx(1.657247, abs=5e-7)
    assert critical_difference(3, 10) == pytest.approx(1.048, abs=5e-4)
    with pytest.raises(DataError):
        critical_difference(1, 4)


def test_methods_that_cannot_be_told_apart_are_joined():
    assert alike([1.25, 1.75, 3.0], 1.657247) == [(0, 1), (1, 2)]
    assert alike([3.0, 1.0, 1.5, 2.9], 1.0) == [(1, 2), (3, 0)]
    assert alike([1.0, 1.5, 2.0], 5) == [(0, 1, 2)]
    assert alike([1.0, 2.0], 1.0) == []  # as far apart as they must be


def test_holm_multiplies_the_smallest_most():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_a_test_that_was_not_possible_is_not_counted():
    found = holm([np.nan, 0.01, 0.02])
    assert np.isnan(found[0]) and found[1:].tolist() == pytest.approx([0.02, 0.02])
