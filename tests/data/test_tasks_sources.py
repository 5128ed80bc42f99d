"""Every type of source gives the examples of a task: images, labels, official parts; or says what is missing where."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from cil.data.tasks import GENERATORS, SPLITS, Access, open_source, would_download
from cil.errors import DataError


def opened(data_root, /, **source):
    return open_source(source, Access(data_root, why_not="offline was asked for"))


def refused(data_root, /, **source):
    with pytest.raises(DataError) as caught:
        opened(data_root, **source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parts(table):
    return table.columns["part"].tolist()


# --- files ---


def test_a_folder_of_classes_with_and_without_parts(image_folder):
    root = image_folder.parent
    table = opened(root, type="imagefolder", root="pets", train="train", test="test")
    assert parts(table) == ["train"] * 5 + ["test"] * 3
    assert table.labels.tolist() == ["ant", "ant", "cat", "cat", "cat", "ant", "cat", "cat"]
    assert table.columns["name"][0] == "train/ant/0.png"
    assert table.images[0].tolist() == [[[0, 200, 0]] * 8] * 8
    whole = opened(root, type="imagefolder", root="pets/train")
    assert parts(whole) == ["all"] * 5
    assert whole.images.content(0) == table.images.content(0) != whole.images.content(1)


def test_what_a_folder_lacks_is_said(image_folder):
    root = image_folder.parent
    said = refused(root, type="imagefolder", root="birds", obtain="from the shop")
    assert said == f"{root / 'birds'} does not exist; put CLASS/* there (from the shop)"
    (root / "birds").mkdir()
    assert "has no class folders" in refused(root, type="imagefolder", root="birds")
    (root / "birds" / "wren").mkdir()
    assert "has no image in its class folders" in refused(root, type="imagefolder", root="birds")


@pytest.fixture
def csv_root(image_folder):
    rows = ["picture,kind,tags,who,part,tall,wide", "ant/0.png,ant,a;b,7,train,1,0", "ant/1.png,ant,,8,test,0,0",
            "cat/0.png,cat,b,7,train,1,1"]  # fmt: skip
    (image_folder / "train" / "table.csv").write_text("\n".join(rows))
    return image_folder.parent


def test_a_table_has_one_label_several_or_columns_of_them(csv_root):
    source = {"type": "csv", "file": "pets/train/table.csv", "image_column": "picture"}
    table = opened(csv_root, **source, label_column="kind", split_column="part")
    assert table.labels.tolist() == ["ant", "ant", "cat"] and parts(table) == ["train", "test", "train"]
    assert table.columns["who"].tolist() == [7, 8, 7]
    assert table.images[2].tolist() == [[[200, 0, 0]] * 8] * 8
    assert opened(csv_root, **source, label_column="tags", label_separator=";").labels == [("a", "b"), (), ("b",)]
    columns = opened(csv_root, **source, label_columns=["tall", "wide"])
    assert columns.labels.tolist() == [[1, 0], [0, 0], [1, 1]] and columns.names == ("tall", "wide")


def test_what_a_table_lacks_is_said(csv_root):
    source = {"type": "csv", "file": "pets/train/table.csv"}
    assert "has no column 'image'; known: kind, part, picture" in refused(csv_root, **source)
    assert "label_columns must hold numbers" in refused(
        csv_root, **source, image_column="picture", label_columns=["kind"]
    )
    file = csv_root / "pets" / "train" / "table.csv"
    file.write_text("image,label\n../secret.png,a\n")
    assert "line 2: '../secret.png' must be a path inside the data root" in refused(csv_root, **source)
    file.write_text("image,label\na.png\n")
    assert "line 2 has no value for 'label'" in refused(csv_root, **source)
    file.write_text("image,label\n")
    assert "has no rows" in refused(csv_root, **source)
    file.write_text("image,label\na.png,cat,dog\n")
    assert "line 2 has more cells than the header" in refused(csv_root, **source)
    file.write_bytes(b"image,label\n\xff\xfe,a\n")
    assert "cannot be read as a table" in refused(csv_root, **source)
    assert "put a table of images and labels there" in refused(csv_root, type="csv", file="pets/none.csv")


def arrays(count=4, **more):
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 2, 2, 3)
    return {"images": images, "labels": np.arange(count) % 2, **more}


def test_arrays_of_one_file_or_of_one_a_part(tmp_path):
    np.savez(tmp_path / "one.npz", **arrays(split=np.array(["train", "train", "test", "test"]), who=np.arange(4)))
    table = opened(tmp_path, type="npz", file="one.npz", split="split")
    assert parts(table) == ["train", "train", "test", "test"] and table.columns["who"].tolist() == [0, 1, 2, 3]
    assert table.names is None and table.images[1].tolist() == arrays()["images"][1].tolist()
    np.savez(tmp_path / "a.npz", x=arrays()["images"], y=[1, 1, 0, 0], classes=["cat", "dog"])
    np.savez(tmp_path / "b.npz", **arrays(2, classes=np.array(["cat", "dog"])))
    named = {"file": "a.npz", "images": "x", "labels": "y"}
    table = opened(tmp_path, type="npz", train=named, test="b.npz")
    assert table.labels.tolist() == [1, 1, 0, 0, 0, 1] and table.names == ("cat", "dog")
    assert parts(table) == ["train"] * 4 + ["test"] * 2
    assert table.images.content(0) == table.images.content(4)  # the same pixels, wherever they lie


BAD_ARRAYS = {
    "no file": ({}, "does not exist; put arrays of images and labels there"),
    "objects": (arrays(labels=np.array([{}] * 4)), "holds Python objects, which are never unpickled"),
    "no labels": ({"images": arrays()["images"]}, "has no array 'labels'; it has: images"),
    "floats": (arrays(images=np.zeros((4, 2, 2))), "images are float64 (4, 2, 2), need uint8"),
    "fewer labels": (arrays(labels=np.zeros(3, int)), "4 images but labels of shape (3,)"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_bad_arrays_are_one_line(tmp_path, what):
    given, message = BAD_ARRAYS[what]
    if given:
        np.savez(tmp_path / "set.npz", **given)
    assert message in refused(tmp_path, type="npz", file="set.npz")


def test_parts_must_have_the_same_classes(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(classes=np.array(["cat", "dog"])))
    np.savez(tmp_path / "b.npz", **arrays(classes=np.array(["dog", "cat"])))
    assert "different classes" in refused(tmp_path, type="npz", train="a.npz", test="b.npz")


# --- libraries ---


@pytest.fixture
def mnist_root(tmp_path):
    """MNIST as torchvision keeps it, 3 training and 2 test images."""
    raw = tmp_path / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, labels in (("train", [3, 1, 3]), ("t10k", [0, 9])):
        count = len(labels)
        head = np.array([2051, count, 28, 28], ">i4").tobytes()
        pixels = np.repeat(np.array(labels, np.uint8), 784).tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + pixels)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + bytes(labels))
    return tmp_path


PARTS = {"train": {"train": True}, "test": {"train": False}}


@pytest.mark.parametrize("attribute", [{"label_attr": "targets"}, {}], ids=["by attribute", "by item"])
def test_torchvision_gives_the_parts_that_its_class_has(mnist_root, attribute):
    table = opened(mnist_root, type="torchvision", name="MNIST", **PARTS, **attribute)
    assert table.labels.tolist() == [3, 1, 3, 0, 9] and parts(table) == ["train"] * 3 + ["test"] * 2
    assert table.images[4].shape == (28, 28) and (table.images[4] == 9).all()
    both = [{"train": True}, {"train": False}]  # two of the publisher's parts as one
    assert parts(opened(mnist_root, type="torchvision", name="MNIST", train=both)) == ["train"] * 5


def test_torchvision_downloads_only_where_it_may(tmp_path):
    said = refused(tmp_path, type="torchvision", name="SVHN", train={"split": "train"})
    assert said == f"SVHN is not in {tmp_path / 'torchvision'} and may not be downloaded: offline was asked for"
    assert "may not be downloaded: offline was asked for" in refused(
        tmp_path, type="torchvision", name="EMNIST", args={"split": "balanced"}
    )
    assert would_download({"type": "torchvision"}) and not would_download({"type": "torchvision", "download": False})
    assert not would_download({"type": "npz"})


def test_torchvision_errors_name_the_key(mnist_root):
    assert "did you mean 'MNIST'" in refused(mnist_root, type="torchvision", name="MNISTT")
    said = refused(mnist_root, type="torchvision", name="MNIST", args={"colour": True})
    assert "does not take what source.args and parts say" in said and "colour" in said
    said = refused(mnist_root, type="torchvision", name="MNIST", label_attr="labls")
    assert "no attribute 'labls' (source.label_attr)" in said


def test_no_class_that_unpickles_is_opened(tmp_path):
    assert "would read a pickle; use type imagefolder" in refused(tmp_path, type="torchvision", name="ImageNet")
    said = refused(tmp_path, type="torchvision", name="CIFAR10", train={"train": True})
    assert said == f"{tmp_path / 'cifar10'} does not exist and may not be downloaded: offline was asked for"


def test_cifar_is_that_of_the_data_root(tmp_path):
    (tmp_path / "cifar10").mkdir()
    names = np.array([f"class {k}" for k in range(10)])
    for part, count in (("train", 10), ("test", 4)):
        images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        np.savez(tmp_path / "cifar10" / f"{part}.npz", images=images, labels=np.arange(count), classes=names)
    table = opened(tmp_path, type="torchvision", name="CIFAR10", **PARTS)
    assert table.labels.tolist() == [*range(10), *range(4)] and parts(table) == ["train"] * 10 + ["test"] * 4
    assert table.images[13].tolist() == images[3].tolist()


class Hub(ModuleType):
    """The part of the package ``datasets`` that is used."""

    def __init__(self):
        super().__init__("datasets")
        self.__spec__ = ModuleSpec("datasets", None)
        self.config = SimpleNamespace(HF_HUB_OFFLINE=False)
        self.asked = []

    def load_dataset(self, path, config, *, split, revision, cache_dir):
        self.asked.append((path, config, split, revision, self.config.HF_HUB_OFFLINE))
        if path == "nobody/nothing":
            raise ConnectionError("no such\nrepository")
        count = {"train": 3, "test": 2}[split]
        rows = {"image": [np.full((2, 2), k) for k in range(count)], "label": [0, 1, 0][:count],
                "tags": [[0], [], [0, 1]][:count]}  # fmt: skip
        names = SimpleNamespace(names=["cat", "dog"])
        return HubTable(rows, {"image": None, "label": names, "tags": SimpleNamespace(feature=names)})


class HubTable:
    def __init__(self, rows, features):
        self.rows, self.features, self.column_names = rows, features, list(rows)

    def __len__(self):
        return len(self.rows["image"])

    def __getitem__(self, key):
        return self.rows[key] if isinstance(key, str) else {name: own[key] for name, own in self.rows.items()}


def test_the_hub_is_read_at_a_revision_and_offline_where_asked(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    source = {"type": "hf", "path": "some/pets", "revision": "abc", "train": "train", "test": "test"}
    table = opened(tmp_path, **source)
    assert table.labels.tolist() == [0, 1, 0, 0, 1] and table.names == ("cat", "dog")
    assert parts(table) == ["train"] * 3 + ["test"] * 2 and table.images[4].tolist() == [[1, 1]] * 2
    assert hub.asked[0] == ("some/pets", None, "train", "abc", True) and not hub.config.HF_HUB_OFFLINE
    open_source(source, Access(tmp_path, download=True))
    assert hub.asked[-1][-1] is False
    tagged = opened(tmp_path, **{**source, "label_column": "tags"})
    assert tagged.labels == [("cat",), (), ("cat", "dog"), ("cat",), ()]
    assert "no column 'labl'; did you mean 'label'" in refused(tmp_path, **{**source, "label_column": "labl"})
    said = refused(tmp_path, type="hf", path="nobody/nothing", revision="abc")
    assert said.startswith("nobody/nothing at abc cannot be read (no such repository); it may not be downloaded")


@pytest.mark.parametrize(("kind", "package"), [("hf", "pip install datasets"), ("skimage", "scikit-image")])
def test_a_missing_package_is_asked_for_by_name(tmp_path, monkeypatch, kind, package):
    monkeypatch.setattr("cil.data.tasks.source_types.find_spec", lambda name: None)
    said = refused(tmp_path, type=kind, path="a/b", revision="c", generator="faces")
    assert "needs a package that is not installed" in said and package in said


# --- made ---

DRAWN = [("synthetic", name) for name in GENERATORS["synthetic"]]
DIGITS = [("sklearn", name) for name in GENERATORS["sklearn"]]


@pytest.mark.parametrize(("kind", "generator"), DRAWN + DIGITS, ids=[name for _, name in DRAWN + DIGITS])
def test_made_tasks_are_the_same_each_time(tmp_path, kind, generator):
    once, again = (opened(tmp_path, type=kind, generator=generator) for _ in range(2))
    assert np.array_equal(once.labels, again.labels)
    assert all(once.images.content(row) == again.images.content(row) for row in range(0, len(once.images), 37))
    assert parts(once) == ["all"] * len(once.images)


def test_shapes_are_where_they_are_said_to_be(tmp_path):
    table = opened(tmp_path, type="synthetic", generator="shapes", params={"counts": [8, 4, 4, 4]})
    assert table.columns["split"].tolist() == [name for name, many in zip(SPLITS, (8, 4, 4, 4), strict=True)
                                               for _ in range(many)]  # fmt: skip
    assert np.bincount(table.labels).tolist() == [5, 5, 5, 5]
    many = opened(tmp_path, type="synthetic", generator="shapes")
    filled = np.array([(many.images[row].max(axis=2) > 110).sum() for row in range(400)])
    circle, square, triangle, cross = (filled[many.labels[:400] == label].mean() for label in range(4))
    assert 0.7 < circle / square < 0.9 and 0.45 < triangle / square < 0.65 and cross < square  # pi / 4, about a half
    present = opened(tmp_path, type="synthetic", generator="shapes_present")
    assert present.labels.shape == (800, 4) and set(present.labels.sum(axis=1).tolist()) == {0, 1, 2, 3, 4}


def test_the_number_of_dots_is_the_number_of_dots(tmp_path):
    from scipy.ndimage import label

    table = opened(tmp_path, type="synthetic", generator="dot_count", params={"counts": [25, 5, 5, 5]})
    assert sorted(table.columns["dots"].tolist()[:25]) == list(range(1, 26))
    for row in range(25):
        assert label(table.images[row].max(axis=2) > 130)[1] == table.columns["dots"][row]


def test_tasks_out_of_digits_share_their_splits(tmp_path):
    from cil.data.tasks import split_rows

    digits = opened(tmp_path, type="sklearn", generator="digits")
    assert len(digits.labels) == 1797 and np.bincount(digits.labels)[3] == 183
    wanted = split_rows({"rule": "A", "seed": 0}, "digits", digits.labels, {})
    parity = opened(tmp_path, type="sklearn", generator="digit_parity")
    assert parity.labels.tolist() == (digits.labels % 2).tolist()
    for name, rows in wanted.items():
        assert np.flatnonzero(parity.columns["split"] == name).tolist() == rows.tolist()
    of_class = {name: [digits.images.content(row) for row in rows] for name, rows in wanted.items()}
    pairs = opened(tmp_path, type="sklearn", generator="digit_pairs", params={"counts": [4, 4, 4, 4]})
    for row, name in enumerate(pairs.columns["split"].tolist()):
        for left in (0, 16):
            small = np.ascontiguousarray(pairs.images[row][8:24:2, left : left + 16 : 2])
            parent = next(place for place in range(1797) if np.array_equal(digits.images[place], small))
            assert digits.images.content(parent) in of_class[name]  # the parent is of the same split
            assert pairs.labels[row, digits.labels[parent]] == 1


def test_turned_digits_are_turned(tmp_path):
    digits = opened(tmp_path, type="sklearn", generator="digits")
    turned = opened(tmp_path, type="sklearn", generator="digits_rot")
    kept = np.flatnonzero(np.isin(digits.labels, (2, 3, 4, 5, 7)))
    assert len(turned.images) == len(kept)
    assert abs(np.bincount(turned.labels) - len(kept) / 4).max() <= 1
    for row in range(0, len(kept), 50):
        assert np.array_equal(np.rot90(digits.images[kept[row]], turned.labels[row]), turned.images[row])


def test_pictures_give_tiles_that_share_no_pixel(tmp_path):
    pytest.importorskip("skimage")
    textures = opened(tmp_path, type="skimage", generator="textures")
    counts = {name: int((textures.columns["split"] == name).sum()) for name in SPLITS}
    assert counts == {"train": 180, "dev": 30, "dev_test": 30, "test": 60}
    patches = opened(tmp_path, type="skimage", generator="photo_patches")
    assert [int((patches.columns["split"] == name).sum()) for name in SPLITS] == [320, 80, 80, 160]
    assert {patches.images[row].shape[:2] for row in range(len(patches.images))} == {(48, 48)}
    assert len({patches.images.content(row) for row in range(len(patches.images))}) == len(patches.images)
    faces = opened(tmp_path, type="skimage", generator="faces")
    assert faces.labels.tolist() == [1] * 100 + [0] * 100 and faces.images[0].shape == (25, 25)


def test_an_unknown_parameter_is_named(tmp_path):
    said = refused(tmp_path, type="synthetic", generator="shapes", params={"count": 3})
    assert said == "shapes has no parameter 'count'; did you mean 'counts'? known: counts, seed"
