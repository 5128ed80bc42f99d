"""What is evaluated beside the test images of classes seen: unknown classes, held-out images; and the classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cil.errors import ConfigError
from cil.kinds.classes.unknowns import Unknowns, open_set_scores
from cil.kinds.classes.work import classifier_norms
from cil.streams import class_incremental
from cil.testing import toy_run, toy_stream, toy_tasks
from cil.testing.toy import toy_dataset


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Replay on three experiences of two classes, 9 images to train, 3 held out and 8 to test on of each; and plain."""
    stream = class_incremental(toy_dataset(), increment=2, validation=0.25)
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    made = [
        toy_run("replay", stream, folder, open_set=more, keep="all")
        for folder, more in zip(folders, (True, False), strict=True)
    ]
    return [(run, run.execute()) for run in made]


def test_unknown_classes_change_neither_what_is_learned_nor_what_is_answered(runs):
    (run, record), (other_run, other) = runs
    moved = {"open_set", "seconds", "flops"}
    assert {k: v for k, v in record.results.items() if k not in moved} == {
        k: v for k, v in other.results.items() if k not in moved
    }
    assert "open_set" not in other.results and (record.arrays()["confusion"] == other.arrays()["confusion"]).all()
    one, two = (each.checkpoints.state(2).tensors for each in (run, other_run))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_open_set_scores_are_those_of_the_maximum_logit(runs):
    run, record = runs[0]
    found = record.results["open_set"]
    assert found["unknown"] == [32, 16, 0] and found["auroc"][2] is found["oscr"][2] is None
    assert found["mean_auroc"] == pytest.approx(np.mean(found["auroc"][:2]))
    learner = run.work.learners.rebuilt(2, run.checkpoints.state(1))
    known, unknown = ([run.work.stream.test(index) for index in part] for part in ((0, 1), (2,)))
    scores = [torch.cat([run.work.learners.scores(learner, next(iter(s.batches())).images) for s in part])
              for part in (known, unknown)]  # fmt: skip
    (high, answer), low = scores[0].max(1), scores[1].max(1).values
    pairs = (high[:, None] > low).float() + 0.5 * (high[:, None] == low).float()
    assert found["auroc"][1] == pytest.approx(float(pairs.mean()), abs=1e-6)
    right = answer == torch.cat([samples.slots for samples in known])
    assert found["oscr"][1] == pytest.approx(float((pairs * right[:, None]).mean()), abs=1e-6)
    assert 100 * float(right.float().mean()) == pytest.approx(record.results["accuracy_curve"][1])


def test_the_validation_curve_is_the_accuracy_on_the_held_out_images(runs):
    run, record = runs[0]
    learner = run.work.learners.rebuilt(2, run.checkpoints.state(1))
    right = 0
    for index in (0, 1):
        held_out = run.work.stream[index].validation
        assert len(held_out) == 6
        scores = run.work.learners.scores(learner, next(iter(held_out.batches())).images)
        right += int((scores.argmax(1) == held_out.slots).sum())
    assert record.results["validation_curve"][1] == pytest.approx(100 * right / 12)
    assert len(record.results["validation_curve"]) == 3


def test_each_further_image_is_billed_as_evaluation(runs):
    """First 16 test images, 6 held out and 10 exemplars, as many as the unknown images; then half of these."""
    (_, record), (_, other) = runs
    more, plain = (np.diff(each.results["flops"]["evaluation"], prepend=0) for each in (record, other))
    assert (more - plain).tolist() == pytest.approx([plain[0], plain[0] / 2, 0], rel=0.02)
    assert record.results["flops"]["training"] == other.results["flops"]["training"]


def test_norms_of_the_classifier_after_each_experience(runs):
    run, record = runs[0]
    norms = record.arrays()["classifier_norms"]
    assert norms.shape == (3, 6) and norms.dtype == np.float32
    assert np.isnan(norms).sum(1).tolist() == [4, 2, 0]
    weight = run.checkpoints.state(2).tensors["net.head.weight"]
    assert norms[2].tolist() == pytest.approx(weight.norm(dim=1).tolist())


def test_other_heads_have_no_norms():
    class Learner:
        num_classes = 2

        def held(self):
            return {"net": torch.nn.Linear(2, 2)}

    assert classifier_norms(Learner()) == {}


def test_answers_within_the_right_experience(runs):
    _, record = runs[0]
    confusion = record.arrays()["confusion"][1]
    owner = np.array([0, 0, 1, 1, 2, 2])
    inside = sum(confusion[i, j] for i in range(6) for j in range(6) if owner[i] == owner[j])
    assert record.results["task_identification_curve"][1] == pytest.approx(100 * inside / confusion.sum())
    assert record.results["task_identification_curve"][0] == 100.0


def test_scores_of_known_images_by_hand():
    unknowns = Unknowns(learned=1)
    scores = torch.tensor([[5.0, 0], [4.0, 1], [0, 3.0], [9.0, 9.0]])
    places = torch.tensor([0, 0, 0, 1])  # the last is of an experience to come
    unknowns.count(scores, places, places)
    counts = unknowns.counts()
    assert counts["open_set.known"].tolist() == [5, 4, 3] and counts["open_set.correct"].tolist() == [True, True, False]
    row = counts | {"open_set.unknown": torch.tensor([4.5, 2.0])}
    found = open_set_scores([row, {}])
    assert found["auroc"] == [pytest.approx(4 / 6), None] and found["unknown"] == [2, 0]
    assert found["oscr"][0] == pytest.approx(1 / 3 * 0.5 + 2 / 3 * 0.5)  # from (0, 1/3) over (1/2, 1/3), (1/2, 2/3)


def test_without_unknown_classes_the_option_is_refused(tmp_path):
    at_once = class_incremental(toy_dataset(), increment=6)
    with pytest.raises(ConfigError, match=r"trainer\.open_set is true, and all classes"):
        toy_run("finetune", at_once, tmp_path / "one", open_set=True).execute()
    with pytest.raises(ConfigError, match="runs of kind tasks score no unknown classes"):
        toy_run("independent", toy_tasks(), tmp_path / "two", open_set=True).execute()


def test_a_stream_without_held_out_images_has_nothing_to_judge_by():
    assert toy_stream().judged_by_validation() is None
