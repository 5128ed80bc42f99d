"""Data sets as folders of image files: any ImageFolder-like one, ImageNet and its subsets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cil.data.augment import Augment
from cil.data.columns import columns_of_table
from cil.data.file_store import IMAGE_SUFFIXES, FileStore, images_below, subfolders, with_progress
from cil.data.mapped_store import MappedStore, write_images
from cil.data.registry import Dataset, register_dataset
from cil.data.samples import ArrayStore, Samples, Store
from cil.errors import DataError
from cil.values import home_path

_PIECE = 500  # images that are decoded at a time for a mapped file
IMAGENET_STATISTICS: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
Held = bool | Literal["mapped"]  # decoded when asked for, in memory, or in a file
_FLIP, _FILES = Augment(flip=True), Augment(flip=True, resized_crop=True)


@register_dataset("folder")
def folder(root: Path, path: str | Path, size: int = 224, channels: int = 3, in_memory: Held = False) -> Dataset:
    """A folder with ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``); classes in alphabetical order.

    A table ``test.csv`` (or ``val.csv``) in it says more of the test images: ``image`` is the path, as in
    test/CLASS/1.jpg, ``accepted`` names classes that count as right, with ; between, every other column is a group.

    Args:
        path: Folder; a relative one is looked up here, then in the data root.
        size: Height and width that images are brought to, in pixels.
        channels: 3 for RGB, 1 for grey.
        in_memory: Decode everything once into memory (size * size * channels bytes an image); ``mapped``: once for all
            runs into a file below DATA_ROOT/cache/pixels, for large sets. Both views are then the centre of the image
            whose shorter side is ``size``, augmented as small images are.

    Raises:
        DataError: where folders, classes or images are missing, naming the folder.
    """
    where = _find(path, root)
    return class_folders(where.name, root, where, size, channels, in_memory=in_memory, splits=("test", "val"))


@register_dataset("tiny_imagenet")
def tiny_imagenet(root: Path, path: str | Path = "tiny_imagenet", size: int = 64, in_memory: Held = True) -> Dataset:
    """Tiny-ImageNet: 64x64 RGB, 200 classes, 500 + 50 images each; ``val`` as published or in class folders.

    In memory they take 1.35 GB and are augmented by crops of the image padded by an eighth of its size, as CIFAR's, and
    flips; otherwise they are decoded when needed and augmented by random resized crops and flips.
    """
    where = _find(path, root)
    augment = Augment(crop_padding=size // 8, flip=True) if in_memory else _FILES
    return class_folders("tiny_imagenet", root, where, size, 3, size, in_memory, augment=augment, **IMAGENET_STATISTICS)


@register_dataset("imagenet1000")
def imagenet1000(root: Path, path: str | Path = "imagenet1000", size: int = 224, in_memory: Held = False) -> Dataset:
    """ImageNet (ILSVRC 2012): 1000 classes; labels are the alphabetical order of the WordNet folders.

    Args:
        in_memory: See ``folder``; both views are then of the centre, of which random resized crops are taken.
    """
    where, augment = _find(path, root), Augment(flip=True, brightness=63 / 255, resized_crop=True)
    settings = {"augment": augment, **IMAGENET_STATISTICS}
    return class_folders("imagenet1000", root, where, size, in_memory=in_memory, **settings)


@register_dataset("imagenet100")
def imagenet100(
    root: Path,
    path: str | Path | None = None,
    size: int = 224,
    class_list: str | Path | None = None,
    in_memory: Held = False,
) -> Dataset:
    """The 100-class subset of ImageNet; labels are the alphabetical order of the chosen folders.

    Args:
        path: A folder of 100 classes, or all of ImageNet; by default ``imagenet100`` in the data root, else
            ``imagenet1000``.
        class_list: Text file with one folder name a line. Without it, and where ``path`` holds 1000 classes, the subset
            is the first 100 of the 1000 shuffled with seed 1993, as is the custom.
        in_memory: As of ``imagenet1000``.
    """
    alone = root / "imagenet100"
    where = _find(path or (alone if alone.is_dir() else "imagenet1000"), root)
    names = _class_folders(_split_folder(where, ("train",)))
    if class_list is not None:
        listed = _find(class_list, root)
        chosen = {line.split()[0] for line in listed.read_text().splitlines() if line.strip()}
        missing = sorted(chosen - set(names))
        if missing or len(chosen) != 100:
            what = f"names {missing[0]}, which {where} lacks" if missing else f"lists {len(chosen)} folders, need 100"
            raise DataError(f"{listed} {what} (stream.class_list)")
        names = sorted(chosen)
    elif len(names) == 1000:
        order = np.random.RandomState(1993).permutation(1000)  # the legacy generator is the protocol
        names = sorted(names[label] for label in order[:100])
    elif len(names) != 100:
        raise DataError(f"{where} has {len(names)} classes; imagenet100 needs 100 or 1000, or stream.class_list")
    settings = {"augment": _FILES, **IMAGENET_STATISTICS}  # flips alone: the survey's code changes no brightness here
    return class_folders("imagenet100", root, where, size, in_memory=in_memory, names=names, **settings)


def class_folders(
    name: str,
    root: Path,
    where: Path,
    size: int,
    channels: int = 3,
    shorter: int | None = None,
    in_memory: Held = False,
    *,
    splits: Sequence[str] = ("val", "test"),
    names: Sequence[str] | None = None,
    **settings: Any,
) -> Dataset:
    """A data set of class folders.

    Args:
        splits: Folders that may hold the test images; the first one that exists is used.
        names: Class folders; None: all.
    """
    shorter = size if in_memory else shorter
    train_folder, test_folder = _split_folder(where, ("train",)), _split_folder(where, splits)
    known = _class_folders(train_folder)
    names = known if names is None else names
    train_files = _list_images(train_folder, names)
    annotations = test_folder / "val_annotations.txt"
    if annotations.is_file():
        test_files = _read_annotations(annotations, names)
    else:
        extra = sorted(set(_class_folders(test_folder)) - set(known))
        if extra:
            raise DataError(f"{test_folder} has the class {extra[0]}, which {train_folder} lacks")
        test_files = _list_images(test_folder, names)

    def samples(paths: list[str], labels: list[int]) -> Samples:
        files = FileStore(paths, size, channels, shorter, root / "cache" / "digests")
        return Samples(_store_of(files, in_memory, root), torch.tensor(labels))

    settings.setdefault("augment", _FLIP if in_memory else _FILES)
    test, table = samples(*test_files), where / f"{test_folder.name}.csv"
    if table.is_file():
        test, settings["groups"] = columns_of_table(test, [Path(file) for file in test_files[0]], table, names)
    return Dataset(name, samples(*train_files), test, names, source=str(where), **settings)


def _store_of(files: FileStore, in_memory: Held, root: Path) -> Store:
    """The files, or their images decoded once, after all that are damaged were named."""
    if not in_memory:
        return files
    everything = torch.arange(len(files))
    sums = files.sums(everything)
    if in_memory != "mapped":
        return ArrayStore(files.pixels(everything))
    key = hashlib.sha256(repr((files.shape, files.shorter)).encode() + sums.tobytes()).hexdigest()
    path = root / "cache" / "pixels" / key
    if not path.is_file() or path.stat().st_size != len(files) * math.prod(files.shape):
        pieces = map(files.pixels, with_progress(everything.split(_PIECE), len(files), each=_PIECE))
        write_images(path, pieces, len(files), files.shape)
    return MappedStore(path, files.shape, sums)


def _find(path: str | Path, root: Path) -> Path:
    """``path`` as it stands, else inside the data root."""
    given = home_path(path)
    for place in (given, root / given):
        if place.exists():
            return place
    raise DataError(f"{given} does not exist, neither here nor in {root}; set stream.path or data_root (CIL_DATA)")


def _split_folder(where: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (where / name).is_dir():
            return where / name
    raise DataError(f"{where} has no folder {' or '.join(names)}; need train/CLASS/* and test/CLASS/* (or val)")


def _class_folders(split: Path) -> list[str]:
    names = subfolders(split)
    if not names:
        raise DataError(f"{split} has no class folders; need {split.name}/CLASS/*")
    return names


def _list_images(split: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """All images below the class folders, sorted by path, with the place of their class in ``names``."""
    paths, labels = [], []
    for label, name in enumerate(names):
        found = images_below(split / name)
        if not found:
            raise DataError(f"{split / name} has no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _read_annotations(annotations: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Files and labels of Tiny-ImageNet's published ``val``: one folder of images, and a table of file and class."""
    label_of = {name: label for label, name in enumerate(names)}
    rows = []
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        file, name, *_ = [*line.split("\t"), "", ""]
        if name not in label_of:
            raise DataError(f"{annotations} line {number}: class '{name}' has no folder in train")
        rows.append((label_of[name], str(annotations.parent / "images" / file)))
    rows.sort()
    return [path for _, path in rows], [label for label, _ in rows]
