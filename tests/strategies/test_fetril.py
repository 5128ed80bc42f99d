"""FeTrIL: features of classes at hand, moved to the means of old classes, train the head."""

import math
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from frozen_runs import UNTRAINED, D, experience, split
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures

from cil.data import Augment, Batch, Samples
from cil.engine.recipe import Recipe
from cil.models import LinearHead, extract
from cil.strategies.fetril import _stand_ins
from cil.streams import Experience
from cil.testing import toy_run, toy_stream

OLD = [[4.0, 0.0], [0.0, 3.0]]  # means of classes 0 and 1
NEW = [[2.0, 1.0], [4.0, 1.0], [-1.0, 2.0], [-1.0, 4.0]]  # two of class 2, of mean (3, 1), and two of class 3, (-1, 3)


def met(points=NEW, slots=(2, 2, 3, 3), counts=(5, 7, 0, 0), **hyperparameters):
    """A learner of four classes, two of them old, that was shown these features; its phases; the experience."""
    learner = bare("fetril", classes=[2, 2], **hyperparameters)
    learner.head = LinearHead(2)
    learner.head.grow(4)
    learner.means = torch.tensor([*OLD, [0.0, 0.0], [0.0, 0.0]])
    learner.counts = torch.tensor(counts, dtype=torch.int32)
    shown = experience(points, list(slots), learner)
    shown = Experience(signatures([2, 2])[1], shown.train)
    return learner, list(learner.phases(shown)), shown


# moved features -----------------------------------------------------------------------------------------------------


def test_each_old_class_is_played_by_the_class_at_hand_of_the_most_similar_direction():
    """(4, 0) is at cosine 0.95 of (3, 1) and -0.32 of (-1, 3); (0, 3) at 0.32 and 0.95."""
    learner, (phase,), _ = met()
    assert learner.shift.tolist() == [[1, -1], [1, 0], [0, 0], [0, 0]]
    assert phase.data.slots.tolist() == [2, 2, 3, 3, 0, 0, 1, 1]
    assert phase.data.extras["row"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert learner.means.tolist() == [*OLD, [3, 1], [-1, 3]] and learner.counts.tolist() == [5, 7, 2, 2]


@pytest.mark.parametrize(("similarity", "shift"), [("cosine", [3.9, 0.0]), ("euclidean", [0.0, -2.0])])
def test_similarity_is_of_directions_or_of_distances(similarity, shift):
    """Class 2 lies at (0.1, 0) and class 3 at (4, 2): (4, 0) is nearer to the second, and in line with the first."""
    learner, _, _ = met([[0.1, 0.0], [4.0, 2.0]], (2, 3), similarity=similarity)
    torch.testing.assert_close(learner.shift[0], torch.tensor(shift))


def test_an_old_class_unlike_all_at_hand_is_still_played_by_one_of_them():
    learner, (phase,), _ = met([[-1.0, 0.5], [-4.0, -2.0]], (2, 3))  # (4, 0) is at cosine -0.894 of both
    assert learner.shift[0].tolist() in ([5, -0.5], [8, 2])
    assert phase.data.slots.tolist() == [2, 3, 0, 1]


def test_moved_features_have_the_old_mean_and_the_covariance_of_the_class_that_plays():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 2, generator=generator) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]) + torch.tensor([5.0, 1.0])
    slots = [2] * 25 + [3] * 15
    learner, (phase,), _ = met(points.tolist(), slots)
    features = learner.cache[phase.data.extras["row"]] + learner.shift[phase.data.slots]
    for old in (0, 1):
        moved = features[phase.data.slots == old]
        assert moved.mean(0).tolist() == pytest.approx(OLD[old], abs=1e-5)
        player = next(points[torch.tensor(slots) == slot] for slot in (2, 3) if slots.count(slot) == len(moved))
        torch.testing.assert_close(moved.T.cov(), player.T.cov(), rtol=1e-4, atol=1e-5)
    assert torch.equal(features[:40], points)  # those of classes at hand are as they are


def test_a_class_that_comes_back_plays_itself_and_its_mean_is_that_of_all_its_images():
    learner, (phase,), _ = met([[8.0, 4.0], [2.0, 1.0]], (0, 2), counts=(3, 7, 0, 0))
    assert phase.data.slots.tolist() == [0, 2, 1]  # class 1 is played, class 0 is not
    assert learner.shift[0].tolist() == [0, 0]
    assert learner.means[0].tolist() == [5, 1]  # (3 (4, 0) + (8, 4)) / 4
    assert learner.counts.tolist() == [4, 7, 1, 0]
    assert learner.shift[1].tolist() in ([-8, -1], [-2, 2])  # to (0, 3) from the images at hand, whichever plays


