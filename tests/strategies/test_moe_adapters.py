"""MoE-Adapters: experts in the blocks of both towers, routers, what stops, and the choice of a router by an image."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from small_runs import bare, batch, differing
from torch import nn

from cil.errors import ConfigError
from cil.memory import Allowance, Budget
from cil.models import NetFactory, build_backbone
from cil.models.block_experts import BlockExperts, Router, expert_blocks
from cil.strategies.moe_adapters import Autoencoder, MoEAdapters, as_bytes, from_bytes

OWN = {"experts": 3, "rank": 2, "freeze": 1, "code": 4}


def learner(*classes, names=True, **hyperparameters):
    made = bare("moe_adapters", classes=classes, **OWN | hyperparameters)
    for slot in range(len(made.names) if names else 0):
        made.names[slot] = as_bytes(str(slot))
    return made


def answering(made):
    """A learner in evaluation mode."""
    made.experts.eval()
    return made


# experts and routers ------------------------------------------------------------------------------------------------


def test_gates_by_hand():
    """Scores (1, 2, 0): the second and the first, with softmax(2, 1); at first all scores are 0, and gates equal."""
    router = Router([2], 3).eval()
    places, gates = router.chosen(0, torch.ones(1, 2), 2)
    assert places.tolist() == [[0, 1]] and gates.tolist() == [[0.5, 0.5]]
    with torch.no_grad():
        router.weights[0].copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    places, gates = router.chosen(0, torch.ones(1, 2), 2)
    assert places.tolist() == [[1, 0]]
    torch.testing.assert_close(gates, torch.tensor([[0.731059, 0.268941]]))
    assert router.train().chosen(0, torch.ones(1, 2), 2)[1].tolist() != gates.tolist()  # noise


def test_two_of_two_experts_are_all_of_them():
    """Scores (1, 2): both, with gates softmax(2, 1), whose sum over experts is the dense mixture."""
    router = Router([2], 2).eval()
    with torch.no_grad():
        router.weights[0].copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    places, gates = router.chosen(0, torch.ones(1, 2), 2)
    dense = torch.zeros(1, 2).scatter(1, places, gates)
    torch.testing.assert_close(dense, torch.tensor([[1.0, 2.0]]).softmax(1))


def blocks():
    timm = pytest.importorskip("timm.models.vision_transformer")
    clip = pytest.importorskip("open_clip.transformer")
    return {
        "timm": (timm.Block(8, 2), lambda block, x: x + block.attn(block.norm1(x))),
        "open_clip": (clip.ResidualAttentionBlock(8, 2), lambda block, x: x + block.attention(block.ln_1(x))),
    }


@pytest.mark.parametrize("kind", ["timm", "open_clip"])
def test_a_block_is_added_what_its_experts_make_of_its_tokens_after_attention(kind):
    """Two experts whose outputs are 1 and 2, gates of a half: 0.1 (0.5 + 1) more; and at first nothing."""
    block, attended = blocks()[kind]
    net, x = nn.Sequential(block.eval()), torch.rand(3, 4, 8)
    experts = BlockExperts(net, 2, 2, rank=5)
    experts.grow(x)
    experts.eval()
    with torch.no_grad():
        plain = net(x)
        with experts.inside(net, 0) as counts:
            torch.testing.assert_close(net(x), plain, atol=0, rtol=0)
        assert counts.tolist() == [[3, 3]]  # each of three images, both experts
        for number, expert in enumerate(experts.experts[0]):
            expert[-1].bias.fill_(number + 1)
        with experts.inside(net, 0):
            torch.testing.assert_close(net(x), plain + 0.15)
        experts.experts[0][0][-1].weight.normal_()
        with experts.inside(net, 0):
            expected = plain + 0.1 * 0.5 * (experts.experts[0][0](attended(block, x)) + 2)
            torch.testing.assert_close(net(x), expected)
        assert torch.equal(net(x), plain)  # outside nothing stays


def test_each_row_passes_the_experts_that_it_chose():
    net = nn.Sequential(blocks()["timm"][0].eval())
    experts = BlockExperts(net, 4, 1, rank=2)
    experts.grow(torch.zeros(()))
    experts.eval()
    with torch.no_grad():
        for number, expert in enumerate(experts.experts[0]):
            expert[-1].bias.fill_(number)
        experts.routers[0].weights[0].copy_(torch.eye(8, 4) * 9)
        x = torch.zeros(4, 3, 8)
        x[torch.arange(4), 0, torch.tensor([2, 0, 3, 2])] = 1.0  # the first token alone decides
        counts = torch.zeros(4, dtype=torch.int64)
        assert experts.mixed(0, 0, x, counts)[:, :, 0].tolist() == [[n] * 3 for n in (2, 0, 3, 2)]
    assert counts.tolist() == [1, 0, 2, 1]


def test_parameters_and_bytes_of_clip_vit_b_16():
    """12 (2 * 99,136 + 4 * 768) + 12 (2 * 66,112 + 4 * 512) trained, 16,109,568 bytes, whatever has been learned."""
    pytest.importorskip("open_clip")
    factory = NetFactory(partial(build_backbone, "clip:ViT-B-16", 3, 224), meta=True)
    made = MoEAdapters(factory, Allowance(Budget()), experts=2, routers="one", freeze=0)
    made.experts.grow(made.net.head.weight)
    assert sum(p.numel() for p in made.experts.parameters()) == 4_027_392 == 16_109_568 // 4
    assert not any(p.requires_grad for p in made.net.parameters())
    widths = [norm.normalized_shape[0] for norm, _ in expert_blocks(made.net.backbone)]
    assert sorted(widths) == [512] * 12 + [768] * 12


def test_networks_without_blocks_or_words_are_refused():
    with pytest.raises(ConfigError, match="experts join transformer blocks, and the network has none"):
        expert_blocks(nn.Sequential(nn.Linear(2, 2)))
    factory = NetFactory(partial(build_backbone, "smallconv", 3, 12))
    with pytest.raises(ConfigError, match="moe_adapters reads class names, which the network cannot"):
        MoEAdapters(factory, Allowance(Budget()))


# names and autoencoders ---------------------------------------------------------------------------------------------


def test_names_are_carried_as_bytes():
    assert from_bytes(as_bytes("Löwe")) == "Löwe"
    with pytest.raises(ConfigError, match=re.escape(f"at most 96 bytes; '{'é' * 49}' has 98")):
        as_bytes("é" * 49)


def test_the_error_of_an_autoencoder_by_hand():
    """It answers sigmoid(0) = .5: no error for features of 0, and .4^2 for those whose sigmoid is .9."""
    made = Autoencoder(2, 3)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    features = torch.tensor([[0.5, 0.5], [0.9, 0.9]]).logit()
    torch.testing.assert_close(made(features), torch.tensor([0.0, 0.16]))


# answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("routers", ["one", "each"])
def test_at_first_it_answers_as_clip_does(routers):
    made = answering(learner(2, 2, routers=routers))
    images = torch.rand(3, 3, 12, 12)
    with torch.no_grad():
        encoded = made.net.backbone.encode_texts([f"a bad photo of a {slot}." for slot in range(4)])
        expected = 10 * F.normalize(made.net(images).features) @ encoded.T
        torch.testing.assert_close(made.predict(images), expected)


def test_several_templates_are_averaged_before_the_last_normalisation():
    made = learner(2, templates=["a {}", "the {}"])
    with torch.no_grad():
        encoded = made.net.backbone.encode_texts(["a 0", "the 0", "a 1", "the 1"])
        expected = F.normalize((encoded[::2] + encoded[1::2]) / 2)
        torch.testing.assert_close(made.class_weights([0, 1]), expected)


def test_an_image_goes_through_the_experience_that_knows_it_or_through_plain_clip():
    made = answering(learner(2, 2))
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for experts in made.experts.experts:  # so that routers make a difference
            for number, expert in enumerate(experts):
                expert[-1].bias.normal_().mul_(number + 1)
        for index, router in enumerate(made.experts.routers):
            for weight in router.weights:
                weight.normal_().mul_(1 + index)
        x = made.net.normalise(images)
        errors = torch.stack([one(made.plain_features(x)) for one in made.selectors], dim=1)
        scores = torch.stack([made.scores(x, index, range(4)) for index in range(2)], dim=1)
        assert (scores[:, 0] - scores[:, 1]).abs().max() > 0.1
        torch.testing.assert_close(made.predict(images), scores[torch.arange(5), errors.argmin(1)])
        made.threshold = float(errors.amin(1).median())
        plain = made.factor * F.normalize(made.plain_features(x)) @ made.class_weights(range(4)).T
        known = (errors.amin(1) <= made.threshold)[:, None]
        assert 0 < known.sum() < 5
        expected = torch.where(known, scores[torch.arange(5), errors.argmin(1)], plain)
        torch.testing.assert_close(made.predict(images), expected)


def test_training_compares_the_texts_of_the_experience_alone():
    made = answering(learner(2, 2))
    own = batch(2, 3, 2)
    x = made.net.normalise(own.images)
    expected = F.cross_entropy(made.scores(x, 1, [2, 3]), own.slots - 2)
    torch.testing.assert_close(made.loss(own), expected)


# runs ---------------------------------------------------------------------------------------------------------------


def test_clip_old_routers_and_stopped_experts_stay(learn):
    done = learn("moe_adapters")
    assert differing(done.net(0), done.net(2)) == []
    for index in (1, 2):
        before, after = done.state(index - 1).tensors, done.state(index).tensors
        stay = [f"{kind}.{old}." for kind in ("experts.routers", "selectors") for old in range(index)] + ["names"]
        stopped = before["stopped"]
        for block, expert in stopped.nonzero().tolist():
            stay.append(f"experts.experts.{block}.{expert}.")
        for name, value in before.items():
            if name.startswith(tuple(stay)):
                assert torch.equal(after[name][: len(value)], value), name
        moved = differing(before, {name: after[name] for name in before})
        assert any(name.startswith("experts.experts.") for name in moved)
        assert after["stopped"][stopped].all() and 0 < int(after["stopped"].sum()) <= 2 * (index + 1)
    assert done.learner(2).names[:2].equal(done.learner(0).names)


def test_the_experts_that_stop_are_those_chosen_most_often(learn):
    done = learn("moe_adapters")
    after = answering(done.learner(0))
    with torch.no_grad(), after.experts.inside(after.net.backbone, 0) as counts:
        after.class_weights([0, 1])
        after.net.backbone(after.net.normalise(done.stream[0].train.images))
    assert counts.sum(1).tolist() == [2 * 24, 2 * 2]  # two of each image, two of each text
    assert after.stopped.tolist() == [[n == int(row.argmax()) for n in range(3)] for row in counts]


def test_the_bytes_of_experts_routers_autoencoders_and_names(learn):
    """Widths 16 and 8, E = 3, r = 2: (2 r D + r + D) E + 2 D E T; an autoencoder 2 D h + h + D; 96 a name; flags."""
    done = learn("moe_adapters")
    net = sum(4 * value.numel() for value in done.net(0).values())
    for index in range(3):
        t = index + 1
        experts = sum(3 * (2 * 2 * d + 2 + d) + 2 * d * 3 * t for d in (16, 8))
        selectors = t * (2 * 16 * 4 + 4 + 16)
        assert done.ledger(index)["parameters"] == net + 4 * (experts + selectors)
        assert done.ledger(index)["other"] == 96 * 2 * t + 2 * 3 + len(done.state(index).encoded_meta())


def test_with_one_router_nothing_grows_but_the_names(learn):
    done = learn("moe_adapters", hyperparameters={"routers": "one", "freeze": 0, "experts": 2, "rank": 2})
    sizes = [done.ledger(index)["parameters"] for index in range(3)]
    assert sizes[0] == sizes[1] == sizes[2] and not done.state(2).tensors["stopped"].any()
    named = {name for line in done.record.lines() if line["kind"] == "step" for name in line["values"]}
    assert "loss" in named and len(done.learner(2).selectors) == 0
