"""Corruption streams: the test images of a data set, corrupted, one domain after the other or mixed."""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data import Dataset, Samples, data_root, load_dataset
from cil.data.corruptions import CANONICAL, NAMES, SETS, check_name, check_severity
from cil.data.corruptions.sources import ArrayFolder, Generated, ImageFolders, Key, Source, materialise
from cil.data.crops import crop_resized
from cil.errors import ConfigError, DataError, StreamError, nearest
from cil.streams.base import fingerprint_of
from cil.streams.class_incremental import channel_statistics
from cil.streams.registry import register_stream
from cil.streams.shifts import Segment, ShiftStream

__all__ = ["corrupted", "materialise"]

ORDERS = ("continual", "gradual", "mixed", "correlated", "mixed_correlated")
PUBLISHED = {  # folder in the data root, and name of the stream
    "cifar10": ("CIFAR-10-C", "cifar10_c"),
    "cifar100": ("CIFAR-100-C", "cifar100_c"),
    "imagenet1000": ("ImageNet-C", "imagenet_c"),
}
MOST_BYTES = 1 << 29  # of a segment that is kept in memory as a whole


@register_stream("corrupted")
def corrupted(
    dataset: str | Dataset,
    *,
    corruptions: str | Sequence[str] | None = None,
    severity: int = 5,
    images: int | None = None,
    order: str = "continual",
    concentration: float | None = None,
    domain_order: str = "canonical",
    rounds: int = 1,
    reset: bool = False,
    shuffle: bool | str = "auto",
    order_seed: int = 0,
    seed: int = 0,
    data: str = "auto",
    folder: str | Path | None = None,
    table: str = "auto",
    exact_bug_compat: bool = False,
    frost_photos: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    root: str | Path | None = None,
    **options: Any,
) -> ShiftStream:
    """Corrupt the test images of a data set, and let the domains follow each other.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set.
        corruptions: None: the canonical 15, in canonical order; 'all': with the 4 extra ones; or names.
        severity: 1 to 5. With ``order=gradual`` the highest one.
        images: Of each domain; None: all test images. Without ``shuffle`` the first so many, else a random choice by
            ``seed``: the same images in every domain.
        order: ``continual``: one corruption after the other. ``gradual``: each at severity 1, 2, ... up to
            ``severity`` and back down to 1, all images every time. ``mixed``: all corruptions shuffled together.
            ``correlated``: as continual, labels in order within each. ``mixed_correlated``: all together, labels in
            order.
        concentration: Of the correlated orders. None: sorted by label; a number above 0: the images of a class are
            spread over as many stretches as there are classes in shares drawn from a Dirichlet distribution with this
            parameter, small for strong correlation.
        domain_order: 'canonical' (as the corruptions are listed), or 'seed': a permutation by ``order_seed``.
        rounds: How often the whole is repeated.
        reset: Whether the adapter is put back to its source at every new corruption (``reset_each_shift``).
        shuffle: Whether images are shuffled within a domain, and clean ones. 'auto': those that lie class by class are,
            as batches of one class would be a stream of another kind; others keep the stored order, as is usual for
            CIFAR.
        order_seed: Of the order of domains and images.
        seed: Of the corrupted pixels, from 0 to 2^32 - 1.
        data: ``files``: the published files, or ones that ``materialise`` wrote; ``generated``: corrupted here;
            ``auto``: files where the folder is there, else generated.
        folder: Of the files; by default CIFAR-10-C, CIFAR-100-C, ImageNet-C or NAME-C in the data root. Either NAME.npy
            and labels.npy, or NAME/SEVERITY/CLASS/*.JPEG.
        table: Parameters of generated images: '32' (CIFAR-C), '224' (ImageNet-C), or auto by the size of the images.
        exact_bug_compat: Generate glass blur with the published code's fault (see ``glass_blur``).
        frost_photos: Folder of photographs for generated frost. None: a made texture, and the domain is called
            ``frost_synthetic``.
        mean, std: Of each channel for images in [0, 1]. None: the data set's published values, else of its training
            images.
        root: Data root; see ``cil.data.data_root``.
        options: Of the data set, where it is given by name: ``path``, ``size``, ...

    Returns:
        The stream, called DATASET_corrupted, or DATASET_c where the files are not marked as made here, with the order
        where it is not continual. Domains are corruptions. Samples have the side data ``image``: their number in the
        test set. A segment's images are made when asked for, and those of the last segment asked for are remembered.

    Raises:
        ConfigError: for an unknown name, or a value out of range.
        StreamError: where values do not go together, or do not fit the data set.
        DataError: where files are missing or wrong, naming them.

    Source:
        Hendrycks, Dietterich 2019 (corruptions); continual and gradual orders: Wang et al., CVPR 2022 (CoTTA);
        Dirichlet orders: Gong et al., NeurIPS 2022 (NOTE), Yuan et al., CVPR 2023 (RoTTA).
    """
    names = _names(corruptions)
    _check(order, "order", ORDERS)
    _check(domain_order, "domain_order", ("canonical", "seed"))
    _check(data, "data", ("auto", "files", "generated"))
    _check(table, "table", ("auto", *SETS))
    if shuffle != "auto" and not isinstance(shuffle, bool):
        raise ConfigError(f"stream.shuffle is {shuffle!r}; it must be true, false or auto")
    check_severity(severity)
    _check_whole(rounds=(rounds, 1), order_seed=(order_seed, 0), seed=(seed, 0))
    _check_order(order, concentration, reset)
    loaded = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, root, **options)
    if loaded.test.targets is not None:
        raise StreamError(f"data set '{loaded.name}' is multi-label; a corruption stream needs one label an image")

    if domain_order == "seed":
        names = [names[place] for place in np.random.default_rng([order_seed, 0]).permutation(len(names))]
    ladder = [*range(1, severity), *range(severity, 0, -1)] if order == "gradual" else [severity]
    keys = [(name, level) for name in names for level in sorted(set(ladder))]
    source = _source(loaded, data, folder, root, keys[0], seed, table, exact_bug_compat, frost_photos)
    source.check(keys)
    asked = shuffle
    shuffle = _class_by_class(source.labels) if shuffle == "auto" else shuffle
    chosen = _chosen(len(source.labels), images, bool(shuffle), seed)
    arrangement = _Arrangement(source.labels, chosen, order, concentration, bool(shuffle), order_seed)
    parts = arrangement.parts(names, ladder, rounds, reset)
    latest = _Latest(source, loaded.test.shape, loaded.test.in_memory)

    if mean is None or std is None:
        known = (loaded.mean, loaded.std) if loaded.mean is not None and loaded.std is not None else None
        computed = known or channel_statistics(loaded.train)
        mean, std = computed[0] if mean is None else mean, computed[1] if std is None else std
    name = PUBLISHED.get(loaded.name, ("", f"{loaded.name}_c"))[1]
    if not source.published:
        name = f"{name.removesuffix('_c')}_corrupted"
    paired = len(source.labels) == len(loaded.test) and torch.equal(source.labels, loaded.test.slots)
    clean = _numbered(loaded.test[chosen], chosen) if paired else loaded.test
    if shuffle or (asked == "auto" and _class_by_class(clean.slots)):
        clean = clean[torch.from_numpy(np.random.default_rng([order_seed, 2]).permutation(len(clean)))]
    return ShiftStream(
        name=name if order == "continual" else f"{name}_{order}",
        classes=tuple(loaded.classes),
        domains=tuple(source.title(own) for own in names),
        segments=tuple(
            Segment(part.name(source), partial(latest.samples, part), len(part.places), part.domains, part.reset)
            for part in parts
        ),
        image_shape=loaded.test.shape,
        mean=_channels("mean", mean, loaded.test.shape[0]),
        std=_channels("std", std, loaded.test.shape[0]),
        fingerprint=fingerprint_of(
            source.digest(keys, chosen),
            source.labels[chosen],
            repr(tuple(loaded.classes)),
            loaded.train.slots,
            *(value for part in parts for value in (repr((part.keys, part.reset)), part.which, part.places)),
        ),
        source=lambda: loaded.train,
        clean=lambda: clean,
        official=None if source.published else False,
        settings={
            "severity": severity,
            "order": order,
            "concentration": concentration,
            "domain_order": domain_order,
            "rounds": rounds,
            "reset_each_shift": reset,
            "shuffle": shuffle,
            "order_seed": order_seed,
            "images_per_domain": len(chosen),
            **source.settings,
        },
    )


