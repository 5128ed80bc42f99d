"""RoTTA: who is in the bank, slow statistics, and an update, by hand."""

import math
from collections import Counter

import pytest
import torch

from cil.adapt import rotta as module
from cil.adapt.parts.bank import BalancedBank
from cil.engine import step_kinds
from cil.errors import ConfigError
from cil.testing.shifts import toy_adaptation, toy_shifts


def offer(bank, *items):
    """Images whose one pixel is their number in order, of these labels and entropies."""
    for label, entropy in items:
        pixel = torch.full((1, 1, 1, 1), float(bank.arrived) / 255)
        bank.add(pixel, torch.tensor([label]), torch.tensor([entropy]))


def content(bank):
    """Number of the image, label, age: of all that are held."""
    there = bank.ages >= 0
    return list(
        zip(
            bank.pixels[there].flatten().tolist(),
            bank.labels[there].tolist(),
            bank.ages[there].tolist(),
            strict=True,
        )
    )


def test_a_score_is_that_of_age_and_entropy():
    bank = BalancedBank(4, 3, (1, 1, 1), age_weight=2.0, entropy_weight=0.5)
    assert bank.score(0, 0.0) == 1.0  # 2 / (1 + 1)
    assert bank.score(3, 0.7) == pytest.approx(2 / (1 + math.exp(-0.75)) + 0.5 * 0.7 / math.log(3))


def test_free_places_are_taken_and_all_ages_grow():
    bank = BalancedBank(4, 2, (1, 1, 1))
    offer(bank, (0, 0.5), (1, 0.4), (0, 0.1))
    assert content(bank) == [(0, 0, 3), (1, 1, 2), (2, 0, 1)]
    assert bank.entropies[:3].tolist() == pytest.approx([0.5, 0.4, 0.1])
    images, ages = bank.held()
    assert images.flatten().tolist() == pytest.approx([0, 1 / 255, 2 / 255]) and ages.tolist() == [3, 2, 1]
    assert len(bank) == 3


def test_a_class_at_its_quota_gives_up_its_own_worst_even_where_there_is_room():
    bank = BalancedBank(4, 2, (1, 1, 1))  # quota 2
    offer(bank, (0, 0.5), (0, 0.1), (0, 0.3))
    # scores: 1 / (1 + e^(-2/4)) + 0.5 / ln 2 = 1.344, 0.562 + 0.144 = 0.707; the new one 0.5 + 0.433 = 0.933
    assert content(bank) == [(2, 0, 1), (1, 0, 2)]
    offer(bank, (0, 0.69))  # 1.495, more than either
    assert content(bank) == [(2, 0, 2), (1, 0, 3)]


def test_a_class_below_its_quota_takes_the_worst_place_of_the_largest_classes():
    bank = BalancedBank(5, 3, (1, 1, 1))  # quota 5/3: up to two of a class
    offer(bank, (0, 0.1), (0, 0.5), (1, 0.2), (1, 0.3), (2, 1.09))
    # full; the worst of all is that of class 2, which is no largest class; of 0 and 1 it is image 1
    offer(bank, (2, 0.6))
    assert content(bank) == [(0, 0, 6), (5, 2, 1), (2, 1, 4), (3, 1, 3), (4, 2, 2)]


def test_the_worst_place_is_kept_from_a_worse_image():
    bank = BalancedBank(4, 3, (1, 1, 1))
    offer(bank, (0, 0.1), (0, 0.5), (1, 0.2), (1, 0.3))
    # image 1: age 3, 1 / (1 + e^-0.75) + 0.5 / ln 3 = 1.1343, and 0.5 + H / ln 3 is that at H = 0.6969
    offer(bank, (2, 0.72))
    assert [number for number, _, _ in content(bank)] == [0, 1, 2, 3]
    offer(bank, (2, 0.69))
    assert [number for number, _, _ in content(bank)] == [0, 5, 2, 3]


def test_it_never_holds_more_than_its_size_or_the_quota_of_a_class():
    bank = BalancedBank(64, 10, (1, 1, 1))
    draws = torch.Generator().manual_seed(0)
    for block in range(60):  # classes come in long runs
        labels = torch.where(torch.rand(10, generator=draws) < 0.7, block // 6, 0)
        labels = torch.where(torch.rand(10, generator=draws) < 0.2, torch.randint(10, (10,), generator=draws), labels)
        entropies = 2.3 * torch.rand(10, generator=draws)
        for label, entropy in zip(labels, entropies, strict=True):
            bank.add(torch.zeros(1, 1, 1, 1), label[None], entropy[None])
            held = Counter(label for _, label, _ in content(bank))
            assert held.total() <= 64 and max(held.values()) <= 7  # 6.4 a class: the seventh comes in, the eighth not
    assert len(bank) == 64 and len(held) == 10


def test_images_offered_together_are_taken_one_after_the_other():
    draws = torch.Generator().manual_seed(1)
    labels, entropies = torch.randint(3, (50,), generator=draws), torch.rand(50, generator=draws)
    images = torch.randint(0, 256, (50, 3, 2, 2), generator=draws).float() / 255
    one, many = BalancedBank(7, 3, (3, 2, 2)), BalancedBank(7, 3, (3, 2, 2))
    for index in range(50):
        one.add(images[index : index + 1], labels[index : index + 1], entropies[index : index + 1])
    for part in torch.arange(50).split(16):
        many.add(images[part], labels[part], entropies[part])
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), many.buffers(), strict=True))
    there, _ = many.held()
    assert all(any(torch.equal(image, given) for given in images) for image in there)  # bytes are exact


