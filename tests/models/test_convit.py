"""ConViT, and the network of task tokens: parameters to the unit, timm's blocks as witnesses, what does not mix."""

import copy

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import ConViT, NetFactory, TaskTokenNet, build_backbone, count_parameters
from cil.models.convit import GatedAttention, SelfAttentionBlock, TaskAttention, relative_places

SMALL = {"image_size": 12, "width": 32, "depth": 2, "heads": 4}


def small(**options):
    torch.manual_seed(0)
    return ConViT(**(SMALL | options))


def grown(*classes, **options):
    net = TaskTokenNet(small(**options))
    torch.manual_seed(1)
    for count in classes:
        net.grow(count)
    return net.eval()


def images(count=5):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


# parameters ---------------------------------------------------------------------------------------------------------


def test_dytox_on_cifar_has_the_parameters_that_its_paper_charges():
    """10,683,564 + 384 T + sum_i (768 + 385 |Y_i|); at T = 10 with ten classes each 10,733,584."""
    with torch.device("meta"):
        net = TaskTokenNet(build_backbone("convit", 3, 32))
    assert count_parameters(net.encoder) == net.encoder.survey_parameters == 8_910_252
    assert count_parameters(net) == 10_683_564
    seen = []
    for count in (10, 10, 1, 0, 7):
        net.grow(count)
        seen += [count] if count else []
        assert count_parameters(net) == 10_683_564 + 384 * len(seen) + sum(768 + 385 * y for y in seen)
        assert net.survey_parameters == 10_683_564 + 384 * len(seen)
        assert (net.num_classes, net.feature_dim) == (sum(seen), 384 * len(seen))
    assert not list(net.buffers()) or not any("relative" in name for name in net.state_dict())
    with torch.device("meta"):
        net = TaskTokenNet(build_backbone("convit", 3, 32))
    for _ in range(10):
        net.grow(10)
    assert count_parameters(net) == 10_733_584


# the encoder --------------------------------------------------------------------------------------------------------


def test_gated_attention_is_timms_with_the_same_weights():
    from timm.models.convit import GPSA

    torch.manual_seed(0)
    own, other = GatedAttention(32, 4, (3, 3)), GPSA(32, num_heads=4)
    names = {"qk": "qk", "v": "v", "proj": "proj", "position": "pos_proj"}
    state = {f"{theirs}.{k}": v for ours, theirs in names.items() for k, v in getattr(own, ours).state_dict().items()}
    with torch.no_grad():
        own.gate.copy_(torch.tensor([-2.0, 0.0, 1.0, 3.0]))
    other.load_state_dict(state | {"gating_param": own.gate.data})
    tokens = torch.randn(2, 9, 32)
    torch.testing.assert_close(own(tokens), other(tokens), rtol=1e-4, atol=1e-5)
    assert torch.equal(own.relative, other.get_rel_indices(9)[0])


def test_attention_by_place_starts_as_timms_does():
    from timm.models.convit import GPSA

    own, other = GatedAttention(24, 12, (4, 4)), GPSA(24, num_heads=12)
    own.start_local()
    other.local_init()
    assert torch.equal(own.v.weight, torch.eye(24)) and torch.equal(own.gate, torch.ones(12))
    assert torch.equal(own.position.weight[:9], other.pos_proj.weight[:9])  # 3 x 3 of 12 heads


def test_a_head_of_place_alone_looks_at_its_own_offset():
    """With a strong locality, no content and values as they are, a head moves the map by its offset."""
    attention = GatedAttention(9, 9, (5, 5))
    attention.start_local()
    with torch.no_grad():
        attention.gate.fill_(50.0)
        attention.position.weight *= 50
        attention.proj.weight.copy_(torch.eye(9))
        attention.proj.bias.zero_()
    tokens = torch.rand(1, 25, 9)
    plane = tokens.view(5, 5, 9)
    moved = attention(tokens).view(5, 5, 9)
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            head = (row + 1) + 3 * (column + 1)
            expected = plane[1 + row : 4 + row, 1 + column : 4 + column, head]
            torch.testing.assert_close(moved[1:4, 1:4, head], expected)


def test_places_are_steps_along_rows_and_columns():
    places = relative_places((2, 3))
    assert places.shape == (6, 6, 3)
    assert places[1, 5].tolist() == [1, 1, 2]  # from row 0, column 1 to row 1, column 2
    assert places[5, 0].tolist() == [-2, -1, 5]
    assert torch.equal(places[..., :2], -places[..., :2].transpose(0, 1))


def test_a_block_adds_attention_then_the_two_layers_to_what_it_was_given():
    torch.manual_seed(0)
    block, tokens = SelfAttentionBlock(32, 4, 4.0, (3, 3)), torch.randn(2, 9, 32)
    seen = tokens + block.attention(block.norm1(tokens))
    assert torch.equal(block(tokens), seen + block.mlp(block.norm2(seen)))


def test_in_training_branches_are_left_out_by_chance_and_what_stays_is_larger():
    """Of block 1 of 3 half as often as of the last one; in evaluation mode never."""
    net = small(depth=3, drop_path=0.5)
    assert [block.drop_path for block in net.blocks] == [0.0, 0.25, 0.5]
    block, branch = net.blocks[2], torch.ones(4000, 1, 1)
    torch.manual_seed(0)
    found = block._by_chance(branch).flatten()
    assert found.unique().tolist() == [0.0, 2.0] and found.mean().item() == pytest.approx(1.0, abs=0.05)
    plain = small(depth=3)
    assert torch.equal(net.eval()(images())[0], plain.eval()(images())[0])
    with pytest.raises(ConfigError, match=r"model\.options\.drop_path is 1\.0; it must be 0 or more, and below 1"):
        small(drop_path=1.0)