def _class_by_class(labels: Tensor) -> bool:
    return bool((labels.diff() >= 0).all())


# what comes when ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Part:
    """A segment before its images are made: image i is test image ``places[i]`` under ``keys[which[i]]``."""

    keys: tuple[Key, ...]
    which: Tensor
    places: Tensor
    domains: Tensor
    kind: str  # '', 'mixed', or '-3' for a severity
    turn: int
    reset: bool

    def name(self, source: Source) -> str:
        again = f" (round {self.turn + 1})" if self.turn else ""
        return (self.kind if self.kind == "mixed" else f"{source.title(self.keys[0][0])}{self.kind}") + again


@dataclass(frozen=True)
class _Arrangement:
    """In which order the images of a segment come."""

    labels: Tensor
    chosen: Tensor
    order: str
    concentration: float | None
    shuffle: bool
    seed: int

    def parts(self, names: Sequence[str], ladder: Sequence[int], rounds: int, reset: bool) -> list[_Part]:
        """All segments."""
        made: list[_Part] = []
        for turn in range(rounds):
            if "mixed" in self.order:
                keys = tuple((name, ladder[0]) for name in names)
                which = torch.arange(len(names)).repeat_interleave(len(self.chosen))
                places = self.chosen.repeat(len(names))
                row = self._row(places, len(made), shuffled=True)
                made.append(_Part(keys, which[row], places[row], which[row], "mixed", turn, False))
                continue
            for domain, name in enumerate(names):
                for step, level in enumerate(ladder):
                    row = self._row(self.chosen, len(made), self.shuffle)
                    again = reset and step == 0 and bool(made)
                    kind = f"-{level}" if self.order == "gradual" else ""
                    where = torch.full((len(row),), domain)
                    made.append(
                        _Part(((name, level),), torch.zeros_like(row), self.chosen[row], where, kind, turn, again)
                    )
        return made

    def _row(self, places: Tensor, segment: int, shuffled: bool) -> Tensor:
        """The order of a segment's images, drawn for each segment anew."""
        rng = np.random.default_rng([self.seed, 1, segment])
        row = rng.permutation(len(places)) if shuffled else np.arange(len(places))
        if "correlated" in self.order:
            row = row[self._by_label(self.labels[places].numpy()[row], rng)]
        return torch.from_numpy(row)

    def _by_label(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Sorted by label; or each class cut into Dirichlet shares, one a stretch, classes in random order within."""
        kinds = np.unique(labels)
        rows = [np.flatnonzero(labels == kind) for kind in kinds]
        if self.concentration is None:
            return np.concatenate(rows)
        stretches: list[list[np.ndarray]] = [[] for _ in kinds]
        for own in rows:
            shares = rng.dirichlet(np.full(len(kinds), self.concentration))
            cuts = np.rint(shares.cumsum()[:-1] * len(own)).astype(int)
            for stretch, piece in zip(stretches, np.split(own, cuts), strict=True):
                stretch.append(piece)
        return np.concatenate([stretch[place] for stretch in stretches for place in rng.permutation(len(stretch))])


def _chosen(many: int, images: int | None, shuffle: bool, seed: int) -> Tensor:
    """Places of the test images that every domain has, in stored order."""
    if images is None:
        return torch.arange(many)
    if isinstance(images, bool) or not isinstance(images, numbers.Integral) or not 1 <= images <= many:
        raise StreamError(f"stream.images is {images!r}; the test set has {many} images, so 1 to {many}, or null")
    if not shuffle:
        return torch.arange(images)
    return torch.from_numpy(np.sort(np.random.default_rng([seed, 2]).permutation(many)[:images]))


# where the pixels are -------------------------------------------------------------------------------------------------


class _DomainStore:
    """Corrupted images, made or read when asked for."""

    in_memory = False

    def __init__(self, source: Source, shape: tuple[int, int, int], keys: Sequence[Key], which: Tensor, places: Tensor):
        self.shape, self._source, self._keys, self._which, self._places = shape, source, keys, which, places

    def __len__(self) -> int:
        return len(self._places)

    def pixels(self, rows: Tensor) -> Tensor:
        made = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        which, places = self._which[rows], self._places[rows]
        for number in which.unique().tolist():
            own = which == number
            made[own] = self._source.pixels(self._keys[number], places[own])
        return made

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        return crop_resized(self.pixels(rows), draws)

    def take(self, rows: Tensor) -> _DomainStore:
        return _DomainStore(self._source, self.shape, self._keys, self._which[rows], self._places[rows])

    def digest(self, rows: Tensor) -> bytes:
        digest = hashlib.sha256()
        for start in range(0, len(rows), 500):
            digest.update(self.pixels(rows[start : start + 500]).numpy().data)
        return digest.digest()


class _Latest:
    """Makes the images of a segment, and remembers those of the last one; segments too large for it stay lazy."""

    def __init__(self, source: Source, shape: tuple[int, int, int], in_memory: bool) -> None:
        self._source, self._shape, self._in_memory = source, shape, in_memory
        self._part: _Part | None = None
        self._samples: Samples | None = None

    def samples(self, part: _Part) -> Samples:
        if self._samples is not None and self._part is part:
            return self._samples
        store: Any = _DomainStore(self._source, self._shape, part.keys, part.which, part.places)
        slots = self._source.labels[part.places]
        made = _numbered(Samples(store, slots), part.places)
        if not self._in_memory or len(part.places) * math.prod(self._shape) > MOST_BYTES:
            return made
        self._part, self._samples = part, _numbered(Samples.from_arrays(made.pixels, slots), part.places)
        return self._samples


def _numbered(samples: Samples, places: Tensor) -> Samples:
    """The samples with ``image``, their numbers in the test set."""
    (store, rows), *others = samples.parts
    if others:
        samples = Samples.from_arrays(samples.pixels, samples.slots)
        (store, rows), *_ = samples.parts
    return Samples(store, samples.slots, rows, extras={"image": places})


def _source(
    loaded: Dataset,
    data: str,
    folder: str | Path | None,
    root: str | Path | None,
    key: Key,
    seed: int,
    table: str,
    exact_bug_compat: bool,
    frost_photos: str | Path | None,
) -> Source:
    """Files where they are there and wanted, else images made here."""
    where = Path(folder or PUBLISHED.get(loaded.name, (f"{loaded.name}-C", ""))[0]).expanduser()
    where = where if where.exists() or where.is_absolute() else data_root(root) / where
    if folder is not None and data == "generated":
        raise StreamError(f"stream.folder is {folder} with stream.data=generated; leave one out")
    if data == "files" or (data == "auto" and (folder is not None or where.is_dir())):
        if not where.is_dir():
            raise DataError(f"{where} does not exist; put the files there, set stream.folder, or stream.data=generated")
        if any(where.glob("*.npy")):
            return ArrayFolder(where, loaded.test)
        return ImageFolders(where, loaded.classes, loaded.test.shape, key)
    return Generated(loaded.test, seed=seed, table=table, exact_bug_compat=exact_bug_compat, frost_photos=frost_photos)


# what was given -------------------------------------------------------------------------------------------------------


def _names(given: str | Sequence[str] | None) -> list[str]:
    if given is None:
        return list(CANONICAL)
    if isinstance(given, str):
        return list(NAMES) if given == "all" else _names([given])
    names = [str(name) for name in given]
    for name in names:
        check_name(name)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        why = f"names {twice} twice" if twice else "is empty"
        raise StreamError(f"stream.corruptions {why}; list each once, or null for the 15; rounds repeat them all")
    return names


def _check(value: Any, key: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"stream.{key} is {value!r}; {nearest(str(value), allowed)}")


def _check_whole(**given: tuple[Any, int]) -> None:
    for key, (value, least) in given.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or not least <= value < 2**32:
            raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number from {least} to 2^32 - 1")


def _check_order(order: str, concentration: Any, reset: Any) -> None:
    if not isinstance(reset, bool):
        raise ConfigError(f"stream.reset is {reset!r}; it must be true or false")
    if reset and "mixed" in order:
        raise StreamError(f"stream.reset=true needs one domain after the other; stream.order is {order}")
    if concentration is None:
        return
    if "correlated" not in order:
        raise StreamError(
            f"stream.concentration is {concentration!r} with stream.order={order}; correlated orders use it"
        )
    number = isinstance(concentration, int | float) and not isinstance(concentration, bool)
    if not number or not 0 < concentration < math.inf:
        raise ConfigError(f"stream.concentration is {concentration!r}; it must be a number above 0, or null to sort")


def _channels(key: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    try:
        checked = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ConfigError(f"stream.{key} is {values!r}; it must list a number a channel, or be null") from None
    if len(checked) != channels:
        raise StreamError(f"stream.{key} has {len(checked)} values; images have {channels} channels")
    return checked
