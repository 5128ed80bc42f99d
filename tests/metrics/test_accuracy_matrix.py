"""Accuracies read off the accuracy matrix, and what it is counted from."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import balanced_accuracy_score

from cil.errors import DataError, ShapeError
from cil.metrics import (
    accuracy_curve,
    accuracy_from_counts,
    accuracy_matrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    class_accuracy,
    confusion_matrix,
    last_accuracy,
    learning_accuracy,
    mean_class_accuracy,
    old_new_harmonic,
    overall_average_accuracy,
    top_k_accuracy,
)

NAN = float("nan")
R = np.array([[90.0, 10, 5], [70, 80, 15], [60, 70, 85]])
TESTED = (100, 100, 200)
percents = st.floats(0, 100, allow_subnormal=False)
matrices = st.integers(1, 6).flatmap(lambda size: hnp.arrays(np.float64, (size, size), elements=percents))


def test_the_curve_weighs_experiences_by_their_test_samples():
    assert accuracy_curve(R, TESTED).tolist() == [90, 75, 75]


def test_the_curve_of_equal_experiences_is_the_unweighted_row_mean():
    rows = [average_accuracy(R[: step + 1]) for step in range(3)]
    assert rows == pytest.approx([90, 75, 71.6667], abs=5e-5)
    assert accuracy_curve(R, (7, 7, 7)) == pytest.approx(rows)


def test_the_curve_takes_test_samples_that_change_over_time():
    assert accuracy_curve([[50, NAN], [100, 0]], [[4, 0], [3, 1]]).tolist() == [50, 75]


def test_averages_of_the_worked_example():
    curve = accuracy_curve(R, TESTED)
    assert average_incremental_accuracy(curve) == 80
    assert average_incremental_accuracy(curve, skip_base=True) == 75
    assert last_accuracy(curve) == 75
    assert average_accuracy(R) == pytest.approx(71.6667, abs=5e-5)
    assert overall_average_accuracy(R) == pytest.approx(78.8889, abs=5e-5)
    assert learning_accuracy(R) == 85


@given(matrices)
def test_average_accuracy_is_learning_accuracy_plus_its_share_of_backward_transfer(matrix):
    steps = len(matrix)
    moved = 0.0 if steps == 1 else (steps - 1) / steps * backward_transfer(matrix)
    assert average_accuracy(matrix) == pytest.approx(learning_accuracy(matrix) + moved, abs=1e-9)


def test_one_experience_makes_all_averages_its_accuracy_and_leaves_none_without_the_base():
    curve = accuracy_curve([[62.5]], [8])
    assert average_incremental_accuracy(curve) == last_accuracy(curve) == 62.5
    assert average_accuracy([[62.5]]) == overall_average_accuracy([[62.5]]) == learning_accuracy([[62.5]]) == 62.5
    assert np.isnan(average_incremental_accuracy(curve, skip_base=True))


def test_no_experience_learned_leaves_everything_undefined():
    none = np.empty((0, 3))
    assert accuracy_curve(none, TESTED).shape == (0,)
    assert np.isnan([last_accuracy([]), average_incremental_accuracy([])]).all()
    assert np.isnan([average_accuracy(none), overall_average_accuracy(none), learning_accuracy(none)]).all()


def test_an_unfinished_run_counts_what_it_has_learned():
    assert accuracy_curve(R[:2], TESTED).tolist() == [90, 75]
    assert average_accuracy(R[:2]) == 75
    assert learning_accuracy(R[:2]) == 85
    assert overall_average_accuracy(R[:2]) == (90 + 75) / 2


def test_a_missing_evaluation_makes_what_needs_it_undefined_and_nothing_else():
    holes = R.copy()
    holes[1, 0] = NAN
    np.testing.assert_equal(accuracy_curve(holes, TESTED), [90, NAN, 75])
    assert np.isnan(average_incremental_accuracy(accuracy_curve(holes, TESTED)))
    assert np.isnan(overall_average_accuracy(holes))
    assert average_accuracy(holes) == average_accuracy(R)
    assert learning_accuracy(holes) == 85


def test_accuracy_above_the_diagonal_is_not_read():
    lower = np.where(np.tril(np.ones((3, 3))), R, NAN)
    assert accuracy_curve(lower, TESTED).tolist() == [90, 75, 75]
    assert overall_average_accuracy(lower) == overall_average_accuracy(R)


def test_an_experience_without_test_samples_weighs_nothing_in_the_curve():
    assert accuracy_curve([[90, NAN], [70, NAN]], [5, 0]).tolist() == [90, 70]
    np.testing.assert_equal(accuracy_curve([[NAN]], [0]), [NAN])


def test_nulls_of_a_record_read_back_as_undefined():
    assert accuracy_curve([[90, None, None], [70, 80, None], [60, 70, 85]], TESTED).tolist() == [90, 75, 75]


def test_a_matrix_with_more_rows_than_experiences_is_refused():
    with pytest.raises(ShapeError, match=r"\(3, 2\)"):
        average_accuracy(R[:, :2])
    with pytest.raises(ShapeError, match="dimension"):
        average_accuracy([90.0, 80.0])
    with pytest.raises(ShapeError, match="tested"):
        accuracy_curve(R, (100, 100))


def test_confusion_counts_true_slots_in_rows():
    counts = confusion_matrix([0, 0, 1, 2], [0, 2, 1, 1], num_slots=4)
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_confusion_takes_tensors_and_empty_sets():
    assert confusion_matrix(torch.tensor([1]), torch.tensor([0]), 2).tolist() == [[0, 0], [1, 0]]
    assert confusion_matrix([], [], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("true", "predicted", "error"),
    [([0, 3], [0, 0], DataError), ([0, 1], [0, -1], DataError), ([0.5], [0], DataError), ([0, 1], [0], ShapeError)],
)
def test_confusion_refuses_what_is_no_slot(true, predicted, error):
    with pytest.raises(error):
        confusion_matrix(true, predicted, num_slots=3)


labels = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@given(labels, st.randoms(use_true_random=False))
def test_the_order_of_test_samples_changes_nothing(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    before, after = (confusion_matrix(*zip(*some, strict=True), num_slots=6) for some in (pairs, shuffled))
    assert np.array_equal(before, after)


@given(labels)
def test_rows_from_a_confusion_are_the_shares_of_right_answers(pairs):
    true, predicted = np.array(pairs).T
    owner = np.array([0, 0, 1, 1, 1, 2])
    row = accuracy_matrix(confusion_matrix(true, predicted, 6), owner)
    for experience in range(3):
        mine = owner[true] == experience
        expected = 100 * np.mean(predicted[mine] == true[mine]) if mine.any() else NAN
        assert row[experience] == pytest.approx(expected, nan_ok=True)


def test_the_matrix_stacks_rows_and_leaves_unseen_experiences_undefined():
    first = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    second = [[6, 2, 2], [1, 7, 2], [0, 10, 30]]
    matrix = accuracy_matrix([first, second], experience_of_slot=[0, 0, 1])
    np.testing.assert_equal(matrix, [[85, NAN], [65, 75]])
    np.testing.assert_equal(accuracy_matrix(second, [0, 0, 1]), matrix[1])


def test_the_curve_of_unequal_experiences_is_the_accuracy_on_their_union():
    confusion = np.array([[[6, 2, 2], [1, 7, 2], [0, 10, 30]]])
    full = np.concatenate([np.zeros_like(confusion), confusion])
    matrix = accuracy_matrix(full, [0, 0, 1])
    assert accuracy_curve(matrix, full.sum(2) @ np.array([[1, 0], [1, 0], [0, 1]]))[1] == pytest.approx(100 * 43 / 60)
    assert np.mean(matrix[1]) == 70


def test_experiences_to_come_have_a_column():
    np.testing.assert_equal(accuracy_matrix([[1]], [0], num_experiences=3), [100, NAN, NAN])


def test_a_confusion_that_does_not_fit_the_slots_is_refused():
    with pytest.raises(ShapeError, match="experience_of_slot"):
        accuracy_matrix([[1, 0], [0, 1]], [0, 0, 1])
    with pytest.raises(DataError, match="whole numbers"):
        accuracy_matrix([[0.5, 0.5], [0, 1]], [0, 1])
    with pytest.raises(DataError, match="0 to 1"):
        accuracy_matrix([[1, 0], [0, 1]], [0, 2], num_experiences=2)


def test_counts_by_experience_serve_where_classes_reappear():
    matrix = accuracy_from_counts([[45, 10, 10], [35, 80, 30], [30, 70, 170]], [50, 100, 200])
    assert matrix.tolist() == [[90, 10, 5], [70, 80, 15], [60, 70, 85]]
    np.testing.assert_equal(accuracy_from_counts([0, 0], [4, 0]), [0, NAN])


def test_mean_class_accuracy_weighs_classes_not_samples():
    counts = [[1, 0], [3, 0]]
    assert mean_class_accuracy(counts) == 50
    assert accuracy_matrix(counts, [0, 0]).tolist() == [25]


@pytest.mark.filterwarnings("ignore::UserWarning")  # classes that are predicted but not tested
@given(labels)
def test_mean_class_accuracy_is_balanced_accuracy(pairs):
    true, predicted = np.array(pairs).T
    expected = 100 * balanced_accuracy_score(true, np.where(np.isin(predicted, true), predicted, true.max() + 1))
    assert mean_class_accuracy(confusion_matrix(true, predicted, 6)) == pytest.approx(expected)


def test_mean_class_accuracy_leaves_out_unseen_slots_and_is_undefined_without_samples():
    assert mean_class_accuracy([[3, 1, 0], [1, 1, 0], [0, 0, 0]]) == (75 + 50) / 2
    assert np.isnan(mean_class_accuracy(np.zeros((2, 2), int)))
    np.testing.assert_equal(class_accuracy([[3, 1], [0, 0]]), [75, NAN])


def test_the_true_slot_may_be_any_of_the_k_best():
    scores = [[4, 3, 2, 1], [1, 4, 3, 2], [3, 2, 1, 4]]
    assert [top_k_accuracy(scores, [1, 1, 2], k) for k in (1, 2, 3, 4)] == pytest.approx(
        [100 / 3, 200 / 3, 200 / 3, 100]
    )


def test_more_answers_than_classes_are_always_right():
    assert top_k_accuracy([[0.0, 1.0]], [0], k=5) == 100


def test_ties_among_scores_go_to_the_lowest_slot():
    assert top_k_accuracy([[1.0, 1.0, 1.0]], [0], k=1) == 100
    assert top_k_accuracy([[1.0, 1.0, 1.0]], [1], k=1) == 0
    assert top_k_accuracy([[1.0, 1.0, 1.0]], [1], k=2) == 100


@given(hnp.arrays(np.float64, (7, 4), elements=st.sampled_from([0.0, 1.0, 2.0, -np.inf])))
def test_the_best_answer_is_the_argmax(scores):
    true = np.array([0, 1, 2, 3, 0, 1, 2])
    assert top_k_accuracy(scores, true, k=1) == pytest.approx(100 * np.mean(scores.argmax(1) == true))


def test_scores_that_cannot_be_ranked_are_refused():
    with pytest.raises(DataError, match="NaN in 1 of 2 rows"):
        top_k_accuracy([[1.0, NAN], [0.0, 1.0]], [0, 1], k=1)
    with pytest.raises(DataError, match="k is 0"):
        top_k_accuracy([[1.0]], [0], k=0)
    with pytest.raises(ShapeError, match="2 rows"):
        top_k_accuracy([[1.0], [1.0]], [0], k=1)
    assert np.isnan(top_k_accuracy(np.empty((0, 3)), [], k=1))


def test_old_classes_are_weighed_by_samples_and_the_mean_is_harmonic():
    old, new, harmonic, gap = old_new_harmonic(R, TESTED, step=2)
    assert (old, new, gap) == (65, 85, 20)
    assert harmonic == pytest.approx(73.6667, abs=5e-5)
    assert old_new_harmonic(R, (300, 100, 200), step=2).old == 62.5


def test_the_harmonic_mean_of_nothing_right_is_zero_and_without_old_classes_undefined():
    assert old_new_harmonic([[50, NAN], [0, 0]], (10, 10), step=1) == (0, 0, 0, 0)
    np.testing.assert_equal(tuple(old_new_harmonic(R, TESTED, step=0)), (NAN, 90, NAN, NAN))
    with pytest.raises(DataError, match="rows 0 to 2"):
        old_new_harmonic(R, TESTED, step=3)
