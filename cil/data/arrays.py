"""Arrays on disk and in memory: checked, read without pickle, written in one piece."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cil.data.samples import ArrayStore, Samples
from cil.errors import DataError

Arrays = dict[str, NDArray[Any]]


def read_npz(path: Path) -> Arrays:
    """All arrays of an ``.npz`` file.

    Raises:
        DataError: where the file is missing, damaged, or holds Python objects (which would need unpickling).
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; set data_root or stream.path") from None
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise DataError(f"{path} holds Python objects, which are never unpickled; save plain arrays") from None
        raise DataError(f"{path} cannot be read as .npz: {error}") from None
    except (OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from None


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write an ``.npz`` so that it is there whole or not at all; makes the folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def cached(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in ``path``; made, and kept there for the next time, where it is missing or damaged.

    A folder that cannot be written costs time, not the run.
    """
    if path.is_file():
        try:
            return read_npz(path)
        except DataError:
            pass  # a damaged cache is made anew
    arrays = make()
    try:
        write_npz(path, arrays)
    except OSError:
        pass
    return arrays


def checked_samples(images: Any, labels: Any, where: str | Path) -> Samples:
    """Samples of arrays from outside, after a look at everything that goes wrong in practice.

    Args:
        images: (N, H, W, C) or (N, H, W) uint8.
        labels: (N,) or (N, 1) integers from 0; or (N, L) of 0 and 1 with L > 1 for multi-label tasks, which become
            ``targets`` (their slots are 0 throughout and mean nothing).
        where: The file, for messages.

    Raises:
        DataError: for a wrong type, shape or label, naming ``where``.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8:
        finite = not np.issubdtype(images.dtype, np.floating) or bool(np.isfinite(images).all())
        raise DataError(f"{where}: images are {images.dtype}{'' if finite else ' with NaN or inf'}, need uint8 (0 to 255)")
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
    pixels = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))  # a copy: the caller's array stays its own
    if labels.min() < 0 or (labels.ndim == 2 and labels.max() > 1):
        allowed = "0 and 1 (multi-label columns)" if labels.ndim == 2 else "0 and up"
        raise DataError(f"{where}: labels go from {labels.min()} to {labels.max()}, allowed are {allowed}")
    if labels.ndim == 2:
        slots, targets = torch.zeros(len(pixels), dtype=torch.int64), torch.from_numpy(labels.astype(np.float32))
        samples = Samples(ArrayStore(pixels), slots, targets=targets)
    else:
        samples = Samples(ArrayStore(pixels), torch.from_numpy(labels.astype(np.int64)))
    return samples


def check_labels(samples: Samples, num_classes: int, where: str | Path) -> None:
    """Refuse labels (or label columns) beyond the classes there are.

    Raises:
        DataError: naming ``where``.
    """
    if samples.targets is not None and samples.targets.shape[1] != num_classes:
        raise DataError(f"{where}: {samples.targets.shape[1]} label columns for {num_classes} classes")
    if int(samples.slots.max()) >= num_classes:
        raise DataError(f"{where}: labels go up to {int(samples.slots.max())}, but there are {num_classes} classes")


def class_names(named: Any, splits: Sequence[Samples], where: str | Path) -> tuple[str, ...]:
    """Names of the classes: as given, else the numbers up to the largest label (or label column).

    Raises:
        DataError: where ``named`` is no list of different names.
    """
    if named is None:
        many = max(int(s.slots.max()) + 1 if s.targets is None else s.targets.shape[1] for s in splits)
        return tuple(str(label) for label in range(many))
    names = tuple(str(name) for name in np.asarray(named).reshape(-1))
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{where}: the class name '{twice}' occurs more than once")
    return names
