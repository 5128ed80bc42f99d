"""Class-incremental streams: order, split, caps, validation, and what the two halves can reach."""

import pytest
import torch

from cil.data import Augment, Dataset, Samples
from cil.errors import StreamError
from cil.streams import class_incremental, class_order
from cil.streams.class_choice import experience_sizes
from cil.streams.options import channel_statistics

# Zhou et al. 2024, protocol 1.3: any data set of 100 classes, seed 1993
ORDER_100 = [
    *(68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38, 58, 70, 77, 1, 85),
    *(19, 17, 50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44, 91, 41, 72, 60, 79, 52, 20, 10, 31, 54),
    *(37, 95, 14, 71, 96, 98, 97, 2, 64, 66, 42, 22, 35, 86, 24, 34, 87, 21, 99, 0, 88, 27, 18, 94, 11),
    *(12, 47, 25, 30, 46, 62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73, 93, 39, 67, 29, 49, 57, 33),
]


def numbered(name="numbered", classes=4, train=3, test=2):
    """Images of one pixel; its value names the image: 10 * label + number, 100 more in the test split."""

    def split(count, first):
        labels = torch.arange(classes).repeat(count)
        values = first + 10 * labels + torch.arange(count).repeat_interleave(classes)
        return Samples.from_arrays(values.byte().reshape(-1, 1, 1, 1), labels)

    return Dataset(name, split(train, 0), split(test, 100), [f"class {k}" for k in range(classes)])


def values(samples):
    return sorted(samples.pixels.flatten().tolist())


def test_the_class_order_is_the_published_one():
    assert class_order(100) == ORDER_100
    assert class_order(10) == [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]
    assert class_order(1000)[:20] == [
        *(54, 7, 894, 512, 126, 337, 988, 11, 284, 493),
        *(133, 783, 192, 979, 622, 215, 240, 548, 238, 419),
    ]


def test_orders_of_fifty_pooled_classes_are_those_of_libcontinual():
    """numpy.random.permutation(50) after numpy.random.seed(seed)."""
    assert [class_order(50, seed)[:10] for seed in range(5)] == [
        [28, 11, 10, 41, 2, 27, 38, 31, 22, 4],
        [27, 35, 40, 38, 2, 3, 48, 29, 46, 31],
        [36, 47, 28, 9, 13, 0, 44, 46, 39, 23],
        [12, 39, 9, 47, 31, 28, 13, 48, 45, 6],
        [6, 48, 11, 4, 12, 31, 7, 25, 41, 18],
    ]


def test_another_seed_gives_another_permutation():
    order = class_order(100, seed=7)
    assert sorted(order) == list(range(100))
    assert order != ORDER_100
    with pytest.raises(StreamError, match=r"stream\.order_seed is -1; it must be in 0 to 2\^32 - 1"):
        class_order(10, seed=-1)


@pytest.mark.parametrize(
    ("classes", "base", "increment", "sizes"),
    [
        (100, 0, 10, [10] * 10),
        (100, 50, 25, [50, 25, 25]),
        (100, 10, 10, [10] * 10),
        (100, 50, 20, [50, 20, 20, 10]),
        (17, 5, 4, [5, 4, 4, 4]),
        (7, 0, 3, [3, 3, 1]),
        (5, 5, 1, [5]),
        (5, 1, 4, [1, 4]),
        (5, 0, 5, [5]),
    ],
)
def test_base_and_increment_divide_the_classes(classes, base, increment, sizes):
    assert experience_sizes(classes, base, increment) == sizes


def test_slots_are_places_in_the_order_whatever_the_labels():
    stream = class_incremental(numbered(), increment=2, order=[2, 0, 3, 1])
    assert stream.order == (2, 0, 3, 1)
    assert stream.classes == ("class 2", "class 0", "class 3", "class 1")
    assert values(stream[0].train.of_class(0)) == [20, 21, 22]
    assert values(stream[1].train.of_class(3)) == [10, 11, 12]
    assert values(stream.test(1)) == [110, 111, 130, 131]
    assert sorted(stream.test(1).slots.tolist()) == [2, 2, 3, 3]
    assert stream.experience_of_slot == (0, 0, 1, 1)


def test_the_natural_order_is_that_of_the_labels_and_the_default_that_of_the_seed():
    assert class_incremental(numbered(), increment=2, order="natural").order == (0, 1, 2, 3)
    assert class_incremental(numbered(), increment=2).order == tuple(class_order(4))
    assert class_incremental(numbered(), increment=2, order_seed=5).order == tuple(class_order(4, 5))


