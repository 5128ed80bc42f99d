"""Source types of the examples of a task, their keys, and the functions that open them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from cil.data.tasks.examples import PART_NAMES, Access, ExampleTable
from cil.data.tasks.file_sources import csv_table, imagefolder, npz
from cil.data.tasks.generators import GENERATORS
from cil.data.tasks.libraries import hub, torchvision
from cil.errors import DataError, nearest


@dataclass(frozen=True)
class SourceType:
    """A source type: the function that opens it, keys that it must have, and keys that it may have."""

    open: Callable[[Mapping[str, Any], Access], ExampleTable]
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()  # keys that hold paths, in the source or in its parts
    package: str | None = None  # (module) that must be installed beside this package
    install: str = ""


def open_source(source: Mapping[str, Any], access: Access) -> ExampleTable:
    """The examples of a source: ``type`` and its keys, as a manifest has them.

    Raises:
        DataError: where something is missing, naming the place; or may not be downloaded.
    """
    kind = SOURCES[source["type"]]
    if kind.package and find_spec(kind.package) is None:
        raise DataError(f"source type {source['type']} needs a package that is not installed: {kind.install}")
    return kind.open(source, access)


def would_download(source: Mapping[str, Any]) -> bool:
    """True for a source that fetches data that are not there."""
    return source.get("type") in ("torchvision", "hf") and bool(source.get("download", True))


def _generate(source: Mapping[str, Any], access: Access) -> ExampleTable:
    made = GENERATORS[source["type"]][source["generator"]]
    params = dict(source.get("params") or {})
    known = inspect.signature(made).parameters
    for name in params:
        if name not in known:
            raise DataError(f"{source['generator']} has no parameter '{name}'; {nearest(name, known)}")
    if "seed" in source and "seed" in known:
        params["seed"] = source["seed"]
    return made(**params)


SOURCES: dict[str, SourceType] = {
    "torchvision": SourceType(
        torchvision, ("name",), ("args", "label_attr", "root", "download", "obtain", *PART_NAMES), ("root",)
    ),
    "imagefolder": SourceType(imagefolder, ("root",), ("obtain", *PART_NAMES), ("root", *PART_NAMES)),
    "csv": SourceType(
        csv_table,
        ("file",),
        (*("image_column", "label_column", "label_columns", "label_separator", "split_column", "root", "obtain"),),
        ("file", "root"),
    ),
    "npz": SourceType(npz, (), ("file", "images", "labels", "split", "obtain", *PART_NAMES), ("file", *PART_NAMES)),
    "hf": SourceType(
        hub,
        ("path", "revision"),
        ("config", "image_column", "label_column", "obtain", *PART_NAMES),
        package="datasets",
        install="pip install datasets",
    ),
    "sklearn": SourceType(_generate, ("generator",), ("params", "seed"), package="sklearn", install="scikit-learn"),
    "skimage": SourceType(
        _generate,
        ("generator",),
        ("params", "seed"),
        package="skimage",
        install="scikit-image, by pip install 'cil[samples]'",
    ),
    "synthetic": SourceType(_generate, ("generator",), ("params", "seed")),
}
