"""SLDA: streaming class means, one shared covariance, and the linear classifier of the two."""

import numpy as np
import pytest
import torch
from frozen_runs import UNTRAINED, D, experience, split
from small_runs import Fixed, bare
from torch import Tensor

from cil.models import extract
from cil.strategies.slda import _oas, _pooled, _recursion

BLANK = (torch.zeros(3, 4).double(), torch.zeros(3).double(), torch.zeros(4, 4).double())


def data(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated points of three classes that lie apart."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(3, (count,), generator=generator)
    points = torch.randn(count, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double()
    return points + 3 * torch.eye(4).double()[slots], slots


def one_by_one(features: Tensor, slots: Tensor, weigh) -> tuple[Tensor, Tensor]:
    """Sigma and means image by image, Sigma itself carried."""
    means, counts, sigma = torch.zeros(3, 4).double(), [0] * 3, torch.zeros(4, 4).double()
    for n, (phi, y) in enumerate(zip(features, slots.tolist(), strict=True)):
        d = phi - means[y]
        sigma = (n * sigma + weigh(n, counts[y]) * torch.outer(d, d)) / (n + 1)
        means[y] = means[y] + d / (counts[y] + 1)
        counts[y] += 1
    return sigma, means


@pytest.mark.parametrize("update", [_pooled, _recursion])
def test_of_1_and_3_the_mean_is_2_and_the_variance_1(update):
    blank = torch.zeros(1, 1).double(), torch.zeros(1).double(), torch.zeros(1, 1).double()
    mean, count, scatter = update(torch.tensor([[1.0], [3.0]]).double(), torch.tensor([0, 0]), *blank)
    assert (mean.item(), count.item(), (scatter / count).item()) == (2.0, 2.0, 1.0)


def test_the_exact_update_is_the_recursion_that_weighs_by_the_images_own_class():
    features, slots = data()
    sigma, means = one_by_one(features, slots, lambda n, c: c / (c + 1))
    found, counts, scatter = _pooled(features, slots, *BLANK)
    torch.testing.assert_close(scatter / 60, sigma, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, means, rtol=1e-10, atol=1e-10)
    assert counts.tolist() == slots.bincount().tolist()


def test_the_reference_update_is_the_recursion_that_weighs_by_all_images_before():
    features, slots = data()
    sigma, means = one_by_one(features, slots, lambda n, c: n / (n + 1))
    found, _, scatter = _recursion(features, slots, *BLANK)
    torch.testing.assert_close(scatter / 60, sigma, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, means, rtol=1e-10, atol=1e-10)
    again = _recursion(features[30:], slots[30:], *_recursion(features[:30], slots[:30], *BLANK))
    torch.testing.assert_close(again[2], scatter, rtol=1e-10, atol=1e-10)


def test_the_exact_scatter_does_not_depend_on_order_or_parts_and_the_reference_does():
    features, slots = data()
    exact = _pooled(features, slots, *BLANK)
    by_class = slots.argsort(stable=True)
    for order, cut in ((torch.randperm(60, generator=torch.Generator().manual_seed(1)), 13), (by_class, 30)):
        parts = BLANK
        for rows in (order[:cut], order[cut:]):
            parts = _pooled(features[rows], slots[rows], *parts)
        for one, other in zip(parts, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    one, other = _recursion(features, slots, *BLANK), _recursion(features[by_class], slots[by_class], *BLANK)
    torch.testing.assert_close(one[0], other[0], rtol=1e-10, atol=1e-10)  # means do not
    assert (one[2] - other[2]).abs().max() / 60 > 0.1
    assert (one[2] - exact[2]).abs().max() / 60 > 0.1


def test_the_inputs_of_an_update_are_left_alone():
    features, slots = data()
    for update in (_pooled, _recursion):
        held = tuple(tensor.clone() for tensor in BLANK)
        update(features, slots, *held)
        assert all(torch.equal(one, other) for one, other in zip(held, BLANK, strict=True))


def taught(features: Tensor, slots: Tensor, **hyperparameters):
    """A learner that was shown these features, rebuilt from its state."""
    learner = bare("slda", classes=[3], **hyperparameters)
    d = features.shape[1]
    learner.means, learner.scatter = torch.zeros(3, d).double(), torch.zeros(d, d).double()
    learner.after_experience(experience(features.float().tolist(), slots.tolist(), learner))
    learner.load_state(learner.state())
    return learner


def scores(learner, features: Tensor) -> Tensor:
    learner.net = Fixed([[]] * len(features), features.float().tolist())
    return learner.predict(torch.zeros(len(features), 3, 12, 12))


def test_it_is_the_linear_discriminant_of_scikit_learn():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features, slots = data(200)
    other = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(features.numpy(), slots.numpy())
    learner = taught(features, slots, shrinkage=0)
    np.testing.assert_allclose((learner.scatter / 200).numpy(), other.covariance_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(learner.rows.numpy(), other.coef_, rtol=1e-4, atol=1e-4)
    bias = other.intercept_ - np.log(slots.bincount().numpy() / 200)
    np.testing.assert_allclose(learner.bias.numpy(), bias, rtol=1e-4, atol=1e-4)
    shown, _ = data(50, seed=3)
    expected = shown.float().double().numpy() @ other.coef_.T + bias
    np.testing.assert_allclose(scores(learner, shown).detach().numpy(), expected, rtol=1e-4, atol=1e-3)


def test_scores_by_hand():
    """Means (0, 0) and (2, 0), Sigma the identity after shrinking by one half: (1/2) 1 + (1/2) 1."""
    points = torch.tensor([[1.0, 1], [-1, -1], [1, -1], [-1, 1], [3, 1], [1, -1], [3, -1], [1, 1]])
    learner = taught(points, torch.tensor([0] * 4 + [1] * 4), shrinkage=0.5)
    assert learner.means[:2].tolist() == [[0, 0], [2, 0]]
    torch.testing.assert_close(learner.scatter / 8, torch.eye(2).double())
    found = scores(learner, torch.tensor([[1.0, 5.0], [3.0, 0.0]]))
    assert found[:, 0].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert found[:, 1].tolist() == pytest.approx([2 - 2, 6 - 2], abs=1e-6)  # mu' phi - mu' mu / 2
    assert torch.isneginf(found[:, 2]).all()  # no image of class 2, whose zero mean would score 0


def test_with_an_isotropic_covariance_it_is_the_nearest_mean():
    features, slots = data()
    learner = taught(features, slots, shrinkage=1)
    shown, _ = data(80, seed=4)
    nearest = torch.cdist(shown, learner.means).argmin(1)
    assert torch.equal(scores(learner, shown).argmax(1), nearest)
    assert not torch.equal(scores(taught(features, slots), shown).argmax(1), nearest)


def test_the_shrunk_covariance_is_solved_exactly_where_it_is_nearly_singular():
    """More dimensions than images: rows solve [(1 - eps) Sigma + eps I] x = mu to eight digits."""
    generator = torch.Generator().manual_seed(0)
    features, slots = torch.randn(9, 30, generator=generator) * 10, torch.arange(9) % 3
    learner = taught(features, slots)
    shrunk = (1 - 1e-4) * learner.scatter / 9 + 1e-4 * torch.eye(30).double()
    torch.testing.assert_close(learner.rows @ shrunk, learner.means, rtol=1e-8, atol=1e-8)


def test_the_reference_goes_through_images_in_a_keyed_order():
    features, slots = data()
    found = taught(features, slots, covariance="reference").scatter
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))  # a bare learner's key
    features = features.float().double()
    torch.testing.assert_close(found, _recursion(features[order], slots[order], *BLANK)[2], rtol=1e-6, atol=1e-6)


def test_the_covariance_of_the_first_experience_may_be_shrunk():
    from sklearn.covariance import OAS

    features, slots = data(12)
    means, counts, scatter = _oas(features, slots, 3)
    inner = (features - means[slots]).numpy()
    np.testing.assert_allclose(scatter.numpy(), 12 * OAS(assume_centered=True).fit(inner).covariance_)
    plain = _pooled(features, slots, *BLANK)
    torch.testing.assert_close(means, plain[0])
    assert torch.equal(counts, plain[1])
    learner = taught(features, slots, base="oas")
    torch.testing.assert_close(learner.scatter, scatter, rtol=1e-5, atol=1e-5)
    more, other = data(20, seed=8)
    learner.after_experience(experience(more.float().tolist(), other.tolist(), learner, index=1))
    expected = _pooled(more, other, means, counts, scatter)[2]  # from then on plain
    torch.testing.assert_close(learner.scatter, expected, rtol=1e-5, atol=1e-4)


def test_the_statistics_after_the_stream_are_those_of_all_images(learn):
    done = learn("slda", split(2), hyperparameters=UNTRAINED)
    learner = done.learner(2)
    features = torch.cat([extract(learner.net, done.stream[index].train).double() for index in range(3)])
    slots = torch.cat([done.stream[index].train.slots for index in range(3)])
    means = torch.stack([features[slots == slot].mean(0) for slot in range(6)])
    inner = features - means[slots]
    torch.testing.assert_close(learner.means.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(learner.scatter.double(), inner.T @ inner, rtol=1e-4, atol=1e-5)
    assert torch.equal(learner.scatter, learner.scatter.T)
    assert learner.counts.tolist() == [12] * 6


def test_the_classifier_is_neither_carried_nor_left_out_of_the_training_bill(learn):
    done = learn("slda")
    assert set(done.state(2).tensors) - set(done.net(2)) == {"means", "counts", "scatter"}
    assert done.trained_with(2)["rows"] == 8 * 4 * D  # float64, of the four classes before
