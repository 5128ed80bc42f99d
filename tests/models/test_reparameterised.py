"""1x1 adapters beside 3x3 convolutions: they add, they learn alone, and fold without a trace."""

from functools import partial

import pytest
import torch
from torch import nn

from cil.models import GrowingNet, LinearHead, ParallelAdapters, adaptable, build_backbone

NETS = {
    "bias": partial(build_backbone, "smallconv", 3, 12),
    "no bias": partial(build_backbone, "resnet14", 3, 16),
    "strides": partial(build_backbone, "resnet10", 3, 32, stem="3x3"),
    "bottlenecks": partial(build_backbone, "resnet26b", 3, 32),
    "groups": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, 2, padding=1, groups=2, bias=False)
    ),
    "dilation": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2, padding_mode="reflect")),
}


def made(name):
    """The network in evaluation mode with statistics of its own, and images."""
    torch.manual_seed(0)
    net = NETS[name]().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return net, torch.rand(2, 3, 16, 16)


def out(net, images):
    found = net(images)
    return found[0] if isinstance(found, tuple) else found


def trained(adapters):
    """Values as after training."""
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.05)
    return adapters


@pytest.mark.parametrize("name", NETS)
def test_new_adapters_change_nothing(name):
    net, images = made(name)
    before = out(net, images)
    ParallelAdapters(net)
    assert torch.equal(out(net, images), before)


@pytest.mark.parametrize("name", NETS)
def test_outputs_are_the_same_before_and_after_folding(name):
    net, images = made(name)
    plain = out(net, images)
    adapters = trained(ParallelAdapters(net))
    before = out(net, images)
    assert (before - plain).abs().max() > 1e-2
    adapters.fold()
    torch.testing.assert_close(out(net, images), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_folding_moves_the_middle_of_the_kernels_and_the_biases_alone(name):
    net, _ = made(name)
    names = list(net.state_dict())
    old = {key: value.clone() for key, value in net.state_dict().items()}
    layers = adaptable(net)
    adapters = trained(ParallelAdapters(net))
    assert list(net.state_dict()) == names  # the structure is that of the network
    learned = [
        (a.weight.detach().clone(), None if a.bias is None else a.bias.detach().clone()) for a in adapters.beside
    ]
    adapters.fold()
    kernels = {id(layer): pair for layer, pair in zip(layers, learned, strict=True)}
    own = {f"{key}.{part}": layer for key, layer in net.named_modules() for part in ("weight", "bias")}
    for key, value in net.state_dict().items():
        if id(own.get(key)) in kernels:
            weight, bias = kernels[id(own[key])]
            if key.endswith("bias"):
                torch.testing.assert_close(value, old[key] + bias)
            else:
                change = value - old[key]
                torch.testing.assert_close(change[:, :, 1, 1], weight[:, :, 0, 0], rtol=1e-4, atol=1e-6)
                change[:, :, 1, 1] = 0
                assert not change.any()
        else:
            assert torch.equal(value, old[key])


def test_after_folding_adapters_are_zero_and_have_no_say():
    net, images = made("bias")
    adapters = trained(ParallelAdapters(net))
    adapters.fold()
    assert all(not parameter.any() for parameter in adapters.parameters())
    before = out(net, images)
    trained(adapters)
    assert torch.equal(out(net, images), before)
    adapters.fold()
    assert not any(layer._forward_hooks for layer in net.modules())


def test_the_second_time_starts_from_the_folded_network():
    net, images = made("strides")
    for _ in range(2):
        adapters = trained(ParallelAdapters(net))
        before = out(net, images)
        adapters.fold()
        torch.testing.assert_close(out(net, images), before, rtol=1e-5, atol=1e-5)


def test_the_parameters_are_those_of_1x1_kernels_and_biases():
    net, _ = made("bias")
    adapters = ParallelAdapters(net)
    assert [tuple(p.shape) for p in adapters.parameters()] == [(16, 3, 1, 1), (16,), (32, 16, 1, 1), (32,)]
    assert len(adaptable(made("no bias")[0])) == 13  # the stem, and two in each of six blocks: shortcuts have none


def test_they_get_gradients_and_the_network_theirs():
    net = GrowingNet(made("bias")[0], LinearHead(32))
    net.grow(2)
    adapters = ParallelAdapters(net.backbone)
    net(torch.rand(2, 3, 12, 12)).logits.square().sum().backward()
    for layer, beside in zip(adaptable(net), adapters.beside, strict=True):
        torch.testing.assert_close(beside.weight.grad[:, :, 0, 0], layer.weight.grad[:, :, 1, 1], rtol=1e-4, atol=1e-5)
        assert beside.weight.grad.any()


def test_other_convolutions_stay_alone():
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 5, padding=2), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding="same"),
        nn.Conv2d(3, 3, (3, 1)), nn.Conv2d(3, 3, 3, padding=1),
    )  # fmt: skip
    assert adaptable(net) == [net[5]]
