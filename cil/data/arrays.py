"""Arrays on disk and in memory: checked, read without pickle, written in one piece."""

from __future__ import annotations

import secrets
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cil.data.samples import ArrayStore, Samples
from cil.errors import DataError

Arrays = dict[str, Any]  # of numpy arrays


def read_npz(path: Path) -> Arrays:
    """All arrays of an ``.npz`` file.

    Raises:
        DataError: where the file is missing, damaged, or holds Python objects (which would need unpickling).
    """
    if not path.exists():
        raise DataError(f"{path} does not exist; set data_root or stream.path")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .npz archive, or only a part of one")
    try:
        with np.load(path, allow_pickle=False) as file:
            doubled = [name for name, count in Counter(file.files).items() if count > 1]
            if doubled:
                raise DataError(f"{path} has '{doubled[0]}' twice; save each array once")
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, NotImplementedError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error):
            raise DataError(f"{path} holds Python objects, which are never unpickled; save plain arrays") from None
        raise DataError(f"{path} cannot be read as .npz: {error}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Path of a temporary file that becomes ``path`` at the end of the block; after an error nothing is left of it.

    The folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # jobs beside this one may write the same file
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write an ``.npz`` so that it is there whole or not at all; makes the folder where it is missing."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def load_or_make(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in ``path``; made, and kept there for the next time, where it is missing or damaged.

    A folder that cannot be written costs time, not the run.
    """
    if path.is_file():
        with suppress(DataError):
            return read_npz(path)
    arrays = make()
    with suppress(OSError):
        write_npz(path, arrays)
    return arrays


def samples_from_arrays(images: Any, labels: Any, where: str | Path) -> Samples:
    """Samples of arrays from outside, after a look at everything that goes wrong in practice.

    Args:
        images: (N, H, W, C) or (N, H, W) uint8.
        labels: (N,) or (N, 1) integers from 0; or (N, L) of 0 and 1 with L > 1 for multi-label tasks, which become
            ``targets`` (their slots are 0 throughout and mean nothing).
        where: The file, for messages.

    Returns:
        Samples over a copy of the pixels.

    Raises:
        DataError: for a wrong type, shape or label, naming ``where``.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8:
        finite = not np.issubdtype(images.dtype, np.floating) or bool(np.isfinite(images).all())
        given = f"{images.dtype}{'' if finite else ' with NaN or inf'}"
        raise DataError(f"{where}: images are {given}, need uint8 (0 to 255)")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise DataError(f"{where}: images have shape {images.shape}, need (N, H, W, C) or (N, H, W)")
    if not len(images):
        raise DataError(f"{where}: no images")
    if images.shape[3] > 4:
        hint = "; this looks like (N, C, H, W)" if images.shape[1] <= 4 else ""
        raise DataError(f"{where}: images have {images.shape[3]} channels, need (N, H, W, C) with at most 4{hint}")
    if labels.dtype.kind not in "iub":
        raise DataError(f"{where}: labels are {labels.dtype}, need whole numbers from 0")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != len(images) or not labels.size:
        raise DataError(f"{where}: {len(images)} images but labels of shape {labels.shape}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (labels.ndim == 2 and high > 1):
        allowed = "0 and 1 (multi-label columns)" if labels.ndim == 2 else "0 and up"
        raise DataError(f"{where}: labels go from {low} to {high}, allowed are {allowed}")
    store = ArrayStore(torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")))
    if labels.ndim == 2:
        targets = torch.from_numpy(labels.astype(np.float32))
        return Samples(store, torch.zeros(len(images), dtype=torch.int64), targets=targets)
    return Samples(store, torch.from_numpy(labels.astype(np.int64)))


def class_names(named: Any, splits: Sequence[Samples], where: str | Path) -> tuple[str, ...]:
    """Names of the classes: as given, else the numbers up to the largest label (or label column).

    Raises:
        DataError: where labels are so large that most classes would have no image, or names are no text.
    """
    if named is not None:
        try:
            return tuple(np.asarray(named).astype(str).reshape(-1).tolist())
        except UnicodeDecodeError:
            raise DataError(f"{where}: the names in classes are bytes that are no ASCII; save them as text") from None
    many = max(int(s.slots.max()) + 1 if s.targets is None else s.targets.shape[1] for s in splits)
    if many > sum(map(len, splits)):
        raise DataError(f"{where}: labels go up to {many - 1}, more than there are images; number the classes from 0")
    return tuple(map(str, range(many)))
