"""Where the examples of a task are from: one function a source type, all giving a ``Table``."""

from __future__ import annotations

import csv
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.data.arrays import read_npz
from cil.data.files import IMAGE_SUFFIXES
from cil.data.tasks.generators import GENERATORS
from cil.data.tasks.tables import ArrayImages, FileImages, Table, in_memory
from cil.errors import DataError, nearest

PART_NAMES = ("all", "train", "val", "test")


@dataclass(frozen=True)
class Access:
    """What opening a source may do.

    Attributes:
        root: The data root; paths are relative to it.
        download: Whether what is not there may be fetched.
        why_not: Where it may not, the reason.
    """

    root: Path
    download: bool = False
    why_not: str = "offline"


@dataclass(frozen=True)
class SourceType:
    """Keys of a source type: those it must have, those it may have, and what opens it."""

    open: Callable[[Mapping[str, Any], Access], Table]
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()  # keys that hold paths, in the source or in its parts
    package: str | None = None  # (module) that must be installed beside this package
    install: str = ""


def open_source(source: Mapping[str, Any], access: Access) -> Table:
    """The examples of a source.

    Args:
        source: ``type`` and its keys, as in a manifest.

    Raises:
        DataError: where something is missing, with what to put where; or may not be downloaded.
    """
    kind = SOURCES[source["type"]]
    if kind.package and find_spec(kind.package) is None:
        raise DataError(f"source type {source['type']} needs a package that is not installed: {kind.install}")
    return kind.open(source, access)


def would_download(source: Mapping[str, Any]) -> bool:
    """Whether this type of source fetches data that is not there."""
    return source.get("type") in ("torchvision", "hf") and source.get("download", True)


def parts_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """The official parts that a source names, in order."""
    return {name: source[name] for name in PART_NAMES if name in source}


def _joined(pieces: Mapping[str, Table]) -> Table:
    """Tables of parts, one after the other; column ``part`` says which."""
    tables = list(pieces.values())
    starts = np.cumsum([0, *(len(table.images) for table in tables)])

    def at(row: int) -> tuple[Table, int]:
        which = int(np.searchsorted(starts, row, side="right")) - 1
        return tables[which], row - int(starts[which])

    def get(row: int) -> Any:
        table, own = at(row)
        return table.images[own]

    labels: Any
    if all(isinstance(table.labels, list) for table in tables):
        labels = [label for table in tables for label in table.labels]
    else:
        labels = np.concatenate([np.asarray(table.labels) for table in tables])
    shared = set.intersection(*(set(table.columns) for table in tables))
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in sorted(shared)}
    columns["part"] = np.concatenate([np.full(len(table.images), name) for name, table in pieces.items()])
    files = [table.images for table in tables if isinstance(table.images, FileImages)]
    if len(files) == len(tables):
        images: Any = FileImages([path for own in files for path in own.paths])
    else:
        images = ArrayImages(int(starts[-1]), get)
    return Table(images, labels, columns, tables[0].names)


# --- made, or out of installed packages ---


def _generated(source: Mapping[str, Any], access: Access) -> Table:
    made = GENERATORS[source["type"]][source["generator"]]
    params = dict(source.get("params") or {})
    known = inspect.signature(made).parameters
    for name in params:
        if name not in known:
            raise DataError(f"{source['generator']} has no parameter '{name}'; {nearest(name, known)}")
    if "seed" in source and "seed" in known:
        params["seed"] = source["seed"]
    return made(**params)


# --- files in the data root ---


def _imagefolder(source: Mapping[str, Any], access: Access) -> Table:
    """``root/CLASS/*``, or ``root/PART/CLASS/*`` with a folder for each part; ``name`` is the path below the root."""
    base = access.root / source["root"]
    given = parts_of(source) or {"all": "."}
    names = sorted({name for folder in given.values() for name in _folders(base / folder, source)})
    pieces = {}
    for part, folder in given.items():
        paths, labels = [], []
        for name in names:
            for path in _pictures_below(base / folder / name):
                paths.append(path)
                labels.append(name)
        if not paths:
            raise DataError(f"{base / folder} has no image in its class folders{_obtain(source)}")
        columns = {"name": np.array([Path(path).relative_to(base).as_posix() for path in paths])}
        pieces[part] = Table(FileImages(paths), np.array(labels), columns)
    return _joined(pieces)


