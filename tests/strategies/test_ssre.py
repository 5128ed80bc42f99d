"""SSRE: adapters learn beside frozen kernels, and what resembles an old class is held, not learned."""

import math
import re

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed
from torch import nn

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import Backbone, LinearHead, NetFactory
from cil.models.base import count_parameters
from cil.strategies import find

SSRE = find("ssre")


def between(features=((3.0, 4.0), (-1.0, 0.0)), logits=((0.0,) * 3,) * 2, **hyperparameters):
    """Two old classes with means along the axes and a new one; two images of two features."""
    learner = bare("ssre", **hyperparameters)
    learner.old_classes, learner.num_classes = 2, 3
    learner.means = torch.tensor([[2.0, 0.0], [0.0, 0.5], [7.0, 7.0]])
    learner.net = Fixed(logits, features)
    learner.net.head = LinearHead(2)
    learner.net.head.grow(3)
    nn.init.zeros_(learner.net.head.weight)
    learner.teacher = Fixed([[0.0] * 2] * 2, [[0.0, 0.0], [-1.0, 1.0]])  # moved by 5 and by 1
    return learner


# the loss: s = 4 / 5 for the first image, 0 for the second ------------------------------------------------------------


def test_what_resembles_an_old_class_is_held_and_the_rest_is_learned():
    terms = between().loss(batch(2, 2))
    assert terms["classes"].item() == pytest.approx((0.2 + 1.0) * math.log(3) / 2, abs=1e-5)
    assert terms["distillation"].item() == pytest.approx(0.8 * 5 + 0 * 1, abs=1e-5)
    assert terms["prototypes"].item() == pytest.approx(10 * math.log(3), abs=1e-4)


def test_the_other_way_round_an_image_is_learned_more_and_pushed_away():
    terms = between([[-1.0, -1.0], [3.0, 4.0]]).loss(batch(2, 2))  # s = -sqrt(1 / 2) and 4 / 5
    s = -math.sqrt(0.5)
    assert terms["classes"].item() == pytest.approx((1 - s + 0.2) * math.log(3) / 2, abs=1e-5)
    assert terms["distillation"].item() == pytest.approx(s * math.sqrt(2) + 0.8 * 5, abs=1e-5)


def test_the_temperature_divides_the_logits_and_the_weights_are_those_given():
    learner = between(logits=[[0.5 * math.log(2), 0.0, 0.0]] * 2, temperature=0.5, distillation=3, prototypes=0.5)
    with torch.no_grad():
        learner.net.head.bias[2] = 0.5 * math.log(2)
    terms = learner.loss(batch(0, 0))
    assert terms["classes"].item() == pytest.approx(1.2 * math.log(2) / 2, abs=1e-5)
    assert terms["distillation"].item() == pytest.approx(3 * 4.0, abs=1e-4)
    assert terms["prototypes"].item() == pytest.approx(0.5 * math.log(4), abs=1e-5)  # an old class, never the new one


def test_prototypes_are_learned_as_their_own_classes():
    learner = between(prototypes=1.0)
    with torch.no_grad():  # features (2, 0) and (0, 1/2) to the logits of their classes
        learner.net.head.weight.copy_(torch.tensor([[0.05, 0.0], [0.0, 0.2], [0.0, 0.0]]) * math.log(2))
    assert learner.loss(batch(2, 2))["prototypes"].item() == pytest.approx(math.log(2), abs=1e-5)


def test_no_gradient_flows_through_the_resemblance():
    learner = between()
    learner.loss(batch(2, 2))["distillation"].backward()
    found = learner.net.features.grad.flatten().tolist()
    assert found == pytest.approx([0.8 * 0.6, 0.8 * 0.8, 0.0, 0.0], abs=1e-6)
    learner = between()
    learner.loss(batch(2, 2))["classes"].backward()
    assert learner.net.features.grad is None


