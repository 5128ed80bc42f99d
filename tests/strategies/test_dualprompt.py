"""DualPrompt: a general prefix, and an expert for each experience that images find by its key."""

import pytest
import torch
from small_runs import bare, batch, bits, differing, observed

from cil.errors import ConfigError
from cil.models.prompts import cosines

TOY = {"general_blocks": [0], "expert_blocks": [1]}
GENERAL, EXPERT = 1 * 2 * 5 * 16, 1 * 2 * 5 * 16 + 16  # floats in the toy


def test_the_floats_of_a_vit_b16_by_hand():
    """G of two blocks, ten experts of three: 15,360 + 230,400 + 7,680."""
    from cil.models.prefixes import BlockPrefixes
    from cil.strategies.dualprompt import Expert

    with torch.device("meta"):
        general, experts = BlockPrefixes(2, 5, 768), [Expert(3, 5, 768) for _ in range(10)]
    sizes = [sum(p.numel() for p in part.parameters()) for part in (general, *experts)]
    assert sizes[0] == 15_360 and sum(sizes) == 253_440


def test_the_floats_with_the_lengths_of_the_paper():
    """6 and 20 rows, half of them keys. With a key for each block, as in one code, it is 493,056; else 15,360 fewer."""
    from cil.models.prefixes import BlockPrefixes
    from cil.strategies.dualprompt import Expert

    with torch.device("meta"):
        parts = [BlockPrefixes(2, 3, 768), *(Expert(3, 10, 768) for _ in range(10))]
        keys = [Expert(3, 10, 768, by_block=True) for _ in range(10)]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 493_056 - 2 * 10 * 768
    assert sum(p.numel() for part in [parts[0], *keys] for p in part.parameters()) == 493_056


def test_an_image_gets_keys_as_keys_and_values_as_values_whatever_its_batch(monkeypatch):
    """The port that reshapes without turning the axes gives the first half of a batch keys as both."""
    from cil.models import block_pass, prefixes

    learner, seen = bare("dualprompt", classes=[1, 1], **TOY), []

    def see(block, x, keys, values):
        seen.append((keys, values))
        return block_pass.prefixed_block(block, x, keys, values)

    monkeypatch.setattr(prefixes, "prefixed_block", see)
    x = learner.normalise(batch(0, 1).images)
    learner.predict(batch(0, 1).images)
    (general_keys, general_values), (keys, values) = seen
    assert torch.equal(general_keys, learner.general.tokens[0, 0])
    assert torch.equal(general_values, learner.general.tokens[0, 1])
    for row, (expert,) in enumerate(learner.chosen(x).tolist()):
        assert torch.equal(keys[row], learner.experts[expert].tokens[0, 0])
        assert torch.equal(values[row], learner.experts[expert].tokens[0, 1])


def test_an_image_finds_the_expert_whose_key_is_nearest_and_one_expert_is_no_choice():
    learner = bare("dualprompt", classes=[2, 2, 2], **TOY)
    x = learner.normalise(batch(0, 1, 2, 3).images)
    queries = learner.plain_features(x)
    for index, image in enumerate((2, 0, 1)):
        learner.experts[index].key.data = queries[image].clone()
    assert learner.chosen(x)[[2, 0, 1]].tolist() == [[0], [1], [2]]
    assert bare("dualprompt", classes=[2], **TOY).chosen(x).tolist() == [[0]] * 4


def test_with_a_key_for_each_block_an_image_may_have_other_experts_in_other_blocks(monkeypatch):
    """Block 0 of image 0 finds the second expert, its block 1 the first; image 1 the other way round."""
    from cil.models import block_pass, prefixes

    learner, seen = bare("dualprompt", classes=[2, 2], general_blocks=[], expert_blocks=[0, 1], keys="block"), []
    monkeypatch.setattr(
        prefixes, "prefixed_block", lambda *given: seen.append(given[2:]) or block_pass.prefixed_block(*given)
    )
    shown = batch(0, 1)
    first, second = learner.plain_features(learner.normalise(shown.images))
    learner.experts[0].key.data = torch.stack([second, first])
    learner.experts[1].key.data = torch.stack([first, second])
    assert learner.chosen(learner.normalise(shown.images)).tolist() == [[1, 0], [0, 1]]
    learner.predict(shown.images)
    for block, chosen in enumerate(([1, 0], [0, 1])):
        for row, expert in enumerate(chosen):
            for half in (0, 1):
                assert torch.equal(seen[block][half][row], learner.experts[expert].tokens[block, half])


