"""Data sets on which pretrained networks are compared, in the folder layouts in which they are passed on.

Each lies in its folder of the data root as ``train/CLASS/*`` and ``test/CLASS/*``, the layout of published splits; some
also as their authors published them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cil.data.augment import Augment
from cil.data.columns import with_columns
from cil.data.file_store import FileStore, images_below, subfolders
from cil.data.folders import IMAGENET_STATISTICS, class_folders
from cil.data.registry import Dataset, register_dataset
from cil.data.samples import Samples
from cil.errors import ConfigError, DataError
from cil.values import home_path

Files = tuple[list[str], list[int]]  # paths, and the class of each
Read = Callable[[Path], "Split | None"]  # None where the folder has another layout
_AUGMENT = Augment(flip=True, resized_crop=True)


class Split(NamedTuple):
    """Files of both splits, and the names of the classes."""

    train: Files
    test: Files
    classes: Sequence[str]


class Benchmark(NamedTuple):
    """One of the data sets.

    Attributes:
        title: As papers call it.
        sizes: Classes, training and test images of the split that published numbers are for.
        layouts: Other layouts that are read, each in words and with its reader. A reader's split is the authors' own.
        unsplit: Folder of CLASS/* where the authors published no split (``.``: the set's own one); None: there is none.
            A fifth of each class, by a hash of the file's name, is then for test, which is no published split.
    """

    title: str
    sizes: tuple[int, int, int]
    layouts: tuple[tuple[str, Read], ...] = ()
    unsplit: str | None = None


def _cub(where: Path) -> Split | None:
    """The authors' split, 5,994 and 5,794 images."""
    if not (where / "train_test_split.txt").is_file():
        return None
    tables = [_two_columns(where / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split")]
    paths, labels, for_training = tables
    classes = [name for _, name in sorted(_two_columns(where / "classes.txt").items(), key=lambda item: int(item[0]))]
    splits: dict[str, Files] = {"1": ([], []), "0": ([], [])}
    for number, path in paths.items():
        files = splits[for_training[number]]
        files[0].append(str(where / "images" / path))
        files[1].append(int(labels[number]) - 1)
    return Split(splits["1"], splits["0"], classes)


def _two_columns(file: Path) -> dict[str, str]:
    if not file.is_file():
        raise DataError(f"{file} is missing, which comes with the images")
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines() if line.strip())


def _cars(where: Path) -> Split | None:
    """The authors' split, 8,144 and 8,041 images."""
    if not (where / "devkit" / "cars_train_annos.mat").is_file():
        return None
    labelled = (where / name / "cars_test_annos_withlabels.mat" for name in (".", "devkit"))
    test = next((file for file in labelled if file.is_file()), None)
    if test is None:
        raise DataError(f"{where} has no cars_test_annos_withlabels.mat, which says the classes of the test images")
    from scipy.io import loadmat

    names = [str(name[0]) for name in loadmat(where / "devkit" / "cars_meta.mat")["class_names"][0]]

    def files(annotations: Path, folder: str) -> Files:
        rows = loadmat(annotations)["annotations"][0]
        paths = [str(where / folder / str(row["fname"][0])) for row in rows]
        return paths, [int(row["class"][0, 0]) - 1 for row in rows]

    train = files(where / "devkit" / "cars_train_annos.mat", "cars_train")
    return Split(train, files(test, "cars_test"), names)


BENCHMARKS: dict[str, Benchmark] = {
    "imagenet_r": Benchmark("ImageNet-R", (200, 24_000, 6_000), unsplit="."),
    "imagenet_a": Benchmark("ImageNet-A", (200, 5_981, 1_519), unsplit="."),
    "objectnet": Benchmark("ObjectNet", (200, 26_509, 6_628), unsplit="images"),
    "omnibenchmark": Benchmark("OmniBenchmark", (300, 89_697, 5_985)),
    "vtab": Benchmark("VTAB", (50, 1_796, 8_619)),
    "cub": Benchmark(
        "CUB-200-2011",
        (200, 9_430, 2_358),
        ((("images/, images.txt, image_class_labels.txt, train_test_split.txt and classes.txt of its authors"), _cub),),
    ),
    "cars": Benchmark(
        "Stanford Cars",
        (196, 8_144, 8_041),
        (("cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat of its authors", _cars),),
    ),
}


def folder_in(root: Path, path: str | Path) -> Path:
    """A folder as it is named, where it is there or absolute; else inside the data root."""
    given = home_path(path)
    return given if given.is_absolute() or given.is_dir() else root / given


def open_benchmark(name: str, root: Path, path: str | Path | None = None, size: int = 224) -> Dataset:
    """One of ``BENCHMARKS``.

    ``official`` is None (no checksum is known) of the authors' own files, and where classes and images are as many as
    in the split of the published numbers; else False.

    Args:
        path: Its folder; None: NAME in the data root.
        size: Height and width in pixels.

    Raises:
        DataError: where the folder is missing or has another layout; it says what goes where.
    """
    known, where = BENCHMARKS[name], root / name if path is None else folder_in(root, path)
    for _, read in known.layouts:
        split = read(where)
        if split is not None:
            return _of_files(name, root, split, size, str(where))
    if (where / "train").is_dir():
        settings: dict[str, Any] = {"splits": ("test", "val"), **IMAGENET_STATISTICS}
        found = class_folders(name, root, where, size, **settings)
        sizes = (len(found.classes), len(found.train), len(found.test))
        return found if sizes == known.sizes else replace(found, official=False)
    folder = None if known.unsplit is None else where / known.unsplit
    if folder is not None and folder.is_dir() and subfolders(folder):
        return replace(_of_files(name, root, _own_split(folder), size, str(where)), official=False)
    raise DataError(f"{known.title} is not in {where}; put there {_what_goes_where(known)}, or set stream.path")


def _what_goes_where(known: Benchmark) -> str:
    classes, train, test = known.sizes
    ways = [f"train/CLASS/* and test/CLASS/* ({classes} classes, {train:,} and {test:,} images in published splits)"]
    ways += [words for words, _ in known.layouts]
    if known.unsplit is not None:
        ways.append(f"{known.unsplit}/CLASS/*, of which a fifth is then for test".removeprefix("./"))
    return "; or ".join(ways)


def _own_split(folder: Path) -> Split:
    """A fifth of each class for test: the files whose names have the smallest hashes, whatever lies beside them."""
    classes = subfolders(folder)
    train: Files = ([], [])
    test: Files = ([], [])
    for label, name in enumerate(classes):
        found = images_below(folder / name)
        hashed = sorted(
            found, key=lambda file: hashlib.sha256(f"{Path(file).parent.name}/{Path(file).name}".encode()).digest()
        )
        chosen = set(hashed[: max(1, round(len(hashed) / 5))])
        for file in found:
            files = test if file in chosen else train
            files[0].append(file)
            files[1].append(label)
    return Split(train, test, classes)


def _of_files(name: str, root: Path, split: Split, size: int, source: str) -> Dataset:
    def samples(files: Files) -> Samples:
        store = FileStore(files[0], size, digests=root / "cache" / "digests")
        return Samples(store, torch.tensor(files[1], dtype=torch.int64))

    given: dict[str, Any] = {"augment": _AUGMENT, "source": source, **IMAGENET_STATISTICS}
    return Dataset(name, samples(split.train), samples(split.test), split.classes, **given)


def _register(name: str) -> None:
    known = BENCHMARKS[name]

    def builder(root: Path, path: str | Path | None = None, size: int = 224) -> Dataset:
        return open_benchmark(name, root, path, size)

    builder.__doc__ = f"{known.title}: {known.sizes[0]} classes. In its folder: {_what_goes_where(known)}."
    register_dataset(name)(builder)


for _name in BENCHMARKS:
    _register(_name)


CORE50_TEST = (3, 7, 10)  # sessions of the authors' test split
CORE50_CATEGORIES = (
    *("plug_adapter", "mobile_phone", "scissors", "light_bulb", "can"),
    *("glasses", "ball", "marker", "cup", "remote_control"),
)


@register_dataset("core50")
def core50(root: Path, path: str | Path = "core50", size: int = 128, level: str = "object") -> Dataset:
    """CORe50: 50 objects (or their 10 categories) filmed in 11 sessions; sessions 3, 7 and 10 are for test.

    In its folder: ``s1/o1/*.png`` to ``s11/o50/*.png``. The session of a test image is a column of groups.

    Args:
        level: ``object``, or ``category``: five objects each.

    Raises:
        DataError: where sessions are missing; it says what goes where.

    Source: Lomonaco, Maltoni, CoRL 2017, arXiv:1705.03550.
    """
    if level not in ("object", "category"):
        raise ConfigError(f"stream.level is '{level}'; it must be object or category")
    where = folder_in(root, path)
    sessions = sorted(int(name[1:]) for name in (subfolders(where) if where.is_dir() else ()) if name[1:].isdigit())
    if not set(CORE50_TEST) < set(sessions):
        raise DataError(
            f"CORe50 is not in {where}; put there s1/o1/*.png to s11/o50/*.png of its authors, or set stream.path"
        )
    objects = sorted(
        {name for session in sessions for name in subfolders(where / f"s{session}")}, key=lambda o: int(o[1:])
    )
    classes = list(CORE50_CATEGORIES) if level == "category" else objects
    splits: dict[bool, Files] = {False: ([], []), True: ([], [])}
    of_session: list[str] = []
    for session in sessions:
        for number, name in enumerate(objects):
            found = images_below(where / f"s{session}" / name) if (where / f"s{session}" / name).is_dir() else []
            files = splits[session in CORE50_TEST]
            files[0].extend(found)
            files[1].extend([(int(name[1:]) - 1) // 5 if level == "category" else number] * len(found))
            of_session += [f"s{session}"] * (len(found) if session in CORE50_TEST else 0)
    full = (len(objects), len(sessions)) == (50, 11)
    data = _of_files("core50", root, Split(splits[False], splits[True], classes), size, str(where))
    test, groups = with_columns(data.test, {"session": of_session})
    return replace(data, test=test, groups=groups, official=None if full else False)
