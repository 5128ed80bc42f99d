"""Public sets in their official form: CIFAR in its binary edition, MNIST and its kin through torchvision."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.data.arrays import Arrays, class_names, read_npz, samples_from_arrays, write_npz
from cil.data.augment import Augment
from cil.data.columns import ACCEPTED, by_name, columns_of_arrays
from cil.data.registry import Dataset, register_dataset
from cil.data.samples import Samples
from cil.errors import DataError
from cil.values import home_path

CIFAR_AUGMENT = Augment(crop_padding=4, flip=True, brightness=63 / 255)  # the survey's recipe
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # the survey's, for both CIFAR sets

# content_digest of (training split, test split)
_OFFICIAL = {
    "cifar10": (
        "6c3d94351344c6460973c9795f4a4fcc19984b1b894a9b39889a02e380f4d4d3",
        "7742db831caeba84ea1d4663e0d07ca1879cbb76e501e036935be5fd5506749b",
    ),
    "cifar100": (
        "f21948361e3a1c94d1f14ec03fe682372044407fa6a618f020b2ed8dcc41d84d",
        "dc83e74dc0797ec7de75164abeb59d8c66b9677d62e46ddb8ce1ab1608ba1b7d",
    ),
    "mnist": (
        "ceb7dae35f33b78023fdd631afb40f55178e62cdc2ffb9a9914d62cf00c16f13",
        "4be5dbf3279c06a13f5ec5886b40e9a0b86af9449a6194a03782ddd01e20fd11",
    ),
}

# name: (URL, MD5 of the archive, training files, test file, label bytes before each image, file of class names)
_CIFAR = {
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        tuple(f"cifar-10-batches-bin/data_batch_{k}.bin" for k in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
        1,
        "cifar-10-batches-bin/batches.meta.txt",
    ),
    "cifar100": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        ("cifar-100-binary/train.bin",),
        "cifar-100-binary/test.bin",
        2,
        "cifar-100-binary/fine_label_names.txt",
    ),
}

# name: (class in torchvision.datasets, its further arguments)
_MNIST_LIKE: dict[str, tuple[str, dict[str, Any]]] = {
    "mnist": ("MNIST", {}),
    "fashion_mnist": ("FashionMNIST", {}),
    "kmnist": ("KMNIST", {}),
    "qmnist": ("QMNIST", {}),
    "emnist": ("EMNIST", {"split": "balanced"}),
}


def content_digest(samples: Samples) -> str:
    """SHA-256 over the sorted SHA-256 of each image with its label: the same for any order of the same set."""
    images = samples.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    each = (
        hashlib.sha256(image.tobytes() + label.to_bytes(8, "little")).digest()
        for image, label in zip(images, samples.slots.tolist(), strict=True)
    )
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()


@register_dataset("npz")
def npz(root: Path, path: str | Path, name: str | None = None) -> Dataset:
    """Any set of arrays: a folder, or one ``.npz`` file.

    A folder has train.npz and test.npz with ``images``, ``labels`` and optional ``classes``. One file holds
    ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and optional ``classes``; the names
    ``x_train``, ``y_train``, ``x_test``, ``y_test`` are read too. Images are uint8 (N, H, W, C) or (N, H, W), labels
    whole numbers from 0. Of the test images there may be ``accepted`` and ``group_NAME`` too, in one file
    ``test_accepted`` and ``test_group_NAME``; see ``cil.data.columns``.

    Args:
        path: Folder or file; a relative one is looked up here, then in the data root.
        name: Name of the data set in tables; None: that of the file or folder.

    Raises:
        DataError: for anything missing or wrong, naming the file.
    """
    where = home_path(path)
    where = where if where.exists() or where.is_absolute() else root / where
    name = name or where.stem
    if where.is_dir():
        files = {split: where / f"{split}.npz" for split in ("train", "test")}
        return _dataset(name, {split: read_npz(file) for split, file in files.items()}, files)
    arrays = read_npz(where)
    other = {"images": "x", "labels": "y"}
    parts: dict[str, Arrays] = {"train": {}, "test": {}}
    for split, part in parts.items():
        for key in other:
            names = (f"{split}_{key}", f"{other[key]}_{split}")
            found = next((known for known in names if known in arrays), None)
            if found is None:
                raise DataError(f"{where} has no array '{' or '.join(names)}'; it has: {', '.join(arrays) or 'none'}")
            part[key] = arrays[found]
    if "classes" in arrays:
        parts["train"]["classes"] = arrays["classes"]
    columns = {name.removeprefix("test_"): array for name, array in arrays.items() if name.startswith("test_")}
    parts["test"] |= {name: array for name, array in columns.items() if name.startswith("group_") or name == ACCEPTED}
    return _dataset(name, parts, {"train": where, "test": where})


def _dataset(name: str, parts: dict[str, Arrays], files: dict[str, Path], **settings: Any) -> Dataset:
    """Check both splits and put them together; ``files`` are for the messages."""
    for split, arrays in parts.items():
        for key in ("images", "labels"):
            if key not in arrays:
                raise DataError(f"{files[split]} has no array '{key}'; it has: {', '.join(arrays) or 'none'}")
    named = parts["train"].get("classes", parts["test"].get("classes"))
    train, test = (samples_from_arrays(part["images"], part["labels"], files[split]) for split, part in parts.items())
    classes = class_names(named, (train, test), files["train"])
    test, groups = columns_of_arrays(test, parts["test"], len(classes), files["test"])
    if "classes" in parts["train"] and "classes" in parts["test"]:
        test = by_name(test, class_names(parts["test"]["classes"], (test,), files["test"]), classes, files["test"])
    official = None
    if name in _OFFICIAL:
        official = (content_digest(train), content_digest(test)) == _OFFICIAL[name]
    settings |= {"official": official, "source": str(files["train"].parent), "groups": groups}
    return Dataset(name, train, test, classes, **settings)


def _load_or_fetch(name: str, root: Path, fetch: Callable[[Path], dict[str, Arrays]], **settings: Any) -> Dataset:
    """Load the set in ``root/NAME``; where both its files are missing, fetch it and keep it there."""
    files = {split: root / name / f"{split}.npz" for split in ("train", "test")}
    if any(file.is_file() for file in files.values()):
        parts = {split: read_npz(file) for split, file in files.items()}
    else:
        try:
            with tempfile.TemporaryDirectory(prefix=f"cil-{name}-") as folder:
                parts = fetch(Path(folder))
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())  # torchvision's have several lines
            raise DataError(
                f"{name} is not in {root / name} and could not be downloaded ({reason}); put train.npz and test.npz"
                " there, or set data_root (CIL_DATA) to where they are"
            ) from None
        with suppress(OSError):  # nowhere to keep it: fetched again next time
            for split, file in files.items():
                write_npz(file, parts[split])
    return _dataset(name, parts, files, **settings)


def _cifar(name: str, root: Path) -> Dataset:
    url, md5, *_ = _CIFAR[name]

    def fetch(folder: Path) -> dict[str, Arrays]:
        from torchvision.datasets.utils import download_url

        download_url(url, folder, "archive.tar.gz", md5)  # checks the MD5
        return read_cifar_archive(folder / "archive.tar.gz", name)

    return _load_or_fetch(name, root, fetch, mean=CIFAR_MEAN, std=CIFAR_STD, augment=CIFAR_AUGMENT)


@register_dataset("cifar10")
def cifar10(root: Path) -> Dataset:
    """CIFAR-10: 32x32 RGB, 10 classes, 5000 + 1000 images each (Krizhevsky 2009)."""
    return _cifar("cifar10", root)


@register_dataset("cifar100")
def cifar100(root: Path) -> Dataset:
    """CIFAR-100 with its fine labels: 32x32 RGB, 100 classes, 500 + 100 images each (Krizhevsky 2009)."""
    return _cifar("cifar100", root)


def read_cifar_archive(path: Path, name: str) -> dict[str, Arrays]:
    """Both splits out of the binary edition of CIFAR, without unpickling or unpacking anything to disk.

    Raises:
        DataError: where a file is missing or has another length than whole images.
    """
    _, _, train, test, label_bytes, names = _CIFAR[name]
    with tarfile.open(path) as archive:

        def member(file: str) -> bytes:
            try:
                content = archive.extractfile(file)
            except KeyError:
                content = None
            if content is None:
                raise DataError(f"{path} has no file {file}: not the binary edition of {name}")
            return content.read()

        classes = np.array([line for line in member(names).decode().split("\n") if line.strip()])

        def split(files: tuple[str, ...]) -> Arrays:
            content = np.frombuffer(b"".join(member(file) for file in files), np.uint8)
            if len(content) == 0 or len(content) % (label_bytes + 3072):
                raise DataError(f"{path}: {', '.join(files)} hold {len(content)} bytes, no whole number of images")
            records = content.reshape(-1, label_bytes + 3072)
            images: NDArray[np.uint8] = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            labels = records[:, label_bytes - 1].astype(np.int64)  # CIFAR-100: coarse label, then fine
            return {"images": np.ascontiguousarray(images), "labels": labels, "classes": classes}

        return {"train": split(train), "test": split((test,))}


@register_dataset("svhn")
def svhn(root: Path) -> Dataset:
    """SVHN, house numbers: 32x32 RGB, 10 digits, 73,257 + 26,032 images; through torchvision (Netzer et al. 2011)."""

    def fetch(folder: Path) -> dict[str, Arrays]:
        from torchvision.datasets import SVHN

        sets = {split: SVHN(str(folder), split=split, download=True) for split in ("train", "test")}  # checked there
        return {
            split: {"images": data.data.transpose(0, 2, 3, 1), "labels": data.labels.astype(np.int64)}
            for split, data in sets.items()
        }

    return _load_or_fetch("svhn", root, fetch)


def _register_mnist_like(name: str) -> None:
    kind, arguments = _MNIST_LIKE[name]

    def builder(root: Path) -> Dataset:
        def fetch(folder: Path) -> dict[str, Arrays]:
            from torchvision import datasets

            parts = {}
            for split in ("train", "test"):
                data = getattr(datasets, kind)(str(folder), train=split == "train", download=True, **arguments)
                labels = data.targets.numpy()
                parts[split] = {
                    "images": data.data.numpy(),
                    "labels": labels[:, 0] if labels.ndim == 2 else labels,
                    "classes": np.array(data.classes),
                }
            return parts

        return _load_or_fetch(name, root, fetch)

    builder.__doc__ = f"torchvision's {kind}, downloaded and checked there: 28x28 grey."
    register_dataset(name)(builder)


for _name in _MNIST_LIKE:
    _register_mnist_like(_name)
