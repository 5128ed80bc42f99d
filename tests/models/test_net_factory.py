"""The factory: each network is reproducible by its number, and draws from nowhere else."""

from functools import partial

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import CifarResNet, CosineHead, LinearHead, NetFactory, Normalise, SmallConvNet


def make(seed: int = 0, **options) -> NetFactory:
    return NetFactory(SmallConvNet, seed=seed, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_kth_network_depends_on_seed_and_number_only():
    first, second = make(), make()
    networks = [first(), first()]
    torch.rand(17)  # a draw elsewhere
    assert same(networks[0], second())
    torch.manual_seed(99)
    assert same(networks[1], second())
    assert not same(*networks)
    assert not same(networks[0], make(seed=1)())


def test_making_networks_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    factory = make(mean=(0.5,) * 3, std=(0.2,) * 3)
    factory()
    factory.branching().add_branch()
    assert factory.feature_dim == 32
    assert torch.equal(torch.get_rng_state(), state)


def test_asking_for_the_feature_length_does_not_count_as_making_a_network():
    asked, other = make(), make()
    assert asked.feature_dim == 32
    assert same(asked.backbone(), other.backbone())


def test_branches_are_the_factorys_next_backbones():
    factory, other = make(), make()
    net = factory.branching()
    net.add_branch()
    net.add_branch()
    assert same(net.branches[0], other.backbone())
    assert same(net.branches[1], other.backbone())


def test_networks_start_without_outputs_and_with_the_asked_head():
    assert isinstance(make()().head, LinearHead)
    assert isinstance(make(head="cosine")().head, CosineHead)
    assert make(head=partial(CosineHead, proxies=10))().head.proxies == 10
    assert isinstance(make()(head="cosine").head, CosineHead)
    assert make()().num_classes == 0
    with pytest.raises(ConfigError, match="linear or cosine"):
        make(head="round")


def test_convolutions_are_channels_last_unless_told_otherwise():
    def is_last(net: nn.Module) -> bool:
        weight = net.backbone.stages[1][0].weight
        return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()

    net = make()()
    assert is_last(net)
    assert not is_last(make(channels_last=False)())
    assert net.backbone(torch.rand(2, 3, 16, 16))[1][0].is_contiguous(memory_format=torch.channels_last)
    net.load_state_dict({name: value.contiguous() for name, value in net.state_dict().items()})
    assert is_last(net)


def test_maps_stay_channels_last_through_a_padding_shortcut():
    net = NetFactory(partial(CifarResNet, 14))()
    stages = net(torch.rand(2, 3, 32, 32)).stages
    assert all(stage.is_contiguous(memory_format=torch.channels_last) for stage in stages)


def test_batch_counters_of_foreign_backbones_are_dropped_and_statistics_still_move():
    class Foreign(nn.Module):
        feature_dim = 3
        survey_parameters = 6

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x).mean((2, 3)), ()

    net = NetFactory(Foreign)()
    assert [name for name in net.state_dict() if "num_batches" in name] == []
    net(torch.ones(2, 3, 4, 4))
    torch.testing.assert_close(net.backbone.norm.running_mean, torch.full((3,), 0.1))


def test_normalisation_is_given_expected_by_the_weights_or_absent():
    class Trained(SmallConvNet):
        mean, std = (0.1, 0.2, 0.3), (1.0, 1.0, 2.0)

    assert isinstance(make()().normalise, nn.Identity)
    assert make(mean=(0.5,) * 3, std=(0.2,) * 3)().normalise.mean.flatten().tolist() == [0.5] * 3
    inside = NetFactory(Trained)().normalise
    assert isinstance(inside, Normalise)
    assert inside.std.flatten().tolist() == [1, 1, 2]
    with pytest.raises(ConfigError, match="both or neither"):
        make(mean=(0.5,))


def test_on_meta_nothing_is_drawn_or_allocated():
    state = torch.get_rng_state()
    net = make(meta=True)()
    net.grow(10)
    assert all(value.is_meta for value in (*net.parameters(), *net.buffers()))
    assert torch.equal(torch.get_rng_state(), state)
