"""Known images against unknown ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cil.errors import DataError, ShapeError
from cil.metrics import open_set

scores = st.lists(st.integers(0, 6), min_size=1, max_size=12)


def test_the_worked_example_by_hand():
    """Thresholds 5, 4, 3, 2, 1, 0.5 give (FPR, CCR) (0, 1/4), (0, 1/2), (0, 1/2), (1/2, 1/2), (1/2, 3/4), (1, 3/4)."""
    found = open_set([5, 4, 3, 1], [True, True, False, True], [2, 0.5])
    assert found.auroc == 7 / 8  # of 8 pairs, 1 against 2 is the wrong way round
    assert found.fpr95 == 0.5  # all known are accepted from 1 on, and so is 2
    assert found.aupr_unknown == pytest.approx((1 + 2 / 3) / 2)
    assert found.aupr_known == pytest.approx(0.95)
    assert found.oscr == 0.5 * 0.5 + 0.5 * 0.75


def test_with_all_known_images_answered_rightly_oscr_is_auroc():
    found = open_set([5, 4, 3, 1], [True] * 4, [2, 0.5])
    assert found.oscr == found.auroc == 0.875  # not 0.75, as with a point (1, 1)


def test_the_threshold_accepts_the_highest_95_percent():
    known = np.arange(1, 21)  # 19 of 20 are accepted from 2 on
    assert open_set(known, [True] * 20, [1.5, 2, 0, 30]).fpr95 == 0.5


def test_a_score_that_says_nothing_is_a_guess():
    found = open_set([1, 1], [True, False], [1, 1, 1, 1])
    assert (found.auroc, found.fpr95, found.aupr_unknown, found.oscr) == (0.5, 1.0, pytest.approx(4 / 6), 0.25)


def test_a_class_without_a_score_comes_last():
    found = open_set([0, -np.inf], [True, False], [-np.inf, -np.inf])
    assert found.auroc == 0.75 and found.oscr == 0.5 and found.aupr_unknown == pytest.approx(2 / 3)


def test_without_known_or_unknown_images_nothing_is_defined():
    assert np.isnan(open_set([], [], [1])).all() and np.isnan(open_set([1], [True], [])).all()


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="NaN"):
        open_set([np.nan], [True], [1])
    with pytest.raises(ShapeError, match="correct"):
        open_set([1, 2], [True], [1])


@given(scores, scores, st.randoms(use_true_random=False))
def test_bounds_hold_and_order_plays_no_part(known, unknown, random):
    right = [random.random() < 0.6 for _ in known]
    found = open_set(known, right, unknown)
    area = roc_auc_score([1] * len(known) + [0] * len(unknown), known + unknown)
    assert found.auroc == pytest.approx(area)
    assert found.oscr <= np.mean(right) + 1e-12 and found.oscr <= found.auroc + 1e-12
    assert all(0 <= value <= 1 + 1e-12 for value in found)
    order = random.sample(range(len(known)), len(known))
    again = open_set([known[i] for i in order], [right[i] for i in order], unknown[::-1])
    assert again == pytest.approx(found)
