"""CODA-Prompt: components mixed by attention, each experience with some of its own."""

import pytest
import torch
from small_runs import bare, batch, bits, differing, observed

from cil.errors import ConfigError
from cil.models.prefixes import Components, component_weights, orthogonalised, orthogonality

TOY = {"components": 2, "blocks": [0, 1], "length": 4}


def test_weights_of_components_by_hand():
    """q = (1, 2), A = (1, 0), K = (3, 0): 1; K = (0, 3): 0; A = (1, 1), K = (1, 2) along q: 1."""
    queries = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    attention = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    keys = torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 2.0]])
    found = component_weights(queries, attention, keys)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, -1.0]]))


def test_new_components_are_orthogonal_to_all_before_them_while_there_is_room():
    torch.manual_seed(0)
    old = torch.randn(3, 5)
    new = orthogonalised(torch.randn(3, 5), old)
    assert (new[:2] @ old.T).abs().max() < 1e-6
    torch.testing.assert_close(new[:2] @ new[:2].T, torch.eye(2))
    torch.testing.assert_close(new.norm(dim=1), torch.ones(3))  # five dimensions have no sixth
    assert orthogonality(new[:2]).item() < 1e-12
    assert orthogonality(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).item() == pytest.approx(9 / 4)


def test_the_floats_of_a_vit_b16_by_hand():
    """5 (100 8 768 + 2 100 768)."""
    with torch.device("meta"):
        pool = [Components(5, 10, 8, 768) for _ in range(10)]
    assert sum(p.numel() for part in pool for p in part.parameters()) == 3_840_000
    assert 4 * (3_840_000 + 769 * 100) == 15_667_600


def test_the_prefix_of_an_image_is_the_weighed_sum_of_components(monkeypatch):
    from cil.models import block_pass, prefixes

    learner, seen = bare("coda_prompt", classes=[1, 1], **TOY), []

    def see(block, x, keys, values):
        seen.append(torch.cat([keys, values], dim=1))
        return block_pass.prefixed_block(block, x, keys, values)

    monkeypatch.setattr(prefixes, "prefixed_block", see)
    learner.predict(batch(0, 1).images)
    queries = learner.plain_features(learner.normalise(batch(0, 1).images))
    for block, found in enumerate(seen):
        expected = torch.zeros(2, 4, 16)
        for part in learner.pool:
            alpha = component_weights(queries, part.attention[block], part.keys[block])
            for row in range(2):
                expected[row] += (alpha[row, :, None, None] * part.prompts[block]).sum(0)
        torch.testing.assert_close(found, expected)


def test_components_of_the_past_stay_bit_for_bit_and_the_new_start_orthogonal(learn):
    seen = {}

    def see(when, learner, experience):
        t, now = experience.index, bits(learner.pool)
        if when == "prepared":
            for name in ("prompts", "keys", "attention"):
                rows = learner._all(name)[0].flatten(1)
                products = rows[-2:] @ rows.T
                products[:, -2:] -= torch.eye(2)
                assert products.abs().max() < 1e-5
            seen["new"] = now
        if when == "done":
            old = {name: value for name, value in now.items() if int(name[0]) < t}
            assert differing(old, {name: seen["new"][name] for name in old}) == []
            changed = {name[2:] for name in differing(now, seen["new"])}
            assert changed == {"prompts", "keys", "attention"}

    done = learn(observed("coda_prompt", see))
    own = 2 * 2 * (4 * 16 + 2 * 16)
    vit = sum(value.numel() for name, value in done.state(2).tensors.items() if name.startswith("vit."))
    for index in range(3):
        parameters = 4 * (vit + (index + 1) * own + 2 * (index + 1) * 17)
        assert done.ledger(index) == {"parameters": parameters}


def test_the_penalty_reaches_what_is_new_and_rows_of_old_classes_get_no_gradient():
    learner = bare("coda_prompt", classes=[2, 2], **TOY, orthogonality=0.1)
    terms = learner.loss(batch(2, 3))
    every = [learner._all(name)[block].flatten(1) for name in ("prompts", "keys", "attention") for block in (0, 1)]
    assert terms["orthogonality"].item() == pytest.approx(0.1 * sum(orthogonality(rows).item() for rows in every), 1e-5)
    sum(terms.values()).backward()
    assert all(p.grad is None for p in learner.pool[0].parameters())
    assert all(p.grad.any() for p in learner.pool[1].parameters())
    assert not learner.net.weight.grad[:2].any() and learner.net.weight.grad[2:].any(dim=1).all()


def test_an_odd_length_is_refused():
    with pytest.raises(ConfigError, match=r"^strategy\.length of coda_prompt is 5; it must be even"):
        bare("coda_prompt", length=5)
