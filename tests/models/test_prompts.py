"""Prompts before the patches of a frozen vision transformer, and the pool that they are chosen from."""

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import build_backbone, timm_backbone
from cil.models.prompts import PromptPool, forward_with_prompts, prompt_features, vision_transformer

SMALL = {"image_size": 12, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def vit(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return timm_backbone(name, **(SMALL | options)).eval()


def images(count=4, size=12):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# the transformer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False},
        {"reg_tokens": 3},
        {"no_embed_class": True},
        {"pre_norm": True},
        {"dynamic_img_size": True},
    ],
    ids=repr,
)
def test_without_prompts_it_is_timms_forward_bit_for_bit(options):
    backbone, shown = vit(**options), images()
    tokens = forward_with_prompts(backbone, shown, torch.empty(4, 0, 32))
    assert torch.equal(tokens, backbone.model.forward_features(shown))
    assert torch.equal(backbone.model.forward_head(tokens, pre_logits=True), backbone(shown)[0])


@pytest.mark.parametrize(("position", "registers"), [("class", 0), ("class", 2), ("none", 0)])
def test_prompts_stand_between_class_token_and_patches_with_the_position_asked_for(position, registers):
    backbone, shown, prompts = vit(reg_tokens=registers), images(), torch.randn(4, 6, 32)
    model, first = backbone.model, 1 + registers
    plain = model._pos_embed(model.patch_embed(shown))
    place = model.pos_embed[0, 0] if position == "class" else torch.zeros(32)
    by_hand = torch.cat([plain[:, :first], prompts + place, plain[:, first:]], dim=1)
    for block in model.blocks:
        by_hand = block(by_hand)
    by_hand = model.norm(by_hand)
    assert torch.equal(forward_with_prompts(backbone, shown, prompts, position), by_hand)
    found = prompt_features(backbone, shown, prompts, position)
    torch.testing.assert_close(found, by_hand[:, first : first + 6].mean(1))


def test_prompts_of_one_image_do_not_reach_another():
    backbone, shown, prompts = vit(), images(), torch.randn(4, 6, 32)
    before = prompt_features(backbone, shown, prompts)
    prompts[2] = 0
    after = prompt_features(backbone, shown, prompts)
    torch.testing.assert_close(before[[0, 1, 3]], after[[0, 1, 3]])
    assert (before[2] - after[2]).abs().max() > 1e-3


def test_the_order_of_prompts_changes_nothing_as_all_have_one_position():
    backbone, shown, prompts = vit(), images(), torch.randn(4, 6, 32)
    found = prompt_features(backbone, shown, prompts)
    torch.testing.assert_close(prompt_features(backbone, shown, prompts.flip(1)), found, rtol=1e-4, atol=1e-5)


def test_a_mean_pooled_transformer_gets_its_norm_after_the_mean():
    backbone, shown, prompts = vit(global_pool="avg"), images(), torch.randn(4, 6, 32)
    assert isinstance(backbone.model.fc_norm, nn.LayerNorm)
    found = prompt_features(backbone, shown, prompts)
    torch.testing.assert_close(found.mean(1), torch.zeros(4), atol=1e-5, rtol=0)  # normalised once, at the end
    torch.testing.assert_close(found.var(1, unbiased=False), torch.ones(4), rtol=1e-3, atol=1e-3)


def test_images_are_resized_to_what_the_model_was_built_for():
    backbone = vit(img_size=24)
    assert backbone.model.patch_embed.grid_size == (6, 6)
    flat = torch.full((2, 3, 12, 12), 0.3)
    torch.testing.assert_close(backbone.resized(flat), torch.full((2, 3, 24, 24), 0.3))
    shown = images()
    assert torch.equal(backbone(shown)[0], backbone.model(backbone.resized(shown)))
    none = torch.empty(4, 0, 32)
    assert torch.equal(
        forward_with_prompts(backbone, shown, none), forward_with_prompts(backbone, backbone.resized(shown), none)
    )
    same = images(size=24)
    assert backbone.resized(same) is same
    assert vit(dynamic_img_size=True).resized(same) is same  # takes any size as it is


