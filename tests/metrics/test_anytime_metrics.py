"""Any-time metrics, on a stream of two experiences evaluated after each of six updates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cil.errors import DataError, ShapeError
from cil.metrics import (
    anytime,
    average_anytime_accuracy,
    min_accuracy,
    stability_gap,
    windowed_forgetting,
    windowed_plasticity,
    worst_case_accuracy,
)

NAN = float("nan")
ENDS = (3, 6)
FIRST = ((1, 2, 3, 4, 5, 6), (20, 60, 90, 30, 50, 70))
SECOND = ((4, 5, 6), (40, 60, 80))
SERIES = {0: FIRST, 1: SECOND}
histories = st.lists(st.floats(0, 100, allow_subnormal=False), min_size=2, max_size=20)


def test_every_metric_of_the_worked_example():
    result = anytime(SERIES, ENDS, deltas=(2, 3))
    assert result.min_accuracy == 30
    assert result.worst_case_accuracy == 55
    assert result.windowed_forgetting == {2: 30, 3: 30}
    assert result.windowed_plasticity == {2: 30, 3: 55}
    assert result.stability_gaps == {(0, 1): (60, 40, float("inf"))}
    assert result.average_anytime_accuracy == pytest.approx(55.8333, abs=5e-5)


def test_windows_of_the_worked_example_by_experience():
    assert [windowed_forgetting(a, 2) for _, a in SERIES.values()] == [60, 0]
    assert [windowed_plasticity(a, 2) for _, a in SERIES.values()] == [40, 20]
    assert [windowed_plasticity(a, 3) for _, a in SERIES.values()] == [70, 40]


def test_the_lowest_accuracy_excludes_an_experiences_own_training():
    assert min_accuracy({0: ((1, 2, 3, 4), (5, 50, 90, 88)), 1: ((4,), (40,))}, ENDS) == 88


def test_the_lowest_accuracy_is_that_by_the_moment_asked_for():
    falling = {0: ((3, 4, 5, 6), (90, 50, 40, 30)), 1: SECOND}
    assert [min_accuracy(falling, ENDS, update) for update in (4, 5, 6)] == [50, 40, 30]
    assert [worst_case_accuracy(falling, ENDS, update) for update in (4, 5, 6)] == [45, 50, 55]


def test_the_lowest_accuracies_of_several_experiences_are_averaged():
    series = {0: ((1, 2, 3), (90, 50, 60)), 1: ((2, 3), (80, 40)), 2: ((3,), (70,))}
    assert min_accuracy(series, (1, 2, 3)) == (50 + 40) / 2
    assert worst_case_accuracy(series, (1, 2, 3)) == (70 + 50 + 40) / 3


def test_the_first_experience_has_no_lowest_and_its_own_worst_case():
    assert np.isnan(min_accuracy(SERIES, ENDS, update=2))
    assert worst_case_accuracy(SERIES, ENDS, update=2) == 60
    assert np.isnan(worst_case_accuracy({1: SECOND}, ENDS, update=2))


def test_the_worst_case_takes_the_latest_accuracy_by_then():
    assert worst_case_accuracy({0: ((2, 4), (80, 70))}, [10], update=3) == 80


def test_an_experience_not_evaluated_since_its_end_leaves_the_lowest_undefined():
    assert np.isnan(min_accuracy({0: ((1, 2, 3), (20, 60, 90)), 1: SECOND}, ENDS))
    assert np.isnan(min_accuracy({1: SECOND}, ENDS))
    assert np.isnan(min_accuracy({0: ((4, 5), (50, NAN)), 1: SECOND}, ENDS))


def test_one_experience_has_no_gap_and_no_lowest():
    result = anytime({0: ((1, 2, 3), (20, 60, 90))}, [3], deltas=[2])
    assert np.isnan(result.min_accuracy)
    assert result.worst_case_accuracy == 90
    assert result.stability_gaps == {}
    assert result.average_anytime_accuracy == pytest.approx((20 + 60 + 90) / 3)


@given(histories, st.integers(2, 22))
def test_wider_windows_never_see_less(history, delta):
    assert 0 <= windowed_forgetting(history, delta) <= windowed_forgetting(history, delta + 1)
    assert 0 <= windowed_plasticity(history, delta) <= windowed_plasticity(history, delta + 1)


@given(histories, st.integers(2, 22))
def test_a_window_sees_the_largest_difference_of_its_pairs(history, delta):
    pairs = [history[v] - history[w] for v in range(len(history)) for w in range(v + 1, min(v + delta, len(history)))]
    assert windowed_forgetting(history, delta) == pytest.approx(max(0, *pairs) if len(pairs) else 0)
    assert windowed_plasticity(history[::-1], delta) == pytest.approx(windowed_forgetting(history, delta))


def test_windows_need_two_evaluations_and_all_of_them():
    assert np.isnan(windowed_forgetting([50], 2))
    assert np.isnan(windowed_plasticity([50, NAN, 60], 2))
    assert windowed_forgetting([90, 30], 100) == 60
    with pytest.raises(DataError, match="delta is 1"):
        windowed_forgetting([90, 30], 1)


def test_the_gap_is_looked_for_after_the_switch_only():
    gap = stability_gap(*FIRST, start=3, end=6)
    assert gap == (60, 40, float("inf"))
    assert stability_gap((1, 2, 3, 4), (0, 90, 80, 95), start=2, end=4).gap == 10


def test_the_lowest_point_may_be_looked_for_in_the_first_evaluations():
    updates, accuracies = (10, 20, 30, 40), (80, 60, 70, 20)
    assert stability_gap(updates, accuracies, start=10, end=40).gap == 60
    assert stability_gap(updates, accuracies, start=10, end=40, first=2) == (20, -40, float("inf"))


def test_recovery_is_timed_from_the_switch_and_looked_for_after_the_lowest_point():
    updates, accuracies = (10, 20, 30, 40, 50), (80, 79, 50, 76, 80)
    assert stability_gap(updates, accuracies, start=10, end=50) == (30, 30, 30)  # 76 is 95 % of 80
    assert stability_gap((10, 20, 30), (80, 78, 77), start=10, end=30) == (3, 0, 0)


def test_a_gap_needs_an_evaluation_on_each_side():
    for updates, accuracies in (((4, 5), (50, 60)), ((2, 3), (50, 60)), ((3, 4), (NAN, 60)), ((3, 4), (60, NAN))):
        assert np.isnan(stability_gap(updates, accuracies, start=3, end=6)).all()


def test_evaluations_weigh_the_updates_since_the_one_before():
    assert average_anytime_accuracy({0: ((10, 20, 40), (40, 50, 60))}, [40]) == (400 + 500 + 1200) / 40


def test_experiences_to_come_do_not_enter_the_mean_over_time():
    early = {0: ((1, 2), (50, 70)), 1: ((1, 2), (0, 90))}
    assert average_anytime_accuracy(early, (1, 2)) == (50 + 80) / 2


def test_a_seen_experience_that_was_not_evaluated_leaves_the_mean_over_time_undefined():
    assert np.isnan(average_anytime_accuracy({0: FIRST, 1: ((4, 6), (40, 80))}, ENDS))
    assert np.isnan(average_anytime_accuracy({0: FIRST}, ENDS))


def test_the_order_of_experiences_in_the_mapping_changes_nothing():
    assert anytime({1: SECOND, 0: FIRST}, ENDS, deltas=[2]) == anytime(SERIES, ENDS, deltas=[2])


@pytest.mark.parametrize(
    ("series", "ends", "error", "message"),
    [
        ({0: ((2, 1), (50, 60))}, ENDS, DataError, "experience 0 do not rise"),
        ({0: ((1, 1), (50, 60))}, ENDS, DataError, "do not rise"),
        ({0: ((1, 2), (50,))}, ENDS, ShapeError, "must be the same"),
        ({2: FIRST}, ENDS, DataError, "ends know 0 to 1"),
        (SERIES, (6, 3), DataError, "rising"),
        (SERIES, (), DataError, "rising"),
        ({}, ENDS, DataError, "no evaluation"),
    ],
)
def test_series_that_make_no_sense_are_refused(series, ends, error, message):
    with pytest.raises(error, match=message):
        anytime(series, ends)
