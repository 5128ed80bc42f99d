"""SimpleCIL: class means of frozen features, and the nearest of them."""

import pytest
import torch
import torch.nn.functional as F
from frozen_runs import UNTRAINED, B, D, P, experience, split
from small_runs import Fixed, bare, batch

from cil.errors import ConfigError
from cil.models import CosineHead, LinearHead, extract
from cil.testing import toy_run, toy_stream

POINTS, SLOTS = [[3.0, 4.0], [1.0, 0.0], [1.0, 0.0], [0.0, 8.0], [3.0, 0.0]], [0, 1, 0, 2, 1]


def taught(points=POINTS, slots=SLOTS, **hyperparameters):
    learner = bare("simplecil", classes=[3], **hyperparameters)
    learner.sums = torch.zeros(3, 2)
    learner.after_experience(experience(points, slots, learner))
    return learner


def answers(learner, *features):
    learner.net = Fixed([[]] * len(features), features)
    return learner.predict(torch.zeros(len(features), 3, 12, 12)).tolist()


def test_scores_are_cosines_to_the_means_of_raw_features():
    learner = taught()
    assert learner.sums.tolist() == [[4, 4], [4, 0], [0, 8]]  # directions of (2, 2), (2, 0) and (0, 8)
    (found,) = answers(learner, [3.0, 4.0])
    assert found == pytest.approx([7 / (5 * 2**0.5), 0.6, 0.8], abs=1e-6)


def test_the_mean_is_of_raw_features_unless_unit_vectors_are_asked_for():
    learner = taught(unit=True)
    torch.testing.assert_close(learner.sums, torch.tensor([[1.6, 0.8], [2.0, 0.0], [0.0, 1.0]]))
    (found,) = answers(learner, [3.0, 4.0])
    assert found == pytest.approx([8 / (5 * 3.2**0.5), 0.6, 0.8], abs=1e-6)  # (1.6, 0.8) (3, 4) = 8


def test_the_euclidean_metric_is_minus_the_squared_distance_to_the_mean():
    learner = taught(metric="euclidean")
    assert learner.counts.tolist() == [2, 2, 1] and learner.counts.dtype == torch.int32
    (found,) = answers(learner, [3.0, 4.0])
    assert found == pytest.approx([-5.0, -17.0, -25.0], abs=1e-5)  # to (2, 2), (2, 0), (0, 8)


def test_a_factor_on_an_images_feature_changes_no_cosine():
    one, large = (answers(taught(), [3.0 * k, 1.0 * k])[0] for k in (1.0, 1e4))
    assert one == pytest.approx(large, abs=1e-6)


def test_on_the_sphere_cosine_and_euclid_choose_the_same_class():
    """Where means have unit length too: one image a class."""
    points = F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(0))).tolist()
    shown = F.normalize(torch.randn(40, 5, generator=torch.Generator().manual_seed(1))).tolist()
    chosen = []
    for metric in ("cosine", "euclidean"):
        learner = bare("simplecil", classes=[3], metric=metric)
        learner.sums = torch.zeros(3, 5)
        learner.after_experience(experience(points, [0, 1, 2], learner))
        chosen.append(torch.tensor(answers(learner, *shown)).argmax(1))
    assert torch.equal(*chosen) and len(chosen[0].unique()) == 3


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_mean_of_parts_is_the_mean_of_all(metric):
    whole = taught(metric=metric)
    parts = taught(POINTS[:2], SLOTS[:2], metric=metric)
    parts.after_experience(experience(POINTS[2:], SLOTS[2:], parts))
    torch.testing.assert_close(parts.sums, whole.sums)
    assert answers(parts, [0.3, 0.7])[0] == pytest.approx(answers(whole, [0.3, 0.7])[0], abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_class_without_an_image_is_never_the_answer(metric):
    learner = taught([[-1.0, -2.0], [-3.0, 0.0]], [0, 2], metric=metric)
    (found,) = answers(learner, [1.0, 1.0])
    assert found[1] == -torch.inf and max(found[0], found[2]) < 0


def test_the_final_answer_is_the_nearest_joint_mean(learn):
    """Numbers found without the strategy: two passes over all images."""
    done = learn("simplecil", split(2), hyperparameters=UNTRAINED)
    learner = done.learner(2)
    features = [extract(learner.net, done.stream[index].train).double() for index in range(3)]
    slots = torch.cat([done.stream[index].train.slots for index in range(3)])
    means = torch.stack([torch.cat(features)[slots == slot].mean(0) for slot in range(6)])
    shown = extract(learner.net, done.stream.test(1)).double()
    expected = (shown @ means.T) / shown.norm(dim=1, keepdim=True) / means.norm(dim=1)
    found = done.run.work.learners.scores(learner, done.stream.test(1).images)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_means_are_of_the_evaluation_view_with_the_trained_network(learn):
    done = learn("simplecil")
    for index in range(3):
        learner = done.learner(index)
        for slot in done.stream.signatures[index].new_slots:
            own = extract(learner.net, done.stream[index].train.of_class(slot)).sum(0)
            torch.testing.assert_close(learner.sums[slot], own, rtol=1e-5, atol=1e-5)


def test_the_first_training_is_cross_entropy_of_a_head_that_is_dropped(tmp_path):
    for kind, head in (("cosine", CosineHead), ("linear", LinearHead)):
        learner = toy_run("simplecil", toy_stream(), tmp_path, hyperparameters={"first_head": kind}).work.learners
        learner = learner.rebuilt(1, None)
        assert type(learner.first_head) is head
        shown = batch(0, 1, 1)
        expected = F.cross_entropy(learner.first_head(learner.net(shown.images).features), shown.slots)
        (phase,) = learner.phases(toy_stream()[0])
        loss = phase.loss(shown)
        assert loss.item() == expected.item() > 0
        gradients = learner.gradient(loss)
        assert sum(bool(gradient.any()) for gradient in gradients) == len(gradients) > 4
        assert not [name for name in learner.state().tensors if "first_head" in name]


def test_counts_are_carried_for_distances_alone(learn):
    for metric, more in (("cosine", 0), ("euclidean", 4 * 6)):
        done = learn("simplecil", hyperparameters={"metric": metric})
        assert done.ledger(2).get("statistics", 0) == more
        assert done.state(2).bytes == 4 * (P + B) + 4 * D * 6 + more


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"strategy.metric of simplecil is 'cosin'.*cosine"):
        bare("simplecil", metric="cosin")
