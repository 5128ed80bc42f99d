"""Blurry streams: which image comes where, what is exposed when, and learners that train on them."""

import logging

import numpy as np
import pytest
import torch

from cil import metrics
from cil.errors import ConfigError, StreamError
from cil.streams import Gaussian, IBlurry, LongTailed, Repetition, SiBlurry, blurry, class_incremental
from cil.streams.blurry import class_groups, cut_at_random
from cil.streams.image_pool import generator
from cil.testing import check_stream, toy_run
from cil.testing.toy import toy_dataset

ARRIVALS = [
    IBlurry(), IBlurry(0, 100), IBlurry(100, 10), SiBlurry(), Gaussian(), Gaussian(0), Repetition(), LongTailed(4),
]  # fmt: skip


def slots(classes=10, each=100):
    return np.repeat(np.arange(classes), each)


def table(arrival, labels, experiences=5, seed=0):
    """Images of each class by experience, (T, K)."""
    many = labels.max() + 1
    rows = arrival.deal(labels, many, experiences, seed)
    return np.stack([np.bincount(labels[own], minlength=many) for own in rows])


def digits(arrival, **given):
    return blurry(
        "digits", **{"experiences": 5, "arrival": arrival, "train_per_class": 20, "test_per_class": 5} | given
    )


# which image comes where ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrival", [a for a in ARRIVALS if not isinstance(a, LongTailed)], ids=lambda a: a.name)
def test_every_image_comes_once(arrival):
    labels = np.random.RandomState(0).randint(0, 10, 777)
    rows = np.concatenate(arrival.deal(labels, 10, 5, 3))
    assert sorted(rows) == list(range(777))


def test_disjoint_classes_come_in_one_experience_and_equally_many_in_each():
    counts = table(IBlurry(50, 10), slots())
    assert (counts[:, :5] == 100 * np.eye(5)).all()  # the first five of the order, one an experience
    assert ((counts[:, 5:] > 0).sum(0) > 1).all()
    assert counts.sum(1).tolist() == [200] * 5  # what leaks comes back from others


def test_images_outside_the_main_experience_are_the_share_that_leaks_times_those_that_go_elsewhere():
    counts = table(IBlurry(50, 10), slots(each=2000))[:, 5:]
    outside = 1 - counts.diagonal().sum() / counts.sum()
    assert outside == pytest.approx(0.10 * (1 - 1 / 5), abs=0.008)  # four deviations of a binomial of 1000


def test_the_remainder_of_the_pool_is_given_out():
    labels = np.repeat(np.arange(4), [7, 7, 5, 8])  # 2 blurry classes: 5 * 50 // 100 = 2 and 4 images leak
    rows = IBlurry(50, 50).deal(labels, 4, 2, 1)
    assert [len(own) for own in rows] == [7 + 3 + 3, 7 + 4 + 3]
    rows = IBlurry(0, 60).deal(np.repeat(np.arange(2), [3, 2]), 2, 2, 1)  # a pool of 1 + 1; then of 1 + 0 below
    assert [len(own) for own in rows] == [2 + 1, 1 + 1]
    rows = IBlurry(0, 40).deal(np.repeat(np.arange(2), [3, 2]), 2, 2, 1)
    assert [len(own) for own in rows] == [2 + 1, 2]


def test_hundred_percent_disjoint_is_the_ordinary_split():
    whole = class_incremental("digits", increment=2, train_per_class=20)
    for mixed, plain in zip(digits(IBlurry(100, 10)), whole, strict=True):
        assert mixed.signature == plain.signature
        pixels = [{bytes(image.numpy().tobytes()) for image in e.train.pixels} for e in (mixed, plain)]
        assert pixels[0] == pixels[1]


def test_none_disjoint_and_all_leaking_is_a_mix():
    counts = table(IBlurry(0, 100), slots(each=500))
    assert counts.sum(1).tolist() == [1000] * 5
    assert abs(counts - 100).max() < 5 * 9  # five deviations of a hypergeometric count


@pytest.mark.parametrize(("experiences", "classes"), [(4, 10), (3, 10), (6, 10)])
def test_classes_that_do_not_divide_are_refused_and_not_dropped(experiences, classes):
    for arrival in (IBlurry(), SiBlurry()):
        with pytest.raises(
            StreamError, match=rf"{classes} classes do not divide into stream\.experiences={experiences}"
        ):
            digits(arrival, experiences=experiences)


