"""Area under accuracy against memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cil.errors import DataError, ShapeError
from cil.metrics import area, auc

# the survey's budgets for CIFAR-100 B0 Inc10, MiB
CIFAR_BUDGETS = (7.628, 12.415, 16.124, 19.832, 23.541)
points = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 1, allow_subnormal=False)),
    min_size=2,
    max_size=8,
    unique_by=lambda point: point[0],
)


def test_the_area_is_not_normalised_unless_asked_for():
    assert auc([0, 10, 20], [0.5, 0.6, 0.7]) == pytest.approx(12.0)
    assert auc([0, 10, 20], [0.5, 0.6, 0.7], normalise=True) == pytest.approx(0.6)


def test_unequal_steps_weigh_by_their_width():
    assert auc([10, 20, 40], [0.5, 0.6, 0.7]) == pytest.approx(18.5)
    assert auc([10, 20, 40], [0.5, 0.6, 0.7], normalise=True) == pytest.approx(0.617, abs=5e-4)


@pytest.mark.parametrize(("budgets", "expected"), [(CIFAR_BUDGETS, "8.65"), ((7.6, 12.4, 16.0, 19.8, 23.5), "8.64")])
def test_icarls_published_last_accuracies_give_its_published_area(budgets, expected):
    last = np.array([48.4, 53.1, 54.6, 57.3, 58.52]) / 100
    assert f"{auc(budgets, last):.2f}" == expected


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ((58.5, 64.5, 66.9, 69.0, 70.0), "10.48"),  # Replay
        ((53.8, 68.3, 70.7, 71.0, 70.1), "10.74"),  # DER
        ((54.6, 69.0, 70.3, 71.7, 72.4), "10.85"),  # MEMO
        ((66.5, 68.7, 70.3, 71.9, 72.3), "11.12"),  # FOSTER
    ],
)
def test_published_curves_give_published_areas(accuracy, expected):
    assert f"{auc(CIFAR_BUDGETS, np.array(accuracy) / 100):.2f}" == expected


@given(points, points, st.floats(0, 1))
def test_the_area_is_linear_in_accuracy(some, others, share):
    x, y = np.array(some).T
    z = np.resize([accuracy for _, accuracy in others], len(x))
    mixed = share * y + (1 - share) * z
    assert auc(x, mixed) == pytest.approx(share * auc(x, y) + (1 - share) * auc(x, z), abs=1e-9)


@given(points, st.randoms(use_true_random=False))
def test_the_order_of_runs_changes_nothing(some, random):
    x, y = zip(*some, strict=True)
    u, v = zip(*random.sample(some, len(some)), strict=True)
    assert auc(x, y) == auc(u, v)


@given(points, st.floats(0, 1))
def test_a_constant_curve_has_its_height_as_mean(some, height):
    x = [place for place, _ in some]
    assert auc(x, [height] * len(x), normalise=True) == pytest.approx(height)
    assert auc(x, [height] * len(x)) == pytest.approx(height * (max(x) - min(x)), abs=1e-9)


def test_a_budget_that_was_not_met_leaves_the_area_undefined():
    assert np.isnan(auc([0, 10, 20], [np.nan, 0.6, 0.7]))
    assert np.isnan(auc([0, 10, 20], [0.5, None, 0.7], normalise=True))
    assert np.isnan(auc([10], [0.5]))
    assert np.isnan(auc([], []))


def test_percent_is_refused():
    with pytest.raises(DataError, match="not percent"):
        auc([0, 10], [50, 60])


def test_a_budget_given_twice_is_refused():
    with pytest.raises(DataError, match="each once"):
        auc([0, 10, 10], [0.5, 0.6, 0.7])
    with pytest.raises(ShapeError, match="must be the same"):
        auc([0, 10], [0.5])


def test_the_plain_area_takes_any_unit():
    assert area([100, 200, 400], [40, 50, 60], normalise=True) == pytest.approx(51.6667, abs=5e-5)
