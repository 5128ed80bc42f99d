"""FeCAM: a Gaussian a class, its correlation shrunk, and the nearest in Mahalanobis distance."""

import pytest
import torch
import torch.nn.functional as F
from frozen_runs import UNTRAINED, D, experience, scores_by_label, split
from small_runs import Fixed, bare

from cil.errors import ConfigError, TrainingError
from cil.memory import Prototypes
from cil.models import extract
from cil.strategies.fecam import correlation_of, inverse_root, shrink

PLAIN = {"tukey": None}


def taught(points, slots, classes=2, **hyperparameters):
    learner = bare("fecam", classes=[classes], **{**PLAIN, **hyperparameters})
    kept = learner.gaussians
    learner.gaussians = Prototypes(len(points[0]), kept.spread, kept.rank if kept.rank < len(points[0]) else 1)
    learner.gaussians.grow(classes)
    learner.after_experience(experience(points, slots, learner))
    learner.load_state(learner.state())
    return learner


def answers(learner, *features):
    learner.net = Fixed([[]] * len(features), features)
    return learner.predict(torch.zeros(len(features), 3, 12, 12)).detach()


def test_the_distance_by_hand():
    """S = [[4, 2], [2, 4]] with both gammas 1 has the correlation [[1, .5], [.5, 1]]; of d = (1, 0) it makes 4/3."""
    correlation = correlation_of(shrink(torch.tensor([[4.0, 2.0], [2.0, 4.0]]).double(), 1.0, 1.0))
    torch.testing.assert_close(correlation, torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double())
    root = inverse_root(correlation)
    assert float((root @ torch.tensor([1.0, 0.0]).double()).square().sum()) == pytest.approx(4 / 3)


def test_scores_are_minus_the_mahalanobis_distance_of_unit_vectors():
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    points = torch.randn(20, 2, generator=generator) @ mix + torch.tensor([3.0, 1.0])
    slots = [0, 1] * 10
    learner = taught(points.tolist(), slots)
    shown = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]).double()
    found = answers(learner, *shown.float().tolist())
    for slot in (0, 1):
        own = points[slot::2].double()
        sigma = torch.cov(own.T, correction=0)
        sigma = sigma + sigma.diagonal().mean() * torch.eye(2) + sigma[0, 1] * (1 - torch.eye(2))
        d = sigma.diagonal().sqrt()
        away = F.normalize(shown) - F.normalize(own.mean(0), dim=0)
        expected = -(away @ torch.linalg.inv(sigma / d / d[:, None]) * away).sum(1)
        torch.testing.assert_close(found[:, slot].double(), expected, rtol=1e-4, atol=1e-6)


def test_with_equal_and_unrelated_variances_it_is_the_nearest_mean_of_unit_vectors():
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    points = torch.cat([axes + torch.tensor([4.0, 0.0, 1.0]), axes + torch.tensor([0.0, 5.0, 0.0])])
    learner = taught(points.tolist(), [0] * 6 + [1] * 6)
    shown = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    means = F.normalize(torch.tensor([[4.0, 0.0, 1.0], [0.0, 5.0, 0.0]]))
    expected = -torch.cdist(F.normalize(shown), means).square()
    torch.testing.assert_close(answers(learner, *shown.tolist()), expected, rtol=1e-4, atol=1e-5)


def test_variances_alone_are_held_as_rows_and_scale_each_difference_by_hand():
    """Of (0, 0), (4, 2): mean (2, 1), variances (4, 1), their mean 2.5 added: 6.5 and 3.5."""
    learner = taught([[0.0, 0.0], [4.0, 2.0]], [0, 0], covariance="diagonal", correlation=False, tukey=None)
    assert learner.factors.ndim == 2  # (C, D)
    found = answers(learner, [5.0, 0.0])
    assert found[0, 0] == pytest.approx(-(9 / 6.5 + 1 / 3.5), rel=1e-5)


def test_a_class_of_one_image_takes_the_mean_covariance_and_one_without_images_never_answers():
    points = torch.randn(8, 3, generator=torch.Generator().manual_seed(2)) * torch.tensor([3.0, 1.0, 0.2])
    learner = taught([*points.tolist(), [1.0, 1.0, 1.0]], [0] * 8 + [2], classes=3)
    torch.testing.assert_close(learner.factors[2], learner.factors[0])
    found = answers(learner, [1.0, 1.0, 1.0])
    assert found[0, 1] == -torch.inf and found[0, 2] == pytest.approx(0.0, abs=1e-6)


def test_features_below_zero_have_no_power():
    with pytest.raises(TrainingError, match=r"features below 0 have no power; set strategy.tukey to null"):
        taught([[1.0, -1.0]], [0], tukey=0.5)
    assert bare("fecam").tukey is None or bare("fecam").tukey == 0.5
    learner = taught([[4.0, 9.0], [16.0, 25.0]], [0, 0], tukey=0.5)
    assert learner.gaussians.means[0].tolist() == [3.0, 4.0]


def test_a_diagonal_that_would_become_ones_is_refused():
    with pytest.raises(ConfigError, match=r"covariance of fecam is 'diagonal'.*correlation=true.*set it to false"):
        bare("fecam", covariance="diagonal")


def test_the_shrunk_correlation_has_ones_on_its_diagonal():
    matrix = torch.randn(5, 5, generator=torch.Generator().manual_seed(3)).double()
    found = correlation_of(shrink(matrix @ matrix.T, 1.0, 0.5))
    torch.testing.assert_close(found.diagonal(), torch.ones(5).double())


@pytest.mark.parametrize(("covariance", "each", "once"), [
    ("full", 2 * D * (D + 1), 0), ("low_rank", 4 * (3 * D + 1), 0), ("diagonal", 4 * D, 0),
    ("tied", 0, 2 * D * (D + 1)),
])  # fmt: skip
def test_the_bytes_of_the_statistics(covariance, each, once):
    learner = bare("fecam", classes=[4], covariance=covariance, rank=3, correlation=False)
    held = learner.structure()
    found = sum(t.numel() * t.element_size() for name, t in held.tensors.items() if name.startswith("gaussians"))
    assert found == learner.side_bytes() == 4 * (4 * D + 8 + each) + once


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_neither_order_nor_grouping_of_the_classes_matters(learn, covariance):
    """The final scores of all test images, by label; and statistics are those of all images at once."""
    options = {"hyperparameters": {**UNTRAINED, "covariance": covariance}}
    pairs, whole, singles = (
        learn("fecam", stream, **options) for stream in (split(2), split(6), split(1, order=[4, 2, 0, 5, 1, 3]))
    )
    expected = scores_by_label(whole)
    for other in (pairs, singles):
        torch.testing.assert_close(scores_by_label(other), expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(scores_by_label(other).argmax(1), expected.argmax(1))
    learner = whole.learner(0)
    features = extract(learner.net, whole.stream[0].train).double()
    if learner.tukey:
        features = features**learner.tukey
    own = features[whole.stream[0].train.slots == 3]
    torch.testing.assert_close(learner.gaussians.means[3].double(), own.mean(0), rtol=1e-5, atol=1e-6)