def _folders(where: Path, source: Mapping[str, Any]) -> list[str]:
    if not where.is_dir():
        raise DataError(f"{where} does not exist; put CLASS/* there{_obtain(source)}")
    names = sorted(entry.name for entry in os.scandir(where) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{where} has no class folders; put CLASS/* there{_obtain(source)}")
    return names


def _pictures_below(where: Path) -> list[str]:
    return sorted(
        str(Path(base) / file)
        for base, _, files in os.walk(where)
        for file in files
        if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".")
    )


def _csv(source: Mapping[str, Any], access: Access) -> Table:
    """A table with a column of image paths (below ``root``) and of labels; all columns can be split by."""
    file = access.root / source["file"]
    if not file.is_file():
        raise DataError(f"{file} does not exist; put a table of images and labels there{_obtain(source)}")
    with file.open(newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        rows = list(reader)
        header = list(reader.fieldnames or [])
    if not rows:
        raise DataError(f"{file} has no rows")

    def column(name: str) -> list[str]:
        if name not in header:
            raise DataError(f"{file} has no column '{name}'; {nearest(name, header)}")
        values = [row[name] for row in rows]
        if None in values:
            raise DataError(f"{file} line {values.index(None) + 2} has no value for '{name}'")
        return values

    listed = column(source.get("image_column", "image"))
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
        labels = _typed(column(source.get("label_column", "label")))
    columns = {name: _typed(column(name)) for name in header}
    columns["name"] = np.array(listed)
    marked = source.get("split_column")
    columns["part"] = np.array(column(marked)) if marked else np.full(len(rows), "all")
    return Table(FileImages([str(base / name) for name in listed]), labels, columns, names)


def _typed(values: list[str]) -> NDArray[Any]:
    """Whole numbers where all are, else numbers, else text."""
    for kind in (np.int64, np.float64):
        try:
            return np.array(values).astype(kind)
        except ValueError:
            continue
    return np.array(values)


def _npz(source: Mapping[str, Any], access: Access) -> Table:
    """Arrays of one file, or of one a part; ``images`` uint8 (n, H, W[, C]), ``labels`` (n,) or (n, C)."""

    def opened(own: Mapping[str, Any]) -> Table:
        file = access.root / own["file"]
        if not file.is_file():
            raise DataError(f"{file} does not exist; put arrays of images and labels there{_obtain(source)}")
        arrays = read_npz(file)

        def array(key: str) -> NDArray[Any]:
            name = own.get(key, key)
            if name not in arrays:
                raise DataError(f"{file} has no array '{name}'; it has: {', '.join(arrays)}")
            return arrays[name]

        images, labels = array("images"), array("labels")
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] > 4):
            raise DataError(f"{file}: images are {images.dtype} {images.shape}, need uint8 (n, H, W) or (n, H, W, C)")
        if len(labels) != len(images) or labels.ndim not in (1, 2):
            raise DataError(f"{file}: {len(images)} images but labels of shape {labels.shape}")
        columns = {name: value for name, value in arrays.items() if value.ndim == 1 and len(value) == len(images)}
        columns["part"] = array("split").astype(str) if "split" in own else np.full(len(images), "all")
        names = tuple(arrays["classes"].astype(str).tolist()) if "classes" in arrays else None
        return Table(in_memory(images), labels, columns, names)

    given = parts_of(source)
    if not given:
        return opened(source)
    return _joined({part: opened({**source, **_as_file(own)}) for part, own in given.items()})


def _as_file(own: Any) -> dict[str, Any]:
    return {"file": own} if isinstance(own, str) else dict(own)


# --- libraries that fetch ---


def _torchvision(source: Mapping[str, Any], access: Access) -> Table:
    """A class of torchvision.datasets, once a part; images are read when asked for."""
    from torchvision import datasets

    made = getattr(datasets, source["name"], None)
    if made is None:
        known = [name for name in datasets.__all__ if name[0].isupper()]
        raise DataError(f"torchvision has no data set '{source['name']}'; {nearest(source['name'], known)}")
    given = parts_of(source) or {"all": {}}
    pieces = {}
    for part, own in given.items():
        several = own if isinstance(own, list) else [own]  # train and val of the publisher as one part
        for place, options in enumerate(several):
            data = _constructed(made, {**(source.get("args") or {}), **(options or {})}, source, access)
            pieces[f"{part}\0{place}"] = _of_torchvision(data, source)
    table = _joined(pieces)
    table.columns["part"] = np.array([name.partition("\0")[0] for name in table.columns["part"].tolist()])
    return table


def _constructed(made: Any, options: dict[str, Any], source: Mapping[str, Any], access: Access) -> Any:
    where, name = access.root / source.get("root", "torchvision"), source["name"]
    fetches = "download" in inspect.signature(made).parameters and source.get("download", True)
    try:
        return made(str(where), **options, **({"download": False} if fetches else {}))
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    if not fetches:
        raise DataError(f"{name} is not in {where} and torchvision does not fetch it ({reason}){_obtain(source)}")
    if not access.download:
        raise DataError(f"{name} is not in {where} and may not be downloaded: {access.why_not}")
    try:
        where.mkdir(parents=True, exist_ok=True)
        return made(str(where), **options, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} could not be downloaded to {where} ({reason}){_obtain(source)}") from None


def _of_torchvision(data: Any, source: Mapping[str, Any]) -> Table:
    attribute = source.get("label_attr")
    if attribute == "voc_objects":
        labels: Any = [
            tuple(sorted({item["name"] for item in data[row][1]["annotation"]["object"]})) for row in range(len(data))
        ]
    elif attribute is None:
        labels = np.array([np.asarray(data[row][1]) for row in range(len(data))])
    elif hasattr(data, attribute):
        labels = np.asarray(getattr(data, attribute))
    else:
        raise DataError(f"torchvision's {source['name']} has no attribute '{attribute}' (label_attr)")
    names = getattr(data, "classes", None)
    named = (
        tuple(map(str, names)) if names is not None and labels is not None and not isinstance(labels, list) else None
    )
    if named and len(set(named)) != len(named):
        named = None
    images = ArrayImages(len(data), lambda row: np.asarray(data[row][0]))
    return Table(images, labels, {"part": np.full(len(data), "all")}, named)


def _hf(source: Mapping[str, Any], access: Access) -> Table:
    """A data set of the Hugging Face hub at a pinned revision."""
    import datasets

    if not access.download:
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    given = parts_of(source) or {"all": "train"}
    pieces = {}
    for part, split in given.items():
        config = datasets.DownloadConfig(local_files_only=not access.download)
        try:
            data = datasets.load_dataset(
                source["path"],
                source.get("config"),
                split=split,
                revision=source["revision"],
                download_config=config,
                cache_dir=str(access.root / "hf"),
            )
        except Exception as error:  # the library raises many kinds
            reason = " ".join(str(error).split())
            refused = "" if access.download else f"; it may not be downloaded: {access.why_not}"
            raise DataError(f"{source['path']} at {source['revision']} cannot be read ({reason}){refused}") from None
        image, label = source.get("image_column", "image"), source.get("label_column", "label")
        for name in (image, label):
            if name not in data.column_names:
                raise DataError(f"{source['path']} has no column '{name}'; {nearest(name, data.column_names)}")
        labels = np.asarray(data[label])
        names = getattr(data.features[label], "names", None)
        images = ArrayImages(len(data), lambda row, own=data: np.asarray(own[row][image]))  # type: ignore[misc]
        own_columns = {"part": np.full(len(data), "all")}
        pieces[part] = Table(images, labels, own_columns, None if names is None else tuple(names))
    return _joined(pieces)


def _obtain(source: Mapping[str, Any]) -> str:
    return f" ({source['obtain']})" if source.get("obtain") else ""


SOURCES: dict[str, SourceType] = {
    "torchvision": SourceType(
        _torchvision, ("name",), ("args", "label_attr", "root", "download", "obtain", *PART_NAMES), ("root",)
    ),
    "imagefolder": SourceType(_imagefolder, ("root",), ("obtain", *PART_NAMES), ("root", *PART_NAMES)),
    "csv": SourceType(
        _csv,
        ("file",),
        (*("image_column", "label_column", "label_columns", "label_separator", "split_column", "root", "obtain"),),
        ("file", "root"),
    ),
    "npz": SourceType(_npz, (), ("file", "images", "labels", "split", "obtain", *PART_NAMES), ("file", *PART_NAMES)),
    "hf": SourceType(
        _hf,
        ("path", "revision"),
        ("config", "image_column", "label_column", "obtain", *PART_NAMES),
        package="datasets",
        install="pip install datasets",
    ),
    "sklearn": SourceType(_generated, ("generator",), ("params", "seed"), package="sklearn", install="scikit-learn"),
    "skimage": SourceType(
        _generated,
        ("generator",),
        ("params", "seed"),
        package="skimage",
        install="scikit-image, by pip install 'cil[samples]'",
    ),
    "synthetic": SourceType(_generated, ("generator",), ("params", "seed")),
}
