"""Corruptions: values that can be found by hand, draws that belong to the image, severities that hurt more and more."""

import numpy as np
import pytest
import torch
from PIL import Image

from cil.data import Samples
from cil.data.corruptions import (
    CANONICAL,
    EXTRA,
    NAMES,
    SEVERITIES,
    blur,
    corrupt,
    corrupt_all,
    digital,
    generator,
    operations,
    parameters,
    table_of,
    weather,
)
from cil.data.corruptions.image_sources import GeneratedImages
from cil.data.corruptions.severities import TABLES
from cil.errors import ConfigError, DataError, ShapeError

DRAWN = set(NAMES) - {
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur"),
    "saturate",
}
NOT_MONOTONE = {  # the tables themselves are not; from 3 to 4 frost only takes more of the image away
    *("elastic_transform", "spatter", "saturate", "glass_blur", "snow", "frost")
}


def pictures(count, side=32, channels=3):
    """Smooth coloured shapes with some texture, like photographs more than like noise."""
    rng = np.random.default_rng(0)
    rough = operations.gaussian(rng.random((count, side, side, channels)), side / 12)
    rough = (rough - rough.min((1, 2), keepdims=True)) / np.ptp(rough, axis=(1, 2), keepdims=True)
    return (235 * rough + 20 * rng.random(rough.shape)).astype(np.uint8)


IMAGES = pictures(6)


def grey(level, side=8, channels=3):
    return np.full((1, side, side, channels), level, np.uint8)


def change(made, given):
    return np.abs(made.astype(float) - given).mean()


def test_there_are_fifteen_and_four_with_five_severities_in_both_tables():
    assert (len(CANONICAL), len(EXTRA), len(set(NAMES))) == (15, 4, 19)
    for table in TABLES.values():
        assert list(table) == list(NAMES)
        assert all(len(row) == 5 for row in table.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [8, 28, 85])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_comes_out_is_an_image_of_the_same_kind(name, side, channels):
    images = pictures(2, side, channels)
    before = images.copy()
    made = corrupt_all(images, name, 4)
    assert (made.dtype, made.shape) == (np.uint8, images.shape)
    assert (images == before).all()
    if not (name == "saturate" and channels == 1):
        assert change(made, images) > 0.1
    assert change(made, images) < 128


@pytest.mark.parametrize("name", NAMES)
def test_an_image_comes_out_the_same_whatever_lies_beside_it(name, monkeypatch):
    whole = corrupt_all(IMAGES, name, 3, seed=5)
    order = [4, 0, 3]
    assert (corrupt_all(IMAGES[order], name, 3, seed=5, places=order) == whole[order]).all()
    for place in (0, 5):
        assert (corrupt(IMAGES[place], name, 3, generator(5, name, 3, place)) == whole[place]).all()
    monkeypatch.setattr("cil.data.corruptions._AT_ONCE", 2 * IMAGES[0].size)
    assert (corrupt_all(IMAGES, name, 3, seed=5) == whole).all()


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_draws_differ_by_seed_and_by_image(name):
    same = np.stack([IMAGES[0]] * 2)
    one, other = corrupt_all(same, name, 5)
    assert (one != other).any()
    assert (corrupt_all(same[:1], name, 5, seed=1)[0] != one).any()


@pytest.mark.parametrize("name", sorted(set(NAMES) - DRAWN))
def test_what_draws_nothing_does_not_depend_on_the_seed(name):
    assert (corrupt_all(IMAGES, name, 5, seed=1) == corrupt_all(IMAGES, name, 5, places=range(6, 12))).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_MONOTONE))
@pytest.mark.parametrize("table", ["32", "64", "224"])
def test_a_higher_severity_changes_more(name, table):
    images = pictures(60) if name == "fog" else IMAGES if table == "32" else pictures(2, 64)  # fog: a mean of fields
    changes = [change(corrupt_all(images, name, severity, table=table), images) for severity in SEVERITIES]
    assert changes == sorted(changes)
    assert changes[0] < changes[4]


