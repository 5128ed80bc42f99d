"""Data sets of torch: every kind of item, what is refused, and files of decoded images."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

import cil
from cil import class_incremental
from cil.data import torch_sets
from cil.data.mapped_store import MappedStore
from cil.data.torch_sets import from_torch
from cil.errors import ConfigError, DataError


class Items:
    """A data set of what ``image`` makes of a number, with the label number % 2."""

    classes = ("even", "odd")

    def __init__(self, count, image):
        self.count, self.image = count, image

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        return self.image(place), place % 2


def grey(place):
    return Image.new("L", (6, 4), 10 * place)


def test_items_of_every_kind_are_read(tmp_path):
    kinds = {
        "pillow": grey,
        "numpy": lambda place: np.full((4, 6), 10 * place, np.uint8),
        "torch": lambda place: torch.full((1, 4, 6), 10 * place, dtype=torch.uint8),
        "float": lambda place: torch.full((1, 4, 6), 10 * place / 255),
    }
    for kind, image in kinds.items():
        data = from_torch(Items(4, image), Items(2, image), name=kind, root=tmp_path)
        assert data.train.shape == (1, 4, 6)
        assert data.train.pixels[:, 0, 3, 5].tolist() == [0, 10, 20, 30]
        assert (data.train.slots.tolist(), list(data.classes)) == ([0, 1, 0, 1], ["even", "odd"])
    pairs = TensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2)
    assert cil.from_torch(pairs, pairs, size=4, channels=1, root=tmp_path).train.shape == (1, 4, 4)
    mapping = [{"image": grey(k), "label": k % 2} for k in range(4)]
    data = from_torch(mapping, mapping, channels=3, root=tmp_path)
    assert (data.train.shape, list(data.classes)) == ((3, 4, 6), ["0", "1"])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (lambda place: torch.randn(1, 4, 4) - 5, r"item 0 has floats outside of \[0, 1\]; take Normalize out"),
        (lambda place: np.zeros((4, 4 + place), np.uint8), r"item 1 is \(1, 4, 5\), item 0 \(1, 4, 4\)"),
        (lambda place: torch.rand(1, 4, 4), "item 0 is another image each time; take random transforms out"),
        (lambda place: np.zeros((4, 4, 2), np.uint8), r"uint8 of shape \(4, 4, 2\); it must be uint8 with 1 or 3"),
        (lambda place: Image.new("F", (4, 4)), "pixels of mode F, whose range is not known"),
    ],
)
def test_what_is_no_image_is_refused_by_its_place(tmp_path, image, words):
    with pytest.raises(DataError, match=words):
        from_torch(Items(4, image), Items(4, image), root=tmp_path)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train is a int; it must have a length"):
        from_torch(3, [], root=tmp_path)
    with pytest.raises(DataError, match=r"item 0 is a Image; it must be \(image, label\)"):
        from_torch([grey(0)], [grey(0)], root=tmp_path)
    with pytest.raises(DataError, match="item 1 has the label -1; it must be a whole number"):
        from_torch([(grey(0), 0), (grey(0), -1)], [(grey(0), 0)], root=tmp_path)
    with pytest.raises(ConfigError, match=r"stream\.revision is 'main'; it must be a commit"):
        cil.load_dataset("huggingface", tmp_path, path="owner/name", revision="main")


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(grey(0), 0)])

    def __len__(self):
        return 1


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([], "train has no items"),
        (Endless(), "train is a Endless; it must have a length and items"),
        ([(grey(0), 0), (grey(1), 10**9)], "labels go up to 1000000000, more than there are images"),
        ([(torch.zeros(4, 5, 3, dtype=torch.uint8), 0)], r"shape \(4, 5, 3\); .* \(C, H, W\), as a tensor"),
        ([(np.zeros((3, 4, 5), np.uint8), 0)], r"shape \(3, 4, 5\); .* \(H, W, C\), as an array"),
    ],
)
def test_odd_sets_are_one_line(tmp_path, train, words):
    with pytest.raises(DataError, match=words):
        from_torch(train, [(grey(0), 0)], root=tmp_path)


def test_labels_of_the_test_images_are_matched_by_name(tmp_path):
    """Folders are numbered by what is in them: a test folder without a class numbers the others otherwise."""
    train, test = Items(4, grey), Items(4, grey)
    test.classes = ("odd", "even")
    assert from_torch(train, test, root=tmp_path).test.slots.tolist() == [1, 0, 1, 0]
    assert from_torch(train, test, classes=["a", "b"], root=tmp_path).test.slots.tolist() == [0, 1, 0, 1]
    test.classes = ("odd", "even", "third")
    with pytest.raises(DataError, match=r"torch: test: its class names are not .* 'third' is in one of them alone"):
        from_torch(train, test, root=tmp_path)


def test_large_sets_are_kept_in_a_file_and_are_the_same_data(tmp_path, monkeypatch):
    small = from_torch(Items(5, grey), Items(2, grey), root=tmp_path)
    monkeypatch.setattr(torch_sets, "IN_MEMORY", 5 * 24 - 1)
    monkeypatch.setattr(torch_sets, "_PIECE", 2)
    large = from_torch(Items(5, grey), Items(2, grey), root=tmp_path)
    ((store, _),) = large.train.parts
    assert isinstance(store, MappedStore) and not large.train.in_memory and large.test.in_memory
    assert torch.equal(large.train.pixels, small.train.pixels)
    assert torch.equal(large.train[[4, 1]].sealed().pixels, small.train.pixels[[4, 1]])
    assert [path.stat().st_size for path in (tmp_path / "cache" / "pixels").iterdir()] == [5 * 24]
    stream, again = (class_incremental(data, increment=1) for data in (large, small))
    assert torch.equal(stream[1].train.pixels, again[1].train.pixels)
    store.path.unlink()
    with pytest.raises(DataError, match=r"the decoded images, cannot be read .* remove it to make it anew"):
        store.pixels(torch.arange(1))


def test_a_function_of_ones_own_is_a_data_set_by_name(tmp_path, monkeypatch):
    lines = "from PIL import Image\ndef make():\n    pair = [(Image.new('L', (4, 4), k), k % 2) for k in range(4)]"
    (tmp_path / "own_images.py").write_text(f"{lines}\n    return pair, pair[:2]\nodd = 3\ndef wants(where): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    stream = class_incremental("own_images:make", increment=1, size=2, root=tmp_path)
    assert (stream.name, stream.image_shape) == ("own_images.make_b0_inc1", (1, 2, 2))
    for wrong, words in (
        ("own_images:odd", "makes a int; it must make a pair"),
        ("own_images:wants", "missing a required argument: 'where'; it is called without arguments"),
        ("own_images:mak", "own_images has no mak"),
    ):
        with pytest.raises(ConfigError, match=words):
            class_incremental(wrong, increment=1, root=tmp_path)
    with pytest.raises(ConfigError, match=r"stream\.sise is not known"):
        class_incremental("own_images:make", increment=1, sise=2, root=tmp_path)
    del sys.modules["own_images"]


def test_a_data_set_of_the_hub_is_read_by_its_library(tmp_path):
    pytest.importorskip("datasets")
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("ant", "bee")):
            for place in range(count):
                file = tmp_path / "images" / split / name / f"{place}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 6), (100 * number, place, 7)).save(file)
    options = {"path": str(tmp_path / "images"), "revision": "0" * 40, "size": 4}  # a folder has no commits
    data = cil.load_dataset("huggingface", tmp_path, **options)
    assert list(data.classes) == ["ant", "bee"]
    assert sorted(data.train.pixels[:, :, 0, 0].tolist()) == [[100 * k, place, 7] for k in (0, 1) for place in range(3)]
    assert data.test.shape == (3, 4, 4)