def test_signatures_say_what_arrives_and_how_much_of_it(uneven_stream):
    assert [s.new_slots for s in uneven_stream.signatures] == [(0,), (1, 2), (3, 4), (5,)]
    assert [s.present for s in uneven_stream.signatures] == [(0,), (1, 2), (3, 4), (5,)]
    assert [s.counts for s in uneven_stream.signatures] == [{0: 9}, {1: 2, 2: 7}, {3: 12, 4: 5}, {5: 4}]
    assert [s.num_classes for s in uneven_stream.signatures] == [1, 3, 5, 6]
    assert [s.index for s in uneven_stream.signatures] == [0, 1, 2, 3]
    for experience in uneven_stream:
        assert experience.train.counts() == experience.signature.counts
        assert experience.signature.image_shape == experience.train.shape == (3, 12, 12)
        assert experience.validation is None


def test_images_keep_the_order_of_the_data_set_within_an_experience():
    dataset = numbered()
    first = class_incremental(dataset, increment=2, order="natural")[0].train
    assert first.pixels.flatten().tolist() == [0, 10, 1, 11, 2, 12]
    assert first.slots.tolist() == [0, 1, 0, 1, 0, 1]


def test_classes_keeps_the_first_of_the_order():
    stream = class_incremental(numbered(), increment=1, order=[2, 0, 3, 1], classes=2)
    assert [values(experience.train) for experience in stream] == [[20, 21, 22], [0, 1, 2]]
    assert stream.classes == ("class 2", "class 0")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.34, 0.5, 0.9])
def test_validation_is_held_out_of_the_training_images_and_never_of_the_test_images(make_dataset, share):
    dataset = numbered(train=10, test=6)
    whole = class_incremental(dataset, increment=2, order="natural")
    stream = class_incremental(dataset, increment=2, order="natural", validation=share)
    for index, experience in enumerate(stream):
        train, held = values(experience.train), values(experience.validation)
        assert not set(train) & set(held)
        assert sorted(train + held) == values(whole[index].train)
        assert set(experience.validation.counts().values()) == {max(1, round(10 * share))}
        assert experience.signature.counts == experience.train.counts()
        assert values(stream.test(index)) == values(whole.test(index))


def test_caps_choose_at_random_but_always_the_same():
    dataset = numbered(train=10, test=6)

    def chosen(**settings):
        stream = class_incremental(dataset, increment=4, train_per_class=4, test_per_class=2, **settings)
        return values(stream[0].train), values(stream.test(0))

    train, test = chosen()
    assert len(train) == 16
    assert len(test) == 8
    assert chosen() == (train, test)
    assert chosen(order_seed=5) != (train, test)
    assert train != sorted(10 * label + number for label in range(4) for number in range(4))  # not just the first ones


def test_a_cap_above_the_number_of_images_keeps_all():
    stream = class_incremental(numbered(), increment=4, train_per_class=99, test_per_class=99)
    assert (len(stream[0].train), len(stream.test(0))) == (12, 8)


def test_validation_takes_its_share_of_what_the_cap_leaves():
    stream = class_incremental(numbered(train=10), increment=4, train_per_class=4, validation=0.25)
    assert set(stream[0].train.counts().values()) == {3}
    assert set(stream[0].validation.counts().values()) == {1}


def test_what_is_chosen_of_a_class_does_not_depend_on_the_other_classes():
    dataset = numbered(train=10)
    settings = {"increment": 1, "order": [2, 0, 3, 1], "train_per_class": 5, "validation": 0.2}
    few, all_of_them = (class_incremental(dataset, classes=many, **settings) for many in (2, None))
    for index in range(2):
        assert values(few[index].train) == values(all_of_them[index].train)


def test_mean_and_std_without_published_ones_come_from_the_first_experience_alone():
    stream = class_incremental(numbered(), increment=1, order=[2, 0, 3, 1])  # pixels 20, 21, 22
    assert stream.mean == pytest.approx([21 / 255])
    assert stream.std == pytest.approx([(2 / 3) ** 0.5 / 255])


def test_published_or_given_means_win():
    dataset = Dataset(**{**vars(numbered()), "mean": (0.3,), "std": (0.4,)})
    assert class_incremental(dataset, increment=2).mean == (0.3,)
    given = class_incremental(dataset, increment=2, mean=[0.1], std=[0.2])
    assert (given.mean, given.std) == ((0.1,), (0.2,))
    assert class_incremental(dataset, increment=2, std=[0.9]).mean == (0.3,)


def test_channel_statistics_equal_those_of_all_pixels_and_a_constant_channel_has_std_one():
    pixels = torch.randint(256, (1201, 2, 5, 5), dtype=torch.uint8)
    pixels[:, 1] = 51
    mean, std = channel_statistics(Samples.from_arrays(pixels, torch.zeros(1201)))
    values = pixels[:, 0].double() / 255
    assert mean == pytest.approx([values.mean().item(), 0.2])
    assert std == pytest.approx([values.std(correction=0).item(), 1])


