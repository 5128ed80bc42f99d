"""Wide residual networks: published parameter counts, shapes, the pre-activation block by hand."""

import pytest
import torch
import torch.nn.functional as F

from cil.errors import ConfigError
from cil.models import GrowingNet, LinearHead, WideResNet, build_backbone, count_parameters
from cil.models.wide_resnets import WideBlock


def on_meta(name: str, outputs: int, size: int = 32, **options) -> GrowingNet:
    with torch.device("meta"):
        backbone = build_backbone(name, in_channels=3, image_size=size, **options)
        net = GrowingNet(backbone, LinearHead(backbone.feature_dim))
    net.grow(outputs)
    return net


@pytest.mark.parametrize(
    ("name", "outputs", "parameters", "options"),
    [
        ("wrn_28_10", 10, 36_479_194, {}),
        ("wrn_40_2", 10, 2_243_546, {}),
        ("resnext29", 10, 6_807_882, {}),
        ("resnet50", 1000, 25_557_032, {}),
        ("resnet50", 100, 23_705_252, {"stem": "3x3"}),
    ],
)
def test_parameters_with_a_classifier_are_the_published_ones(name, outputs, parameters, options):
    assert count_parameters(on_meta(name, outputs, **options)) == parameters


def test_maps_halve_twice_and_the_feature_is_the_mean_of_the_last():
    backbone = WideResNet(10, 2).eval()
    features, stages = backbone(torch.rand(2, 3, 32, 32))
    assert [tuple(stage.shape[1:]) for stage in stages] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]
    assert torch.equal(features, stages[-1].mean((2, 3)))
    assert features.min() >= 0  # the last ReLU is part of the last stage
    assert stages[0].min() < 0  # a pre-activation block ends with a sum


def test_resnet50_for_small_images_keeps_their_size_in_the_first_stage():
    _, stages = on_meta("resnet50", 10, stem="3x3").backbone(torch.empty(2, 3, 32, 32, device="meta"))
    assert [tuple(stage.shape[1:]) for stage in stages] == [(256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4)]


@pytest.mark.parametrize(("inputs", "stride"), [(4, 1), (2, 1), (4, 2)])
def test_a_block_activates_first_and_adds_the_activated_input_only_where_the_shape_changes(inputs, stride):
    block, x = WideBlock(inputs, 4, stride).eval(), torch.randn(2, inputs, 6, 6)
    scale = 1 / (1 + 1e-5) ** 0.5  # a fresh batch norm
    active = F.relu(x * scale)
    body = F.conv2d(
        F.relu(F.conv2d(active, block.conv1.weight, None, stride, 1) * scale), block.conv2.weight, None, 1, 1
    )
    plain = inputs == 4 and stride == 1
    expected = body + (x if plain else F.conv2d(active, block.shortcut.weight, None, stride))
    assert torch.allclose(block(x.clone()), expected, atol=1e-5)


def test_a_depth_that_is_not_6n_plus_4_is_refused():
    with pytest.raises(ConfigError, match=r"depth 6n \+ 4 .* not 30"):
        WideResNet(30)
    with pytest.raises(ConfigError, match="widened by 1 or more, not 0"):
        WideResNet(28, 0)
