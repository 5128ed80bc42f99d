"""What is put into the blocks of a frozen transformer: prefixes, tokens, low-rank sums."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cil.errors import ConfigError
from cil.models import build_backbone, freeze
from cil.models.block_pass import plain_transformer, prefixed_attention, prefixed_block, run_blocks
from cil.models.low_rank import AttentionSums
from cil.models.tuners import LowRank, PromptTokens, Replaced, TrainedCopy, make_tuner

SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return freeze(build_backbone("timm:vit_tiny_patch16_224", 3, 8, **SMALL))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_pass_of_plain_blocks_is_the_forward_bit_for_bit(vit):
    assert torch.equal(run_blocks(vit, IMAGES, lambda index, block, x: block(x)), vit(IMAGES)[0])
    empty = torch.zeros(0, 16)
    made = run_blocks(vit, IMAGES, lambda index, block, x: prefixed_block(block, x, empty, empty))
    torch.testing.assert_close(made, vit(IMAGES)[0])


@pytest.mark.parametrize("of_each_image", [False, True])
def test_a_prefix_is_more_keys_and_values_and_no_more_tokens(vit, of_each_image):
    """Against softmax([P_K; K] q) [P_V; V], a head and an image at a time."""
    attention, x = vit.model.blocks[0].attn, torch.randn(3, 5, 16)
    keys, values = torch.randn(2, 3, 4, 16) if of_each_image else torch.randn(2, 4, 16)
    made = prefixed_attention(attention, x, keys, values)
    assert made.shape == x.shape
    q, k, v = attention.qkv(x).chunk(3, dim=2)
    for row in range(3):
        own = [keys[row], values[row]] if of_each_image else [keys, values]
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            all_keys, all_values = torch.cat([own[0], k[row]])[:, head], torch.cat([own[1], v[row]])[:, head]
            heads.append((q[row][:, head] @ all_keys.T / 8**0.5).softmax(1) @ all_values)
        expected = attention.proj(torch.cat(heads, dim=1))
        torch.testing.assert_close(made[row], expected, atol=1e-5, rtol=1e-5)


def test_the_weights_of_a_whole_prefix_sum_to_one_beside_those_of_the_tokens(vit):
    """Tokens keep their share of the softmax over all keys; of a prefix of one token the value is added as it is."""
    attention, x = vit.model.blocks[0].attn, torch.randn(3, 5, 16)
    keys, values = torch.randn(2, 4, 16)
    q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=2))
    own_k, own_v = (part.unflatten(1, (2, 8)).transpose(0, 1).expand(3, -1, -1, -1) for part in (keys, values))
    scores = q @ torch.cat([own_k, k], dim=2).mT / 8**0.5
    parts = [scores[..., :4].softmax(-1) @ own_v, scores.softmax(-1)[..., 4:] @ v]
    expected = attention.proj(sum(parts).transpose(1, 2).flatten(2))
    made = prefixed_attention(attention, x, keys, values, whole=True)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    far = prefixed_attention(attention, x, keys[:1] - 1e4 * keys[:1], values[:1], whole=True)
    assert bool(far.isfinite().all())


@pytest.mark.parametrize("deep", [False, True])
def test_learned_tokens_are_seen_by_all_and_pooled_by_none(vit, deep):
    tokens = PromptTokens(vit, 2, deep)
    torch.nn.init.normal_(tokens.tokens)
    model = vit.model
    x = model._pos_embed(model.patch_embed(IMAGES))
    for index, block in enumerate(model.blocks):
        if index == 0 or deep:
            x = torch.cat([x[:, :5], tokens.tokens[index].expand(3, -1, -1)], dim=1)
        x = block(x)
    torch.testing.assert_close(tokens.features(vit, IMAGES), model.norm(x)[:, 0])
    tokens.features(vit, IMAGES)[:, 0].sum().backward()
    assert tokens.tokens.grad.flatten(1).any(1).all()


@pytest.mark.parametrize("deep", [False, True])
def test_learned_tokens_change_the_network_from_the_start(vit, deep):
    """Zero as they are, they take part in attention: no identity, where adapters and low-rank sums are one."""
    tokens = PromptTokens(vit, 2, deep)
    assert not tokens.tokens.any() and not torch.allclose(tokens.features(vit, IMAGES), vit(IMAGES)[0], atol=1e-4)


def test_the_sizes_for_a_vit_b16():
    with torch.device("meta"):
        vit = build_backbone("timm:vit_base_patch16_224", 3, 224)
        assert count(PromptTokens(vit, 5, deep=False)) == 3_840
        assert count(PromptTokens(vit, 5)) == 46_080
        sums = AttentionSums(vit, 10, ("q", "v"))
        assert count(sums.grow(torch.zeros(()))) == 368_640
        assert 4 * count(AttentionSums(vit, 10, ("k", "v"), shared=True).grow(torch.zeros(()))) == 1_105_920


def test_low_rank_sums_start_as_the_network_is_and_change_the_parts_that_they_name(vit):
    torch.manual_seed(0)
    sums = AttentionSums(vit, 3, ("k", "v"))
    for number in (1, 2):
        sums.grow(torch.zeros(()))
        assert len(sums.pairs) == number
    assert torch.equal(sums.features(vit, IMAGES), vit(IMAGES)[0])
    assert [pair.up.requires_grad for pair in sums.pairs] == [False, True]
    for pair in sums.pairs:
        torch.nn.init.normal_(pair.up)
    own = vit.model.blocks[1].attn.qkv.weight
    q, k, v = (sums.values(vit)["model.blocks.1.attn.qkv.weight"] - own).chunk(3)
    assert not q.any()
    for part, found in enumerate((k, v)):
        torch.testing.assert_close(found, sum(p.up[1, part] @ p.down[1, part] for p in sums.pairs))
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    sums.features(vit, IMAGES)[:, 0].sum().backward()
    assert sums.pairs[1].up.grad.any() and sums.pairs[0].up.grad is None
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


def test_a_trained_copy_starts_equal_and_is_no_longer_frozen(vit):
    copy = TrainedCopy(vit)
    assert torch.equal(copy.eval().features(vit, IMAGES), vit(IMAGES)[0])
    assert count(copy) == count(vit) and all(p.requires_grad for p in copy.parameters())
    copy.train()
    assert all(layer.training for layer in copy.modules()) and not vit.train().training


def test_other_blocks_and_other_networks_are_refused():
    with pytest.raises(ConfigError, match="ease needs a timm vision transformer, not a"):
        plain_transformer(build_backbone("smallconv", 3, 12), "ease")
    with pytest.raises(ConfigError, match=r"^aper needs a timm vision transformer"):
        make_tuner("deep_prompts", build_backbone("smallconv", 3, 12), 4, "aper")
    from timm.models.vision_transformer import ParallelScalingBlock

    other = build_backbone("timm:vit_tiny_patch16_224", 3, 8, **SMALL, block_fn=ParallelScalingBlock)
    with pytest.raises(ConfigError, match=r"and these are ParallelScalingBlock: set model\.name$"):
        plain_transformer(other, "ease")


@pytest.mark.parametrize("make", [lambda v: AttentionSums(v, 1, ("q", "v")), lambda v: LowRank(v, 1)])
def test_the_way_through_both_factors_is_the_sum_for_less_work(make):
    vit = freeze(build_backbone("timm:vit_tiny_patch16_224", 3, 8, **SMALL)).double()
    sums = make(vit)
    if isinstance(sums, AttentionSums):
        sums.grow(torch.zeros(()))
    for value in sums.double().parameters():
        torch.nn.init.normal_(value)
    assert sums.narrow()
    found = []
    for features in (sums.features, lambda *given: Replaced.features(sums, *given)):
        with FlopCounterMode(display=False) as counted:
            made = features(vit, IMAGES.double())
            gradients = torch.autograd.grad(made.square().sum(), list(sums.parameters()))
        found.append((made, gradients, counted.get_total_flops()))
    torch.testing.assert_close(found[0][:2], found[1][:2])
    assert found[0][2] < found[1][2]
    with torch.no_grad():
        assert torch.equal(sums.features(vit, IMAGES.double()), found[1][0])
