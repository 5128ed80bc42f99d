"""Streams of tasks: mean and relative errors, normalised scores, mAP, online accuracy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cil.errors import DataError, ShapeError
from cil.metrics import (
    area_under_errors,
    average_precision,
    chance_error,
    chance_error_multilabel,
    later_change,
    mean_average_precision,
    mean_error,
    mean_error_by,
    normalised_scores,
    prequential,
    relative_error,
)

errors = st.lists(st.floats(1, 100), min_size=1, max_size=8)


def test_errors_are_averaged_over_tasks_and_by_kind_apart():
    assert mean_error([10, 30, 50]) == 30
    assert mean_error_by([10, 30, 50], ["one", "one", "many"]) == {"one": 20, "many": 50}
    assert np.isnan(mean_error([10, None])) and np.isnan(mean_error([]))
    with pytest.raises(ShapeError):
        mean_error_by([10, 30], ["one"])


def test_the_relative_error_is_a_mean_of_ratios_and_no_ratio_of_means():
    assert relative_error([10, 60], [20, 40]) == pytest.approx((-0.5 + 0.5) / 2)
    assert np.isnan(relative_error([10], [0]))


@given(errors)
def test_against_itself_a_learner_is_neither_better_nor_worse(values):
    assert relative_error(values, values) == 0
    assert relative_error([value / 2 for value in values], values) == pytest.approx(-0.5)


def test_normalised_scores_are_nought_at_chance_and_one_at_the_best():
    found = normalised_scores([90, 10, 50, 95], [90] * 4, [10] * 4)
    assert found == pytest.approx([0, 1, 0.5, -0.0625])
    assert np.isnan(normalised_scores([50], [50], [50])).all()


def test_chance_of_both_kinds():
    assert chance_error(4) == 75
    targets = [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]  # shares of 1/4 and 3/4, and a label without a positive
    assert chance_error_multilabel(targets) == 50


def test_a_ranking_without_information_comes_out_at_chance():
    draw = np.random.default_rng(0)
    targets = draw.random((20_000, 3)) < (0.1, 0.4, 0.7)
    scores = draw.random((20_000, 3))
    assert 100 - mean_average_precision(scores, targets).mean == pytest.approx(chance_error_multilabel(targets), abs=1)


def test_the_area_under_errors_is_the_mean_of_running_means():
    assert area_under_errors([40, 20, 0]) == pytest.approx((40 + 30 + 20) / 3)
    assert area_under_errors([0, 20, 40]) < area_under_errors([40, 20, 0])


def test_what_was_not_evaluated_again_has_no_later_change():
    assert later_change([10, 20, 30], [35, 15, None])[:2].tolist() == [25, -5]
    assert np.isnan(later_change([10, 20, 30], [35, 15, None])[2])


# mAP ----------------------------------------------------------------------------------------------------------------


def test_the_worked_example():
    scores = [[0.9, 0.1], [0.8, 0.9], [0.7, 0.2], [0.6, 0.3]]
    found = mean_average_precision(scores, [[1, 0], [0, 1], [1, 0], [0, 0]])
    assert found.by_label == pytest.approx([83.3333, 100.0], abs=5e-5)
    assert found.mean == pytest.approx(91.6667, abs=5e-5) and found.skipped == 0


def test_labels_without_a_positive_are_left_out_and_counted():
    found = mean_average_precision([[0.9, 0.1], [0.8, 0.9]], [[1, 0], [0, 0]])
    assert (found.mean, found.skipped) == (100, 1) and np.isnan(found.by_label[1])
    assert np.isnan(mean_average_precision([[0.9]], [[0]]).mean)


def test_equal_scores_are_one_threshold_whatever_their_order():
    assert average_precision([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]) == average_precision([0.5] * 4, [0, 0, 0, 1]) == 25
    assert average_precision([0.9, 0.5, 0.5], [0, 1, 0]) == pytest.approx(100 / 3)


def test_all_positives_are_found_at_once():
    assert average_precision([0.1, 0.7], [1, 1]) == 100


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), min_size=1, max_size=30))
def test_it_is_what_scikit_learn_computes(pairs):
    from sklearn.metrics import average_precision_score

    scores, targets = map(np.array, zip(*pairs, strict=True))
    if targets.any():
        assert average_precision(scores, targets) == pytest.approx(100 * average_precision_score(targets, scores))


@pytest.mark.parametrize(("scores", "targets"), [([0.1, np.nan], [0, 1]), ([0.1, 0.2], [0, 2])])
def test_what_is_no_score_or_no_target_is_refused(scores, targets):
    with pytest.raises(DataError, match="targets 0 or 1"):
        average_precision(scores, targets)


# online -------------------------------------------------------------------------------------------------------------


def test_online_accuracy_weighs_samples_and_not_batches():
    assert prequential([2, 3, 4], [4, 4, 4]) == 75
    assert prequential([1, 8], [2, 8]) == 90
    assert np.isnan(prequential([], []))
    with pytest.raises(DataError, match="up to the size"):
        prequential([5], [4])