def test_noise_has_the_strength_of_the_table():
    flat = grey(128, 200)
    for name, expected in (("gaussian_noise", 0.04), ("speckle_noise", 0.06 * 128 / 255)):
        made = corrupt_all(flat, name, 1, table="32").astype(float)
        assert made.std() / 255 == pytest.approx(expected, rel=0.03)
        assert made.mean() == pytest.approx(127.5, abs=0.15)  # truncated, so half a level lower
    shot = corrupt_all(flat, "shot_noise", 5, table="224")
    assert set(np.unique(shot).tolist()) <= {0, 85, 170, 255}  # thirds: 3 photons make white
    impulse = corrupt_all(flat, "impulse_noise", 5, table="224")
    assert [(impulse == level).mean() for level in (0, 255)] == pytest.approx([0.135, 0.135], abs=0.005)
    assert set(np.unique(impulse).tolist()) == {0, 128, 255}


def test_images_of_64_pixels_have_the_severities_of_tiny_imagenet_c():
    flat = np.full((40, 64, 64, 3), 128, np.uint8)
    made = corrupt_all(flat, "gaussian_noise", 5).astype(float)
    assert made.std() / 255 == pytest.approx(0.18, rel=0.03)  # 0.10 of CIFAR-C
    assert parameters("contrast", 5, table_of(64, 64)) == 0.05
    assert [table_of(side, side) for side in (28, 32, 45, 46, 96, 120, 224)] == ["32"] * 3 + ["64"] * 2 + ["224"] * 2
    for name in NAMES:
        assert corrupt_all(flat[:1], name, 3).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(("side", "quality"), [(32, None), (64, 85)])
def test_generated_images_may_pass_through_the_jpeg_of_the_published_files(side, quality):
    test = Samples.from_arrays(
        torch.from_numpy(pictures(2, side)).permute(0, 3, 1, 2).contiguous(), torch.zeros(2, dtype=torch.int64)
    )
    plain, saved = (GeneratedImages(test, saved_as_published=saved) for saved in (False, True))
    key, places = ("contrast", 3), torch.arange(2)
    one, other = (source.pixels(key, places) for source in (plain, saved))
    assert torch.equal(one, other) == (quality is None) and saved.settings.get("jpeg") == quality
    assert (plain.digest([key], places) == saved.digest([key], places)) == (quality is None)
    if quality is not None:
        through = digital.jpeg_compression(one.permute(0, 2, 3, 1).numpy(), quality, iter(()))
        assert torch.equal(torch.from_numpy(through).permute(0, 3, 1, 2), other)


def test_contrast_draws_each_channel_towards_its_mean():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, :, 0] = 200  # mean 100
    image[..., 1] = 51
    made = corrupt_all(image, "contrast", 2, table="32")  # half
    assert made[0, :, 0, 0].tolist() == [150, 50]
    assert np.unique(made[..., 1]).tolist() == [51]
    assert np.unique(made[..., 2]).tolist() == [0]


def test_brightness_raises_the_value_and_keeps_hue_and_saturation():
    image = np.array([100, 50, 0, 0, 0, 0, 250, 125, 0], np.uint8).reshape(1, 1, 3, 3)
    made = corrupt_all(image, "brightness", 4, table="32")[0, 0]  # + 51
    assert made.tolist() == [[151, 75, 0], [51, 51, 51], [255, 127, 0]]


def test_saturation_is_scaled_and_grey_turns_red():
    image = np.array([200, 100, 150, 80, 80, 80], np.uint8).reshape(1, 1, 2, 3)
    assert corrupt_all(image, "saturate", 1)[0, 0].tolist() == [[200, 170, 185], [80, 80, 80]]  # 0.3 S
    assert corrupt_all(image, "saturate", 3, table="32")[0, 0, 0].tolist() == [200, 50, 125]  # 1.5 S
    assert corrupt_all(image, "saturate", 4, table="32")[0, 0, 1].tolist() == [80, 72, 72]  # 2 * 0 + 0.1


def test_gaussian_blur_of_an_impulse_is_a_gaussian():
    image = grey(0, 15)
    image[0, 7, 7] = 255
    line = np.exp(-(np.arange(-4, 5) ** 2) / 2)
    line /= line.sum()
    expected = np.floor(255 * np.outer(line, line) + 1e-6)
    made = corrupt_all(image, "gaussian_blur", 5, table="32")  # sigma 1
    assert (made[0, 3:12, 3:12, 0] == expected).all()


