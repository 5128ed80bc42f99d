"""CoTTA: loss, teacher and restored weights by hand."""

import math

import pytest
import torch

from cil.adapt import cotta as module
from cil.adapt.parts.optimizer import flat
from cil.errors import ConfigError


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def sure(made, **given):
    """Logits of the teacher are -1, 1 and 1, -1; those of the student twice that."""
    given = {"threshold": 0.0, "optimizer": "sgd", "lr": 0.1, "restore": 0.0, "momentum": 0.9} | given
    cotta = made("cotta", made.one_norm(), **given)
    with torch.no_grad():
        cotta.net.norm.weight.fill_(2)
    return cotta


def test_the_student_goes_towards_the_teacher_and_the_teacher_after_it(made):
    cotta = sure(made)
    answer = cotta.adapt_and_predict(made.crossed)
    assert answer[0].tolist() == pytest.approx([-1, 1], abs=1e-5)  # the teacher's, before it moved
    # dL / dgamma = p_student - p_teacher = 0.982014 - 0.880797
    moved = 2 - 0.1 * 1.9 * (sigmoid(4) - sigmoid(2))
    assert cotta.net.norm.weight.tolist() == pytest.approx([moved] * 2, abs=1e-6)
    assert cotta.teacher.norm.weight.tolist() == pytest.approx([0.9 + 0.1 * moved] * 2, abs=1e-6)
    assert cotta.source_net.norm.weight.tolist() == [1, 1]


def test_the_symmetric_loss_is_half_of_each_cross_entropy(made):
    cotta = sure(made, loss="symmetric")
    cotta.adapt_and_predict(made.crossed)
    p, q, log_p, log_q = sigmoid(4), sigmoid(-4), math.log(sigmoid(2)), math.log(sigmoid(-2))
    reverse = -p * (log_p - p * log_p - q * log_q)  # of -sum p_s log p_t in the logit of the greater one
    moved = 2 - 0.1 * 1.9 * 0.5 * (sigmoid(4) - sigmoid(2) + reverse)
    assert moved == pytest.approx(1.99374, abs=1e-5)
    assert cotta.net.norm.weight.tolist() == pytest.approx([moved] * 2, abs=1e-6)


def test_restoring_all_gives_the_source_weights_and_leaves_the_teacher(made):
    cotta = made("cotta", restore=1.0, threshold=0.0, lr=0.1)
    with torch.no_grad():
        for value in cotta.net.parameters():
            value.add_(1)
    source = made.conv_source().net
    cotta.adapt_and_predict(made.pictures(8))
    for own, given in zip(cotta.net.parameters(), source.parameters(), strict=True):
        assert torch.equal(own, given)
    assert any(not torch.equal(a, b) for a, b in zip(cotta.teacher.parameters(), source.parameters(), strict=True))


def test_each_value_is_restored_by_chance(made):
    cotta = made("cotta", restore=0.3, threshold=0.0, lr=0.0)
    with torch.no_grad():
        for value in cotta.net.parameters():
            value.add_(1)
    cotta.adapt_and_predict(made.pictures(8))
    apart = flat([*cotta.net.parameters()]) - flat([*cotta.source_net.parameters()])
    back = apart == 0
    assert ((apart - 1).abs() < 1e-5)[~back].all()
    assert back.float().mean().item() == pytest.approx(0.3, abs=0.03)
    masks = [a == b for a, b in zip(cotta.net.parameters(), cotta.source_net.parameters(), strict=True)]
    assert not torch.equal(masks[1], masks[2])  # two vectors of one length: their draws differ


def test_where_the_source_is_unsure_the_teacher_is_averaged_over_views(made, monkeypatch):
    keys = []

    def brighter(images, generator):
        keys.append(generator.initial_seed())
        return images * len(keys)

    monkeypatch.setattr(module, "random_view", brighter)
    images = made.pictures(6)
    cotta = made("cotta", views=3, threshold=1.0)
    with torch.no_grad():
        expected = sum(cotta.logits(images * factor, cotta.teacher) for factor in (1, 2, 3)) / 3
    torch.testing.assert_close(cotta.adapt_and_predict(images), expected, rtol=1e-5, atol=1e-5)
    assert len(set(keys)) == 3


@pytest.mark.parametrize(("threshold", "views"), [(0.88, 0), (0.8809, 32)])
def test_the_threshold_is_one_of_mean_confidence(made, monkeypatch, threshold, views):
    asked = []
    monkeypatch.setattr(module, "random_view", lambda images, generator: asked.append(1) or images)
    sure(made, threshold=threshold).adapt_and_predict(made.crossed)  # the source's confidence is 0.880797
    assert len(asked) == views


def test_defaults_are_those_of_the_data_set(made):
    found = [made("cotta", made.one_norm(classes)) for classes in (10, 100, 1000)]
    assert [cotta.threshold for cotta in found] == [0.92, 0.72, 0.1]
    assert [cotta.restore for cotta in found] == [0.01, 0.01, 0.001]
    assert [cotta.symmetric for cotta in found] == [False, False, True]
    assert [(cotta.optimizer.name, cotta.optimizer.lr) for cotta in found] == [("adam", 1e-3)] * 2 + [("sgd", 1e-2)]
    with pytest.raises(ConfigError, match=r"adapter.loss of cotta is 'both'"):
        made("cotta", loss="both")


def test_all_weights_learn(made):
    cotta = made("cotta", threshold=0.0, restore=0.0)
    with torch.no_grad():
        cotta.net.head.weight.mul_(0.5)
    before = [value.clone() for value in cotta.net.parameters()]
    cotta.adapt_and_predict(made.pictures(8))
    assert all(not torch.equal(a, b) for a, b in zip(before, cotta.net.parameters(), strict=True))
