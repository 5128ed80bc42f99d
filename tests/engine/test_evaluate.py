"""Evaluation: right and wrong answers are counted, on all classes seen, in mixed order."""

from __future__ import annotations

import math

import pytest
import torch
from toys import small_stream

from cil.data import Augment, Samples
from cil.engine.spending import spent
from cil.errors import ContractError
from cil.kinds.classes.evaluation import evaluable, evaluate
from cil.kinds.classes.results import class_scores
from cil.metrics import confusion_of
from cil.streams import Signature, Stream
from cil.streams.base import ExperienceData


def _stream(*groups: tuple[int, ...], classes: int = 4) -> Stream:
    """Experiences whose test images (1 x 1 x 1) are 10 times their slot; ``groups`` lists the slots of each image."""
    signatures, parts, seen = [], [], 0
    for index, slots in enumerate(groups):
        present = tuple(sorted(set(slots)))
        new = tuple(range(seen, max(seen, max(present) + 1)))
        seen += len(new)
        samples = Samples.from_arrays(torch.tensor(slots).mul(10).byte().reshape(-1, 1, 1, 1), torch.tensor(slots))
        signatures.append(Signature(index, new, present, samples.counts(), (1, 1, 1), seen))
        parts.append(ExperienceData(lambda samples=samples: samples, lambda samples=samples: samples))
    return Stream(
        name="counted", classes=[str(slot) for slot in range(classes)], order=range(classes), signatures=signatures,
        parts=parts, fingerprint="", augment=Augment(), mean=[0.0], std=[1.0],
    )  # fmt: skip


def _slots(images):
    return (images.flatten() * 25.5).round().long()


def _evaluate(predict, stream, num_classes, **options):
    return evaluate(predict, stream, num_classes, **{"seed": 0, "device": torch.device("cpu"), **options})


def _confusion(counts, classes=4):
    return confusion_of(counts["cells"].numpy(), classes).tolist()


def _answers(table):
    """Scores by true slot."""
    return lambda images: torch.tensor([table[slot] for slot in _slots(images).tolist()], dtype=torch.float32)


def test_answers_are_counted_by_class_and_by_experience():
    stream = _stream((0, 0, 1), (2, 2, 2, 3))
    counts = _evaluate(
        _answers(
            {
                0: [9, 0, 0, 0],  # right
                1: [1, 5, 8, 0],  # takes 1 for 2; within its own experience right
                2: [9, 0, 7, 0],  # takes 2 for 0; within its own experience right
                3: [0, 0, 9, 8],  # takes 3 for 2, within its own experience too
            }
        ),
        stream,
        4,
    )
    assert _confusion(counts) == [[2, 0, 0, 0], [0, 0, 1, 0], [3, 0, 0, 0], [0, 0, 1, 0]]
    assert counts["correct"].tolist() == [2, 0]
    assert counts["correct_task_aware"].tolist() == [3, 3]
    assert counts["count"].tolist() == [3, 4]


def test_counts_become_percent():
    stream = _stream((0, 0, 1), (2, 2, 2, 3))
    first = _evaluate(_answers({0: [1, 0], 1: [1, 0]}), stream, 2)
    second = _evaluate(_answers({0: [1, 0, 0, 0], 1: [0, 1, 2, 0], 2: [3, 0, 2, 0], 3: [0, 0, 0, 1]}), stream, 4)
    rows = [counts | {"seconds": torch.tensor([0.5])} for counts in (first, second)]
    fact = {"flops": {"training": 10, "consolidation": 1}, "seconds": {"train": 2.0, "consolidate": 1.0}, "ledger": {},
            "exemplars": 0, "over_budget": None, "peak_training_bytes": 7}  # fmt: skip
    facts = [fact, fact | {"peak_training_bytes": 9}]
    results = class_scores(rows, facts, stream) | spent(rows, facts)
    assert results["accuracy_matrix"] == [[pytest.approx(200 / 3), None], [pytest.approx(200 / 3), 25]]
    assert results["accuracy_matrix_task_aware"] == [[pytest.approx(200 / 3), None], [100, 100]]
    assert results["accuracy_curve"] == [pytest.approx(200 / 3), pytest.approx(300 / 7)]
    assert results["class_counts"] == [2, 1, 3, 1]
    assert results["flops"] == {"training": [10, 20], "consolidation": [1, 2], "evaluation": [0, 0], "total": 22}
    assert results["seconds"]["total"] == 2 * (2.0 + 1.0 + 0.5)
    assert results["peak_training_bytes"] == 9


