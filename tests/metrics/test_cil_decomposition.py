"""Class-incremental accuracy as experience identification times accuracy within the experience."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cil.errors import DataError, ShapeError
from cil.metrics import (
    accuracy_matrix,
    cil_decomposition,
    confusion_matrix,
    decomposition_from_confusion,
    recency_ratio,
    task_confusion,
)

LOGITS = [[3, 1, 2, 0], [0, 2, 3, 1], [1, 0, 2, 4], [5, 0, 4, 1]]
OWNER = np.array([0, 0, 1, 1])
# few different values, so that ties are common; an experience whose slots are not neighbours
cases = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, (n, 5), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, -np.inf])),
        hnp.arrays(np.int64, n, elements=st.integers(0, 4)),
        st.sampled_from([(0, 0, 1, 1, 2), (0, 1, 0, 1, 0), (0, 0, 0, 0, 0), (0, 1, 2, 3, 4)]),
    )
)


def test_the_parts_of_the_worked_example():
    parts = cil_decomposition(LOGITS, [0, 1, 2, 3], OWNER)
    assert (parts.cil, parts.til, parts.tid, parts.inter_task, parts.intra_task) == (25, 50, 50, 50, 25)
    assert parts.task_confusion.dtype == np.int64
    assert parts.task_confusion.tolist() == [[1, 1], [1, 1]]
    assert recency_ratio(parts.task_confusion, newest=1) == 1


@given(cases)
def test_an_answer_is_right_if_its_experience_and_the_choice_within_are(case):
    scores, true, owner = case
    owner = np.array(owner)
    for row, slot in zip(scores, true, strict=True):
        one = cil_decomposition(row[None], [slot], owner)
        assert one.cil == 100 * (one.tid == one.til == 100)


@given(cases)
def test_the_shares_add_up_and_no_product_exceeds_its_factors(case):
    parts = cil_decomposition(*case)
    assert parts.cil + parts.inter_task + parts.intra_task == pytest.approx(100)
    assert parts.cil <= min(parts.tid, parts.til) + 1e-9
    assert parts.task_confusion.sum() == len(case[1])


@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_test_samples_changes_nothing(case, random):
    scores, true, owner = case
    order = random.sample(range(len(true)), len(true))
    before, after = cil_decomposition(scores, true, owner), cil_decomposition(scores[order], true[order], owner)
    assert before[:5] == pytest.approx(after[:5])
    assert np.array_equal(before.task_confusion, after.task_confusion)


@given(cases)
def test_all_but_the_task_aware_accuracy_can_be_counted_again_from_the_confusion(case):
    scores, true, owner = case
    confusion = confusion_matrix(true, scores.argmax(1), 5)
    again, parts = decomposition_from_confusion(confusion, owner), cil_decomposition(scores, true, owner)
    assert np.isnan(again.til)
    assert [again.cil, again.tid, again.inter_task, again.intra_task] == [
        parts.cil,
        parts.tid,
        parts.inter_task,
        parts.intra_task,
    ]
    sizes = np.bincount(np.array(owner)[true], minlength=max(owner) + 1)
    row = accuracy_matrix(confusion, owner)
    assert parts.cil == pytest.approx((row * sizes)[sizes > 0].sum() / sizes.sum())


def test_one_experience_leaves_only_errors_within():
    parts = cil_decomposition([[1, 0], [1, 0]], [0, 1], [0, 0])
    assert (parts.cil, parts.til, parts.tid, parts.inter_task, parts.intra_task) == (50, 50, 100, 0, 50)


def test_no_samples_leave_the_shares_undefined():
    parts = cil_decomposition(np.empty((0, 4)), [], OWNER)
    assert np.isnan(parts[:5]).all()
    assert parts.task_confusion.tolist() == [[0, 0], [0, 0]]


def test_the_task_confusion_sums_blocks_also_of_scattered_slots():
    counts = np.arange(9).reshape(3, 3)
    assert task_confusion(counts, [0, 0, 1]).tolist() == [[0 + 1 + 3 + 4, 2 + 5], [6 + 7, 8]]
    assert task_confusion(counts, [0, 1, 0]).tolist() == [[0 + 2 + 6 + 8, 1 + 7], [3 + 5, 4]]
    assert task_confusion(counts, [0, 0, 0], num_experiences=2).tolist() == [[36, 0], [0, 0]]


def test_a_learner_that_answers_new_classes_only_has_the_inverse_of_their_share():
    assert recency_ratio([[0, 30], [0, 10]], newest=1) == 4
    assert recency_ratio([[30, 0], [10, 0]], newest=1) == 0
    assert np.isnan(recency_ratio([[10, 0], [0, 0]], newest=1))
    with pytest.raises(DataError, match="0 to 1"):
        recency_ratio([[1, 1], [1, 1]], newest=2)


def test_scores_of_classes_without_experience_are_refused():
    with pytest.raises(ShapeError, match="4 columns"):
        cil_decomposition(LOGITS, [0, 1, 2, 3], [0, 0, 1])
    with pytest.raises(DataError, match="0 to 3"):
        cil_decomposition(LOGITS, [0, 1, 2, 4], OWNER)
    with pytest.raises(DataError, match="NaN"):
        cil_decomposition([[np.nan, 1, 2, 3]], [0], OWNER)
    with pytest.raises(ShapeError, match="needed"):
        task_confusion(np.ones((2, 4, 4), int), OWNER)
