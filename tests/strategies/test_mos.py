"""MOS: merged adapters, an aligned head, and a search for the adapters of an image."""

import math

import pytest
import torch
from small_runs import bare, batch, bits, differing, observed

from cil.models import build_backbone
from cil.models.tuners import BlockAdapters
from cil.strategies.mos import settled, spread_out

TOY = {"rank": 2, "align_samples": 8, "align_epochs": 2}


def test_merging_by_hand():
    """alpha .1, A_b = 1, past .5 and .7: .96."""
    learner = bare("mos", classes=[1, 1, 1], **TOY)
    for adapters, value in zip(learner.adapters, (0.5, 0.7, 1.0), strict=True):
        for parameter in adapters.parameters():
            parameter.data.fill_(value)
    learner.after_step(batch(0))
    assert all(torch.allclose(p, torch.tensor(0.96)) for p in learner.adapters[2].parameters())
    assert all(torch.allclose(p, torch.tensor(0.7)) for p in learner.adapters[1].parameters())


def test_an_image_moves_to_the_adapters_of_the_class_that_is_predicted_until_they_agree():
    arrivals, logits = torch.tensor([0, 1, 2]), torch.zeros(3, 3, 3)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[0, 2, 2] = 1.0  # 0 -> 1 -> 2, where it stays
    logits[1, 0, 0] = 1.0  # at once
    logits[2, 0, 1] = logits[2, 1, 0] = 1.0  # to and fro: 0, 1, 0, 1 are asked, and the fourth answers
    assert settled(logits, torch.tensor([0, 0, 0]), arrivals).tolist() == [2, 0, 1]


def test_four_adapters_are_asked_at_most():
    """0 predicts a class of 1, 1 of 2, ... 4 of 5: those of experience 3 are asked fourth, and answer."""
    logits = torch.zeros(1, 6, 6)
    logits[0, torch.arange(6), torch.tensor([1, 2, 3, 4, 5, 5])] = 1.0
    assert settled(logits, torch.tensor([0]), torch.arange(6)).tolist() == [3]


def test_scores_by_hand():
    """First adapters: cosines (1, 0), so class 0 and experience 0, whose head says class 1; that of 1 agrees.

    softmax (0, 2) + softmax (2 (1, 0)): .119203 + .880797 and the other way round.
    """
    learner = bare("mos", classes=[1, 1], **TOY)
    learner.sums = torch.eye(2)
    learner.features = lambda index, images: torch.tensor([[1.0, 0.0], [0.0, 1.0]])[index][None]
    learner.net = lambda features: torch.tensor([[0.0, 1.0], [0.0, 2.0]])[[int(features[0, 1])]]
    assert learner.predict(batch(0).images)[0].tolist() == pytest.approx([0.119203 + 0.880797] * 2, abs=1e-6)
    learner.net = lambda features: torch.tensor([[1.0, 0.0], [0.0, 2.0]])[[int(features[0, 1])]]  # 0 is content
    assert learner.predict(batch(0).images)[0].tolist() == pytest.approx([0.731059 + 0.880797, 0.268941 + 0.119203])


def test_rows_apart_by_hand():
    """Of two unit vectors at right angles: log(1 + exp(-1 / 0.8))."""
    assert spread_out(torch.eye(2)).item() == pytest.approx(math.log(1 + math.exp(-1.25)))
    learner = bare("mos", classes=[1, 1], **TOY)
    learner.gaussians.means[0], learner.gaussians.counts[0] = torch.eye(16)[0], 3
    learner.features = lambda index, images: torch.eye(16)[1:2]
    assert learner.loss(batch(1))["apart"].item() == pytest.approx(0.1 * math.log(1 + math.exp(-1.25)))


def test_rows_of_old_classes_get_no_gradient():
    learner = bare("mos", classes=[2, 2], **TOY)
    sum(learner.loss(batch(2, 3)).values()).backward()
    assert not learner.net.weight.grad[:2].any() and learner.net.weight.grad[2:].any(dim=1).all()
    assert all(p.grad is None for p in learner.adapters[0].parameters())


def test_the_bytes_of_adapters_of_a_vit_b16():
    with torch.device("meta"):
        vit = build_backbone("timm:vit_base_patch16_224", 3, 224)
        assert 4 * sum(p.numel() for p in BlockAdapters(vit, 16).parameters()) == 1_217_280


def test_adapters_go_on_from_the_last_ones_those_of_the_past_stay_and_evaluation_changes_nothing(learn):
    seen = {}

    def see(when, learner, experience):
        t = experience.index
        if when == "prepared" and t:
            assert differing(bits(learner.adapters[t]), bits(learner.adapters[t - 1])) == []
        if when == "done":
            now = bits(learner.adapters)
            assert differing({name: now[name] for name in seen}, dict(seen)) == []
            seen.update(now)

    done = learn(observed("mos", see))
    learner, images = done.learner(2), batch(*range(6)).images
    before = bits(learner.adapters)
    one, two = (done.run.work.learners.scores(learner, images) for _ in range(2))
    assert torch.equal(one, two) and differing(before, bits(learner.adapters)) == []
    torch.testing.assert_close(one.sum(1), torch.full((6,), 2.0))  # two distributions
    vit = sum(value.numel() for name, value in done.state(2).tensors.items() if name.startswith("vit."))
    for t in range(3):
        k, own = 2 * (t + 1), 2 * (16 * 2 + 2 + 2 * 16 + 16)
        parameters = 4 * (vit + (t + 1) * own + 17 * k)
        statistics = k * (4 * 16 + 2 * 16 * 17 + 8)
        assert done.ledger(t) == {"parameters": parameters, "prototypes": 4 * 16 * k, "statistics": statistics}


def test_alignment_trains_the_head_alone(learn):
    aligned = learn("mos")
    plain = learn("mos", hyperparameters={**TOY, "align_epochs": 0})
    one, two = aligned.state(1).tensors, plain.state(1).tensors
    assert set(differing(dict(one), dict(two))) == {"net.weight", "net.bias"}
    assert differing(dict(aligned.state(0).tensors), dict(plain.state(0).tensors)) == []