def test_resemblance_is_the_largest_cosine_and_stays_in_its_bounds():
    torch.manual_seed(0)
    features, means = torch.randn(500, 8), torch.randn(5, 8)
    found = SSRE.resemblance(features, means)
    expected = torch.cosine_similarity(features[:, None], means[None], dim=2).amax(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    extreme = SSRE.resemblance(torch.cat([means, -means]) * 1e3, means[:1])
    assert extreme.abs().max() <= 1 and extreme[0] == pytest.approx(1, abs=1e-6) and extreme[5] == pytest.approx(-1)


def test_the_first_experience_is_cross_entropy_and_at_temperature_1_that_of_finetune(learn):
    done, plain = learn("ssre", hyperparameters={"temperature": 1.0}), learn("finetune")
    assert differing(done.net(0), plain.net(0)) == []
    assert not [name for name in done.trained_with(0) if name.startswith(("adapters", "teacher"))]


def test_weights_of_0_leave_the_weighted_cross_entropy(learn):
    class Classes(SSRE):
        def loss(self, batch):
            found = super().loss(batch)
            return {"classes": found["classes"]}

    off = learn("ssre", hyperparameters={"distillation": 0, "prototypes": 0})
    alone, full = learn(Classes), learn("ssre")
    for index in range(3):
        assert differing(off.net(index), alone.net(index)) == []
        assert bool(differing(off.net(index), full.net(index))) == (index > 0)


# adapters -----------------------------------------------------------------------------------------------------------


def test_when_an_experience_begins_the_network_is_the_old_one_and_gradients_are_numbers(learn):
    checked = []

    def see(when, learner, experience):
        if when == "prepared" and experience.index:
            learner.train_mode()
            images = Batch(experience.train.images, experience.train.slots)
            assert torch.equal(learner.net(images.images).features, learner.teacher(images.images).features)
            terms = learner.loss(images)
            assert terms["distillation"].item() == 0.0
            found = torch.autograd.grad(sum(terms.values()), [*learner.adapters.parameters()])
            assert all(g.isfinite().all() and g.any() for g in found)
            checked.append(experience.index)

    learn(observed("ssre", see))
    assert checked == [1, 2]


@pytest.mark.parametrize("freeze_norm", [True, False])
@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_after_the_first_experience_adapters_and_head_learn_alone(learn, stream, freeze_norm):
    seen = {}

    def see(when, learner, experience):
        seen[when] = bits(learner.net)
        if when == "prepared" and experience.index:
            seen["adapters"] = bits(learner.adapters)
            assert not any(value.any() for value in seen["adapters"].values())
        if when == "trained" and experience.index:
            moved = differing(seen["prepared"], seen["trained"])
            statistics = [name for name in seen["trained"] if "running_" in name]
            assert (
                moved == ["head.bias", "head.weight"]
                if freeze_norm
                else sorted(["head.bias", "head.weight", *statistics])
            )
            learned = bits(learner.adapters)
            # a bias before a batch norm that normalises by batches has no effect, so it hardly learns
            assert {name for name in learned if learned[name].any()} >= {n for n in learned if n.endswith("weight")}

    learn(observed("ssre", see), stream, hyperparameters={"freeze_norm": freeze_norm})
    assert "adapters" in seen


def test_batch_norm_stays_as_the_first_experience_left_it(learn):
    done = learn("ssre")
    for index in (1, 2):
        first, later = done.net(0), done.net(index)
        for name, value in first.items():
            if re.search(r"stages\.\d\.1\.", name):  # the norm of each block: weights and statistics
                assert torch.equal(value, later[name]), name


def test_outputs_are_the_same_before_and_after_folding(learn):
    seen, images = {}, batch(*range(6)).images

    def see(when, learner, experience):
        if when not in ("trained", "done"):
            return
        learner.net.eval()
        seen[when] = learner.net(images).logits.detach(), bits(learner.net.backbone)
        if when == "done" and experience.index:
            torch.testing.assert_close(seen["done"][0], seen["trained"][0], rtol=1e-5, atol=1e-5)
            moved = differing(seen["trained"][1], seen["done"][1])
            assert moved == [f"stages.{stage}.0.{part}" for stage in (0, 1) for part in ("bias", "weight")]
            assert not any(value.any() for value in bits(learner.adapters).values())

    learn(observed("ssre", see))
    assert "done" in seen


def test_carried_are_the_folded_network_and_a_mean_for_each_class(learn):
    done = learn("ssre")
    backbone = done.learner(0).net.backbone
    p, b, d = count_parameters(backbone), sum(buffer.numel() for buffer in backbone.buffers()), 32
    for index in range(3):
        c = 2 * (index + 1)
        assert done.ledger(index) == {"parameters": 4 * (p + d * c + c), "buffers": 4 * b, "prototypes": 4 * d * c}
        assert {name.partition(".")[0] for name in done.state(index).tensors} == {"net", "means"}
        assert done.learner(index).adapters is None
        extra = [size for name, size in done.trained_with(index).items() if name.startswith("adapters.")]
        assert sum(extra) == (4 * (3 * 16 + 16 + 16 * 32 + 32) if index else 0)


# prototypes ---------------------------------------------------------------------------------------------------------


def test_as_many_old_prototypes_as_images_are_drawn_anew_each_step(learn):
    drawn = []

    class Watched(SSRE):
        def loss(self, batch):
            head, seen = self.net.head, []
            handle = head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
            found = super().loss(batch)
            handle.remove()
            if self.old_classes:
                assert len(seen) == 2 and len(seen[1]) == len(batch)
                old = {tuple(row) for row in self.means[: self.old_classes].tolist()}
                assert {tuple(row) for row in seen[1].tolist()} <= old
                drawn.append(tuple(seen[1].flatten().tolist()))
            return found

    learn(Watched)
    assert len(drawn) == 12 and len(set(drawn)) > 6


# refused ------------------------------------------------------------------------------------------------------------


def test_a_network_without_3x3_convolutions_is_refused():
    make = NetFactory(lambda: Backbone(nn.Conv2d(3, 4, 1), [nn.Conv2d(4, 4, 5, padding=2)], 4))
    with pytest.raises(ConfigError, match=r"has none"):
        SSRE(make, Budget())
