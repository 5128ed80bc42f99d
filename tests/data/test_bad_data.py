"""Bad data files: each gives one line that names the file and says what is wrong with it."""

import pickle

import numpy as np
import pytest
import torch

from cil.data import Dataset, Samples, dataset_names, load_dataset, register_dataset
from cil.errors import CilError, ConfigError, DataError

IMAGES = np.zeros((6, 5, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def arrays(**changes):
    """A good file's arrays, changed; None takes one out."""
    good = {"images": IMAGES, "labels": LABELS, "classes": np.array(["a", "b", "c"])}
    return {name: value for name, value in (good | changes).items() if value is not None}


with_nan = np.zeros((6, 5, 5, 3), np.float32)
with_nan[2, 1, 1] = np.nan

BAD_ARRAYS = {  # what: (arrays of train.npz, parts of the message)
    "floats": (arrays(images=IMAGES / 255.0), ["train.npz: images are float64, need uint8 (0 to 255)"]),
    "NaN": (arrays(images=with_nan), ["train.npz: images are float32 with NaN or inf, need uint8"]),
    "16 bits": (arrays(images=IMAGES.astype(np.uint16)), ["images are uint16, need uint8"]),
    "channels first": (
        arrays(images=np.zeros((6, 3, 32, 32), np.uint8)),
        ["images have 32 channels, need (N, H, W, C) with at most 4; this looks like (N, C, H, W)"],
    ),
    "flat": (arrays(images=IMAGES.reshape(6, -1)), ["images have shape (6, 75), need (N, H, W, C) or (N, H, W)"]),
    "no pixels": (arrays(images=np.zeros((6, 0, 5, 3), np.uint8)), ["images have shape (6, 0, 5, 3)"]),
    "no images": (arrays(images=IMAGES[:0], labels=LABELS[:0]), ["train.npz: no images"]),
    "a label short": (arrays(labels=LABELS[:5]), ["train.npz: 6 images but labels of shape (5,)"]),
    "negative label": (
        arrays(labels=np.array([0, 1, 2, 0, 1, -1])),
        ["train.npz: labels go from -1 to 2, allowed are 0 and up"],
    ),
    "label out of range": (
        arrays(labels=np.array([0, 1, 2, 0, 1, 3])),
        ["training labels go from 0 to 3, but there are 3 classes, so 0 to 2"],
    ),
    "labels without end": (
        arrays(labels=LABELS + 10**12, classes=None),
        ["labels go up to 1000000000002, more than there are images; number the classes from 0"],
    ),
    "float labels": (arrays(labels=LABELS / 1.0), ["train.npz: labels are float64, need whole numbers from 0"]),
    "text labels": (arrays(labels=np.array(list("abcabc"))), ["train.npz: labels are <U1, need whole numbers"]),
    "multi-label counts": (
        arrays(labels=np.full((6, 3), 2)),
        ["labels go from 2 to 2, allowed are 0 and 1 (multi-label columns)"],
    ),
    "a column too many": (
        arrays(labels=np.ones((6, 4), np.uint8)),
        ["4 training label columns for 3 classes"],
    ),
    "duplicate class names": (
        arrays(classes=np.array(["a", "b", "a"])),
        ["the class name 'a' occurs more than once"],
    ),
    "objects": (arrays(labels=np.array([{}] * 6)), ["train.npz holds Python objects, which are never unpickled"]),
    "no labels": (arrays(labels=None), ["train.npz has no array 'labels'; it has: images, classes"]),
    "other sizes": (
        arrays(images=np.zeros((6, 6, 5, 3), np.uint8)),
        ["training images are (3, 6, 5), test images (3, 5, 5) (C, H, W); both must be alike"],
    ),
}


def one_line(caught, parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_bad_arrays_are_one_line(tmp_path, what):
    bad, parts = BAD_ARRAYS[what]
    np.savez(tmp_path / "train.npz", **bad)
    np.savez(tmp_path / "test.npz", **{name: value for name, value in arrays().items() if name != "classes"})
    with pytest.raises(DataError) as caught:
        load_dataset("npz", root=tmp_path, path=tmp_path)
    one_line(caught, [*parts, str(tmp_path)])


BAD_FILES = {
    "a pickle": (pickle.dumps({"images": 1}), "is no .npz archive"),
    "text": (b"images, labels", "is no .npz archive"),
    "nothing": (b"", "is no .npz archive"),
    "cut off": (None, "is no .npz archive, or only a part of one"),
    "flipped bytes": (None, "cannot be read as .npz"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_are_one_line(tmp_path, what):
    content, part = BAD_FILES[what]
    file = tmp_path / "set.npz"
    np.savez(file, x_train=IMAGES)
    whole = file.read_bytes()
    file.write_bytes({"cut off": whole[:-40], "flipped bytes": whole[:300] + b"!" + whole[301:]}.get(what, content))
    with pytest.raises(DataError) as caught:
        load_dataset("npz", root=tmp_path, path="set.npz")
    one_line(caught, [f"set.npz {part}"])


BAD_FOLDERS = {  # what: (change of a good folder, parts of the message)
    "no train folder": (
        lambda pets: (pets / "train").rename(pets / "training"),
        ["pets has no folder train; need train/CLASS/* and test/CLASS/* (or val)"],
    ),
    "no test folder": (lambda pets: (pets / "test").rename(pets / "t"), ["pets has no folder test or val"]),
    "no classes": (
        lambda pets: [(pets / "train" / name).rename(pets / name) for name in ("ant", "cat")],
        ["train has no class folders; need train/CLASS/*"],
    ),
    "a class without images": (lambda pets: (pets / "train" / "elk").mkdir(), ["train/elk has no image (.bmp, .gif"]),
    "a class in train only": (
        lambda pets: (pets / "test" / "ant").rename(pets / "ant"),
        ["test/ant has no image"],
    ),
    "a class in test only": (
        lambda pets: (pets / "test" / "elk").mkdir(),
        ["test has the class elk, which ", "train lacks"],
    ),
    "an unreadable image": (
        lambda pets: (pets / "train" / "ant" / "0.png").write_bytes(b"no image"),
        ["train/ant/0.png cannot be read as an image", "; replace or remove it"],
    ),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_bad_folders_are_one_line(image_folder, tmp_path, what):
    change, parts = BAD_FOLDERS[what]
    change(image_folder)
    with pytest.raises(DataError) as caught:
        load_dataset("folder", root=tmp_path, path="pets", in_memory=True)
    one_line(caught, parts)


BAD_NAMES = {
    "unknown": (("cifar_100", {}), ["unknown data set 'cifar_100' (stream.dataset;", "did you mean 'cifar100'"]),
    "out of the data root": (("../secret", {}), ["unknown data set '../secret'"]),
    "no name": ((None, {}), ["stream.dataset is None; it must be the name of a data set"]),
    "unknown option": (
        ("folder", {"path": "x", "sise": 3}),
        ["data set 'folder' has no option stream.sise; did you mean 'size'"],
    ),
    "missing option": (("folder", {}), ["data set 'folder' needs stream.path"]),
    "option of a set that has none": (("digits", {"size": 8}), ["'digits' has no option stream.size; known: none"]),
    "missing path": (
        ("folder", {"path": "nowhere"}),
        ["nowhere does not exist, neither here nor in ", "; set stream.path or data_root (CIL_DATA)"],
    ),
    "missing file": (("npz", {"path": "nowhere.npz"}), ["nowhere.npz does not exist; set data_root or stream.path"]),
    "one file without a split": (
        ("npz", {"path": "half.npz"}),
        ["has no array 'test_images or x_test'; it has: x_train"],
    ),
}


@pytest.mark.parametrize("what", BAD_NAMES)
def test_bad_names_and_options_are_one_line(tmp_path, what):
    np.savez(tmp_path / "half.npz", x_train=IMAGES, y_train=LABELS)
    (name, options), parts = BAD_NAMES[what]
    with pytest.raises(CilError) as caught:
        load_dataset(name, root=tmp_path, **options)
    one_line(caught, parts)


def test_an_empty_split_is_refused():
    full, empty = (Samples.from_arrays(torch.zeros(n, 1, 2, 2).byte(), torch.zeros(n)) for n in (2, 0))
    with pytest.raises(DataError, match=r"mine: the test split is empty \(made in memory\)"):
        Dataset("mine", full, empty, ["a"])


def test_negative_labels_in_memory_are_refused():
    bad = Samples.from_arrays(torch.zeros(2, 1, 2, 2).byte(), torch.tensor([0, -1]))
    with pytest.raises(DataError, match="mine: training labels go from -1 to 0, but there are 1 classes"):
        Dataset("mine", bad, bad, ["a"])


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ConfigError, match=r"'digits' is taken by cil\.data\.embedded; choose another"):
        register_dataset("digits")(lambda root: None)


def test_sets_in_the_data_root_are_listed_and_image_folders_are_not_searched(tmp_path):
    for place in ("mine", "small_tasks/birds", "too/deep/down"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "train.npz").touch()
    names = dataset_names(tmp_path)
    assert {"digits", "cifar100", "mine", "small_tasks/birds"} <= set(names)
    assert "too/deep/down" not in names