def test_classes_are_grouped_as_koh_et_al_do():
    assert class_groups(100, 5, 50) == (50, 50)
    assert class_groups(200, 5, 50) == (100, 100)
    assert class_groups(10, 5, 70) == (5, 5)  # floor(7 / 5) * 5
    with pytest.raises(StreamError):
        class_groups(101, 5, 50)


def test_the_draws_are_the_same_everywhere():
    """Numbers of this page: they would differ if any draw depended on platform or version."""
    four = np.repeat(np.arange(4), 4)
    assert [rows.tolist() for rows in IBlurry(50, 50).deal(four, 4, 2, 7)] == [
        [2, 11, 10, 3, 9, 1, 8, 0],
        [7, 12, 6, 14, 4, 15, 13, 5],
    ]
    assert [rows.tolist() for rows in SiBlurry(50, 50).deal(four, 4, 2, 7)] == [
        [2, 0, 1, 3],
        [8, 6, 4, 10, 14, 13, 12, 7, 5, 11, 9, 15],
    ]
    assert cut_at_random(10, 4, generator(0, 9)) == [0, 5, 0, 5]
    assert cut_at_random(0, 3, generator(0)) == [0, 0, 0]


def test_groups_of_random_size_keep_disjoint_classes_together():
    sizes = set()
    for seed in range(20):
        counts = table(SiBlurry(50, 10), slots(), seed=seed)
        assert ((counts[:, :5] > 0).sum(0) == 1).all() and (counts[:, :5].sum(0) == 100).all()
        sizes.add(tuple((counts[:, :5] > 0).sum(1)))
    assert len(sizes) > 10 and any(0 in own for own in sizes)


def test_an_experience_without_images_is_left_out_with_a_warning(caplog):
    caplog.set_level(logging.WARNING, "cil")
    seed = next(s for s in range(50) if not all(map(len, SiBlurry(50, 0).deal(slots(10, 20), 10, 5, s))))
    stream = digits(SiBlurry(50, 0), order_seed=seed)
    assert len(stream) < 5 and "would have no images and is left out" in caplog.text
    check_stream(stream)


def test_waves_go_from_disjoint_to_mixed():
    assert (table(Gaussian(0), slots()) > 0).sum() == 10
    mixed = table(Gaussian(1000), slots(each=500))
    assert mixed.sum(1).tolist() == [1000] * 5 and abs(mixed - 100).max() < 45
    rows = Gaussian(0.1).deal(slots(), 10, 5, 0)
    means = [slots()[own].mean() for own in rows]
    assert means == sorted(means)


def test_classes_come_back_by_chance_and_share_out_their_images():
    counts = table(Repetition(0.5), slots())
    first = (counts > 0).argmax(0)
    assert first.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for slot in range(10):
        own = counts[counts[:, slot] > 0, slot]
        assert own.max() - own.min() <= 1 and own.sum() == 100
    always = table(Repetition(1), slots())
    assert (always > 0).sum(0).tolist() == [5, 5, 4, 4, 3, 3, 2, 2, 1, 1]
    assert (table(Repetition(0), slots()) > 0).sum() == 10


