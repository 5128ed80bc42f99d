"""Augmentation: every image draws its own crop, flip and brightness, from the generator alone."""

import pytest
import torch
import torch.nn.functional as F

from cil.data import Augment, to_float
from cil.data.augment import _gather_whole
from cil.data.crops import crop_box
from cil.errors import ConfigError, ShapeError


def key(seed=0):
    return torch.Generator().manual_seed(seed)


def distinct(count=1, channels=3, size=8):
    """Images in which every pixel differs from the others and from the padding."""
    one = torch.arange(1, channels * size * size + 1).reshape(1, channels, size, size)
    return one.byte().repeat(count, 1, 1, 1)


def places(images, original, padding):
    """Corner (down, right) and mirroring of each crop, found by trying all; fails where an image is no crop."""
    padded = F.pad(to_float(original), (padding,) * 4)
    size, found = original.shape[-1], []
    crops = {
        (down, right, mirrored): (crop.flip(-1) if mirrored else crop)
        for down in range(2 * padding + 1)
        for right in range(2 * padding + 1)
        for mirrored in (False, True)
        for crop in [padded[0, :, down : down + size, right : right + size]]
    }
    for image in images:
        (place,) = [place for place, crop in crops.items() if torch.equal(crop, image)]
        found.append(place)
    return found


def test_without_arguments_images_stay_as_they_are_bit_for_bit():
    pixels = torch.randint(256, (6, 3, 5, 5), generator=key(), dtype=torch.uint8)
    assert Augment().is_identity
    assert torch.equal(Augment()(pixels, key()), to_float(pixels))


def test_each_crop_is_a_window_of_the_zero_padded_image_and_all_windows_occur_equally_often():
    original = distinct(channels=1, size=4)
    images = Augment(crop_padding=2)(original.repeat(5000, 1, 1, 1), key())
    found = places(images, original, padding=2)
    assert not any(mirrored for _, _, mirrored in found)
    counts = torch.zeros(5, 5)
    for down, right, _ in found:
        counts[down, right] += 1
    assert counts.min() > 150  # 200 expected in each of 25, standard deviation 14
    assert counts.max() < 250