def test_augmentation_is_the_data_sets_own_unless_another_is_given():
    dataset = Dataset(**{**vars(numbered()), "augment": Augment(crop_padding=4)})
    assert class_incremental(dataset, increment=2).augment == Augment(crop_padding=4)
    assert class_incremental(dataset, increment=2, augment={"flip": True}).augment == Augment(flip=True)
    assert class_incremental(dataset, increment=2, augment={}).augment == Augment()
    assert class_incremental(dataset, increment=2, augment=Augment(brightness=0.1)).augment.brightness == 0.1


def test_a_data_set_of_several_stores_becomes_a_stream_too():
    both = numbered()
    cut = Dataset("two stores", both.train[:7] + both.train[7:], both.test, both.classes)
    stream, whole = (class_incremental(dataset, increment=2, order="natural") for dataset in (cut, both))
    assert [values(experience.train) for experience in stream] == [values(experience.train) for experience in whole]


def test_an_experience_cannot_reach_images_of_other_experiences_or_those_held_out(make_dataset):
    stream = class_incremental(numbered(train=10), increment=2, order="natural", validation=0.2)
    experience = stream[1]
    for samples, count in ((experience.train, 16), (experience.validation, 4)):
        assert [len(store) for store, _ in samples.parts] == [count]


def test_the_training_half_has_no_way_to_the_test_images(toy_stream):
    half = toy_stream.training_half()
    assert torch.equal(half[1].train.pixels, toy_stream[1].train.pixels)
    assert half.fingerprint == toy_stream.fingerprint
    for index in range(len(half)):
        with pytest.raises(StreamError) as caught:
            half.test(index)
        assert str(caught.value) == "this half of the stream has no test data: it was given to training"
    size = len(toy_stream.test(0))
    assert size == 16  # and the whole stream still has them
    assert all(not hasattr(part.test, "args") and part.test.__closure__ is None for part in half._parts)
    reachable = [held for part in half._parts for load in (part.train, part.validation) for held in load.args]
    assert all(len(held) != 48 for held in reachable if isinstance(held, Samples))  # 48 test images, 72 for training


def test_indices_outside_the_stream_are_refused(toy_stream):
    assert toy_stream[-1].index == 2
    with pytest.raises(IndexError, match="experience 3 of a stream of 3"):
        toy_stream[3]


def test_the_description_says_where_the_data_stand(toy_stream):
    description = toy_stream.description()
    assert description["name"] == "toy_b0_inc2"
    assert description["experiences"] == 3
    assert description["class_order"] == class_order(6)
    assert description["new_slots"] == [[0, 1], [2, 3], [4, 5]]
    assert description["train_counts"] == [24, 24, 24]
    assert description["image_shape"] == [3, 12, 12]
    assert description["data"] == "no official checksum known"
    for official, words in ((True, "official"), (False, "unofficial")):
        dataset = Dataset(**{**vars(numbered()), "official": official})
        assert class_incremental(dataset, increment=2).description()["data"] == words


def test_after_the_base_only_so_many_shots_of_a_class_come():
    data = numbered(classes=6, train=5)
    stream = class_incremental(data, base=2, increment=2, shots=2, order_seed=3)
    assert [list(s.counts.values()) for s in stream.signatures] == [[5, 5], [2, 2], [2, 2]]
    assert stream.name == "numbered_b2_inc2_2shots"
    whole = class_incremental(data, base=2, increment=2, train_per_class=2, order_seed=3)
    assert values(stream[2].train) == values(whole[2].train), "drawn by class, whatever comes before"
    assert values(stream.test(2)) == values(class_incremental(data, base=2, increment=2, order_seed=3).test(2))
    assert [list(s.counts.values()) for s in class_incremental(data, increment=3, shots=1).signatures] == [[1] * 3] * 2


def test_orders_and_subsets_by_name():
    names = ["class 3", "class 1"]
    assert class_incremental(numbered(), increment=1, classes=names, order="natural").order == (1, 3)
    assert class_incremental(numbered(), increment=1, classes=names, order=names).order == (3, 1)
    assert sorted(class_incremental(numbered(), increment=1, classes=[0, "class 2"]).order) == [0, 2]
    assert class_incremental(numbered(), increment=2, order=["class 2", 0, 3, "class 1"]).order == (2, 0, 3, 1)
    with pytest.raises(StreamError, match=r"no permutation of the names in stream\.classes: it has 1 entries"):
        class_incremental(numbered(), classes=names, order=names[:1])


def test_without_an_increment_there_are_five_experiences():
    assert experience_sizes(12, 0, None) == [3, 3, 3, 3]
    assert experience_sizes(10, 0, None) == [2] * 5
    assert experience_sizes(3, 3, None) == [3]
    assert len(class_incremental(numbered())) == 4
