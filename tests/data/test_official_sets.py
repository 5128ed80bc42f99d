"""Official sets: recognised in any order, not with a single other pixel; downloaded once, kept in the data root."""

import io
import runpy
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cil.data import load_dataset
from cil.data import official as module
from cil.data.arrays import read_npz, write_npz
from cil.data.official import content_digest, read_cifar_archive
from cil.errors import DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def made(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    return {"images": images, "labels": np.arange(count) % 10, "classes": np.array([f"c{k}" for k in range(10)])}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with a small 'cifar10' whose digests count as the official ones."""
    for split, arrays in (("train", made(40, 0)), ("test", made(20, 1))):
        write_npz(tmp_path / "cifar10" / f"{split}.npz", arrays)
    data = load_dataset("cifar10", root=tmp_path)
    assert data.official is False
    monkeypatch.setitem(module._OFFICIAL, "cifar10", (content_digest(data.train), content_digest(data.test)))
    return tmp_path


def change(root, split, **changes):
    file = root / "cifar10" / f"{split}.npz"
    write_npz(file, read_npz(file) | changes)


def test_the_official_set_is_recognised_in_any_order(root):
    assert load_dataset("cifar10", root=root).official is True
    arrays, order = made(40, 0), np.random.default_rng(2).permutation(40)
    change(root, "train", images=arrays["images"][order], labels=arrays["labels"][order])
    assert load_dataset("cifar10", root=root).official is True


def test_one_other_pixel_one_other_label_or_a_missing_image_is_unofficial(root):
    arrays = made(20, 1)
    pixels = arrays["images"].copy()
    pixels[7, 3, 3, 1] ^= 1
    labels = arrays["labels"].copy()
    labels[[0, 1]] = labels[[1, 0]]
    for changes in ({"images": pixels}, {"labels": labels}, {name: arrays[name][:-1] for name in ("images", "labels")}):
        change(root, "test", **(arrays | changes))
        assert load_dataset("cifar10", root=root).official is False


def test_cifar_comes_with_the_recipe_of_the_survey(root):
    data = load_dataset("cifar10", root=root)
    assert data.mean == (0.5071, 0.4867, 0.4408)
    assert data.augment.crop_padding == 4
    assert data.augment.flip
    assert data.augment.brightness == 63 / 255


def test_half_a_set_in_the_data_root_is_not_overwritten_by_a_download(root):
    (root / "cifar10" / "test.npz").unlink()
    with pytest.raises(DataError, match=r"cifar10/test\.npz does not exist; set data_root"):
        load_dataset("cifar10", root=root)
    assert (root / "cifar10" / "train.npz").is_file()


def archive(path, name, label_bytes, files, names):
    """A binary edition of CIFAR with two images a file; the last label byte of image k is its number."""
    with tarfile.open(path, "w:gz") as tar:

        def add(member, content):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))

        for number, file in enumerate(files):
            records = np.zeros((2, label_bytes + 3072), np.uint8)
            records[:, 0] = 9  # the coarse label of CIFAR-100
            records[:, label_bytes - 1] = (2 * number, 2 * number + 1)
            records[:, label_bytes : label_bytes + 1024] = 50  # red
            records[:, label_bytes + 1024 + 5] = 77  # green, first row, sixth column
            add(file, records.tobytes())
        add(names, "".join(f"name{k}\n" for k in range(12)).encode() + b"\n")
    return path


def test_the_binary_editions_are_read_without_unpickling(tmp_path):
    ten = archive(
        tmp_path / "10.tar.gz",
        "cifar10",
        1,
        [*(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6)), "cifar-10-batches-bin/test_batch.bin"],
        "cifar-10-batches-bin/batches.meta.txt",
    )
    parts = read_cifar_archive(ten, "cifar10")
    assert parts["train"]["labels"].tolist() == list(range(10))
    assert parts["test"]["labels"].tolist() == [10, 11]
    assert parts["train"]["images"].shape == (10, 32, 32, 3)
    assert parts["train"]["images"][3, 0, 5].tolist() == [50, 77, 0]
    assert parts["train"]["classes"].tolist() == [f"name{k}" for k in range(12)]

    hundred = archive(
        tmp_path / "100.tar.gz",
        "cifar100",
        2,
        ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"],
        "cifar-100-binary/fine_label_names.txt",
    )
    assert read_cifar_archive(hundred, "cifar100")["test"]["labels"].tolist() == [2, 3]  # fine, not coarse
    with pytest.raises(DataError, match=r"has no file cifar-10-batches-bin/batches\.meta\.txt: not the binary edition"):
        read_cifar_archive(hundred, "cifar10")


def test_a_download_is_checked_by_torchvision_and_kept_in_the_data_root(tmp_path, monkeypatch):
    source = archive(
        tmp_path / "source.tar.gz",
        "cifar100",
        2,
        ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"],
        "cifar-100-binary/fine_label_names.txt",
    )
    asked = []

    def download_url(url, root, filename, md5):
        asked.append((url, md5))
        shutil.copy(source, Path(root) / filename)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    for _ in range(2):
        data = load_dataset("cifar100", root=tmp_path / "root")
        assert data.official is False
        assert data.train.slots.tolist() == [0, 1]
    assert asked == [("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8")]
    assert {path.name for path in (tmp_path / "root" / "cifar100").iterdir()} == {"train.npz", "test.npz"}


@pytest.mark.parametrize(
    ("name", "kind", "prefix"),
    [
        ("mnist", "MNIST", ""),
        ("fashion_mnist", "FashionMNIST", ""),
        ("kmnist", "KMNIST", ""),
        ("emnist", "EMNIST", "emnist-balanced-"),
    ],
)
def test_sets_like_mnist_come_through_torchvision_by_name(tmp_path, monkeypatch, name, kind, prefix):
    from torchvision import datasets

    def download(self):
        folder = Path(self.raw_folder)
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in (("train", 3), ("test" if prefix else "t10k", 2)):
            images = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).reshape(count, 28, 28)
            for kind, array, rank in (("images", images, 3), ("labels", np.arange(count, dtype=np.uint8), 1)):
                header = bytes([0, 0, 8, rank]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
                (folder / f"{prefix}{split}-{kind}-idx{rank}-ubyte").write_bytes(header + array.tobytes())

    monkeypatch.setattr(getattr(datasets, kind), "download", download)
    data = load_dataset(name, root=tmp_path)
    assert data.train.shape == (1, 28, 28)
    assert data.train.slots.tolist() == [0, 1, 2]
    assert data.test.slots.tolist() == [0, 1]
    assert data.train.pixels[1, 0, 0, :2].tolist() == [784 % 256, 785 % 256]
    assert len(data.classes) == (47 if name == "emnist" else 10)
    assert (tmp_path / name / "train.npz").is_file()


def test_a_download_that_fails_is_one_line_that_says_where_files_may_be_put(tmp_path, monkeypatch):
    def download_url(url, root, filename, md5):
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10", root=tmp_path)
    assert str(caught.value) == (
        f"cifar10 is not in {tmp_path / 'cifar10'} and could not be downloaded (no route to host);"
        " put train.npz and test.npz there, or set data_root (CIL_DATA) to where they are"
    )


@pytest.mark.skipif(not (SHARED / "unpack.py").is_file(), reason="the real CIFAR-100 (../shared/data) is not here")
def test_the_real_cifar_100_is_recognised(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unpack.py", str(tmp_path), "cifar100"])
    runpy.run_path(str(SHARED / "unpack.py"), run_name="__main__")
    data = load_dataset("cifar100", root=tmp_path)
    assert data.official is True
    assert data.classes[68] == "road"
    assert set(data.train.counts().values()) == {500}
    assert set(data.test.counts().values()) == {100}
