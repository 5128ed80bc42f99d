"""Examples in files of the data root: folders of images, tables, arrays."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.data.arrays import read_npz
from cil.data.file_store import images_below, subfolders
from cil.data.tasks.examples import Access, ExampleTable, FileImages, in_memory, join_tables, origin_hint, parts_of
from cil.errors import DataError, nearest


def imagefolder(source: Mapping[str, Any], access: Access) -> ExampleTable:
    """``root/CLASS/*``, or ``root/PART/CLASS/*`` with a folder for each part; ``name`` is the path below the root."""
    base = access.root / source["root"]
    given = parts_of(source) or {"all": "."}
    names = sorted({name for folder in given.values() for name in _folders(base / folder, source)})
    pieces = []
    for part, folder in given.items():
        paths, labels = [], []
        for name in names:
            for path in images_below(base / folder / name):
                paths.append(path)
                labels.append(name)
        if not paths:
            raise DataError(f"{base / folder} has no image in its class folders{origin_hint(source)}")
        columns = {"name": np.array([Path(path).relative_to(base).as_posix() for path in paths])}
        pieces.append((part, ExampleTable(FileImages(paths), np.array(labels), columns)))
    return join_tables(pieces)


def _folders(where: Path, source: Mapping[str, Any]) -> list[str]:
    if not where.is_dir():
        raise DataError(f"{where} does not exist; put CLASS/* there{origin_hint(source)}")
    names = subfolders(where)
    if not names:
        raise DataError(f"{where} has no class folders; put CLASS/* there{origin_hint(source)}")
    return names


def read_table(file: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns and the rows of a ``.csv`` file, all text; None for what a short row lacks.

    Raises:
        DataError: where it is no text, no table, has no rows, or a row has more cells than there are columns.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            rows, header = list(reader), list(reader.fieldnames or [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as a table: {error}; save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read as a table: {error.strerror}") from None
    if doubled := [name for name, count in Counter(header).items() if count > 1]:
        raise DataError(f"{file} has the column '{doubled[0]}' {header.count(doubled[0])} times; name each column once")
    if not rows:
        raise DataError(f"{file} has no rows{' below its header' if header else ''}")
    for line, row in enumerate(rows, start=2):
        if any("\0" in str(cell) for cell in row.values()):
            raise DataError(f"{file} line {line} has a NUL character; save it as UTF-8 text")
        if None in row:
            raise DataError(f"{file} line {line} has more cells than the header; quote what has a comma in it")
    return header, rows


def column_of(file: Path, rows: Sequence[Mapping[str, Any]], name: str, blank: bool = True) -> list[str]:
    """One column of a table.

    Args:
        blank: Whether a cell may be there and hold nothing.

    Raises:
        DataError: where a row has no value for it.
    """
    values = [row[name] for row in rows]
    for line, value in enumerate(values, start=2):
        if value is None or not (blank or value.strip()):
            raise DataError(f"{file} line {line} has no value for '{name}'")
    return values


def csv_table(source: Mapping[str, Any], access: Access) -> ExampleTable:
    """A table with a column of image paths (below ``root``) and of labels; all columns can be split by."""
    file = access.root / source["file"]
    if not file.is_file():
        raise DataError(f"{file} does not exist; put a table of images and labels there{origin_hint(source)}")
    header, rows = read_table(file)

    def column(name: str, blank: bool = True) -> list[str]:
        if name not in header:
            raise DataError(f"{file} has no column '{name}'; {nearest(name, header)}")
        return column_of(file, rows, name, blank)

    listed = column(source.get("image_column", "image"), blank=False)
    for line, name in enumerate(listed, start=2):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{file} line {line}: '{name}' must be a path inside the data root, without '..'")
    base = access.root / source.get("root", str(Path(source["file"]).parent))
    labels: Any
    names = None
    if "label_columns" in source:
        names = tuple(source["label_columns"])
        try:
            labels = np.array([[float(value) for value in column(name)] for name in names]).T
        except ValueError as error:
            raise DataError(f"{file}: label_columns must hold numbers ({error})") from None
    elif "label_separator" in source:
        mark = source["label_separator"]
        text = column(source.get("label_column", "label"))
        labels = [tuple(item.strip() for item in value.split(mark) if item.strip()) for value in text]
    else:
        labels = _typed(column(source.get("label_column", "label"), blank=False))
    columns = {name: _typed(column(name)) for name in header}
    columns["name"] = np.array(listed)
    if "split_column" in source:
        columns["part"] = np.array(column(source["split_column"]))
    return ExampleTable(FileImages([str(base / name) for name in listed]), labels, columns, names)


def _typed(values: list[str]) -> NDArray[Any]:
    """Array of whole numbers if all values are, else of numbers, else of text."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(values).astype(kind)
        except ValueError:
            continue
    return np.array(values)


def npz(source: Mapping[str, Any], access: Access) -> ExampleTable:
    """Arrays of one file, or of one a part; ``images`` uint8 (n, H, W[, C]), ``labels`` (n,) or (n, C)."""

    def opened(own: Mapping[str, Any]) -> ExampleTable:
        file = access.root / own["file"]
        if not file.is_file():
            raise DataError(f"{file} does not exist; put arrays of images and labels there{origin_hint(source)}")
        arrays = read_npz(file)

        def array(key: str) -> NDArray[Any]:
            name = own.get(key, key)
            if name not in arrays:
                raise DataError(f"{file} has no array '{name}'; it has: {', '.join(arrays)}")
            found: NDArray[Any] = arrays[name]
            return found

        images, labels = array("images"), array("labels")
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] > 4):
            raise DataError(f"{file}: images are {images.dtype} {images.shape}, need uint8 (n, H, W) or (n, H, W, C)")
        if len(labels) != len(images) or labels.ndim not in (1, 2):
            raise DataError(f"{file}: {len(images)} images but labels of shape {labels.shape}")
        columns = {name: value for name, value in arrays.items() if value.ndim == 1 and len(value) == len(images)}
        if "split" in own:
            columns["part"] = array("split").astype(str)
        names = tuple(arrays["classes"].astype(str).tolist()) if "classes" in arrays else None
        return ExampleTable(in_memory(images), labels, columns, names)

    given = parts_of(source)
    if not given:
        return opened(source)
    files = {part: {"file": own} if isinstance(own, str) else own for part, own in given.items()}
    return join_tables([(part, opened({**source, **own})) for part, own in files.items()])