def test_defocus_is_a_disk_that_sums_to_one():
    image = grey(0, 41)
    image[0, 20, 20] = 255
    disk = blur._disk_mean(image, 3)[0, ..., 0]
    at = np.arange(-20, 21)
    inside = at[:, None] ** 2 + at**2 <= 9
    assert inside.sum() == 29
    assert np.allclose(disk, np.where(inside, 255 / 29, 0))
    for radius, sigma in parameters_of("defocus_blur"):
        kernel = blur._alias(blur._disk_mean(image, radius) / 255, sigma, 3 if radius <= 8 else 5)
        assert kernel.sum() == pytest.approx(3)  # one a channel
    plus = corrupt_all(image, "defocus_blur", 4, table="32")[0, 19:22, 19:22, 0]  # radius 1: five pixels
    assert np.abs(plus - np.array([[0, 51, 0], [51, 51, 51], [0, 51, 0]])).max() <= 1


def parameters_of(name):
    return [parameters(name, severity, table) for table in TABLES for severity in SEVERITIES]


def test_borders_of_defocus_are_mirrored_at_the_outermost_pixel():
    image = np.arange(0, 250, 10, dtype=np.uint8).repeat(25).reshape(1, 25, 25, 1)  # rows 0, 10, 20...
    made = blur._disk_mean(image, 1)[0, :, 0, 0]
    assert made[0] == pytest.approx((3 * 0 + 10 + 10) / 5)
    assert made[12] == 120


@pytest.mark.parametrize("exact_bug_compat", [False, True])
@pytest.mark.parametrize(("side", "most"), [(16, 1), (24, 3)])
def test_glass_in_fronts_equals_pixel_after_pixel(exact_bug_compat, side, most):
    images = pictures(2, side)

    def shuffled(image, rng):  # as the paper's code goes about it
        image = image.copy()
        shifts = rng.integers(-most, most, size=(2, side, side, 2), dtype=np.int8)
        for own in range(2):
            for row in range(side - most, most, -1):
                for column in range(side - most, most, -1):
                    there = (row + shifts[own, row, column, 1], column + shifts[own, row, column, 0])
                    here = image[row, column].copy()
                    image[row, column] = image[there]
                    if not exact_bug_compat:
                        image[there] = here
        return image

    rngs = [generator(0, "glass_blur", 1, place) for place in range(2)]
    made = blur.glass_blur(images, (0, most, 2), iter(rngs), exact_bug_compat=exact_bug_compat)
    for place in range(2):
        assert (made[place] == shuffled(images[place], generator(0, "glass_blur", 1, place))).all()
    kept = [np.sort(image.reshape(-1, 3), axis=0) for image in (made[0], images[0])]
    assert (kept[0] == kept[1]).all() != exact_bug_compat  # exchanges keep all pixels, copies lose some


def test_motion_samples_along_one_direction():
    image = np.zeros((9, 9, 1))
    image[4, 4] = 1
    weights = np.exp(-(np.arange(5) ** 2) / 8)
    weights /= weights.sum()
    right = operations.motion_blur(image, 2, 2, 0)[..., 0]
    assert np.allclose(right[4, :5], weights[::-1])
    assert right[4, 5:].sum() == right[3].sum() == 0
    falling = operations.motion_blur(image, 2, 2, -90)[..., 0]
    assert np.allclose(falling[4:, 4], weights)
    assert np.allclose(operations.motion_blur(np.ones((3, 4)), 6, 3, 30), 1)  # edges replicated


def test_centre_zoom_keeps_the_centre_and_enlarges():
    ramp = np.arange(9.0).reshape(1, 9, 1, 1) * np.ones((1, 1, 9, 1))
    assert (operations.centre_zoom(ramp, 1.0) == ramp).all()
    twice = operations.centre_zoom(ramp, 2.0)[0, :, 0, 0]  # rows 2 to 6 become 10, their middle nine are kept
    assert twice == pytest.approx(2 + np.arange(9) * 4 / 9)


