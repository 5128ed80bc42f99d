"""Accuracy against compute: fronts, resources, targets, profiles, best of m, on worked examples."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cil.errors import DataError, ShapeError
from cil.metrics import (
    Resources,
    add_resources,
    best_of,
    geometric_speed_up,
    pareto_front,
    performance_profile,
    profile_score,
    time_over_studies,
    time_to_target,
)

small = st.integers(0, 6)
times = st.lists(st.lists(st.floats(1, 50), min_size=3, max_size=3), min_size=1, max_size=4)
scores = st.lists(st.floats(0, 100), min_size=1, max_size=12)


def test_the_front_of_five_points():
    cost, error = [1, 2, 3, 4, 5], [0.5, 0.4, 0.45, 0.3, 0.3]
    assert pareto_front(cost, error).tolist() == [True, True, False, True, False]  # 5 costs more for the same error


def test_equal_points_stand_on_the_front_together():
    assert pareto_front([1, 1, 2], [3, 3, 3]).tolist() == [True, True, False]


def test_an_unknown_cost_is_on_no_front_and_dominates_nothing():
    assert pareto_front([None, 2], [0.1, 0.4]).tolist() == [False, True]
    assert pareto_front([], []).tolist() == []


@given(st.lists(st.tuples(small, small), min_size=1, max_size=9))
def test_a_point_is_off_the_front_exactly_where_another_dominates_it(points):
    front = pareto_front(*zip(*points, strict=True))
    for (x, y), on in zip(points, front, strict=True):
        assert on != any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)


def test_resources_add_up_peaks_do_not_and_unknown_stays_unknown():
    assert add_resources([Resources(3, 10, 40), Resources(4, 8, 50)]) == Resources(7, 10, 50)
    assert add_resources([Resources(3, 10, None), Resources(None, 8, 50)]) == Resources(None, 10, None)
    assert add_resources([]) == Resources(0, 0, 0)


@given(st.lists(st.builds(Resources, *[st.none() | st.integers(0, 99)] * 3), max_size=5), st.integers(0, 5))
def test_how_resources_are_bracketed_changes_nothing(parts, cut):
    assert add_resources([add_resources(parts[:cut]), add_resources(parts[cut:])]) == add_resources(parts)


def test_the_time_to_a_target_is_the_first_one():
    assert time_to_target([10, 20, 30, 40], [50, 71, 69, 80], 70) == 20
    assert time_to_target([10, 20], [50, 60], 70) == inf
    assert time_to_target([10, 20], [None, 70], 70) == 20  # reaching it is enough
    with pytest.raises(DataError, match="must rise"):
        time_to_target([20, 10], [1, 2], 0)


def test_a_workload_takes_the_median_over_studies_of_the_best_trial():
    assert time_over_studies([[inf, 120, 90], [100, inf, inf], [inf, inf, inf]]) == 100
    assert time_over_studies([[10], [20]]) == 15
    assert time_over_studies([[inf], [inf], [3]]) == inf


def test_profiles_and_their_areas():
    assert profile_score([[10, 20], [20, 10]]) == pytest.approx([0.833333, 0.833333], abs=1e-6)
    assert profile_score([[10, 20], [20, 10], [inf, 45]])[2] == 0  # 4.5 times the fastest earns nothing
    assert performance_profile([[10, 20], [20, 10], [inf, 45]], [1, 2, 4.5]).tolist() == [
        [0.5, 1.0, 1.0],
        [0.5, 1.0, 1.0],
        [0.0, 0.0, 0.5],
    ]
    assert profile_score([[inf, 10], [inf, 20]]).tolist() == [0.5, pytest.approx(1 / 3)]  # nobody's workload
    with pytest.raises(DataError, match="above 0"):
        profile_score([[0, 1]])


@settings(deadline=None)  # the area is a sum over thousands of points
@given(times)
def test_the_score_is_the_area_under_the_profile_and_one_only_for_the_fastest_everywhere(table):
    score = profile_score(table)
    assert ((score >= 0) & (score <= 1)).all()
    assert ((score == 1) == (np.array(table) == np.min(table, axis=0)).all(1)).all()
    tau = np.linspace(1, 4, 2001)
    assert np.trapezoid(performance_profile(table, tau), tau, axis=1) / 3 == pytest.approx(score, abs=5e-3)


def test_speed_ups_are_averaged_by_their_logarithms():
    assert geometric_speed_up([10, 20], [20, 10]) == pytest.approx(1.0)
    assert geometric_speed_up([40, 10], [10, 10]) == pytest.approx(2.0)


def test_the_expected_best_of_m():
    assert [best_of([80, 60, 70], m) for m in (1, 2, 3)] == pytest.approx([70, 74.4444, 76.6667], abs=5e-5)
    assert np.isnan(best_of([], 1))
    with pytest.raises(DataError, match="draws"):
        best_of([1], 0)


@given(scores, st.integers(1, 20))
def test_the_best_of_more_draws_is_no_worse_and_within_the_range(values, draws):
    now = best_of(values, draws)
    assert best_of(values, 1) == pytest.approx(np.mean(values))
    assert now <= best_of(values, draws + 1) + 1e-9
    assert min(values) - 1e-9 <= now <= max(values) + 1e-9
    assert best_of(values, 10_000) == pytest.approx(max(values), abs=0.2)


def test_the_expected_best_is_what_drawing_gives():
    drawn = np.random.default_rng(0).choice([60, 70, 80, 95], size=(200_000, 3)).max(1).mean()
    assert best_of([60, 70, 80, 95], 3) == pytest.approx(drawn, abs=0.1)


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ShapeError):
        pareto_front([1, 2], [1])
