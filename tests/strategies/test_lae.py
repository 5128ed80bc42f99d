"""LAE: an online and an offline tuner, and answers by the surer of both."""

import pytest
import torch
from small_runs import bare, batch, bits, differing, observed

from cil.models import build_backbone
from cil.strategies.lae import KINDS, small_tuner


def test_the_sizes_for_a_vit_b16():
    with torch.device("meta"):
        vit = build_backbone("timm:vit_base_patch16_224", 3, 224)
        tuners = [small_tuner(kind, vit, 10 if kind == "prefix" else 5, 5) for kind in KINDS]
    assert [sum(p.numel() for p in tuner.parameters()) for tuner in tuners] == [42_270, 76_810, 76_810]


@pytest.mark.parametrize("tuner", KINDS)
def test_both_start_as_the_network_and_equal_tuners_answer_as_one(tuner):
    learner = bare("lae", classes=[3], tuner=tuner)
    images = batch(0, 1, 2).images
    x = learner.normalise(images)
    starts_as_it_is = torch.equal(learner.online.eval().features(learner.vit, x), learner.plain_features(x))
    assert starts_as_it_is == (tuner != "prefix")
    learner.after_experience(type("Experience", (), {"index": 0}))
    alone = learner.net(learner.online.features(learner.vit, x)).softmax(1)
    assert torch.equal(learner.predict(images), alone)


def test_the_average_by_hand():
    """off 0, on 1, a .9999: 1e-4 after a step; with a = 1 it stays; in the first experience there is none."""
    learner = bare("lae", classes=[1])
    for slow, fast in zip(learner.offline.parameters(), learner.online.parameters(), strict=True):
        slow.data.zero_()
        fast.data.fill_(1)
    learner.after_step(batch(0))
    assert not any(p.any() for p in learner.offline.parameters())
    learner.old_classes = 1
    learner.after_step(batch(0))
    assert all(torch.allclose(p, torch.tensor(1e-4)) for p in learner.offline.parameters())
    learner.momentum, before = 1.0, bits(learner.offline)
    learner.after_step(batch(0))
    assert differing(before, bits(learner.offline)) == []


def test_the_surer_one_answers():
    learner = bare("lae", classes=[2])
    learner.net = lambda features: features
    learner.online.features = lambda vit, x: torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log()
    learner.offline.features = lambda vit, x: torch.tensor([[0.3, 0.7], [0.2, 0.8]]).log()
    torch.testing.assert_close(learner.predict(batch(0, 1).images), torch.tensor([[0.9, 0.7], [0.4, 0.8]]))


def test_later_experiences_hold_the_tuner_for_a_share_of_training(learn):
    seen = {}

    learner = bare("lae", classes=[2, 2])
    for share, held in ((0.59, True), (0.6, False)):
        learner.progress = type("Progress", (), {"share": share})
        learner.loss(batch(2, 3)).backward()
        learner.adjust_gradients(batch(2, 3))
        assert all(p.grad is None for p in learner.online.parameters()) == held
        assert learner.net.weight.grad[2:].any() and not learner.net.weight.grad[:2].any()

    def see(when, learner, experience):
        now = bits(learner.online)
        if when == "prepared":
            seen["online"], seen["offline"] = now, bits(learner.offline)
        if when == "done":
            assert len(differing(now, seen["online"])) > 0
            same = differing(bits(learner.offline), now) == []
            assert same == (experience.index == 0)

    done = learn(observed("lae", see))
    frozen = sum(value.numel() for name, value in done.state(2).tensors.items() if name.startswith("vit."))
    own = 2 * (16 * 2 + 2 + 2 * 16 + 16 + 1)
    for t in range(3):
        assert done.ledger(t) == {"parameters": 4 * (frozen + 2 * own + 17 * 2 * (t + 1))}
