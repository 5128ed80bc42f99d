"""Forgetting, transfer and intransigence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cil.errors import ConfigError, DataError, ShapeError
from cil.metrics import (
    VARIANTS,
    accuracy_matrix,
    backward_transfer,
    forgetting,
    forgetting_spread,
    forward_transfer,
    intransigence,
    per_class_accuracy,
    per_class_forgetting,
    remembering,
)

NAN = float("nan")
R = np.array([[90.0, 10, 5], [70, 80, 15], [60, 70, 85]])
percents = st.floats(0, 100, allow_subnormal=False)
matrices = st.integers(2, 6).flatmap(lambda size: hnp.arrays(np.float64, (size, size), elements=percents))


def with_history(*accuracies: float) -> np.ndarray:
    """A matrix whose experience 0 has this history, and whose others stay at 50."""
    matrix = np.full((len(accuracies),) * 2, 50.0)
    matrix[:, 0] = accuracies
    return matrix


def test_forgetting_is_the_fall_from_the_best_earlier_accuracy():
    assert forgetting(R, per_experience=True).tolist() == [30, 10]
    assert forgetting(R) == 20


def test_forgetting_after_an_earlier_experience_is_that_of_the_rows_up_to_it():
    assert forgetting(R[:2]) == 20
    assert np.isnan(forgetting(R[:1]))


@pytest.mark.parametrize(
    ("history", "variant", "expected"),
    [
        ((50, 70, 65), "chaudhry", 5),
        ((50, 70, 65), "first_minus_last", -15),
        ((50, 70, 65), "including_last", 5),
        ((50, 60, 70), "chaudhry", -10),
        ((50, 60, 70), "first_minus_last", -20),
        ((50, 60, 70), "including_last", 0),
    ],
)
def test_the_variants_differ_when_an_accuracy_rises(history, variant, expected):
    assert forgetting(with_history(*history), variant, per_experience=True).tolist() == [expected, 0]
    assert forgetting(with_history(*history), variant) == expected / 2


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean 'chaudhry'"):
        forgetting(R, "chaudry")


@given(st.lists(percents, min_size=2, max_size=8).map(sorted))
def test_a_history_that_only_rises_forgets_nothing(history):
    assert forgetting(with_history(*history), per_experience=True)[0] <= 0


@given(matrices)
def test_the_variants_are_ordered_and_bounded(matrix):
    chaudhry, including, first = (forgetting(matrix, variant, per_experience=True) for variant in VARIANTS)
    assert (np.abs(chaudhry) <= 100).all()
    assert np.array_equal(including, np.maximum(chaudhry, 0))
    assert (first <= chaudhry).all()


@given(matrices)
def test_backward_transfer_is_minus_first_minus_last(matrix):
    assert backward_transfer(matrix) == pytest.approx(-forgetting(matrix, "first_minus_last"))


def test_backward_transfer_of_the_worked_example():
    assert backward_transfer(R) == -20
    assert backward_transfer(R, per_experience=True).tolist() == [-30, -10]


def test_remembering_averages_over_all_pairs():
    assert remembering(R) == (-20, 0, 80)
    assert remembering([[50, 0], [70, 80]]) == (20, 20, 100)


def test_forward_transfer_compares_with_the_untrained_network():
    assert forward_transfer(R, [NAN, 8, 10]) == 3.5
    assert forward_transfer(R, [NAN, 8, 10], per_experience=True).tolist() == [2, 5]


def test_forward_transfer_is_undefined_where_unseen_classes_have_no_slot():
    lower = np.where(np.tril(np.ones((3, 3))), R, NAN)
    assert np.isnan(forward_transfer(lower, [0, 0, 0]))


def test_intransigence_is_the_distance_to_joint_training():
    assert intransigence(R, [92, 88, 90], per_experience=True).tolist() == [2, 8, 5]
    assert intransigence(R, [92, 88, 90]) == 5
    assert intransigence(R, [80, 80, 80]) == -5


def test_one_experience_has_no_forgetting_and_no_transfer():
    one = [[75.0]]
    assert np.isnan([forgetting(one, variant) for variant in VARIANTS]).all()
    assert np.isnan([backward_transfer(one), forward_transfer(one, [1.0]), *remembering(one)]).all()
    assert forgetting(one, per_experience=True).shape == (0,)
    assert intransigence(one, [80.0]) == 5


def test_no_experience_learned_leaves_everything_undefined():
    none = np.empty((0, 3))
    assert np.isnan([forgetting(none), backward_transfer(none), forward_transfer(none, [0, 0, 0])]).all()


@given(matrices, st.data())
def test_an_unfinished_run_is_the_stream_cut_after_its_last_row(matrix, data):
    steps = data.draw(st.integers(1, len(matrix)))
    initial = np.arange(len(matrix))
    for metric in (forgetting, backward_transfer, lambda R: forward_transfer(R, initial), lambda R: remembering(R)[0]):
        assert metric(matrix[:steps]) == pytest.approx(metric(matrix[:steps, :steps]), nan_ok=True)


@pytest.mark.parametrize("hole", [(0, 0), (1, 0)])
def test_a_missing_evaluation_in_a_history_is_not_skipped(hole):
    holes = R.copy()
    holes[hole] = NAN
    np.testing.assert_equal(forgetting(holes, per_experience=True), [NAN, 10])
    assert np.isnan(forgetting(holes))
    assert np.isnan(remembering(holes)).all()
    assert np.isnan(backward_transfer(holes)) == (hole == (0, 0))


def test_a_missing_last_row_leaves_forgetting_undefined():
    holes = R.copy()
    holes[2] = NAN
    assert np.isnan([forgetting(holes, variant) for variant in VARIANTS]).all()


def test_vectors_too_short_for_the_matrix_are_refused():
    with pytest.raises(ShapeError, match="initial has 2 entries; R has 3 rows"):
        forward_transfer(R, [0, 0])
    with pytest.raises(ShapeError, match="joint"):
        intransigence(R, [90])


def test_classes_can_forget_where_their_experience_does_not():
    history = np.array([[100, 0], [0, 100], [50, 50]])
    assert per_class_forgetting(history, [0, 0]).tolist() == [50, 50]
    experience = np.full((3, 3), 50.0)
    experience[:, 0] = history.mean(1)
    assert forgetting(experience, per_experience=True)[0] == 0


def test_classes_of_the_last_experience_cannot_have_been_forgotten():
    np.testing.assert_equal(per_class_forgetting([[80, NAN], [60, 90]], [0, 1]), [20, NAN])
    np.testing.assert_equal(per_class_forgetting([[80, 60]], [0, 0]), [NAN, NAN])


def test_class_forgetting_starts_at_the_first_sight_of_the_class():
    np.testing.assert_equal(per_class_forgetting([[80, 99], [60, 90], [70, 85]], [0, 1]), [10, 5])


def test_class_accuracy_over_time_hides_classes_before_their_experience():
    confusion = [[[3, 1, 0], [0, 0, 0], [0, 0, 0]], [[2, 2, 0], [0, 4, 0], [0, 0, 0]]]
    np.testing.assert_equal(per_class_accuracy(confusion, [0, 1, 1]), [[75, NAN, NAN], [50, 100, NAN]])
    early = np.ones((2, 3, 3), int)
    assert np.isnan(per_class_accuracy(early, [0, 1, 1])[0]).tolist() == [False, True, True]


@given(hnp.arrays(np.int64, (3, 3, 3), elements=st.integers(1, 9)))
def test_with_one_class_an_experience_both_kinds_of_forgetting_agree(confusion):
    by_class = per_class_forgetting(per_class_accuracy(confusion, [0, 1, 2]), [0, 1, 2])
    by_experience = forgetting(accuracy_matrix(confusion, [0, 1, 2]), per_experience=True)
    np.testing.assert_allclose(by_class[:2], by_experience)


def test_the_spread_names_the_worst_class_and_leaves_out_the_newest():
    spread = forgetting_spread([10, 40, NAN, -20], bins=4)
    assert (spread.mean, spread.worst, spread.worst_slot) == (10, 40, 1)
    assert spread.std == pytest.approx(np.sqrt(600))
    assert spread.histogram.tolist() == [0, 1, 2, 0]
    assert spread.edges.tolist() == [-100, -50, 0, 50, 100]


def test_the_spread_of_nothing_is_undefined():
    spread = forgetting_spread([NAN, NAN])
    assert np.isnan(spread[:3]).all()
    assert spread.worst_slot is None
    assert spread.histogram.sum() == 0


def test_first_seen_is_needed_for_each_slot():
    with pytest.raises(ShapeError, match="first_seen has 1 entries"):
        per_class_forgetting([[80, 60]], [0])
    with pytest.raises(DataError, match="first_seen"):
        per_class_forgetting([[80, 60]], [0, -1])
    with pytest.raises(ShapeError, match="needed"):
        per_class_accuracy(np.ones((2, 2), int), [0, 0])
