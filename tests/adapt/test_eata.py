"""EATA: filters, weights, Fisher information by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from cil.adapt.parts.losses import entropy, gradients
from cil.adapt.parts.norms import train_norms, use_batch_statistics
from cil.adapt.parts.optimizer import flat, make_optimizer
from cil.data import Samples
from cil.engine.keys import generator
from cil.errors import ConfigError

P, Q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
ENTROPY = -P * math.log(P) - Q * math.log(Q)  # of logits -1, 1: 0.365334
SLOPE = -2 * P * Q  # of the mean entropy in each gamma
CALM = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0}


def crossed_samples(made):
    return Samples.from_arrays((255 * made.crossed).round().byte(), torch.tensor([0, 1]))


def test_the_step_is_that_of_the_weighted_entropy(made):
    eta = made("eata", made.one_norm(), strength=0, margin=1.0, **CALM)
    answer = eta.adapt_and_predict(made.crossed)
    assert answer[0].tolist() == pytest.approx([-1, 1], abs=1e-5)
    moved = 1 - 0.1 * math.exp(math.log(2) - ENTROPY) * SLOPE
    assert moved == pytest.approx(1 + 0.1 * 1.387929 * 0.209987, abs=1e-6)
    assert eta.net.norm.weight.tolist() == pytest.approx([moved] * 2, abs=1e-6)
    assert eta.mean.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_images_that_are_unsure_are_left_out(made):
    sure = [([0.2, 0.8], ENTROPY)]
    assert sure[0][1] == pytest.approx(0.365334, abs=1e-6)
    for margin, moves in ((0.52, False), (0.54, True)):  # E0 = 0.3604, 0.3743
        eta = made("eata", made.one_norm(), strength=0, margin=margin, **CALM)
        before = made.copied(eta)
        eta.adapt_and_predict(made.crossed)
        changed = {name for name, value in made.copied(eta).items() if not torch.equal(value, before[name])}
        assert bool(changed) is moves


def test_images_like_the_mean_prediction_are_left_out_from_the_second_batch_on(made):
    # cosine of (1/2, 1/2) and (q, p): 0.5 / (0.707107 * 0.888828) = 0.795539
    assert 0.5 / (0.5**0.5 * math.hypot(P, Q)) == pytest.approx(0.795539, abs=1e-4)
    for similarity, moves in ((0.79, False), (0.80, True)):
        eta = made("eata", made.one_norm(), strength=0, margin=1.0, similarity=similarity, **CALM | {"lr": 0.0})
        eta.adapt_and_predict(made.crossed)
        assert eta.mean.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
        eta.optimizer.lr, before = 0.1, eta.net.norm.weight.tolist()
        eta.adapt_and_predict(made.crossed)
        assert (eta.net.norm.weight.tolist() != before) is moves


def test_the_mean_prediction_moves_by_a_tenth_of_that_of_the_kept_images(made):
    eta = made("eata", made.one_norm(), strength=0, margin=1.0, similarity=2.0, lr=0.0)
    eta.mean = torch.tensor([0.9, 0.1])
    eta.adapt_and_predict(made.crossed)
    assert eta.mean.tolist() == pytest.approx([0.9 * 0.9 + 0.05, 0.9 * 0.1 + 0.05], abs=1e-6)


def test_only_kept_images_enter_mean_prediction_and_loss(made):
    images = made.pictures(24)
    eta = made("eata", strength=0, similarity=2.0, margin=0.6, **CALM)
    twin = made("bn_stats")
    logits = twin.adapt_and_predict(images)
    kept = entropy(logits) < 0.6 * math.log(4)
    assert 0 < kept.sum() < 24
    eta.adapt_and_predict(images)
    torch.testing.assert_close(eta.mean, logits[kept].softmax(1).mean(0))


def test_fisher_information_is_the_square_of_the_batch_gradient(made):
    eata = made("eata", made.one_norm(), strength=1.0)
    eata.deploy(crossed_samples(made))
    # labels are the network's own: dL / dgamma = -q for both
    assert eata.fisher[:2].tolist() == pytest.approx([Q * Q] * 2, rel=1e-4)
    assert eata.fisher[2:].tolist() == pytest.approx([0, 0], abs=1e-6)


def test_fisher_information_is_the_mean_over_batches_of_so_many_samples(made):
    samples = made.source_samples(40)
    eata = made("eata", samples=20, fisher_batch=8)
    eata.deploy(samples)
    rows = torch.randperm(40, generator=generator(0, "adapt", 0, "fisher"))[:20]
    net = use_batch_statistics(made.conv_source().net)
    tuned = train_norms(net, "eata")
    squares = []
    for part in rows.split(8):
        logits = net(samples[part].images).logits
        squares.append(flat(gradients(F.cross_entropy(logits, logits.argmax(1)), tuned)).square())
    assert len(squares) == 3
    torch.testing.assert_close(eata.fisher, sum(squares) / 3)


def test_the_fisher_term_pulls_back_by_twice_strength_fisher_and_distance(made):
    moved = []
    for strength in (0.0, 5.0):
        eata = made("eata", made.one_norm(), strength=strength, margin=1.0, **CALM)
        eata.deploy(crossed_samples(made))
        with torch.no_grad():
            eata.net.norm.weight.fill_(1.5)
        eata.adapt_and_predict(made.crossed)
        moved.append(eata.net.norm.weight[0].item())
    assert moved[0] - moved[1] == pytest.approx(0.1 * 2 * 5.0 * Q * Q * 0.5, rel=1e-3)


def test_without_strength_it_is_eta_which_carries_no_fisher_information(made):
    eta, net = made("eata", strength=0, similarity=0.95, margin=0.8), use_batch_statistics(made.conv_source().net)
    assert not eta.needs_source and made("eata").needs_source
    eta.deploy(None)
    optimizer = make_optimizer(train_norms(net, "eta"), "eta", 4, None, None, 0.9)
    mean, bound, steps, dropped = None, 0.8 * math.log(4), 0, 0
    for batch in range(6):
        images = made.pictures(24, batch)
        logits = net(images).logits
        uncertain, predicted = entropy(logits), logits.softmax(1).detach()
        kept = uncertain < bound
        if mean is not None:
            new = F.cosine_similarity(mean[None], predicted).abs() < 0.95
            dropped += int((kept & ~new).sum())
            kept &= new
        if kept.any():
            new = predicted[kept].mean(0)
            mean = new if mean is None else 0.9 * mean + 0.1 * new
            loss = (torch.exp(bound - uncertain.detach()) * uncertain)[kept].mean()
            optimizer.step(gradients(loss, optimizer.tuned))
            steps += 1
        torch.testing.assert_close(eta.adapt_and_predict(images), logits.detach(), rtol=1e-4, atol=1e-5)
    assert steps >= 2 and dropped > 0
    torch.testing.assert_close(flat(eta.optimizer.tuned), flat(optimizer.tuned), rtol=1e-4, atol=1e-6)
    assert not {"fisher", "start"} & set(eta.state().tensors)


def test_fisher_information_needs_source_data(made):
    for nothing in (None, made.source_samples(40)[[]]):
        with pytest.raises(ConfigError, match=r"source data, and there is none; adapter.strength=0"):
            made("eata").deploy(nothing)


def test_defaults_are_those_of_the_data_set(made):
    found = [made("eata", made.one_norm(classes)) for classes in (10, 100, 1000)]
    assert [(eata.similarity, eata.strength) for eata in found] == [(0.4, 1.0), (0.1, 1.0), (0.05, 2000.0)]
    assert [eata.bound for eata in found] == pytest.approx([0.921034, 1.842068, 2.763102], abs=1e-6)
