"""WA: distilled rehearsal, then the new rows of the head at the norm of the old ones."""

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed

from cil.errors import ConfigError


def between_experiences(**hyperparameters):
    learner = bare("wa", classes=[2, 1], **hyperparameters)
    learner.net, learner.teacher = Fixed([[2.0, 0.0, 3.0]]), Fixed([[2.0, 0.0]])
    return learner


def test_the_loss_is_cross_entropy_over_all_outputs_and_twice_the_distillation():
    terms = between_experiences().loss(batch(0))
    assert terms["classes"].item() == pytest.approx(1.349012, abs=1e-5)  # log(e^2 + 1 + e^3) - 2
    assert terms["distillation"].item() == pytest.approx(2 * 0.582203, abs=1e-5)
    assert terms.keys() == {"classes", "distillation"}


@pytest.mark.parametrize(("old", "new", "share"), [(2, 1, 2 / 3), (10, 10, 0.5), (90, 10, 0.9), (50, 10, 5 / 6)])
def test_balanced_both_terms_share_by_old_and_all_classes(old, new, share):
    learner = between_experiences(strength="balanced")
    learner.old_classes, learner.num_classes = old, old + new
    terms = learner.loss(batch(0))
    assert terms["classes"].item() == pytest.approx((1 - share) * 1.349012, abs=1e-5)
    assert terms["distillation"].item() == pytest.approx(share * 0.582203, abs=1e-5)


def test_the_temperature_is_the_one_given():
    learner = between_experiences(strength=1.0, temperature=1.0)
    learner.net = Fixed([[1.0, 0.0, 3.0]])
    assert learner.loss(batch(0))["distillation"].item() == pytest.approx(0.432465, abs=1e-5)


@pytest.mark.parametrize("strength", [2.0, "balanced"])
def test_the_first_experience_is_cross_entropy_alone(strength):
    learner = bare("wa", classes=[3], strength=strength)
    learner.net = Fixed([[0.0, 0.0, 3.0]])
    terms = learner.loss(batch(0))
    assert terms.keys() == {"classes"}
    assert terms["classes"].item() == pytest.approx(3.094923, abs=1e-5)  # log(2 + e^3)


def test_a_strength_in_words_is_balanced_or_refused():
    with pytest.raises(ConfigError, match=r"strategy\.strength of wa is 'equal'; allowed: a number, or balanced"):
        bare("wa", strength="equal")


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_after_training_the_mean_norm_of_new_rows_is_that_of_old_ones(learn, stream):
    heads, old = [], []

    def see(when, learner, experience):
        if when in ("trained", "done"):
            heads.append(bits(learner.net.head))
            old.append(learner.old_classes)

    learn(observed("wa", see), stream)
    assert differing(heads[0], heads[1]) == []  # the first experience has nothing to be aligned to
    for before, after, count in zip(heads[2::2], heads[3::2], old[2::2], strict=True):
        assert differing(before, after) == ["weight"]  # biases stay
        assert torch.equal(before["weight"][:count], after["weight"][:count])
        norms = after["weight"].norm(dim=1)
        assert norms[count:].mean().item() == pytest.approx(norms[:count].mean().item(), rel=1e-6)
        factors = (after["weight"][count:] / before["weight"][count:]).flatten()
        gamma = before["weight"][:count].norm(dim=1).mean() / before["weight"][count:].norm(dim=1).mean()
        torch.testing.assert_close(factors, gamma.expand_as(factors), rtol=1e-5, atol=0)
        assert abs(gamma - 1) > 1e-3


def test_with_norms_1_3_and_4_6_new_rows_end_at_16_and_24(learn):
    def see(when, learner, experience):
        if when == "trained" and experience.index == 1:
            with torch.no_grad():
                rows = learner.net.head.weight
                rows.mul_(torch.tensor([1.0, 3.0, 4.0, 6.0])[:, None] / rows.norm(dim=1, keepdim=True))
        if when == "done" and experience.index == 1:
            assert learner.net.head.weight.norm(dim=1).tolist() == pytest.approx([1, 3, 1.6, 2.4], abs=1e-5)

    learn(observed("wa", see))


def test_without_biases_the_ranking_inside_the_new_classes_stays(learn):
    ranks = []

    def see(when, learner, experience):
        if when in ("trained", "done") and experience.index == 1:
            with torch.no_grad():
                learner.net.head.bias.zero_()
            logits = learner.net.eval()(experience.train.images).logits
            ranks.append((logits[:, 2] > logits[:, 3], logits))

    learn(observed("wa", see))
    assert torch.equal(ranks[0][0], ranks[1][0]) and 0 < ranks[0][0].sum() < 24
    assert not torch.equal(ranks[0][1], ranks[1][1])


def test_the_teacher_is_the_aligned_network(learn):
    seen = {}

    def see(when, learner, experience):
        if when == "done":
            seen[experience.index] = bits(learner.net)
        if when == "before" and experience.index:
            assert differing(bits(learner.teacher), seen[experience.index - 1]) == []

    learn(observed("wa", see))
    assert len(seen) == 3


def test_without_alignment_the_head_stays_as_trained(learn):
    heads = {}

    def see(when, learner, experience):
        heads[when, experience.index] = bits(learner.net)

    learn(observed("wa", see), hyperparameters={"align": False})
    for index in range(3):
        assert differing(heads["trained", index], heads["done", index]) == []


@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_without_distillation_and_alignment_it_is_replay_bit_for_bit(learn, stream):
    replay = learn("replay", stream)
    plain = learn("wa", stream, hyperparameters={"strength": 0, "align": False})
    for index in range(3):
        assert differing(dict(replay.state(index).tensors), dict(plain.state(index).tensors)) == []
    assert replay.record.results["accuracy_matrix"] == plain.record.results["accuracy_matrix"]
    assert not [name for name in plain.trained_with(1) if name.startswith("teacher")]
    for one_more in ({"strength": 0}, {"align": False}, {"strength": "balanced", "align": False}):
        other = learn("wa", stream, hyperparameters=one_more)
        assert not differing(replay.net(0), other.net(0)) and differing(replay.net(1), other.net(1))
