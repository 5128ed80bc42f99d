"""Networks that no longer change, and networks in evaluation for a while."""

import pytest
from torch import nn

from cil.models import evaluating, freeze


def made() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.BatchNorm2d(4), nn.ReLU()).train()


def training(net: nn.Module) -> list[str]:
    return [name for name, layer in net.named_modules() if layer.training]


def test_each_layer_is_given_its_own_mode_back_also_after_an_error():
    net = made()
    net[1].eval()
    before = training(net)
    with pytest.raises(KeyError), evaluating(net):
        assert training(net) == []
        raise KeyError
    assert training(net) == before == ["", "0", "0.0", "0.1", "2"]


def test_what_is_frozen_inside_the_block_stays_in_evaluation_mode():
    net = made()
    with evaluating(net):
        freeze(net[0])
    assert training(net) == ["", "1", "2"]
    with evaluating(net):
        freeze(net)
    assert training(net) == [] == training(net.train())


def test_a_layer_that_learns_inside_what_was_frozen_before_is_given_its_own_mode_back():
    net = freeze(made())
    net.append(nn.BatchNorm2d(4))
    with evaluating(net):
        assert training(net) == []
    assert training(net) == ["3"]