def test_a_class_of_which_nothing_was_ever_seen_is_not_played():
    _, (phase,), _ = met(counts=(5, 0, 0, 0))
    assert phase.data.slots.tolist() == [2, 2, 3, 3, 0, 0]


def test_the_cast_by_hand():
    rows, slots = _stand_ins(torch.tensor([3, 2, 3]), torch.tensor([3, -1, 2, 3, 2]))
    assert rows.tolist() == [0, 1, 2, 0, 2, 1] and slots.tolist() == [3, 2, 3, 0, 0, 4]


# the loss -----------------------------------------------------------------------------------------------------------


def test_the_loss_is_cross_entropy_of_the_head_on_moved_features():
    learner, (phase,), _ = met()
    with torch.no_grad():
        learner.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
        learner.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    # row 4: the first image of class 2, (2, 1), as class 0: (3, 0), logits 3, 0, 3, 1
    own = phase.data[[4]]
    loss = phase.loss(Batch(torch.zeros(1, 1, 1, 1), own.slots, extras=own.extras))
    assert loss.item() == pytest.approx(math.log(2 * math.e**3 + 1 + math.e) - 3, abs=1e-5)
    own = phase.data[[0]]  # the same as itself: logits 2, 1, 3, 1
    loss = phase.loss(Batch(torch.zeros(1, 1, 1, 1), own.slots, extras=own.extras))
    assert loss.item() == pytest.approx(math.log(math.e**2 + 2 * math.e + math.e**3) - 3, abs=1e-5)
    assert {id(p) for p in phase.parameters} == {id(p) for p in learner.head.parameters()}


def test_without_old_classes_the_loss_is_plain_cross_entropy_and_reaches_the_backbone(tmp_path):
    learner = toy_run("fetril", toy_stream(), tmp_path).work.learners.rebuilt(1, None)
    shown = batch(0, 1, 1)
    loss = learner.loss(shown)
    expected = F.cross_entropy(learner.head(learner.net(shown.images).features), shown.slots)
    assert loss.item() == expected.item()
    gradients = learner.gradient(loss)
    assert all(gradient.any() for gradient in gradients) and len(gradients) > 4


def test_extracted_once_or_at_each_step_features_train_the_same_head(learn):
    """Where images are not augmented, and up to the rounding of batches of another size."""
    heads = []
    for cached in (True, False):
        stream = split(2, augment={})
        done = learn("fetril", stream, hyperparameters={**UNTRAINED, "cached_features": cached})
        heads.append(done.state(2).tensors["head.weight"])
        assert bool([name for name in done.trained_with(2) if name == "cache"]) == cached
    torch.testing.assert_close(*heads, rtol=1e-3, atol=1e-4)


