"""SD-LoRA: directions that stay, magnitudes that learn."""

import pytest
import torch
from small_runs import bare, batch, bits, differing, observed

TOY = {"rank": 2}


def test_a_direction_is_the_product_over_the_lengths_by_hand():
    """B = (3, 4)', A = (0, 2): [[0, .6], [0, .8]], and alpha takes the length 10; of I and I the quotient is I / 2."""
    learner = bare("sd_lora", classes=[1], rank=2)
    (pair,), (alpha,) = learner.directions.pairs, learner.directions.magnitudes
    pair.up.data.zero_()
    pair.down.data.zero_()
    pair.up.data[0, 0, 0, 0], pair.up.data[0, 0, 1, 0], pair.down.data[0, 0, 0, 1] = 3.0, 4.0, 2.0
    pair.up.data[1, 1, 0, 0] = pair.up.data[1, 1, 1, 1] = 1.0
    pair.down.data[1, 1, 0, 0] = pair.down.data[1, 1, 1, 1] = 1.0
    before = whole_sums(learner)
    learner.directions.normalise_last()
    torch.testing.assert_close(whole_sums(learner), before)
    found = (pair.up @ pair.down)[0, 0, :2, :2]
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.6], [0.0, 0.8]]))
    assert alpha[0, 0].item() == pytest.approx(10.0) and alpha[1, 1].item() == pytest.approx(2.0)
    assert (pair.up @ pair.down)[1, 1].norm().item() == pytest.approx(0.5**0.5)  # .7071: no unit direction


def whole_sums(learner):
    """(depth, P, D, D)."""
    down, up = learner.directions.all_factors()
    return up @ down


@pytest.mark.parametrize("carried", [True, False])
def test_answers_jump_at_a_boundary_only_as_published(carried):
    learner = bare("sd_lora", classes=[2], carry_magnitudes=carried, **TOY)
    torch.nn.init.normal_(learner.directions.pairs[0].up, std=3.0)
    images = batch(0, 1).images
    before = learner.features(images)
    learner.after_experience(None)
    jump = (learner.features(images) - before).abs().max()
    assert jump < 1e-5 if carried else jump > 1e-3


def test_as_published_magnitudes_of_the_past_begin_anew():
    learner = bare("sd_lora", classes=[1, 1, 1], carry_magnitudes=False, **TOY)
    learner.prepare(None)
    assert [alpha.item() for alpha in learner.directions.magnitudes] == [pytest.approx(0.8)] * 2 + [1.0]


def test_all_magnitudes_learn_and_directions_of_the_past_stay(learn):
    seen = {}

    def see(when, learner, experience):
        t, now = experience.index, bits(learner.directions)
        if when == "prepared":
            assert torch.equal(learner.directions.magnitudes[t], torch.ones(2, 2, 1, 1))
            seen.update(now)
        if when == "done":
            moved = set(differing({name: seen[name] for name in now}, now))
            assert moved == {f"magnitudes.{i}" for i in range(t + 1)} | {f"pairs.{t}.up", f"pairs.{t}.down"}
            lengths = learner.directions.pairs[t].up.norm(dim=(2, 3))
            torch.testing.assert_close(lengths, torch.ones(2, 2))

    done = learn(observed("sd_lora", see))
    vit = sum(value.numel() for name, value in done.state(2).tensors.items() if name.startswith("vit."))
    for t in range(3):
        pair = 2 * 2 * 2 * 2 * 16 + 4
        assert done.ledger(t) == {"parameters": 4 * (vit + (t + 1) * pair + 17 * 2 * (t + 1))}


def test_rows_of_old_classes_get_no_gradient():
    learner = bare("sd_lora", classes=[2, 2], **TOY)
    torch.nn.init.normal_(learner.directions.pairs[0].up)
    learner.loss(batch(2, 3)).backward()
    assert learner.directions.magnitudes[0].grad.any() and learner.directions.pairs[0].up.grad is None
    assert not learner.net.weight.grad[:2].any() and learner.net.weight.grad[2:].any(dim=1).all()


def test_later_experiences_have_lower_ranks():
    """Ranks 2, 2, 1 of two blocks, two parts and width 16: the last pair has half the bytes."""
    learner = bare("sd_lora", classes=[1, 1, 1], rank=2, later_ranks=[[2, 1]])
    assert [pair.down.shape[-2] for pair in learner.directions.pairs] == [2, 2, 1]
    sizes = [pair.down.numel() + pair.up.numel() for pair in learner.directions.pairs]
    assert sizes == [2 * 2 * 2 * 2 * 16] * 2 + [2 * 2 * 2 * 16]
    assert torch.isfinite(learner.predict(batch(0).images)).all()


@pytest.mark.parametrize("carried", [True, False])
def test_a_direction_that_others_span_goes_into_their_magnitudes(carried):
    """Of directions e1 e1' and e2 e2' the third is .6 and .8: their alpha grow by 2 of its own, and it is zero."""
    learner = three_directions((0.6, 0.8, 0.0), carry_magnitudes=carried)
    learner.directions.magnitudes[2].data.fill_(2.0)
    before = whole_sums(learner)
    learner.directions.merge_last(9e-4)
    torch.testing.assert_close(whole_sums(learner), before)
    assert not learner.directions.pairs[2].up.any()
    for alpha, expected in zip(learner.directions.magnitudes, (1 + 2 * 0.6, 1 + 2 * 0.8, 2.0), strict=True):
        torch.testing.assert_close(alpha.data, torch.full_like(alpha, expected))


def test_a_direction_of_its_own_stays():
    """What is left of (.6, .79, .1) is .01 > 9e-4."""
    learner = three_directions((0.6, 0.79, 0.1))
    before = bits(learner.directions)
    learner.directions.merge_last(9e-4)
    assert not differing(before, bits(learner.directions))
    learner.directions.merge_last(0.011)
    assert not learner.directions.pairs[2].up.any()


def three_directions(last, **options):
    """Of rank 3, alike in all parts of attention: e1 e1', e2 e2', and the diagonal matrix of what is given."""
    learner = bare("sd_lora", classes=[1, 1, 1], rank=3, **options)
    for pair, diagonal in zip(learner.directions.pairs, ((1.0, 0, 0), (0, 1.0, 0), last), strict=True):
        pair.up.data.zero_()
        pair.down.data.zero_()
        for i, value in enumerate(diagonal):
            pair.up.data[..., i, i], pair.down.data[..., i, i] = value, 1.0
    return learner
