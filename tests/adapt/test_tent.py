"""TENT: the entropy of two images, and the step that lowers it, by hand."""

import math

import pytest
import torch


def slope(gamma):
    """Of the mean entropy in each gamma, where logits are -gamma, gamma and gamma, -gamma: -2 gamma p q."""
    p = 1 / (1 + math.exp(-2 * gamma))
    return -2 * gamma * p * (1 - p)


def test_a_step_of_sgd_is_that_of_the_entropy(made):
    tent = made("tent", made.one_norm(), optimizer="sgd", lr=0.1)
    answer = tent.adapt_and_predict(made.crossed)
    assert answer[0].tolist() == pytest.approx([-1, 1], abs=1e-5)  # before the step
    assert slope(1.0) == pytest.approx(-0.209987, abs=1e-6)
    first = 1 - 0.1 * 1.9 * slope(1.0)  # Nesterov: g + 0.9 g
    norm = tent.net.norm
    assert norm.weight.tolist() == pytest.approx([first, first], abs=1e-6)
    assert norm.bias.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert tent.adapt_and_predict(made.crossed)[0].tolist() == pytest.approx([-first, first], abs=1e-5)
    moment = 0.9 * slope(1.0) + slope(first)
    second = first - 0.1 * (slope(first) + 0.9 * moment)
    assert norm.weight.tolist() == pytest.approx([second, second], abs=1e-6)


def test_the_first_step_of_adam_is_the_learning_rate(made):
    tent = made("tent", made.one_norm(), lr=0.01)
    tent.adapt_and_predict(made.crossed)
    assert tent.net.norm.weight.tolist() == pytest.approx([1.01, 1.01], abs=1e-6)


def test_without_a_learning_rate_it_is_bn_stats(made):
    tent, plain = made("tent", lr=0.0), made("bn_stats")
    for batch in range(3):
        images = made.pictures(6, batch)
        assert torch.equal(tent.adapt_and_predict(images), plain.adapt_and_predict(images))


def test_entropy_falls_on_images_that_it_sees_again(made):
    tent = made("tent", lr=0.01)
    images = made.pictures(32)
    answers = [tent.adapt_and_predict(images) for _ in range(20)]
    entropies = [torch.distributions.Categorical(logits=answer).entropy().mean().item() for answer in answers]
    assert entropies[-1] < 0.8 * entropies[0]
