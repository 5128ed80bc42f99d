"""PASS: turned images as classes, noise around old means, features held by one norm."""

import math

import pytest
import torch
from small_runs import Fixed, bare, batch, bits, differing, observed, signatures
from torch import nn

from cil.data import Batch, Samples
from cil.errors import ConfigError
from cil.models import LinearHead, extract
from cil.models.base import count_parameters
from cil.strategies import find
from cil.streams import Experience, Signature

PASS = find("pass")


class Watching(Fixed):
    """Remembers what it was shown."""

    def forward(self, images):
        self.shown = images
        return super().forward(images)


def between(old, new, features=((0.0, 0.0),) * 4, **hyperparameters):
    """So many old and new classes, two numbers a feature, a head of zeros; a batch has one image."""
    learner = bare("pass", **hyperparameters)
    learner.old_classes, learner.num_classes = old, old + new
    outputs = 4 * (old + new)
    learner.net = Watching([[0.0] * outputs] * 4, features)
    learner.net.head = LinearHead(2)
    learner.net.head.grow(outputs)
    nn.init.zeros_(learner.net.head.weight)
    learner.means = torch.arange(2.0 * (old + new)).view(-1, 2)
    return learner


# labels -------------------------------------------------------------------------------------------------------------


def test_an_image_turned_r_times_has_the_label_4_y_plus_r():
    for turn in range(4):
        learner = between(0, 2)
        with torch.no_grad():
            learner.net.logits[turn, 4 * 1 + turn] = 0.1 * math.log(7)  # 7 / (7 + 7) at the right one, 1 / 14 elsewhere
        expected = (math.log(2) + 3 * math.log(8)) / 4
        assert learner.loss(batch(1))["classes"].item() == pytest.approx(expected, abs=1e-5)


def test_n_images_are_4_n_rows_turned_by_quarters():
    learner = between(0, 3)
    learner.net.logits = nn.Parameter(torch.zeros(12, 12))
    given = batch(0, 2, 1)
    learner.loss(given)
    upright, quarter, half, three = learner.net.shown.split(3)
    assert torch.equal(upright, given.images)
    assert torch.equal(half, given.images.flip(2).flip(3))
    assert torch.equal(quarter[:, :, 0], given.images[:, :, :, -1])  # the last column becomes the first row
    assert torch.equal(three[:, :, 0], given.images[:, :, :, 0].flip(2))


def test_the_temperature_divides_the_logits():
    learner = between(0, 1, temperature=0.5)
    with torch.no_grad():
        learner.net.logits[:, 0] = 0.5 * math.log(3)  # upright: 3 / 6; turned: 1 / 6
    expected = (math.log(2) + 3 * math.log(6)) / 4
    assert learner.loss(batch(0))["classes"].item() == pytest.approx(expected, abs=1e-5)


def test_the_first_experience_is_the_labels_alone():
    assert between(0, 2).loss(batch(1)).keys() == {"classes"}


def test_a_class_answers_by_its_unturned_output():
    learner = between(0, 3)
    learner.net.logits = nn.Parameter(torch.arange(24.0).view(2, 12))
    assert learner.predict(torch.zeros(2, 3, 12, 12)).tolist() == [[0.0, 4.0, 8.0], [12.0, 16.0, 20.0]]


def test_the_head_grows_by_four_outputs_a_class():
    learner = bare("pass", classes=[2, 3])
    assert learner.net.head.weight.shape == (20, 32) and learner.means.shape == (5, 32)


# features -----------------------------------------------------------------------------------------------------------


