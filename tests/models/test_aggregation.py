"""A backbone of two branches: what it computes, what of it learns, and how large it is."""

from functools import partial

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import (
    AggregatedBackbone,
    ScaledConv2d,
    build_backbone,
    count_parameters,
)

IMAGES = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def made(name="smallconv", size=12, **how):
    torch.manual_seed(0)
    backbone = AggregatedBackbone(build_backbone(name, 3, size))
    for norm in (layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # as trained, so that branches are told apart
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    if how:
        backbone.split(**how)
    return backbone.eval()


def shaken(backbone):
    """The plastic branch at other weights."""
    with torch.no_grad():
        for parameter in backbone.branches[1].parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return backbone


# scaled convolutions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "bias": False}, {"dilation": 2}])
def test_a_scaled_convolution_is_one_with_each_kernel_multiplied_by_its_factor(options):
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, **options)
    x, weight = torch.rand(2, 4, 9, 9), convolution.weight.detach().clone()
    before = convolution(x)
    scaled = ScaledConv2d(convolution)
    assert scaled.scale.shape == (6, 4 // convolution.groups, 1, 1)
    assert torch.equal(scaled(x), before)
    factors = torch.rand(6, 4 // convolution.groups)
    with torch.no_grad():
        scaled.scale[:, :, 0, 0] = factors
        twin = nn.Conv2d(4, 6, 3, **options)
        twin.weight.copy_(weight * factors[:, :, None, None])
        if twin.bias is not None:
            twin.bias.copy_(scaled.bias)
    torch.testing.assert_close(scaled(x), twin(x))
    assert [name for name, p in scaled.named_parameters() if p.requires_grad] == ["scale"]


def test_a_convolution_that_is_padded_otherwise_is_refused():
    with pytest.raises(ConfigError, match="padded with reflect"):
        ScaledConv2d(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))


# two branches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("smallconv", 12), ("resnet14", 32), ("resnet14_cosine", 32)])
@pytest.mark.parametrize("stable", ["scaled", "frozen"])
def test_a_split_changes_nothing_that_is_computed(name, size, stable):
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    plain = made(name, size)
    features, maps = plain(images)
    plain.split(stable)
    after, mixed = plain.eval()(images)
    assert torch.equal(after, features)
    assert len(mixed) == len(maps) and all(map(torch.equal, mixed, maps))
    assert plain.is_split and plain.mixture.tolist() == [0.5] * len(maps)


def test_maps_are_mixed_by_the_shares_and_both_branches_go_on_from_the_mixture():
    backbone = shaken(made(stable="scaled"))
    stable, plastic = backbone.branches
    with torch.no_grad():
        backbone.mixture.copy_(torch.tensor([0.3, 0.9]))
    first = 0.3 * stable.stages[0](stable.stem(IMAGES)) + 0.7 * plastic.stages[0](plastic.stem(IMAGES))
    second = 0.9 * stable.stages[1](first) + 0.1 * plastic.stages[1](first)
    features, maps = backbone(IMAGES)
    torch.testing.assert_close(maps[0], first)
    torch.testing.assert_close(maps[1], second)
    torch.testing.assert_close(features, second.mean((2, 3)))


@pytest.mark.parametrize(("share", "branch"), [(1.0, 0), (0.0, 1)])
def test_with_all_of_the_share_a_branch_answers_alone(share, branch):
    backbone = shaken(made("resnet14_cosine", 32, stable="scaled"))
    nn.init.constant_(backbone.mixture, share)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(backbone(images)[0], backbone.branches[branch](images)[0])
    assert not torch.allclose(backbone(images)[0], backbone.branches[1 - branch](images)[0])


def test_the_scaled_branch_learns_factors_and_batch_norm_the_plastic_one_everything():
    backbone = made(stable="scaled").train()
    statistics = backbone.branches[0].stages[0][1].running_mean.clone()
    backbone(IMAGES)[0].square().sum().backward()
    learned = {name for name, p in backbone.branches[0].named_parameters() if p.grad is not None}
    assert learned == {f"stages.{k}.{part}" for k in (0, 1) for part in ("0.scale", "1.weight", "1.bias")}
    assert all(p.grad is not None for p in backbone.branches[1].parameters())
    assert backbone.mixture.grad is not None
    assert not torch.equal(backbone.branches[0].stages[0][1].running_mean, statistics)


def test_nothing_of_a_frozen_branch_moves_whoever_calls_train():
    backbone = made(stable="frozen").train()
    before = {name: value.clone() for name, value in backbone.branches[0].state_dict().items()}
    backbone(IMAGES)[0].sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in backbone.branches[0].parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.branches[0].state_dict().items())
    assert backbone.branches[1].training


def test_the_branches_share_no_memory():
    backbone = made(stable="scaled")
    one, other = ({p.data_ptr() for p in branch.state_dict().values()} for branch in backbone.branches)
    assert not one & other


def test_two_resnet32_with_a_factor_for_each_kernel_are_the_surveys_099_million():
    with torch.device("meta"):
        backbone = AggregatedBackbone(build_backbone("resnet32_cosine", 3, 32))
        backbone.split()
    factors = 16 * 3 + 10 * 16**2 + (32 * 16 + 9 * 32**2) + (64 * 32 + 9 * 64**2) + (32 * 16 + 64 * 32)
    assert factors == 53_808
    assert backbone.survey_parameters == count_parameters(backbone) == 2 * 466_256 + factors + 3 == 986_323
    assert round(backbone.survey_parameters / 1e6, 2) == 0.99
    assert all(value.is_meta for value in backbone.state_dict().values())


class Odd(nn.Module):
    feature_dim = 4


@pytest.mark.parametrize("make", [Odd, partial(build_backbone, "timm:resnet10t", 3, 32)])
def test_a_backbone_without_stages_is_refused_in_one_line(make):
    with pytest.raises(ConfigError, match=r"no levels to mix; choose a model\.name"):
        AggregatedBackbone(make())
