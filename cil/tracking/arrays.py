"""Arrays of a run, which grow with its boundaries: each adds one small file and one line to an index.

arrays/index.jsonl                a line for each file: its run, name, SHA-256, the names of its arrays, its own sum
arrays/boundary-003.safetensors   what boundary 3 adds; counts of which most are zero as cells
arrays.safetensors                of the first releases: all arrays at once, dense

What was written is not written again, so a boundary costs the same however many there were before. Readers open what
they need, one boundary at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from cil.errors import TrainingError
from cil.tracking.digests import sealed, unseal
from cil.tracking.files import INDEX_OF_ARRAYS, RecordError
from cil.tracking.storage import replacing

FOLDER, _, INDEX = INDEX_OF_ARRAYS.partition("/")
DENSE = "arrays.safetensors"
Form = Literal["alone", "stacked", "joined"]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """What one file holds of an array.

    Attributes:
        values: The array; or, with ``shape``, its cells that are not zero: (n, d + 1) whole numbers, the d coordinates
            of each and its count.
        form: ``alone``: an array of its own. ``stacked``: one entry along a new first axis, as the confusions of all
            boundaries are. ``joined``: further rows of the array of all boundaries.
        shape: Of the dense array, where ``values`` are cells.
    """

    values: Array
    form: Form = "alone"
    shape: tuple[int, ...] | None = None

    @property
    def dense(self) -> Array:
        """The array, zeros and all."""
        if self.shape is None:
            return self.values
        found = np.zeros(self.shape, np.int64)
        found[tuple(self.values[:, :-1].T)] = self.values[:, -1]
        return found


class Arrays(Mapping[str, Array]):
    """The arrays of a run directory by name, read when they are asked for.

    ``arrays["confusion"]`` is the dense array of all boundaries; ``arrays.parts("confusion")`` gives that of one
    boundary after the other, and holds one of them at a time.

    Args:
        run: The run that they must be of; empty: it is not verified.

    Raises:
        RecordError: where a file is missing, damaged or of another run, when it is read.
    """

    def __init__(self, directory: Path, run: str = "") -> None:
        self.directory = directory
        self._index = _read_index(directory / FOLDER / INDEX, run)
        self._dense = _names(directory / DENSE)
        self._names = list(dict.fromkeys([*self._dense, *(name for line in self._index for name in line["arrays"])]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without reading it

    def __getitem__(self, name: str) -> Array:
        lines = self._lines(name)
        if not lines:
            return self._whole(name)
        forms, dense = zip(*(self._part(line, name) for line in lines), strict=True)
        if forms[-1] == "alone":
            return cast(Array, dense[-1])
        with _as_written(self.directory / FOLDER / INDEX):
            return np.stack(dense) if forms[-1] == "stacked" else np.concatenate(dense)

    def parts(self, name: str) -> Iterator[Array]:
        """The part of each boundary that gave one, dense, in order."""
        lines = self._lines(name)
        yield from (self._part(line, name)[1] for line in lines) if lines else self._whole(name)

    def files(self) -> list[str]:
        """Names of the files, such as ``boundary-003``, in order.

        Raises:
            RecordError: where one of them is missing or damaged.
        """
        for line in self._index:
            self._read(line)
        return [Path(line["file"]).stem for line in self._index]

    def _lines(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self._index if name in line["arrays"]]

    def _whole(self, name: str) -> Array:
        if name not in self._dense:
            raise KeyError(name)
        with _opened(self.directory / DENSE) as file:
            array: Array = file.get_tensor(name)
            return array

    def _part(self, line: Mapping[str, Any], name: str) -> tuple[Form, Array]:
        """The form and the dense array of one file's part."""
        data = self._read(line)
        with _as_written(self.directory / FOLDER / line["file"]):
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            how = json.loads(header["__metadata__"][name])
            part = Part(load(data)[name], how["form"], None if how["shape"] is None else tuple(how["shape"]))
            return part.form, part.dense

    def _read(self, line: Mapping[str, Any]) -> bytes:
        path = self.directory / FOLDER / line["file"]
        try:
            data: bytes = path.read_bytes()
        except OSError as error:
            raise RecordError(f"cannot read {path}: {error.strerror}; restore it") from error
        if hashlib.sha256(data).hexdigest() != line["sum"]:
            raise RecordError(f"{path} is damaged: it is not the file that {INDEX} names; restore it")
        return data


@contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """Around reading what has its sum, and may yet be of somebody who made it up."""
    try:
        yield
    except (LookupError, TypeError, ValueError, MemoryError, SafetensorError) as error:
        raise RecordError(f"{path} is not what a run writes ({type(error).__name__}: {error}); restore it") from error


def add_arrays(directory: Path, name: str, arrays: Mapping[str, Part], run: str = "") -> None:
    """Add a file to the arrays of a run directory, or write it again; then its line of the index.

    Args:
        name: Of the file: ``boundary-003``.
        arrays: By name; of one name all parts have the same form.

    Raises:
        TrainingError: where the disk is full or the place cannot be written.
    """
    how = {key: json.dumps({"form": part.form, "shape": part.shape}) for key, part in arrays.items()}
    data = save({key: np.ascontiguousarray(part.values) for key, part in arrays.items()}, how)
    path = directory / FOLDER / f"{name}.safetensors"
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    line = sealed({"run": run, "file": path.name, "sum": hashlib.sha256(data).hexdigest(), "arrays": list(arrays)})
    index = path.with_name(INDEX)
    try:
        with index.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # a crash may have cut the last line short
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TrainingError(f"cannot write {index}: {error.strerror}; make room") from error


def forget_arrays(directory: Path) -> None:
    """Begin the arrays of a run directory anew: none of its files counts any more."""
    for path in (directory / FOLDER / INDEX, directory / DENSE):
        path.unlink(missing_ok=True)


def _read_index(path: Path, run: str) -> list[dict[str, Any]]:
    """The last line of each file, in order of the first; one that a crash cut short is left out."""
    found: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else (), 1):
        try:
            line, whole = unseal(json.loads(text))
            if not whole:
                raise ValueError("its sum differs")
            file, _ = Path(line["file"]).name, (line["sum"], [*line["arrays"]])
        except (ValueError, TypeError, KeyError) as error:
            raise RecordError(f"{path} is damaged at line {number}; restore it") from error
        if run and line.get("run", run) != run:
            raise RecordError(f"{path} is of another run ({line['run']}, not {run}); restore it")
        found[file] = line | {"file": file}
    return list(found.values())


def _names(path: Path) -> list[str]:
    if not path.exists():
        return []
    with _opened(path) as file:
        return list(file.keys())


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path} cannot be read ({error}); remove it or restore it") from error