def test_classes_not_seen_yet_are_left_out():
    stream = _stream((0, 1), (2, 3))
    counts = _evaluate(_answers({0: [1, 0], 1: [1, 0]}), stream, 2)
    assert counts["count"].tolist() == [2, 0]
    assert _confusion(counts) == [[1, 0, 0, 0], [1, 0, 0, 0], [0] * 4, [0] * 4]
    assert [evaluable(stream, seen) for seen in (1, 2, 3, 4)] == [[], [0], [0], [0, 1]]


def test_a_class_that_comes_back_counts_in_both_experiences():
    stream = _stream((0, 1), (1, 2, 2), classes=3)
    table = {0: [3, 0, 0], 1: [2, 1, 0], 2: [0, 2, 1]}
    counts = _evaluate(_answers(table), stream, 3)
    assert counts["count"].tolist() == [2, 3]
    assert counts["correct"].tolist() == [1, 0]
    assert counts["correct_task_aware"].tolist() == [1, 1]  # within (1, 2), slot 1 is answered rightly
    assert _confusion(counts, 3) == [[1, 0, 0], [2, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 500])
def test_counts_do_not_depend_on_the_size_of_a_batch(batch_size):
    stream = small_stream(test=5)
    whole = _evaluate(_linear, stream, 6)
    parts = _evaluate(_linear, stream, 6, batch_size=batch_size)
    for name in ("cells", "correct", "correct_task_aware", "count"):
        assert torch.equal(whole[name], parts[name])
    assert whole["count"].tolist() == [10, 10, 10]


def _linear(images):
    return images.flatten(1) @ torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def test_the_images_of_a_batch_are_of_mixed_classes_in_an_order_of_the_seed():
    stream = _stream((0,) * 50 + (1,) * 50, (2,) * 50 + (3,) * 50)
    orders = []
    for seed in (0, 0, 1):
        seen = []

        def predict(images, seen=seen):
            seen.append(_slots(images).tolist())
            return torch.zeros(len(images), 4)

        _evaluate(predict, stream, 4, seed=seed, batch_size=40)
        orders.append(seen)
    assert all(set(batch) == {0, 1, 2, 3} for batch in orders[0])
    assert sorted(slot for batch in orders[0] for slot in batch) == [0] * 50 + [1] * 50 + [2] * 50 + [3] * 50
    assert orders[0] == orders[1] != orders[2]


def test_scores_may_be_minus_infinity_and_lose():
    stream = _stream((0, 1), (2, 3))
    scores = [-math.inf, -5.0, -math.inf, -9.0]
    counts = _evaluate(_answers(dict.fromkeys(range(4), scores)), stream, 4)
    assert counts["cells"].tolist() == [[slot, 1, 1] for slot in range(4)]
    assert counts["correct_task_aware"].tolist() == [1, 1]  # the finite one of each pair


@pytest.mark.parametrize("at", [0, 3])
def test_scores_that_are_not_numbers_are_refused(at):
    stream = _stream((0, 1), (2, 3))
    table = {slot: [math.nan if slot == at else 0.0, 1, 2, 3] for slot in range(4)}
    with pytest.raises(ContractError, match="predict gave scores that are not numbers; -inf is allowed"):
        _evaluate(_answers(table), stream, 4, batch_size=1)


@pytest.mark.parametrize(
    ("shape", "says"), [((4, 3), r"\(4, 3\) for 4 images and 4 classes"), ((4,), r"\(4,\)"), ((4, 5), r"\(4, 5\)")]
)
def test_scores_of_another_shape_are_refused(shape, says):
    with pytest.raises(ContractError, match=f"predict gave scores of shape {says}"):
        _evaluate(lambda images: torch.zeros(shape), _stream((0, 1), (2, 3)), 4)


def test_half_precision_scores_are_compared_as_floats():
    counts = _evaluate(lambda images: _linear(images).bfloat16(), small_stream(), 6)
    assert counts["cells"][:, 2].sum() == 24


def test_the_operations_of_the_whole_pass_are_counted():
    counts = _evaluate(_linear, small_stream(test=5), 6, batch_size=7)
    assert counts["flops"].tolist() == [30 * 2 * 4 * 6]  # 30 images, 4 features, 6 outputs