def test_uncached_features_are_of_augmented_images(learn):
    heads = [
        learn("fetril", hyperparameters={**UNTRAINED, "cached_features": cached}).state(2).tensors["head.weight"]
        for cached in (True, False)
    ]
    assert not torch.allclose(*heads, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("augment", [
    Augment(crop_padding=4, flip=True, brightness=0.2), Augment(resized_crop=True),
], ids=["crop", "resized"])  # fmt: skip
def test_cached_features_know_nothing_of_the_augmentation(learn, augment):
    plain, augmented = (
        learn("fetril", split(2, augment=given), hyperparameters=UNTRAINED) for given in ({}, asdict(augment))
    )
    assert differing(dict(plain.state(2).tensors), dict(augmented.state(2).tensors)) == []


@pytest.mark.parametrize("name", ["fetril", "feature_replay"])
def test_a_head_is_trained_as_later_heads_are_where_there_is_no_backbone_to_train(learn, name):
    """``trainer.first`` is for the backbone."""
    recipe = Recipe(epochs=2, batch_size=8, log_every=1, first={"epochs": 5})
    for hyperparameters, first in (({}, 5), (UNTRAINED, 2)):
        lines = learn(name, recipe=recipe, hyperparameters=hyperparameters).record.lines()
        epochs = [line["experience"] for line in lines if line["kind"] == "epoch"]
        assert [epochs.count(index) for index in range(3)] == [first, 2, 2]


# over a stream ------------------------------------------------------------------------------------------------------


def test_old_rows_are_where_the_head_goes_on_from(learn):
    starts = {}

    def see(when, learner, experience):
        if when in ("before", "prepared", "done"):
            starts[experience.index, when] = bits(learner.head)

    learn(observed("fetril", see))
    for index in (1, 2):
        old = 2 * index
        for name in ("weight", "bias"):
            assert torch.equal(starts[index, "prepared"][name][:old], starts[index - 1, "done"][name])
            assert not torch.equal(starts[index, "done"][name][:old], starts[index, "prepared"][name][:old])


@pytest.mark.parametrize("hyperparameters", [{}, {"classifier": "svm"}, UNTRAINED, {"cached_features": False}], ids=str)
def test_means_and_counts_are_those_of_all_images(learn, hyperparameters):
    done = learn("fetril", hyperparameters=hyperparameters)
    for index in range(3):
        learner = done.learner(index)
        assert learner.counts.tolist() == [12] * 2 * (index + 1)
        for slot in done.stream.signatures[index].new_slots:
            mean = extract(learner.net, done.stream[index].train.of_class(slot)).mean(0)
            torch.testing.assert_close(learner.means[slot], mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(done.state(0).tensors["means"], done.state(2).tensors["means"][:2])


def test_moved_features_hold_the_old_classes(learn):
    """Against a head that is trained on what is at hand alone."""

    class Forgets(type(learn("fetril").learner(0))):
        def _update_means(self, experience):
            features, plays = super()._update_means(experience)
            return features, torch.where(torch.bincount(experience.train.slots, minlength=len(plays)) > 0, plays, -1)

    recipe = Recipe(epochs=20, batch_size=8)
    moved, alone = (
        learn(kind, split(2), recipe=recipe).record.results["accuracy_matrix"][2][0] for kind in ("fetril", Forgets)
    )
    assert moved >= alone + 20


def test_an_experience_without_images_changes_nothing():
    learner = bare("fetril", classes=[2, 2])
    empty = Experience(signatures([2, 2])[1], Samples.from_arrays(torch.zeros(0, 3, 12, 12).byte(), torch.zeros(0)))
    before = bits(learner.head)
    assert list(learner.phases(empty)) == []
    learner.after_experience(empty)
    assert differing(before, bits(learner.head)) == [] and not learner.means.any()


def test_the_temporary_features_are_billed_in_training(learn):
    done = learn("fetril")
    assert done.trained_with(1)["cache"] == 4 * 24 * D
    assert done.trained_with(1)["shift"] == 4 * 4 * D
    assert "cache" not in done.trained_with(0)


# the support vector machine -----------------------------------------------------------------------------------------


def answers(learner, points):
    learner.net = Fixed([[]] * len(points), points)
    return learner.predict(torch.zeros(len(points), 3, 12, 12)).detach()


def test_the_machine_answers_as_scikit_learn_does_on_unit_vectors():
    from sklearn.svm import LinearSVC

    learner, phases, shown = met(classifier="svm", svm_c=0.5)
    assert phases == []
    learner.after_experience(shown)
    moved = np.array([*NEW, [3.0, 0.0], [5.0, 0.0], [0.0, 2.0], [0.0, 4.0]])
    unit = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    machine = LinearSVC(C=0.5, random_state=0).fit(unit, [2, 2, 3, 3, 0, 0, 1, 1])
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) * 3
    found = answers(learner, points.tolist())
    np.testing.assert_allclose(
        found.numpy(), machine.decision_function(F.normalize(points).numpy()), rtol=1e-3, atol=1e-3
    )
    assert found.argmax(1).tolist() == machine.predict(F.normalize(points).numpy()).tolist()


def test_of_two_classes_the_machine_has_one_row_and_the_head_two():
    learner, _, shown = met(
        [[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]], (2, 2, 3, 3), (0, 0, 0, 0), classifier="svm"
    )
    learner.after_experience(shown)
    found = answers(learner, [[5.0, 0.0], [0.0, 5.0]])
    assert found[:, 2:].argmax(1).tolist() == [0, 1] and torch.isneginf(found[:, :2]).all()
    torch.testing.assert_close(found[:, 2], -found[:, 3])


def test_of_one_class_there_is_nothing_to_separate():
    learner, _, shown = met([[1.0, 0.0], [2.0, 0.1]], (2, 2), (0, 0, 0, 0), classifier="svm")
    before = bits(learner.head)
    learner.after_experience(shown)
    assert differing(before, bits(learner.head)) == []
    assert answers(learner, [[1.0, 1.0]]).argmax(1).item() == 2


def test_with_the_machine_later_experiences_run_no_phase(learn):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = learn("fetril", hyperparameters={"classifier": "svm"})
    assert {line["experience"] for line in done.record.lines() if line["kind"] == "step"} == {0}
    assert done.record.results["last_accuracy"] > 50