def test_only_a_timm_transformer_of_tokens_will_do():
    assert vision_transformer(vit(), "x").feature_dim == 32
    pooled = vit(global_pool="map")
    for backbone, kind in (
        (build_backbone("smallconv", 3, 12), "SmallConvNet"),
        (timm_backbone("resnet10t"), "ResNet"),
        (pooled, "VisionTransformer"),
    ):
        with pytest.raises(ConfigError, match=rf"^me needs a timm vision transformer, not a {kind}.*model\.name"):
            vision_transformer(backbone, "me")


# the pool -----------------------------------------------------------------------------------------------------------


def by_hand_pool():
    """Four prompts of two tokens, keys along the axes and one between the first two; three are chosen."""
    pool = PromptPool(4, 2, 3, 3)
    with torch.no_grad():
        pool.keys.copy_(torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, 5], [1, 1, 0]]))
        pool.prompts.copy_(torch.arange(4.0).view(4, 1, 1) + torch.tensor([[0.0], [0.5]]))
    return pool


def test_the_nearest_keys_are_chosen_by_cosine_and_ties_go_to_the_first():
    prompts, similarities, chosen = by_hand_pool()(torch.tensor([[3.0, 0, 0], [0, 1.0, 1.0]]))
    assert chosen.tolist() == [[0, 3, 1], [1, 2, 3]]  # 1, 0.707, 0 (before 0); 0.707 twice, 0.5
    torch.testing.assert_close(similarities, torch.tensor([[1, 0.5**0.5, 0], [0.5**0.5, 0.5**0.5, 0.5]]))
    assert prompts[..., 0].tolist() == [[0, 0.5, 3, 3.5, 1, 1.5], [1, 1.5, 2, 2.5, 3, 3.5]]


def test_the_majority_of_a_batch_chooses_for_all_and_the_similarities_are_each_ones_own():
    queries = torch.tensor([[3.0, 0.1, 0], [0, 1.0, 1.0], [0, 0.2, 1.0], [0.1, 0, 1.0]])
    pool = by_hand_pool()
    # votes: {0, 3, 1}, {1, 2, 3}, {2, 1, 3}, {2, 0, 3}: 3 has 4; 1 and 2 have 3; 0 has 2
    prompts, similarities, chosen = pool(queries, majority=True)
    assert chosen.tolist() == [[3, 1, 2]] * 4
    assert torch.equal(prompts, prompts[:1].expand_as(prompts))
    whole = torch.nn.functional.cosine_similarity(queries[:, None], pool.keys[None], dim=2)
    torch.testing.assert_close(similarities, whole[:, [3, 1, 2]])


def test_by_sample_selection_follows_the_images_in_any_order():
    torch.manual_seed(0)
    pool, queries, order = PromptPool(10, 2, 4, 8), torch.randn(16, 8), torch.randperm(16)
    whole, shuffled = pool(queries), pool(queries[order])
    assert torch.equal(whole.chosen[order], shuffled.chosen)
    assert torch.equal(whole.prompts[order], shuffled.prompts)
    assert len(whole.chosen.unique(dim=0)) > 1


def test_autocast_changes_no_choice():
    torch.manual_seed(0)
    pool, queries = PromptPool(10, 1, 5, 64), torch.randn(1000, 64)
    _, similarities, chosen = pool(queries)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool(queries)
    assert torch.equal(found.chosen, chosen) and torch.equal(found.similarities, similarities)


def test_prompts_and_keys_start_uniform_between_minus_one_and_one():
    torch.manual_seed(0)
    pool = PromptPool(10, 5, 5, 768)
    assert sum(p.numel() for p in pool.parameters()) == 46_080  # 10 * 5 * 768 + 10 * 768
    for values in pool.parameters():
        assert 0.99 < values.max() <= 1 and -1 <= values.min() < -0.99
        assert values.mean().abs() < 0.03


def test_what_is_not_chosen_gets_no_gradient():
    pool = by_hand_pool()
    prompts, similarities, _ = pool(torch.tensor([[3.0, 0.1, 0], [0, 2.0, 0]]))  # nobody chooses 2
    (prompts.sum() + similarities.sum()).backward()
    assert not pool.prompts.grad[2].any() and not pool.keys.grad[2].any()
    assert pool.prompts.grad[[0, 1, 3]].all() and pool.keys.grad[[0, 1, 3]].any(1).all()