def test_a_crop_by_hand():
    pixels = torch.tensor([[51, 102], [153, 204]], dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(200, 1, 1, 1)
    images = {tuple(image.flatten().mul(5).round().int().tolist()) for image in Augment(crop_padding=1)(pixels, key())}
    assert images == {
        *((0, 0, 0, 1), (0, 0, 1, 2), (0, 0, 2, 0)),
        *((0, 1, 0, 3), (1, 2, 3, 4), (2, 0, 4, 0)),
        *((0, 3, 0, 0), (3, 4, 0, 0), (4, 0, 0, 0)),
    }


def test_half_of_the_images_are_mirrored():
    original = distinct()
    found = places(Augment(flip=True)(original.repeat(1000, 1, 1, 1), key()), original, padding=0)
    assert 430 < sum(mirrored for _, _, mirrored in found) < 570  # standard deviation 16


def test_brightness_is_one_factor_an_image_and_never_exceeds_one():
    pixels = torch.tensor([50, 100, 250], dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(2000, 1, 1, 1)
    red, green, blue = Augment(brightness=0.25)(pixels, key()).flatten(1).T
    factors = red * 255 / 50
    assert factors.min() >= 0.75
    assert factors.max() <= 1.25
    assert factors.min() < 0.76
    assert factors.max() > 1.24
    assert factors.mean().item() == pytest.approx(1, abs=0.015)
    assert torch.allclose(green, 2 * red)
    assert torch.allclose(blue, (5 * red).clamp(max=1))


def test_the_same_key_gives_the_same_bits_and_another_key_other_images():
    pixels, augment = distinct(64), Augment(crop_padding=4, flip=True, brightness=0.3)
    first = augment(pixels, key(1))
    torch.rand(5)  # the global generator has no say
    assert torch.equal(augment(pixels, key(1)), first)
    assert not torch.equal(augment(pixels, key(2)), first)


def test_images_of_one_batch_draw_independently():
    images = Augment(crop_padding=4, flip=True)(distinct(300), key())
    assert len(images.flatten(1).unique(dim=0)) > 100  # of 162 possible ones; a draw for the batch would give 1


def test_turning_one_part_off_leaves_the_draws_of_the_others():
    original = distinct()
    pixels = original.repeat(50, 1, 1, 1)
    with_flip = places(Augment(crop_padding=2, flip=True)(pixels, key()), original, 2)
    without = places(Augment(crop_padding=2)(pixels, key()), original, 2)
    assert [place[:2] for place in with_flip] == [place[:2] for place in without]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_bound_data_set_gives_what_augmenting_its_rows_gives(channels):
    pixels = torch.randint(256, (20, channels, 6, 7), generator=key(), dtype=torch.uint8)
    augment = Augment(crop_padding=2, flip=True, brightness=0.2)
    rows = torch.tensor([7, 3, 3, 19, 0])
    bound = augment.bind(pixels)(rows, key(5))
    assert torch.equal(bound, augment(pixels[rows], key(5)))
    assert bound.shape == (5, channels, 6, 7)
    assert bound.dtype == torch.float32
    assert bound.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(bound[1], bound[2])  # the same row twice is drawn twice


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_without_padding_images_are_those_of_the_gather_in_the_same_order_of_memory(channels):
    pixels = torch.randint(256, (6, channels, 5, 4), dtype=torch.uint8)
    rows, corners = torch.tensor([4, 0, 4]), torch.zeros(2, 3, dtype=torch.int64)
    mirror = torch.tensor([True, False, False])
    gathered = Augment()._gather_padded(pixels)(rows, corners, mirror)
    whole = _gather_whole(pixels, rows, corners, mirror)
    assert torch.equal(whole, gathered) and whole.stride() == gathered.stride()
    assert torch.equal(whole[0], pixels[4].flip(2).float())
    floats = pixels.to(torch.float32).div_(255).contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_float(pixels), floats) and to_float(pixels).stride() == floats.stride()


def test_an_empty_batch_stays_empty():
    for channels in (1, 3):
        bound = Augment(flip=True).bind(distinct(2, channels))
        assert bound(torch.empty(0, dtype=torch.int64), key()).shape == (0, channels, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_padding": -1}, "stream.augment.crop_padding is -1; it must be a whole number >= 0"),
        ({"crop_padding": 1.5}, "stream.augment.crop_padding is 1.5"),
        ({"crop_padding": True}, "stream.augment.crop_padding is True"),
        ({"flip": 1}, "stream.augment.flip is 1; it must be true or false"),
        ({"brightness": -0.1}, "stream.augment.brightness is -0.1; it must be a number >= 0"),
        ({"brightness": float("nan")}, "stream.augment.brightness is nan"),
        ({"brightness": "63/255"}, "stream.augment.brightness is '63/255'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Augment(**arguments)


def test_only_uint8_images_are_augmented():
    with pytest.raises(ShapeError, match=r"pixels must be uint8 \(N, C, H, W\), not torch.float32 \(2, 3, 4, 4\)"):
        Augment(flip=True).bind(torch.rand(2, 3, 4, 4))


def test_parts_have_at_least_the_share_of_the_area_that_is_asked_for():
    for least in (0.05, 0.08, 0.5):
        augment = Augment(resized_crop=True, crop_area=least)
        for u in (0.0, 0.5):  # square parts: the ratio of sides is drawn in the middle
            draws = augment.crop_draws(torch.tensor([[u, 0.5, 0.3, 0.7]]))[0].tolist()
            _, _, wide, high = crop_box(1000, 1000, draws)
            assert wide * high / 1e6 == pytest.approx(least + (1 - least) * u, rel=5e-3)


def test_parts_of_stored_images_come_in_the_size_of_the_networks_input():
    augment = Augment(resized_crop=True, crop_size=16, flip=True)
    images = augment(distinct(3), key())
    assert images.shape == (3, 3, 16, 16) and torch.equal(augment(distinct(3), key()), images)
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize(("given", "words"), [
    ({"crop_area": 0.0}, "crop_area is 0.0; it must be a share"), ({"crop_size": 0}, "crop_size is 0; it must be"),
    ({"resized_crop": False, "crop_size": 8}, "are of resized_crop; set that to true"),
])  # fmt: skip
def test_what_parts_cannot_be_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Augment(**{"resized_crop": True, **given})