def test_features_are_held_by_one_norm_over_the_whole_batch():
    learner = between(2, 3, [[3.0, 1.0], [1.0, 5.0], [1.0, 1.0], [1.0, 1.0]])
    learner.teacher = Fixed([[0.0] * 8] * 4, [[0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    terms = learner.loss(batch(3))  # differences (3, 0) and (0, 4)
    assert terms["distillation"].item() == pytest.approx(10 * 5.0, abs=1e-4)
    learner.distillation = 0.5
    loss = learner.loss(batch(3))["distillation"]
    assert loss.item() == pytest.approx(2.5, abs=1e-5)
    loss.backward()
    assert learner.net.features.grad[:2].flatten().tolist() == pytest.approx([0.3, 0.0, 0.0, 0.4], abs=1e-6)


def test_when_an_experience_begins_no_feature_has_moved_and_the_gradient_is_a_number(learn):
    checked = []

    def see(when, learner, experience):
        if when == "prepared" and experience.index:
            learner.net.eval()
            term = learner.loss(Batch(experience.train.images, experience.train.slots))["distillation"]
            assert term.item() == 0.0
            gradients = torch.autograd.grad(term, list(learner.net.backbone.parameters()))
            assert all(g.isfinite().all() for g in gradients)
            checked.append(experience.index)

    learn(observed("pass", see))
    assert checked == [1, 2]


def test_the_teacher_is_the_network_of_the_last_boundary_and_never_changes(learn):
    seen = {}

    def see(when, learner, experience):
        if experience.index == 0:
            assert learner.teacher is None
        elif when == "before":
            seen["teacher"] = bits(learner.teacher)
            assert differing(seen["teacher"], bits(learner.net)) == []
        else:
            assert differing(seen["teacher"], bits(learner.teacher)) == []
            assert not any(p.requires_grad or p.grad is not None for p in learner.teacher.parameters())

    learn(observed("pass", see))
    assert seen


# prototypes ---------------------------------------------------------------------------------------------------------


def test_pseudo_features_are_learned_as_unturned_old_classes():
    learner = between(4, 2)
    with torch.no_grad():
        learner.net.head.bias[0:16:4] = 0.1 * math.log(3)  # 4 outputs with 3, 20 with 1: 3 / 32 for a target 4 y
    term = learner.loss(batch(4))["prototypes"]
    assert term.item() == pytest.approx(10 * math.log(32 / 3), abs=1e-4)
    learner.prototypes = 0.5
    assert learner.loss(batch(4))["prototypes"].item() == pytest.approx(0.5 * math.log(32 / 3), abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "count"), [(4, 2, 128), (5, 2, 128), (50, 10, 320), (2, 2, 64), (1, 2, 0), (0, 2, 0), (3, 0, 192)]
)
@pytest.mark.parametrize("by_classes", [False, True])
def test_there_are_64_or_as_many_for_each_time_that_the_new_classes_fit_into_the_old(
    monkeypatch, old, new, count, by_classes
):
    count = count if by_classes else 64 * (old > 0)
    asked = []
    drawn = PASS.pseudo_features
    monkeypatch.setattr(PASS, "pseudo_features", lambda self, n: asked.append(n) or drawn(self, n))
    learner = between(old, new)
    learner.pseudo_by_classes = by_classes
    terms = learner.loss(batch(0))
    assert asked == ([count] if count else [])
    assert ("prototypes" in terms) == bool(count)
    assert all(term.isfinite() for term in terms.values())


def test_they_are_normal_around_the_mean_with_the_variance_of_the_radius():
    learner = between(3, 1)
    learner.means = torch.tensor([[0.0, 10.0], [-5.0, 2.0], [7.0, 7.0], [900.0, 900.0]])
    learner.spread = torch.tensor(1.5)
    features, slots = learner.pseudo_features(30_000)
    assert sorted(slots.unique().tolist()) == [0, 1, 2]  # no new class
    for slot in range(3):
        own = features[slots == slot]
        assert len(own) == pytest.approx(10_000, rel=0.05)
        torch.testing.assert_close(own.mean(0), learner.means[slot], rtol=0, atol=0.08)
        torch.testing.assert_close(own.var(0), torch.full((2,), 2.25), rtol=0.06, atol=0)
    assert abs(float(torch.corrcoef((features - learner.means[slots]).T)[0, 1])) < 0.03


def test_a_radius_of_0_gives_the_means_themselves():
    learner = between(2, 1)
    features, slots = learner.pseudo_features(5)
    assert torch.equal(features, learner.means[slots])


def test_every_step_draws_its_own(learn):
    drawn = {}

    class Watched(PASS):
        def pseudo_features(self, count):
            features, slots = super().pseudo_features(count)
            drawn[self.context.generator("x").initial_seed(), self.progress.step] = features.flatten()[:5].tolist()
            return features, slots

    learn(Watched)
    assert len(drawn) == 12 and len({tuple(values) for values in drawn.values()}) == 12  # 2 experiences of 6 steps


def test_the_loss_on_prototypes_moves_the_head_alone(learn):
    def see(when, learner, experience):
        if when == "prepared" and experience.index:
            learner.loss(batch(*experience.new_slots))["prototypes"].backward()
            assert all(p.grad is None for p in learner.net.backbone.parameters())
            assert learner.net.head.weight.grad.abs().sum() > 0
            learner.net.zero_grad()

    learn(observed("pass", see))


@pytest.mark.parametrize("radius", ["all", "first"])
@pytest.mark.parametrize("stream", ["toy", "uneven"])
def test_the_radius_is_the_root_of_the_mean_variance(learn, stream, radius):
    done = learn("pass", stream, hyperparameters={"radius": radius})
    variances = []
    for index in range(3):
        learner = done.learner(index)
        for slot in done.stream.signatures[index].new_slots if radius == "all" or not index else ():
            features = extract(learner.net, done.stream[index].train.of_class(slot))
            variances.append(torch.cov(features.T).trace() / 32)
        assert learner.spread.item() == pytest.approx(torch.stack(variances).mean().sqrt().item(), rel=1e-5)


def test_a_class_of_one_image_has_no_variance():
    learner = bare("pass", classes=[2])
    images = torch.zeros(2, 3, 12, 12).byte()
    images[1] = 200
    learner.after_experience(Experience(signatures([2])[0], Samples.from_arrays(images, torch.tensor([0, 1]))))
    assert learner.spread.item() == 0.0 and learner.means.isfinite().all()


# what is carried, and what is left when terms are off ----------------------------------------------------------------


def test_carried_are_four_outputs_a_class_a_mean_a_class_and_one_number(learn):
    done = learn("pass")
    net = done.learner(0).net
    p, b, d = count_parameters(net.backbone), sum(buffer.numel() for buffer in net.backbone.buffers()), 32
    for index in range(3):
        c = 2 * (index + 1)
        assert done.ledger(index) == {
            "parameters": 4 * (p + 4 * d * c + 4 * c),
            "buffers": 4 * b,
            "prototypes": 4 * d * c,
            "statistics": 4,
        }
        assert done.record.results["exemplars"][index] == 0


def test_without_both_terms_it_learns_turned_classes_alone(learn):
    class Labels(PASS):
        def loss(self, batch):
            return super().loss(batch)["classes"]

    off = learn("pass", hyperparameters={"distillation": 0, "prototypes": 0})
    labels, full = learn(Labels), learn("pass")
    for index in range(3):
        assert differing(off.net(index), labels.net(index)) == []
        assert bool(differing(off.net(index), full.net(index))) == (index > 0)
        assert not [name for name in off.trained_with(index) if name.startswith("teacher")]


# refused ------------------------------------------------------------------------------------------------------------


def test_images_that_are_not_square_cannot_be_turned():
    learner = bare("pass")
    with pytest.raises(ConfigError, match="must be square; the stream has 12 x 10"):
        learner.grow(Signature(0, (0,), (0,), {0: 4}, (3, 12, 10), 1))