def test_sizes_fall_geometrically():
    labels = slots(3, 100)
    assert table(LongTailed(100), labels, 3).tolist() == [[100, 0, 0], [0, 10, 0], [0, 0, 1]]
    shuffled = table(LongTailed(100, shuffled=True), labels, 3)
    assert sorted(shuffled.sum(0)) == [1, 10, 100]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IBlurry(101), r"stream\.arrival\.disjoint is 101; it must be a whole number from 0 to 100"),
        (lambda: SiBlurry(50, 0.5), r"stream\.arrival\.leaking is 0\.5"),
        (lambda: Gaussian(-1), r"stream\.arrival\.spread is -1; it must be a number from 0 on"),
        (lambda: Repetition(1.5), r"stream\.arrival\.probability is 1\.5; it must be a number from 0 to 1"),
        (lambda: LongTailed(0.5), r"stream\.arrival\.ratio is 0\.5; it must be a number from 1 on"),
        (lambda: digits(IBlurry(), experiences=0), r"stream\.experiences is 0; it must be a whole number from 1 to"),
        (lambda: digits(IBlurry(), sized=3), r"has no option stream\.sized"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_more_groups_than_classes_are_refused():
    with pytest.raises(StreamError, match=r"stream\.experiences is 11; with 10 classes it must be 1 to as many"):
        digits(Repetition(), experiences=11)


# the stream -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrival", ARRIVALS, ids=lambda a: a.name)
def test_the_stream_keeps_the_contract(arrival):
    stream = digits(arrival, validation=0.2)
    check_stream(stream)
    assert sorted(stream.order) == list(range(10))
    kept = sum(sum(s.counts.values()) for s in stream.signatures)
    assert kept == 160 if not isinstance(arrival, LongTailed) else kept < 160


def test_signatures_say_which_classes_are_new_and_which_are_present():
    stream = digits(IBlurry())
    assert len(stream.signatures[0].new_slots) >= 2
    assert any(set(s.present) - set(s.new_slots) for s in stream.signatures[1:])
    met = [slot for s in stream.signatures for slot in s.new_slots]
    assert met == list(range(10))
    plain = class_incremental("digits", increment=10, train_per_class=20)  # slots are renamed, classes are not
    assert sorted(stream.classes) == sorted(plain.classes)
    for experience in stream:
        for slot in experience.present:
            own = experience.train.of_class(slot).pixels
            known = plain[0].train.of_class(plain.order.index(stream.order[slot])).pixels
            assert all((known == image).flatten(1).all(1).any() for image in own)


def test_test_and_validation_data_are_those_of_the_classes_first_met():
    stream = digits(IBlurry(), validation=0.2)
    for index, experience in enumerate(stream):
        new = experience.new_slots
        assert stream.test(index).counts() == dict.fromkeys(new, 5)
        held = experience.validation
        assert (held.counts() if held is not None else {}) == dict.fromkeys(new, 4)


def test_an_image_is_for_training_or_for_validation():
    stream = blurry(toy_dataset(), experiences=3, arrival=IBlurry(50, 50), validation=0.25)
    train = {image.numpy().tobytes() for e in stream for image in e.train.pixels}
    held = {image.numpy().tobytes() for e in stream if e.validation is not None for image in e.validation.pixels}
    assert len(train) == 6 * 9 and len(held) == 6 * 3 and not train & held


def test_a_learner_cannot_reach_images_of_other_experiences():
    stream = digits(IBlurry())
    for experience in stream:
        assert all(len(store) == len(experience.train) for store, _ in experience.train.parts)


def test_the_fingerprint_knows_who_comes_when():
    made = [digits(IBlurry()), digits(IBlurry(50, 20)), digits(SiBlurry()), digits(IBlurry(), order_seed=1)]
    assert len({stream.fingerprint for stream in made}) == 4
    assert digits(IBlurry()).fingerprint == made[0].fingerprint
    assert digits(IBlurry(), augment={"flip": True}).fingerprint == made[0].fingerprint


def test_normalisation_is_that_of_the_first_experience():
    data = toy_dataset()
    stream = blurry(data, experiences=3, arrival=IBlurry(100, 0))
    values = stream[0].train.images.transpose(0, 1).flatten(1).double()
    assert torch.allclose(torch.tensor(stream.mean, dtype=torch.float64), values.mean(1), atol=1e-6)
    assert torch.allclose(torch.tensor(stream.std, dtype=torch.float64), values.std(1, unbiased=False), atol=1e-6)
    said = blurry(data, experiences=3, arrival=IBlurry(100, 0), mean=[0.1] * 3)
    assert said.mean == (0.1,) * 3 and said.std == stream.std


# learners -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finetune", "replay", "derpp", "er_ace", "icarl"])
@pytest.mark.parametrize("arrival", [IBlurry(50, 40), IBlurry(0, 100)], ids=lambda a: a.name)
def test_learners_train_on_it_and_are_evaluated_on_what_is_exposed(name, arrival, tmp_path):
    stream = blurry(toy_dataset(), experiences=3, arrival=arrival)
    run = toy_run(name, stream, tmp_path)
    record = run.execute()
    assert record.status == "finished" and record.results["class_counts"] == [8] * 6
    C = [metrics.confusion_of(run.checkpoints.evaluated(i)["cells"].numpy(), 6) for i in range(3)]
    P = np.stack([100 * c.diagonal() / c.sum(1).clip(1) for c in C])
    first = stream.experience_of_slot
    best = [P[first[slot] : 2, slot].max(initial=0) for slot in range(6)]
    fallen = [best[slot] - P[2, slot] for slot in range(6) if best[slot] > 0]
    assert record.results["forgetting_by_class"] == pytest.approx(np.mean(fallen))
    R, exposed = record.results["accuracy_matrix"], np.cumsum([len(s.new_slots) for s in stream.signatures])
    for i, accuracy in enumerate(record.results["accuracy_curve"]):
        right = sum(R[i][j] * len(s.new_slots) for j, s in enumerate(stream.signatures[: i + 1]) if s.new_slots)
        assert accuracy == pytest.approx(right / exposed[i])