def test_patches_are_read_row_by_row_and_features_are_their_mean():
    encoder = small(depth=1, image_size=(8, 12))
    with torch.no_grad():
        encoder.position.zero_()
    shown = torch.zeros(1, 3, 8, 12)
    shown[0, :, 4:, 8:] = 1.0  # the last of 2 x 3 patches
    plain = encoder.embed(shown).flatten(2).transpose(1, 2)
    assert not torch.equal(plain[0, 5], plain[0, 0]) and torch.equal(plain[0, 4], plain[0, 0])
    features, (maps,) = encoder(shown)
    tokens = encoder.tokens(shown)
    assert torch.equal(features, tokens.mean(1))
    assert maps.shape == (1, 32, 2, 3) and torch.equal(maps[0, :, 1, 2], tokens[0, 5])


def test_an_encoder_is_a_backbone_of_any_network():
    factory = NetFactory(lambda: build_backbone("convit", 3, 12, width=32, depth=1, heads=4))
    net = factory()
    net.grow(3)
    output = net(images())
    assert output.logits.shape == (5, 3) and output.features.shape == (5, factory.feature_dim) == (5, 32)
    assert output.stages[0].shape == (5, 32, 3, 3)


@pytest.mark.parametrize(("options", "says"), [
    ({"patch_size": 5}, r"patches of 5 pixels do not fill images of 12x12; see model\.options\.patch_size"),
    ({"image_size": (12, 10)}, r"images of 12x10"),
    ({"patch_size": 16}, "do not fill"),
    ({"heads": 5}, r"5 heads do not divide tokens of 32 numbers; see model\.options\.heads"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        small(**options)


# task tokens --------------------------------------------------------------------------------------------------------


def test_task_attention_of_one_token_is_timms_class_attention():
    from timm.models.cait import ClassAttn

    torch.manual_seed(0)
    own, other = TaskAttention(32, 4, 4.0), ClassAttn(32, num_heads=4, qkv_bias=False)
    nn.init.normal_(own.proj.bias)
    other.load_state_dict(
        {f"{n}.{k}": v for n in ["q", "k", "v", "proj"] for k, v in getattr(own, n).state_dict().items()}
    )
    tokens, patches = torch.randn(3, 32), torch.randn(5, 9, 32)
    found = own(tokens, patches)
    for task in range(3):
        both = torch.cat([tokens[task].expand(5, 1, 32), patches], dim=1)
        seen = tokens[task] + other(own.norm1(both))[:, 0]
        expected = seen + own.mlp(own.norm2(seen))
        torch.testing.assert_close(found[:, task], expected, rtol=1e-4, atol=1e-5)


def test_a_tokens_embedding_depends_on_no_other_token():
    torch.manual_seed(0)
    block, tokens, patches = TaskAttention(32, 4, 4.0), torch.randn(3, 32, requires_grad=True), torch.randn(5, 9, 32)
    (gradient,) = torch.autograd.grad(block(tokens, patches)[:, 1].square().sum(), tokens)
    assert not gradient[0].any() and not gradient[2].any() and gradient[1].all()


def test_dropping_the_last_token_and_classifier_gives_the_old_outputs():
    net = grown(2, 1, 3)
    old = grown(2, 1)
    dropped = ("tokens.2", "heads.2.")
    old.load_state_dict({name: value for name, value in net.state_dict().items() if not name.startswith(dropped)})
    assert len(net.tokens) == 3 and len(old.tokens) == 2
    whole, part = net(images()), old(images())
    torch.testing.assert_close(whole.logits[:, :3], part.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.features[:, :64], part.features, rtol=1e-4, atol=1e-5)


def test_each_classifier_sees_its_own_embedding():
    net = grown(2, 1, 3)
    output = net(images())
    assert output.logits.shape == (5, 6) and output.features.shape == (5, 96) == (5, net.feature_dim)
    for task, (start, stop) in enumerate([(0, 2), (2, 3), (3, 6)]):
        own = output.features[:, 32 * task : 32 * (task + 1)]
        assert torch.equal(output.logits[:, start:stop], net.heads[task](own))


def test_growth_keeps_what_there_is_freezes_it_and_draws_a_short_token():
    net = grown(2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train().grow(2)
    net.train()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert [p.requires_grad for p in net.tokens] == [False, True]
    for head, learns in zip(net.heads, (False, True), strict=True):
        assert head.training == learns and {p.requires_grad for p in head.parameters()} == {learns}
    assert all(p.requires_grad for part in (net.encoder, net.attention) for p in part.parameters())
    wide = grown(1, 1, width=384, heads=12, depth=1)
    for token in wide.tokens:
        assert token.std().item() == pytest.approx(0.02, rel=0.15) and token.abs().max() < 0.1
    assert not torch.equal(*wide.tokens)


def test_without_new_classes_nothing_is_added_and_all_that_is_of_a_task_is_frozen():
    net = grown(2, 2)
    count = count_parameters(net)
    net.grow(0)
    assert count_parameters(net) == count and len(net.tokens) == 2
    assert not any(p.requires_grad for part in (net.tokens, net.heads) for p in part.parameters())


def test_a_copy_is_a_network_of_its_own():
    net = grown(2, 2)
    other, before = copy.deepcopy(net), net(images()).logits
    assert torch.equal(other(images()).logits, before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(net(images()).logits, before) and not other(images()).logits.any()
