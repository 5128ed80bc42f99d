"""EASE: a subspace for each experience, and prototypes that are synthesised where a class has none."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_runs import bare, batch, bits, differing

from cil.models import extract
from cil.strategies.ease import completed
from cil.strategies.parts.frozen_heads import FeaturesAndHead


def test_a_missing_prototype_is_the_softmax_of_cosines_by_hand():
    """Cosines of 1 and 0 weigh .731059 and .268941."""
    means = torch.zeros(3, 2, 2)
    means[0, 0] = torch.tensor([2.0, 0.0])  # came first: none in the second features
    means[1] = torch.tensor([[5.0, 0.0], [3.0, 0.0]])
    means[2] = torch.tensor([[0.0, 1.0], [0.0, 4.0]])
    found = completed(means, [0, 1, 1])
    mixed = torch.tensor([0.731059 * 3, 0.268941 * 4])
    torch.testing.assert_close(found[0, 1], mixed / mixed.norm())
    torch.testing.assert_close(found[0, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found[1:], F.normalize(means[1:], dim=2))


def test_a_class_that_came_back_has_its_own_and_one_without_images_none():
    means = torch.rand(3, 2, 4) + 1
    torch.testing.assert_close(completed(means, [0, 0, 1]), F.normalize(means, dim=2))
    means[0] = 0
    assert not completed(means, [0, 0, 1])[0].any()


def test_scores_by_hand():
    """cos in the own features, and a tenth of the mean over the two others."""
    learner = bare("ease", classes=[1, 1, 1], rank=4)
    points = F.normalize(torch.randn(3, 1, 16), dim=2)
    object.__setattr__(learner, "features", lambda index, images: 7 * points[index])
    learner.counts += 1
    learner.prototypes = F.normalize(torch.randn(3, 3, 16), dim=2)
    cosines = (points[:, 0][None] * learner.prototypes).sum(2)  # (C, T)
    expected = [cosines[c, c] + 0.1 / 2 * (cosines[c].sum() - cosines[c, c]) for c in range(3)]
    torch.testing.assert_close(learner.predict(batch(0).images)[0], torch.stack(expected))
    learner.others = 0.0
    torch.testing.assert_close(learner.predict(batch(0).images)[0], cosines.diagonal())


def test_adapters_of_the_past_stay_and_rows_of_prototypes_are_means(learn):
    done = learn("ease")
    body = [name for name in done.state(0).tensors if name.startswith(("vit.", "adapters."))]
    for name in body:
        assert torch.equal(done.state(0).tensors[name], done.state(2).tensors[name]), name
    learner, train = done.learner(2), done.stream[2].train
    assert learner.counts.tolist() == [[12, 0, 0]] * 2 + [[12, 12, 0]] * 2 + [[12, 12, 12]] * 2
    for index in range(3):
        view = FeaturesAndHead(
            lambda images, t=index: learner.features(t, images), learner.net, [learner.vit, learner.adapters]
        )
        mean = F.normalize(extract(view, train.of_class(4)).mean(0), dim=0)
        torch.testing.assert_close(learner.prototypes[4, index], mean, rtol=1e-4, atol=1e-5)
    rank = 2 * (16 * 4 + 4 + 4 * 16 + 16)
    vit = sum(v.numel() for n, v in done.state(2).tensors.items() if n.startswith("vit."))
    for t in range(3):
        k = 2 * (t + 1)
        assert done.ledger(t)["prototypes"] == 4 * k * (t + 1) * 16 and done.ledger(t)["statistics"] == 4 * k * (t + 1)
        assert done.ledger(t)["parameters"] == 4 * (vit + (t + 1) * rank)


def test_the_first_experience_alone_is_adapters_and_the_nearest_mean(learn):
    done = learn("ease")
    learner, images = done.learner(0).to("cpu"), batch(0, 1, 0).images
    scores = done.run.work.learners.scores(learner, images)
    means = learner.sums[:, 0] / 12
    learner.adapters.eval()
    with torch.no_grad():
        expected = F.cosine_similarity(learner.features(0, images)[:, None], means[None], dim=2)
    torch.testing.assert_close(scores, expected)


def test_two_evaluations_are_equal_and_change_nothing(learn):
    done = learn("ease")
    learner, images = done.learner(2), batch(*range(6)).images
    before = bits(learner.adapters)
    one, two = (done.run.work.learners.scores(learner, images) for _ in range(2))
    assert torch.equal(one, two) and differing(before, bits(learner.adapters)) == []


def test_the_head_of_an_experience_knows_its_classes_alone():
    learner = bare("ease", classes=[2, 3], rank=4)
    assert learner.head.num_classes == 3
    learner.features = lambda index, images: torch.zeros(len(images), 16)
    assert learner.loss(batch(2, 4)).item() == pytest.approx(math.log(3))
    adapters, head = 2 * (16 * 4 + 4 + 4 * 16 + 16), 3 * 16 + 1
    assert sum(p.numel() for p in learner.trainable()) == adapters + head