def test_zoom_blur_is_the_mean_of_the_image_and_all_zooms():
    images = pictures(1)
    values = images / 255.0
    zooms = [operations.centre_zoom(values, factor) for factor in np.arange(1, 1.06, 0.01)]
    expected = np.floor((values + sum(zooms)) / (len(zooms) + 1) * 255 + 1e-6)
    assert (corrupt_all(images, "zoom_blur", 1, table="32") == expected).all()


def test_plasma_is_a_torus_between_zero_and_one_rougher_for_less_decay():
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64))
    smooth, rough = operations.plasma(noise, 3.0), operations.plasma(noise, 1.2)
    for field in (smooth, rough):
        assert (field.min((1, 2)) == 0).all()
        assert field.max((1, 2)) == pytest.approx(1)

    def steps(field):
        return np.abs(np.roll(field, 1, 2) - field).mean() / field.std()

    assert steps(smooth) < 0.5 * steps(rough)
    assert np.abs(smooth[:, 0] - smooth[:, -1]).mean() < 0.1
    by_hand = operations.plasma(
        np.array([[[0.0, 1.0], [-1.0, 0.5]]]), 2.0
    )  # corner 0, centre .5, then 0.25 + 1, 0.25 - 1
    assert by_hand[0] * 2 - 0.75 == pytest.approx(np.array([[0, 1.25], [-0.75, 0.5]]))


def test_fog_of_a_black_image_is_the_field_itself_and_never_brighter_than_the_image():
    made = corrupt_all(IMAGES, "fog", 5)
    assert (made.max((1, 2, 3)) <= IMAGES.max((1, 2, 3))).all()
    assert made.std((1, 2, 3)).mean() < IMAGES.std((1, 2, 3)).mean()
    assert not corrupt_all(grey(0), "fog", 5).any()  # scaled to the brightest pixel, which is black


def test_pixelate_makes_boxes():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1) * 10
    made = corrupt_all(image, "pixelate", 3, table="224")[0, ..., 0]  # 0.4 * 4 = 1.6: one pixel
    assert np.unique(made).tolist() == [75]
    made = corrupt_all(image, "pixelate", 2, table="224")[0, ..., 0]  # 0.5: two
    assert made[:2, :2].tolist() == [[25, 25], [25, 25]]
    assert made[2:, 2:].tolist() == [[125, 125], [125, 125]]


def test_jpeg_is_what_pillow_reads_back():
    import io

    file = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(file, "JPEG", quality=40)
    assert (corrupt_all(IMAGES, "jpeg_compression", 5, table="32")[0] == np.asarray(Image.open(file))).all()


def test_an_elastic_transform_without_shift_and_displacement_changes_nothing(monkeypatch):
    monkeypatch.setitem(TABLES["32"], "elastic_transform", ((0, 0, 0),) * 5)
    assert (corrupt_all(IMAGES, "elastic_transform", 1) == IMAGES).all()


def test_the_affine_map_takes_its_three_points_where_the_draws_say():
    spots = np.zeros((1, 32, 32, 1), np.uint8)
    for row, column in ((26, 26), (6, 26), (6, 6)):  # 16 +- 32 // 3
        spots[0, row, column] = 255

    class Draws:
        def uniform(self, low, high, shape):
            return np.array([[2, -1], [0, 3], [-3, 1]]) if shape == (3, 2) else np.zeros(shape)

    from cil.data.corruptions.digital import elastic_transform

    made = elastic_transform(spots, (0, 0, 3), iter([Draws()]))[0, ..., 0]  # x, y
    for row, column in ((25, 28), (9, 26), (7, 3)):
        assert made[row, column] == 255


def test_displacements_are_read_along_rows_and_columns():
    values = np.arange(12.0).reshape(1, 3, 4, 1)
    rows, columns = np.indices((3, 4), dtype=float)
    assert operations.bilinear(values, rows[None] + 0.5, columns[None], operations.reflect)[0, :, 0, 0].tolist() == [
        2,
        6,
        8,
    ]
    assert operations.bilinear(values, rows[None], columns[None] + 0.25, operations.reflect_101)[
        0, 0, :, 0
    ].tolist() == [*(0.25, 1.25, 2.25, 2.75)]
    places = np.arange(-4, 7)
    assert operations.reflect_101(places, 3).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert operations.reflect(places, 3).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]


