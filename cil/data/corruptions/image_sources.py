"""Sources of corrupted test images: made here, published arrays (CIFAR-C), published folders (ImageNet-C)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data.arrays import replacing
from cil.data.corruptions import CANONICAL, SEVERITIES, VERSION, check_name, corrupt_all, table_of
from cil.data.corruptions.digital import jpeg_compression
from cil.data.file_store import IMAGE_SUFFIXES, FileStore
from cil.data.registry import Dataset
from cil.data.samples import Samples
from cil.errors import DataError
from cil.values import home_path

MARK = "generated.json"  # beside arrays that ``materialise`` wrote: they are not the published ones
SAVED_AS = {"64": 85, "224": 85}  # JPEG quality of the published files; CIFAR-C is arrays
SYNTHETIC = "frost_synthetic"  # frost without photographs

Key = tuple[str, int]  # corruption, severity


class CorruptedImages(Protocol):
    """Corrupted images of one test set.

    Attributes:
        labels: (N,) labels of the images.
        published: True where the files are presumably the published ones.
        settings: Entries of the record about them.
    """

    labels: Tensor
    published: bool
    settings: dict[str, Any]

    def title(self, name: str) -> str:
        """Name of the domain."""

    def pixels(self, key: Key, places: Tensor) -> Tensor:
        """Corrupted images at ``places``, (n, C, H, W) uint8."""

    def check(self, keys: Sequence[Key]) -> None:
        """Raise ``DataError`` where images of one of the keys are missing or wrong."""

    def digest(self, keys: Sequence[Key], places: Tensor) -> str:
        """SHA-256 over all that the pixels are made of."""


class GeneratedImages:
    """Images that are corrupted here, when asked for.

    Args:
        saved_as_published: Whether they pass through JPEG at quality 85 where the published ones do (64, 224).
    """

    published = False

    def __init__(
        self,
        test: Samples,
        *,
        seed: int = 0,
        table: str = "auto",
        exact_bug_compat: bool = False,
        frost_photos: str | Path | None = None,
        saved_as_published: bool = False,
    ) -> None:
        self._test, self.labels, self._seed = test, test.slots, seed
        table = table_of(*test.shape[1:]) if table == "auto" else table
        self._options: dict[str, Any] = {"table": table, "exact_bug_compat": exact_bug_compat, "photos": ()}
        if frost_photos is not None:
            from cil.data.corruptions.weather import frost_photos as load

            self._options["photos"] = load(frost_photos, scale={"32": 0.2, "64": 0.3, "224": 1.0}[table])
        self._saved_as = SAVED_AS.get(table) if saved_as_published else None
        self.settings = {
            "pixels": "generated",
            "seed": seed,
            "table": table,
            "exact_bug_compat": exact_bug_compat,
            "frost": "photographs" if self._options["photos"] else "synthetic",
            "corruptions_version": VERSION,
        }
        if self._saved_as is not None:
            self.settings["jpeg"] = self._saved_as

    def title(self, name: str) -> str:
        return SYNTHETIC if name == "frost" and not self._options["photos"] else name

    def pixels(self, key: Key, places: Tensor) -> Tensor:
        images = self._test[places].pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        made = corrupt_all(images, *key, seed=self._seed, places=places.tolist(), **self._options)
        if self._saved_as is not None:
            made = jpeg_compression(made, self._saved_as, iter(()))
        return torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()

    def check(self, keys: Sequence[Key]) -> None:
        pass

    def digest(self, keys: Sequence[Key], places: Tensor) -> str:
        digest = hashlib.sha256(json.dumps([self.settings, list(keys)], sort_keys=True).encode())
        for photo in self._options["photos"]:
            digest.update(hashlib.sha256(np.ascontiguousarray(photo).data).digest())
        for store, rows in self._test[places].parts:
            digest.update(store.digest(rows))
        return digest.hexdigest()


class ArrayFolder:
    """The published layout of CIFAR-10-C: NAME.npy (5 n, H, W, C), severity s in rows (s - 1) n to s n - 1; labels.npy.

    Raises:
        DataError: where labels.npy is missing, or is not five times the labels of the test set, in whatever order.
    """

    def __init__(self, folder: Path, test: Samples) -> None:
        self._folder, self._count, self._shape = folder, len(test), test.shape
        path, labels = folder / "labels.npy", self._array("labels.npy")
        wanted = 5 * self._count
        if labels.dtype.kind not in "iu" or labels.shape != (wanted,):
            raise DataError(
                f"{path} holds {labels.dtype} {labels.shape}; need {wanted} whole numbers, the labels of the"
                f" {self._count} test images five times"
            )
        self.labels = torch.from_numpy(np.array(labels[: self._count], np.int64))
        different = np.flatnonzero(np.asarray(labels, np.int64) != np.tile(self.labels.numpy(), 5))
        if len(different):
            row = int(different[0])
            raise DataError(
                f"{path} row {row} is {labels[row]}, but row {row % self._count}, the same image, is"
                f" {labels[row % self._count]}; the labels must be there five times"
            )
        if not torch.equal(self.labels.sort().values, test.slots.sort().values):  # the order may be another one
            raise DataError(f"{path} has other numbers of labels than the test set; the folder is of another data set")
        mark = folder / MARK
        self.published = not mark.is_file()
        self.settings = {"pixels": "files" if self.published else "files made by this package"}
        if not self.published:
            try:
                self.settings |= {"generated": json.loads(mark.read_text())}
            except ValueError as error:
                raise DataError(f"{mark} cannot be read as JSON ({error}); write the folder anew") from None

    def title(self, name: str) -> str:
        synthetic = name == "frost" and not (self._folder / "frost.npy").is_file()
        return SYNTHETIC if synthetic and (self._folder / f"{SYNTHETIC}.npy").is_file() else name

    def pixels(self, key: Key, places: Tensor) -> Tensor:
        name, severity = key
        rows = self._images(name)[(severity - 1) * self._count + places.numpy()]
        return torch.from_numpy(np.ascontiguousarray(rows.transpose(0, 3, 1, 2)))

    def check(self, keys: Sequence[Key]) -> None:
        for name in dict.fromkeys(name for name, _ in keys):
            self._images(name)

    def digest(self, keys: Sequence[Key], places: Tensor) -> str:
        digest = hashlib.sha256(repr(list(keys)).encode())
        for name, severity in keys:
            for start in range(0, len(places), 1000):
                digest.update(self.pixels((name, severity), places[start : start + 1000]).numpy().data)
        return digest.hexdigest()

    def _images(self, name: str) -> NDArray[np.uint8]:
        """The array of a corruption, mapped from its file; grey ones get their channel."""
        file = f"{self.title(name)}.npy"
        images = self._array(file)
        channels, height, width = self._shape
        shapes = [(5 * self._count, height, width, channels)] + [(5 * self._count, height, width)] * (channels == 1)
        if images.dtype != np.uint8 or images.shape not in shapes:
            raise DataError(f"{self._folder / file} holds {images.dtype} {images.shape}; need uint8 {shapes[0]}")
        return images.reshape(shapes[0])

    def _array(self, file: str) -> NDArray[Any]:
        path = self._folder / file
        if not path.is_file():
            raise DataError(f"{path} does not exist; put it there, set stream.folder, or use stream.data=generated")
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return array
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read as .npy: {' '.join(str(error).split())}") from None


class ImageFolders:
    """The published layout of ImageNet-C: NAME/SEVERITY/CLASS/*.JPEG, the same images everywhere.

    Args:
        classes: Names of the class folders, by label.
        shape: (C, H, W) that images have, or are brought to by their centre.
        key: A corruption and severity that is asked for; the images are those of its folder.

    Raises:
        DataError: where a folder is missing, or has no image of a class.
    """

    published = True

    def __init__(self, folder: Path, classes: Sequence[str], shape: tuple[int, int, int], key: Key) -> None:
        self._folder, self._classes, self._shape = folder, tuple(classes), shape
        self.names, labels = self._listed(key)
        self.labels = torch.tensor(labels)
        self.settings = {"pixels": "files"}

    def title(self, name: str) -> str:
        return name

    def pixels(self, key: Key, places: Tensor) -> Tensor:
        where = self._folder / key[0] / str(key[1])
        paths = [str(where / self.names[place]) for place in places.tolist()]
        store = FileStore(paths, self._shape[1], self._shape[0], shorter=self._shape[1])
        return store.pixels(torch.arange(len(paths)))

    def check(self, keys: Sequence[Key]) -> None:
        for key in keys:
            names, _ = self._listed(key)
            if names != self.names:
                wrong = sorted(set(names) ^ set(self.names))[0]
                here = "lacks" if wrong in self.names else "has"
                raise DataError(
                    f"{self._folder / key[0] / str(key[1])} {here} {wrong}, unlike the other corruptions;"
                    " all must hold the same images"
                )

    def digest(self, keys: Sequence[Key], places: Tensor) -> str:
        """Over names and sizes of the files: reading all of ImageNet-C would take longer than a run."""
        digest = hashlib.sha256(repr(list(keys)).encode())
        for name, severity in keys:
            for place in places.tolist():
                path = self._folder / name / str(severity) / self.names[place]
                digest.update(f"{self.names[place]} {path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def _listed(self, key: Key) -> tuple[list[str], list[int]]:
        """CLASS/FILE of all images in order of labels, and their labels."""
        where = self._folder / key[0] / str(key[1])
        if not where.is_dir():
            raise DataError(f"{where} does not exist; put it there, set stream.folder, or use stream.data=generated")
        names, labels = [], []
        for label, name in enumerate(self._classes):
            files = os.listdir(where / name) if (where / name).is_dir() else []  # noqa: PTH208
            found = sorted(file for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(f"{where / name} has no image; every class of the data set needs one")
            names += [f"{name}/{file}" for file in found]
            labels += [label] * len(found)
        return names, labels


def materialise(
    dataset: Dataset,
    folder: str | Path,
    *,
    corruptions: Iterable[str] = CANONICAL,
    seed: int = 0,
    table: str = "auto",
    exact_bug_compat: bool = False,
    frost_photos: str | Path | None = None,
) -> Path:
    """Corrupt a test set once and for all, in the layout of CIFAR-10-C: NAME.npy of all severities, and labels.npy.

    A file ``generated.json`` beside them says that they were made here, so that a stream of them is not called by the
    published name. Frost without photographs is written as ``frost_synthetic.npy``.

    Args:
        folder: Made where it is missing; files of the same names are replaced.
        corruptions, seed, table, exact_bug_compat, frost_photos: See ``cil.streams.corrupted``, which makes the same
            images of them.

    Raises:
        ConfigError: for an unknown corruption or table.
        DataError: where photographs are missing.
    """
    names = list(corruptions)
    for name in names:
        check_name(name)
    source = GeneratedImages(
        dataset.test, seed=seed, table=table, exact_bug_compat=exact_bug_compat, frost_photos=frost_photos
    )
    where = home_path(folder)
    where.mkdir(parents=True, exist_ok=True)
    (where / MARK).write_text(json.dumps({**source.settings, "dataset": dataset.name}, indent=1))
    count, (channels, height, width) = len(dataset.test), dataset.test.shape
    smallest = next(kind for kind in (np.uint8, np.int64) if len(dataset.classes) <= np.iinfo(kind).max + 1)
    with replacing(where / "labels.npy") as part, part.open("wb") as file:
        np.save(file, np.tile(dataset.test.slots.numpy().astype(smallest), 5), allow_pickle=False)
    for name in names:
        with replacing(where / f"{source.title(name)}.npy") as part:
            array = np.lib.format.open_memmap(part, "w+", np.uint8, (5 * count, height, width, channels))
            for severity in SEVERITIES:
                for start in range(0, count, 1000):
                    places = torch.arange(start, min(count, start + 1000))
                    rows = source.pixels((name, severity), places).permute(0, 2, 3, 1).numpy()
                    array[(severity - 1) * count + start :][: len(rows)] = rows
            array.flush()
    return where
