"""Backbones: parameter counts of the survey to the unit, shapes, initialisation, names."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import (
    Backbone,
    CifarResNet,
    ConvNet2,
    ImageNetResNet,
    SmallConvNet,
    build_backbone,
    count_parameters,
    names,
    register_model,
)
from cil.models.blocks import PadShortcut
from cil.models.registry import MODELS

# name: feature length, total, shared and repeated parameters (MEMO's cut)
SURVEY = {
    "convnet2": (64, 38_976, 1_920, 37_056),
    "resnet14": (64, 171_856, 42_320, 129_536),
    "resnet20": (64, 269_072, 65_552, 203_520),
    "resnet26": (64, 366_288, 88_784, 277_504),
    "resnet32": (64, 463_504, 112_016, 351_488),
    "convnet4": (512, 906_240, 314_880, 591_360),
    "resnet10": (512, 4_905_792, 1_232_704, 3_673_088),
    "resnet18": (512, 11_176_512, 2_782_784, 8_393_728),
    "resnet34": (512, 21_284_672, 8_170_304, 13_114_368),
    "resnet26b": (2048, 13_946_176, 3_444_032, 10_502_144),
    "resnet50": (2048, 23_508_032, 8_543_296, 14_964_736),
}


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name, in_channels=3, image_size=224, **options)


def buffer_floats(module: nn.Module) -> int:
    return sum(buffer.numel() for buffer in module.buffers())


@pytest.mark.parametrize("name", SURVEY)
def test_parameters_are_those_of_the_survey(name):
    dim, total, generalised, specialised = SURVEY[name]
    backbone = on_meta(name)
    assert backbone.feature_dim == dim
    assert count_parameters(backbone) == backbone.survey_parameters == total
    assert backbone.split() == (generalised, specialised)
    assert generalised + specialised == total


def test_resnet32_has_the_parameters_of_each_stage_and_1136_normalised_channels():
    backbone = CifarResNet(32)
    assert count_parameters(backbone.stem) == 464
    assert [count_parameters(stage) for stage in backbone.stages] == [23_360, 88_192, 351_488]
    assert buffer_floats(backbone) == 2 * 1_136


def test_resnet18_has_the_parameters_of_each_stage_and_4800_normalised_channels():
    backbone = on_meta("resnet18")
    assert count_parameters(backbone.stem) == 9_536
    assert [count_parameters(stage) for stage in backbone.stages] == [147_968, 525_568, 2_099_712, 8_393_728]
    assert buffer_floats(backbone) == 2 * 4_800


def test_cosine_resnet32_has_more_parameters_than_the_survey_charges():
    backbone = on_meta("resnet32_cosine")
    assert count_parameters(backbone) == 466_256
    assert backbone.survey_parameters == 463_504
    assert buffer_floats(backbone) == 2_464


@pytest.mark.parametrize("stem", ["3x3", "3x3pool"])
def test_resnet18_with_a_3x3_stem_has_7680_parameters_less(stem):
    assert on_meta("resnet18", stem=stem).survey_parameters == 11_168_832


def test_cosine_resnet18_is_charged_as_the_plain_one():
    assert on_meta("resnet18_cosine").survey_parameters == 11_176_512


def test_one_input_channel_takes_288_weights_from_the_stem_of_a_cifar_resnet():
    assert build_backbone("resnet32", in_channels=1, image_size=28).survey_parameters == 463_504 - 288


def test_resnet32_returns_three_stages_and_the_mean_of_the_last():
    backbone = CifarResNet(32).eval()
    features, stages = backbone(torch.rand(2, 3, 32, 32))
    assert [tuple(stage.shape[1:]) for stage in stages] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert torch.equal(features, stages[-1].mean((2, 3)))


def test_the_last_map_is_signed_only_in_the_cosine_variants():
    images = torch.rand(4, 3, 32, 32)

    def least(backbone: Backbone) -> float:
        return backbone(images)[1][-1].min().item()

    assert least(CifarResNet(14)) >= 0
    assert least(CifarResNet(14, cosine=True)) < 0
    counts = (1, 1, 1, 1)
    assert least(ImageNetResNet(counts, stem="3x3")) >= 0
    assert least(ImageNetResNet(counts, stem="3x3", cosine=True)) < 0


@pytest.mark.parametrize(("centre", "kept"), [(False, slice(0, 2)), (True, slice(1, 3))])
def test_a_padding_shortcut_keeps_every_second_pixel_and_adds_zero_channels(centre, kept):
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    padded = PadShortcut(2, centre)(x)
    assert padded.shape == (1, 4, 2, 2)
    assert torch.equal(padded[:, kept], x[:, :, ::2, ::2])
    assert padded.sum() == x[:, :, ::2, ::2].sum()


def test_the_two_paddings_have_the_same_names_and_shapes_and_compute_something_else():
    append, centre = (build_backbone("resnet14", 3, 32, shortcut=kind).eval() for kind in ("append", "centre"))
    centre.load_state_dict(append.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours, others = append(images), centre(images)
    assert torch.equal(ours[1][0], others[1][0])  # no shortcut changes shape in the first stage
    assert (ours[0] - others[0]).abs().max() > 0.01


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    weight = CifarResNet(32).stages[2][1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    norm = CifarResNet(14).stages[0][0].bn1
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all()


@pytest.mark.parametrize("size", [8, 16, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_small_net_takes_any_small_image(size, channels):
    backbone = build_backbone("smallconv", in_channels=channels, image_size=size)
    features, stages = backbone(torch.rand(2, channels, size, size))
    assert features.shape == (2, backbone.feature_dim)
    assert len(stages) == 2
    assert backbone.survey_parameters < 6_000


def test_a_3x3_stem_keeps_the_resolution_of_small_images():
    images = torch.rand(2, 3, 32, 32)
    sizes = {
        stem: ImageNetResNet((1, 1, 1, 1), stem=stem)(images)[1][0].shape[-1] for stem in ("7x7", "3x3", "3x3pool")
    }
    assert sizes == {"7x7": 8, "3x3": 32, "3x3pool": 16}


@pytest.mark.parametrize("bottleneck", [False, True])
def test_an_imagenet_resnet_computes_what_torchvision_computes(bottleneck):
    from torchvision.models import resnet

    kind = resnet.Bottleneck if bottleneck else resnet.BasicBlock
    theirs = resnet.ResNet(kind, [1, 2, 1, 1], num_classes=5).eval()
    theirs.fc = nn.Identity()
    ours = ImageNetResNet((1, 2, 1, 1), bottleneck).eval()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other)
        images = torch.rand(2, 3, 64, 64)
        torch.testing.assert_close(ours(images)[0], theirs(images))


@pytest.mark.parametrize("depth", [2, 18, 33])
def test_a_cifar_resnet_refuses_other_depths_than_6n_plus_2(depth):
    with pytest.raises(ConfigError, match="6n \\+ 2"):
        CifarResNet(depth)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet23", {}, "did you mean .*resnet20"),
        ("resnet32", {"stem": "3x3"}, "unexpected keyword argument 'stem'"),
        ("resnet32", {"shortcut": "left"}, "known: append, centre, conv"),
        ("resnet18", {"stem": "5x5"}, "known: 3x3, 3x3pool, 7x7"),
        ("resnet32", {"weights": "hub"}, "no weights on the hub"),
        ("convnet4", {}, "at least 32 pixels"),
    ],
)
def test_a_wrong_name_or_option_is_refused_in_one_line(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_backbone(name, in_channels=3, image_size=(16, 20), **options)
    assert "\n" not in str(caught.value)


def test_a_registered_model_is_built_by_name_and_its_name_cannot_be_taken_twice(monkeypatch):
    monkeypatch.setattr(MODELS, "registered", dict(MODELS.registered))

    @register_model("mine")
    def mine(in_channels: int, image_size: int, bias: bool = False) -> Backbone:
        return ConvNet2(in_channels)

    assert "mine" in names()
    assert isinstance(build_backbone("mine", 3, 32, bias=True), ConvNet2)
    with pytest.raises(ConfigError, match="'mine' is taken"):
        register_model("mine")(lambda in_channels, image_size: ConvNet2(in_channels))


class FakeEntry:
    name = "plugin_net"

    def load(self):
        return lambda in_channels, image_size: SmallConvNet(in_channels)


def test_models_of_other_packages_are_known_by_name_and_loaded_when_built(monkeypatch):
    monkeypatch.setattr(MODELS, "registered", dict(MODELS.registered))
    monkeypatch.setattr("cil.plugins.points", lambda group: [FakeEntry()] if group == "cil.models" else [])
    assert "plugin_net" in names()
    assert "plugin_net" not in MODELS.registered
    assert isinstance(build_backbone("plugin_net", 3, 32), SmallConvNet)


def test_knowing_the_names_and_building_a_resnet18_imports_no_heavy_library():
    code = (
        "import sys; from cil.models import names, build_backbone; names(); build_backbone('resnet18', 3, 224);"
        "print(sorted({'torchvision', 'timm', 'scipy', 'sklearn', 'safetensors'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
