"""Trained parts beside a frozen transformer: sizes of the published ones, and where they start."""

import pytest
import torch

from cil.errors import ConfigError
from cil.models import build_backbone
from cil.models.low_rank import AttentionSums
from cil.models.tuners import AttentionAdapters, BlockAdapters, ScaleShift, make_tuner

SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def small():
    torch.manual_seed(0)
    return build_backbone("timm:vit_tiny_patch16_224", 3, 12, **SMALL).eval()


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_sizes_for_a_vit_b16():
    with torch.device("meta"):
        backbone = build_backbone("timm:vit_base_patch16_224", 3, 224)
        assert count(BlockAdapters(backbone, 64)) == 1_189_632
        assert count(BlockAdapters(backbone, 16)) == 304_320
        assert count(ScaleShift(backbone)) == 205_824


def test_the_sizes_for_the_small_transformer_of_comparisons():
    """32 pixels in patches of 4, four blocks of 192; adapters of rank 16, low-rank sums of rank 10 to q and v."""
    with torch.device("meta"):
        backbone = build_backbone("timm:vit_tiny_patch16_224", 3, 32, patch_size=4, depth=4)
        assert backbone.survey_parameters == count(backbone) == 1_801_920
        assert {count(block) for block in backbone.model.blocks} == {444_864}
        assert count(BlockAdapters(backbone, 16)) == 25_408
        assert count(AttentionSums(backbone, 10, ("q", "v")).grow(torch.zeros(()))) == 30_720


def test_adapters_start_as_the_network_is_bit_for_bit():
    backbone, images = small(), torch.rand(3, 3, 12, 12)
    adapters = BlockAdapters(backbone, 4).eval()
    assert torch.equal(adapters.features(backbone, images), backbone(images)[0])
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    adapters.features(backbone, images).sum().backward()
    assert all(p.grad is not None for p in adapters.adapters[1][3].parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_adapters_beside_attention_see_its_input_and_join_its_output_in_the_first_blocks():
    """x + attention(n) + s (U gelu(V n + b) + c), n = norm(x), s 1 at first."""
    backbone, images = small(), torch.rand(3, 3, 12, 12)
    adapters = AttentionAdapters(backbone, rank=3, blocks=1)
    assert count(adapters) == 32 * 3 + 3 + 3 * 32 + 32 + 1 and adapters.scales.tolist() == [1.0]
    assert torch.equal(adapters.features(backbone, images), backbone(images)[0])
    down, up = adapters.adapters[0][0], adapters.adapters[0][3]
    with torch.no_grad():
        up.weight.normal_(generator=torch.Generator().manual_seed(1))
        adapters.scales.fill_(0.5)
    expected = small()

    def beside(layer, given, made):
        hidden = torch.nn.functional.gelu(given[0] @ down.weight.T + down.bias)
        return made + 0.5 * (hidden @ up.weight.T + up.bias)

    expected.model.blocks[0].attn.register_forward_hook(beside)
    torch.testing.assert_close(adapters.features(backbone, images), expected(images)[0])
    assert not torch.equal(expected(images)[0], backbone(images)[0])


def test_scales_and_shifts_act_on_the_output_of_each_layer():
    backbone, images = small(), torch.rand(3, 3, 12, 12)
    tuner = ScaleShift(backbone)
    assert not torch.equal(tuner.features(backbone, images), backbone(images)[0])
    layers = dict(backbone.named_modules())

    def hook(scale, shift, channels):
        shape = (1, -1, 1, 1) if channels else (-1,)
        return lambda layer, given, made: made * scale.view(shape) + shift.view(shape)

    expected = small()
    for name, scale, shift in zip(tuner._layers, tuner.scales, tuner.shifts, strict=True):
        channels = isinstance(layers[name], torch.nn.Conv2d)
        dict(expected.named_modules())[name].register_forward_hook(hook(scale, shift, channels))
    torch.testing.assert_close(tuner.features(backbone, images), expected(images)[0])


def test_another_network_is_refused():
    with pytest.raises(ConfigError, match="ranpac needs a timm vision transformer, not a"):
        make_tuner("adapter", build_backbone("smallconv", 3, 12), 4, "ranpac")