def test_keys_of_blocks_are_carried_and_learn(learn):
    """Each experience brings two blocks of 2 * 5 * 16 floats and two keys of 16."""
    own, drawn = {"general_blocks": [], "expert_blocks": [0, 1], "keys": "block"}, []

    def see(when, learner, experience):
        if when == "prepared":
            drawn.append(learner.experts[-1].key.detach().clone())

    done = learn(observed("dualprompt", see), hyperparameters=own)
    first, last = done.learner(0), done.learner(2)
    assert torch.equal(first.experts[0].key, last.experts[0].key) and last.experts[2].key.shape == (2, 16)
    for expert, before in zip(last.experts, drawn, strict=True):
        assert (expert.key != before).any(dim=1).all()
    frozen = sum(value.numel() for name, value in done.state(2).tensors.items() if name.startswith("vit."))
    experts = 3 * (2 * 2 * 5 * 16 + 2 * 16)
    assert done.ledger(2) == {"parameters": 4 * (frozen + experts + 17 * 6)}
    together, alone = (last.predict(batch(0, 1, 2).images[:count]) for count in (3, 1))
    torch.testing.assert_close(alone, together[:1])


def test_the_pull_of_a_key_for_each_block_is_their_sum():
    """A block of keys that are the query itself, and one of their opposites: 1 - 1; both the same: 2."""
    learner = bare("dualprompt", classes=[2], general_blocks=[], expert_blocks=[0, 1], keys="block", pull=0.5)
    query = learner.plain_features(learner.normalise(batch(0).images))[0]
    for factor, expected in ((-1.0, 0.0), (1.0, -1.0)):
        learner.experts[0].key.data = torch.stack([query, factor * query])
        assert learner.loss(batch(0))["pull"].item() == pytest.approx(expected, abs=1e-6)


def test_the_pull_is_a_tenth_of_the_mean_cosine_and_reaches_the_key_alone():
    learner = bare("dualprompt", classes=[2, 2], **TOY)
    shown = batch(2, 3)
    queries = learner.plain_features(learner.normalise(shown.images))
    terms = learner.loss(shown)
    expected = -0.1 * cosines(queries, learner.experts[1].key[None]).mean()
    assert terms["pull"].item() == pytest.approx(expected.item(), abs=1e-6)
    sum(terms.values()).backward()
    assert learner.experts[1].key.grad.any() and learner.experts[1].tokens.grad.any()
    assert learner.general.tokens.grad.any() and learner.experts[0].tokens.grad is None
    for values in (learner.net.weight.grad, learner.net.bias.grad):
        assert not values[:2].any() and values[2:].any(dim=-1).all()  # the training mask


def test_experts_start_from_the_last_one_and_those_of_the_past_stay_bit_for_bit(learn):
    seen = {}

    def see(when, learner, experience):
        t = experience.index
        if when == "prepared" and t:
            assert torch.equal(learner.experts[t].tokens, learner.experts[t - 1].tokens)
            assert not torch.equal(learner.experts[t].key, learner.experts[t - 1].key)
        if when == "done":
            now = bits(learner.experts)
            assert differing({name: now[name] for name in seen}, dict(seen)) == []
            assert t == 0 or not torch.equal(learner.experts[t].tokens, learner.experts[t - 1].tokens)
            seen.update(now)

    done = learn(observed("dualprompt", see))
    assert len(seen) == 6
    vit = [name for name in done.state(0).tensors if name.startswith("vit.")]
    assert vit and all(torch.equal(done.state(0).tensors[name], done.state(2).tensors[name]) for name in vit)
    frozen = sum(done.state(0).tensors[name].numel() for name in vit)
    for index in range(3):
        c = 2 * (index + 1)
        assert done.ledger(index) == {"parameters": 4 * (frozen + GENERAL + (index + 1) * EXPERT + 17 * c)}


def test_blocks_that_are_not_there_are_refused():
    for blocks in ([2], [0, 1], [-1]):
        with pytest.raises(ConfigError, match=r"of dualprompt is \[0, .*\]; the transformer has blocks 0 to 1; name"):
            bare("dualprompt", expert_blocks=blocks, general_blocks=[0])


def test_a_key_for_each_block_needs_a_block():
    with pytest.raises(ConfigError, match=r"strategy\.keys of dualprompt is 'block'.*expert_blocks names none"):
        bare("dualprompt", keys="block", general_blocks=[0], expert_blocks=[])
