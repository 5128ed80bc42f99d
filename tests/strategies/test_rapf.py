"""RAPF: a map on frozen features, near pairs of texts, samples of old classes, and weights that are fused."""

import pytest
import torch
from small_runs import bare, batch, differing

from cil.models import extract
from cil.strategies.rapf import fused, near_pairs


def test_weights_are_fused_in_the_axes_of_the_old_ones():
    old, new = torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([[2.2, 0.5], [0.0, 2.0]])
    torch.testing.assert_close(fused(old, new, 0.6), torch.tensor([[2.16, 0.5], [0.0, 2.0]]))
    torch.testing.assert_close(fused(old, new, 1.0), new)
    torch.testing.assert_close(fused(old, old, 0.6), old)


def test_pairs_are_an_old_and_a_new_class():
    weights = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.1]]))
    old, new = near_pairs(weights, 2, 0.55)
    assert (old.tolist(), new.tolist()) == ([0, 1], [3, 3])


def test_statistics_are_of_raw_features_which_never_change(learn):
    done = learn("rapf")
    assert differing(done.net(0), done.net(2)) == []
    learner, train = done.learner(2), done.stream[0].train.of_class(1)
    torch.testing.assert_close(learner.gaussians.means[1], extract(learner.net, train).mean(0), rtol=1e-4, atol=1e-5)
    assert torch.equal(done.learner(0).weights, learner.weights[:2])
    assert done.ledger(2)["statistics"] == 6 * (4 * 32 + 2 * 32 * 33 + 8)


def test_an_identity_starts_as_clip_answers():
    learner, plain = bare("rapf", classes=[2], start="identity"), bare("clip_zero_shot", classes=[2])
    learner.weights = plain.weights = torch.nn.functional.normalize(torch.randn(2, 32))
    images = torch.rand(3, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(learner.predict(images), plain.predict(images))


def test_the_hinge_by_hand():
    """A sample at w_0, its mean: max(0, .1 - 1 + .95) = .05 where w_1 has a cosine of .95, and 0 where it has .85."""
    learner = bare("rapf", classes=[1, 1], start="identity", margin=0.1)
    learner.context.generator = lambda purpose: torch.Generator().manual_seed(0)
    learner.gaussians.update(torch.eye(32)[:1], torch.tensor([0]))
    learner.roots = torch.zeros(1, 32, 32)
    for cosine, expected in ((0.95, 0.05), (0.85, 0.0)):
        learner.weights = torch.eye(32)[:2].clone()
        learner.weights[1, :2] = torch.tensor([cosine, (1 - cosine**2) ** 0.5])  # nearer than .55
        learner.old_classes = 1
        assert learner.loss(batch(1))["pairs"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("near", [0.0, 3.0])
def test_the_hinge_is_there_where_texts_are_near(learn, near):
    done = learn("rapf", hyperparameters={"near": near})
    named = {name for line in done.record.lines() if line["kind"] == "step" for name in line["values"]}
    assert ("pairs" in named) == (near > 0) and "loss" in named