def test_snow_and_frost_brighten_water_and_mud_have_their_colours():
    dark = grey(30, 32)
    assert corrupt_all(dark, "snow", 5).mean() > 60
    assert corrupt_all(dark, "frost", 5).mean() > 50
    mud = corrupt_all(grey(255, 96), "spatter", 5, table="224")
    covered = mud[(mud != 255).any(-1)]
    assert len(covered) > 100
    assert covered.min(0).tolist() == pytest.approx([63, 42, 20], abs=1)
    water = corrupt_all(grey(0, 96), "spatter", 3, table="224")[0]
    brightest = water.reshape(-1, 3)[water.sum(-1).argmax()]
    assert brightest.tolist() == [87, 119, 119]  # half of pale turquoise


def test_snow_falls_from_both_ends():
    made = corrupt_all(grey(0, 33), "snow", 1).astype(int)
    assert (made == made[:, ::-1, ::-1]).all()


def test_frost_takes_a_part_of_a_photograph(tmp_path):
    for number in range(7):
        Image.fromarray(np.full((50, 60, 3), 40 + number, np.uint8)).save(tmp_path / f"frost{number}.png")
    photos = weather.frost_photos(tmp_path, scale=1.0)
    assert [int(photo[0, 0, 0]) for photo in photos] == [40, 41, 42, 43, 44]  # the first five
    made = corrupt_all(np.zeros((40, 32, 32, 3), np.uint8), "frost", 2, table="32", photos=photos)
    assert set(np.unique(made).tolist()) == {12, 13}  # 0.3 * 40 to 0.3 * 44
    assert weather.frost_photos(tmp_path, scale=0.2)[0].shape == (10, 12, 3)
    with pytest.raises(DataError, match=r"10x12 pixels when scaled, images are 32x32; .*stream\.frost_photos"):
        corrupt_all(IMAGES, "frost", 1, photos=weather.frost_photos(tmp_path, scale=0.2))
    with pytest.raises(DataError, match=r"nothing has no photograph of frost"):
        weather.frost_photos(tmp_path / "nothing", scale=1.0)
    (tmp_path / "frost0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"frost0\.png cannot be read as an image"):
        weather.frost_photos(tmp_path, scale=1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("fogg", 1), ConfigError, "unknown corruption 'fogg'.*did you mean 'fog'"),
        (("fog", 0), ConfigError, r"stream\.severity is 0; it must be 1, 2, 3, 4 or 5"),
        (("fog", 2.5), ConfigError, r"stream\.severity is 2\.5"),
        (("fog", True), ConfigError, r"stream\.severity is True"),
    ],
)
def test_wrong_names_and_severities_are_refused_in_one_line(arguments, error, message):
    with pytest.raises(error, match=message):
        corrupt_all(IMAGES, *arguments)


def test_wrong_images_tables_and_seeds_are_refused():
    with pytest.raises(ShapeError, match=r"uint8 \(N, H, W, C\) of 1 or 3 channels, not float64"):
        corrupt_all(IMAGES / 255, "fog", 1)
    with pytest.raises(ShapeError, match=r"not uint8 \(6, 32, 32, 2\)"):
        corrupt_all(IMAGES[..., :2], "fog", 1)
    with pytest.raises(ShapeError, match=r"must be uint8 \(H, W, C\), not \(6, 32, 32, 3\)"):
        corrupt(IMAGES, "fog", 1, generator(0, "fog", 1, 0))
    with pytest.raises(ShapeError, match="6 images to corrupt, but 2 places"):
        corrupt_all(IMAGES, "fog", 1, places=[1, 2])
    with pytest.raises(ConfigError, match=r"stream\.table is '48'"):
        corrupt_all(IMAGES, "fog", 1, table="48")
    with pytest.raises(ConfigError, match=r"stream\.seed is -1"):
        corrupt_all(IMAGES, "fog", 1, seed=-1)
