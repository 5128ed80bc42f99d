"""Data sets by name."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cil.data.augment import Augment
from cil.data.samples import Samples
from cil.errors import ConfigError, DataError, nearest
from cil.plugins import Registry
from cil.targets import check_arguments
from cil.values import home_path


@dataclass(frozen=True)
class Dataset:
    """A data set before it becomes a stream.

    Attributes:
        name: Name of the data set in tables.
        train, test: Samples; ``slots`` are the data set's labels (multi-label: one column of ``targets`` a class).
        classes: Name of each label.
        mean, std: One value a channel for images in [0, 1]; None: a stream computes them on its first experience's
            training data, so that no later experience and no test image leaks in.
        official: True where pixels and labels are those of the official set in any order; None where no checksum is
            known.
        augment: Training augmentation where the stream names none.
        source: File, folder or package, for messages.
        origins: Name of the data set that each class is from, of a pool of several; empty of all others.
        groups: Names of the groups of each column of the test images by which accuracy is told; see
            ``cil.data.columns``.

    Raises:
        DataError: where training and test images differ in shape, a split is empty, a label is outside the classes, or
            two classes have one name.
    """

    name: str
    train: Samples
    test: Samples
    classes: Sequence[str]
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    official: bool | None = None
    augment: Augment = field(default_factory=Augment)
    source: str = ""
    origins: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where, names = f"({self.source or 'made in memory'})", tuple(self.classes)
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self.name}: the class name '{twice}' occurs more than once {where}")
        for split, samples in (("training", self.train), ("test", self.test)):
            if not len(samples):
                raise DataError(f"{self.name}: the {split} split is empty {where}")
            low, high = int(samples.slots.min()), int(samples.slots.max())
            if low < 0 or high >= len(names):
                raise DataError(
                    f"{self.name}: {split} labels go from {low} to {high}, but there are {len(names)} classes,"
                    f" so 0 to {len(names) - 1} {where}"
                )
            if samples.targets is not None and samples.targets.shape[1] != len(names):
                columns = samples.targets.shape[1]
                raise DataError(f"{self.name}: {columns} {split} label columns for {len(names)} classes {where}")
        if self.train.shape != self.test.shape:
            raise DataError(
                f"{self.name}: training images are {self.train.shape}, test images {self.test.shape} (C, H, W);"
                f" both must be alike {where}"
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the pixels (or the bytes of the files) and labels of both splits, in order."""
        digest = hashlib.sha256(repr(tuple(self.classes)).encode())
        for samples in (self.train, self.test):
            for store, rows in samples.parts:
                digest.update(repr((len(rows), store.shape)).encode())
                digest.update(store.digest(rows))
            for labels in (samples.slots, samples.targets):
                if labels is not None:
                    digest.update(labels.contiguous().numpy().tobytes())
        for name, values in sorted(self.test.extras.items()):  # columns
            digest.update(repr((name, self.groups)).encode())
            digest.update(values.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def image_keys(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Keys of training and of test images, which equal images share; see ``Samples.keys``."""
        return self.train.keys(), self.test.keys()


DatasetBuilder = Callable[..., Dataset]


def _load_built_in(name: str = "") -> None:
    for module in ("embedded", "official", "folders", "benchmarks", "pooled", "torch_sets"):
        import_module(f"cil.data.{module}")


DATASETS: Registry[DatasetBuilder] = Registry("data set", "cil.datasets", load=_load_built_in)


def register_dataset(name: str) -> Callable[[DatasetBuilder], DatasetBuilder]:
    """Make ``builder(root: Path, **options) -> Dataset`` known as ``name``.

    Other packages name such a builder in an entry point of the group ``cil.datasets``.

    Raises:
        ConfigError: where another builder has the name.
    """
    return DATASETS.register(name)


def dataset_names(root: str | Path | None = None) -> list[str]:
    """Names that ``load_dataset`` knows; with ``root``, also the sets that lie there as NAME/train.npz."""
    _load_built_in()
    names = set(DATASETS.names())
    if root is not None:
        base = data_root(root)
        found = (*base.glob("*/train.npz"), *base.glob("*/*/train.npz"))  # no deeper: folders of images are large
        names |= {path.parent.relative_to(base).as_posix() for path in found}
    return sorted(names)


def data_root(root: str | Path | None = None) -> Path:
    """Folder of data sets and caches: ``root``, else the environment's CIL_DATA, else ~/.cache/cil."""
    chosen = root or os.environ.get("CIL_DATA") or Path.home() / ".cache" / "cil"
    return home_path(chosen)


def load_dataset(name: str | Sequence[Any], /, root: str | Path | None = None, **options: Any) -> Dataset:
    """A data set by name.

    Args:
        name: A registered name, or the path of a folder inside ``root`` that holds train.npz and test.npz, as in
            ``small_tasks/mnist``; a list of several, see ``cil.data.pooled``; or ``module:function``, which makes two
            torch data sets, see ``cil.data.torch_sets``.
        root: See ``data_root``.
        options: Options of this data set: ``path``, ``size``, ...

    Raises:
        ConfigError: for an unknown name or option, with the nearest known ones.
        DataError: where files are missing or wrong.
    """
    if isinstance(name, list | tuple):
        if not all(isinstance(item, str | Mapping | Dataset) for item in name):
            raise ConfigError(f"stream.dataset is {name!r}; a list has names of data sets, or mappings with a name")
        name, options = "pooled", {**options, "sets": name}
    elif isinstance(name, str) and ":" in name:
        name, options = "torch", {**options, "make": name}
    if not isinstance(name, str):
        raise ConfigError(f"stream.dataset is {name!r}; it must be the name of a data set, or a list of them")
    base, builder = data_root(root), DATASETS.get(name)
    if builder is not None:
        allowed = _options(builder)
        _refuse_unknown(name, options, allowed)
        for option, parameter in allowed.items():
            if parameter.default is parameter.empty and option not in options:
                raise ConfigError(f"data set '{name}' needs stream.{option}")
        check_arguments(builder, options, "stream")
        return builder(base, **options)
    inside = Path(name)
    if not inside.is_absolute() and ".." not in inside.parts and (base / inside / "train.npz").is_file():
        _refuse_unknown(name, options, ())
        return DATASETS.find("npz")(base, path=base / inside, name=name)
    known = nearest(name, dataset_names(base))
    raise ConfigError(f"unknown data set '{name}' (stream.dataset; data_root is {base}); {known}")


def dataset_options(name: str | Sequence[Any]) -> list[str]:
    """Options of the data set ``name`` beside the data root; empty where it is not registered."""
    if not isinstance(name, str):
        return [option for option in _options(DATASETS.find("pooled")) if option != "sets"]
    if ":" in name:
        return [option for option in _options(DATASETS.find("torch")) if option != "make"]
    builder = DATASETS.get(name)
    return [] if builder is None else list(_options(builder))


def _refuse_unknown(name: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    for option in options:
        if option not in allowed:
            raise ConfigError(f"data set '{name}' has no option stream.{option}; {nearest(option, allowed)}")


def _options(builder: DatasetBuilder) -> dict[str, inspect.Parameter]:
    """All parameters but the first, which is the data root."""
    return dict(list(inspect.signature(builder).parameters.items())[1:])
