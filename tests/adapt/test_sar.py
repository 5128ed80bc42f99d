"""SAR: both passes, the perturbation and the way back, by hand."""

import math

import pytest
import torch

from cil.adapt.parts.optimizer import flat
from cil.errors import ConfigError


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loss(gamma):
    """Entropy of logits -gamma, gamma."""
    p, q = sigmoid(2 * gamma), sigmoid(-2 * gamma)
    return -p * math.log(p) - q * math.log(q)


def slope(gamma):
    """Of the mean entropy of both images, in each gamma."""
    return -2 * gamma * sigmoid(2 * gamma) * sigmoid(-2 * gamma)


def by_hand(made, **given):
    return made("sar", made.one_norm(), **{"leave": [], "margin": 1.0, "lr": 0.1, "recover": 0.0} | given)


SHIFTED = 1 - 0.05 / math.sqrt(2)  # both gammas have the same gradient, beta none


def test_the_step_from_here_has_the_gradient_of_the_perturbed_place(made):
    sar = by_hand(made)
    answer = sar.adapt_and_predict(made.crossed)
    assert answer[0].tolist() == pytest.approx([-1, 1], abs=1e-5)
    first = 1 - 0.1 * slope(SHIFTED)
    assert sar.net.norm.weight.tolist() == pytest.approx([first] * 2, abs=1e-6)
    assert sar.average.item() == pytest.approx(loss(SHIFTED), abs=1e-5)
    sar.adapt_and_predict(made.crossed)
    shifted = first - 0.05 / math.sqrt(2)
    moment = 0.9 * slope(SHIFTED) + slope(shifted)  # no Nesterov
    assert sar.net.norm.weight.tolist() == pytest.approx([first - 0.1 * moment] * 2, abs=1e-6)
    assert sar.average.item() == pytest.approx(0.9 * loss(SHIFTED) + 0.1 * loss(shifted), abs=1e-5)


def test_the_perturbation_has_length_rho_and_is_undone(made):
    sar = made("sar", rho=0.3, margin=1.0, lr=0.0)
    seen = []
    sar.net.register_forward_pre_hook(lambda net, args: seen.append(flat(sar.optimizer.tuned).detach()))
    before = made.copied(sar)
    sar.adapt_and_predict(made.pictures(16))
    assert len(seen) == 2
    assert (seen[1] - seen[0]).norm().item() == pytest.approx(0.3, abs=1e-5)
    assert all(torch.equal(sar.state().tensors[name], value) for name, value in before.items() if "net." in name)


def test_it_climbs(made):
    sar = by_hand(made, rho=0.3)
    seen = []
    sar.net.register_forward_pre_hook(lambda net, args: seen.append(net.norm.weight.tolist()))
    sar.adapt_and_predict(made.crossed)
    assert seen[1] == pytest.approx([1 - 0.3 / math.sqrt(2)] * 2, abs=1e-5)  # less of gamma is more entropy


@pytest.mark.parametrize("bound", [0.36, 0.37])  # the entropy is 0.3653 here and 0.3803 at the perturbed place
def test_nothing_moves_where_no_image_is_sure_in_both_passes(made, bound):
    assert loss(1.0) == pytest.approx(0.3653, abs=1e-4) and loss(SHIFTED) == pytest.approx(0.3803, abs=1e-4)
    sar = by_hand(made, margin=bound / math.log(2), recover=0.2)
    before = made.copied(sar)
    sar.adapt_and_predict(made.crossed)
    for name, value in made.copied(sar).items():
        assert torch.equal(value, before[name]), name
    assert sar.average == -1


def test_a_collapsing_loss_brings_back_source_weights_and_a_fresh_optimizer(made):
    sar = by_hand(made, recover=0.2)
    sar.average = torch.tensor(0.18)
    sar.adapt_and_predict(made.crossed)  # 0.9 * 0.18 + 0.1 * 0.3803 = 0.20003
    assert sar.average.item() == pytest.approx(0.20003, abs=1e-4)
    assert sar.net.norm.weight[0] > 1 and sar.optimizer.moments.any()
    sar.average = torch.tensor(0.175)
    sar.adapt_and_predict(made.crossed)  # 0.195
    assert sar.net.norm.weight.tolist() == [1, 1] and sar.net.norm.bias.tolist() == [0, 0]
    assert sar.average == -1 and not sar.optimizer.moments.any()


def test_only_images_that_were_sure_at_first_are_looked_at_again(made):
    sar = made("sar", margin=0.6, lr=0.0, rho=0.0, recover=0.0)
    images = made.pictures(24)
    logits = made("bn_stats").adapt_and_predict(images)
    uncertain = torch.distributions.Categorical(logits=logits).entropy()
    sure = uncertain < 0.6 * math.log(4)
    assert 0 < sure.sum() < 24
    sar.adapt_and_predict(images)
    assert sar.average.item() == pytest.approx(uncertain[sure].mean().item(), abs=1e-4)


def test_of_a_network_of_few_stages_every_norm_is_trained_and_named_ones_are_left(made):
    sar = made("sar", margin=1.0, lr=0.1, leave=["backbone.stages.1"])
    source = made.conv_source().net
    sar.adapt_and_predict(made.pictures(16))
    stages, given = sar.net.backbone.stages, source.backbone.stages
    assert not torch.equal(stages[0][1].weight, given[0][1].weight)
    assert torch.equal(stages[1][1].weight, given[1][1].weight)
    every = made("sar")
    assert made("sar", leave=[]).start.numel() == every.start.numel()
    assert every.start.numel() == sar.start.numel() + 2 * 32
    named = made("sar", leave=["backbone.stages.0"])
    assert named.start.numel() == 2 * 32
    with pytest.raises(
        ConfigError, match=r"adapter.leave of sar: the network has no module .layer4.; it has normalise, backbone, head"
    ):
        made("sar", leave=["layer4"])


def test_a_network_without_known_stages_is_refused(made):
    with pytest.raises(ConfigError, match=r"sar leaves the last stage as it is.*name its modules in adapter.leave"):
        made("sar", made.one_norm())