def test_many_classes_have_wider_labels():
    bank = BalancedBank(3, 1000, (1, 1, 1))
    offer(bank, (999, 0.1), (257, 0.1))
    assert [label for _, label, _ in content(bank)] == [999, 257]


def test_the_first_answers_are_the_source_s_and_statistics_wait_for_an_update(made):
    rotta, source = made("rotta", every=8, capacity=8, share=0.5), made("source")
    images = made.pictures(8)
    torch.testing.assert_close(rotta.adapt_and_predict(images[:7]), source.adapt_and_predict(images[:7]))
    assert (
        torch.equal(rotta.net.backbone.stages[0][1].running_mean, source.net.backbone.stages[0][1].running_mean)
        and not rotta.optimizer.steps
    )
    before = rotta.adapt_and_predict(images[7:])  # the eighth image: an update, after its answer
    torch.testing.assert_close(before, source.adapt_and_predict(images[7:]))
    assert rotta.optimizer.steps == 1
    assert (rotta.adapt_and_predict(images[:1]) - source.adapt_and_predict(images[:1])).abs().max() > 1e-3


def test_an_update_is_the_weighted_cross_entropy_under_the_teacher(made, monkeypatch):
    monkeypatch.setattr(module, "random_view", lambda images, generator: images)
    rotta = made("rotta", made.one_norm(), capacity=2, every=2, share=0.5, momentum=0.9, lr=0.01)
    with torch.no_grad():
        rotta.net.norm.bias.copy_(torch.tensor([1.0, 0.0]))
    answer = rotta.adapt_and_predict(made.crossed)
    assert answer.flatten().tolist() == pytest.approx([0.2, 0.8, 0.6, 0.4])  # stored statistics: mean 0, variance 1
    # batch: means 0.4, 0.6, variances 0.04; with half of it: means 0.2, 0.3, variance 0.52
    weights = [1 / (1 + math.exp(age / 2)) for age in (2, 1)]
    slope = 0.0
    for weight, (first, second) in zip(weights, ((0.2, 0.8), (0.6, 0.4)), strict=True):
        apart = ((first - 0.2) - (second - 0.3)) / 0.52**0.5
        slope += weight * (1 / (1 + math.exp(-apart - 1)) - 1 / (1 + math.exp(-apart))) / 2
    gradient = rotta.optimizer.moments[0] / 0.1
    assert gradient[2:].tolist() == pytest.approx([slope, -slope], rel=1e-4)
    assert rotta.net.norm.bias.tolist() == pytest.approx([0.99, 0.01], abs=1e-5)
    assert rotta.teacher.norm.bias.tolist() == pytest.approx([0.1 * 0.99, 0.1 * 0.01], abs=1e-5)
    for net in (rotta.net, rotta.teacher):
        assert net.norm.running_mean.tolist() == pytest.approx([0.2, 0.3])
        assert net.norm.running_var.tolist() == pytest.approx([0.52, 0.52])
        assert not net.norm.training


def test_updates_fall_every_so_many_images_wherever_batches_end(made):
    steps = {}
    for size in (5, 12, 40):
        rotta = made("rotta", every=8, capacity=8)
        for batch, part in enumerate(made.pictures(40).split(size)):
            made.at(rotta, batch)
            rotta.adapt_and_predict(part)
        steps[size] = int(rotta.optimizer.steps)
    assert steps == {5: 5, 12: 5, 40: 5}


def test_a_network_without_batch_norm_is_refused(made):
    source = made.one_norm()
    source.net.norm = torch.nn.Identity()
    with pytest.raises(ConfigError, match="rotta trains batch norm, and this OneNorm has none"):
        made("rotta", source)


def test_updates_that_are_rarer_than_batches_are_billed(tmp_path, monkeypatch):
    """An update every eight images in batches of two; the first one is of a bank that is not full."""
    few = toy_adaptation("rotta", toy_shifts(), tmp_path / "few", batch_size=2).execute().results
    monkeypatch.setattr(step_kinds, "SPARSE", 1.0)
    each = toy_adaptation("rotta", toy_shifts(), tmp_path / "each", batch_size=2).execute().results
    assert few["peak_training_bytes"] == each["peak_training_bytes"]
    assert few["flops"]["total"] == pytest.approx(each["flops"]["total"], rel=0.1)
