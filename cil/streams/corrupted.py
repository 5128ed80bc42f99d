"""Corruption streams: the test images of a data set, corrupted, one domain after the other or mixed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cil.data import Dataset, Samples, data_root, load_dataset
from cil.data.corruptions import CANONICAL, NAMES, SETS, check_name, check_severity
from cil.data.corruptions.image_sources import (
    ArrayFolder,
    CorruptedImages,
    GeneratedImages,
    ImageFolders,
    Key,
    materialise,
)
from cil.data.crops import crop_resized
from cil.errors import ConfigError, DataError, StreamError
from cil.streams.base import fingerprint_of
from cil.streams.options import MOST_SEED, accepts, check_choice, check_integers, normalisation, take
from cil.streams.registry import register_stream
from cil.streams.shifts import Segment, ShiftStream
from cil.values import home_path, is_finite, is_whole

__all__ = ["DomainOrder", "PixelOptions", "corrupted", "materialise"]

ORDERS = ("continual", "gradual", "mixed", "correlated", "mixed_correlated")
PUBLISHED = {  # folder in the data root, and name of the stream
    "cifar10": ("CIFAR-10-C", "cifar10_c"),
    "cifar100": ("CIFAR-100-C", "cifar100_c"),
    "imagenet1000": ("ImageNet-C", "imagenet_c"),
}
MOST_BYTES = 1 << 29  # size of a segment that is kept in memory as a whole


@dataclass(frozen=True, kw_only=True)
class DomainOrder:
    """Order in which domains and their images come.

    Attributes:
        order: ``continual``: one corruption after the other. ``gradual``: each at severity 1, 2, ... up to the severity
            of the stream and back down to 1, all images every time. ``mixed``: all corruptions shuffled together.
            ``correlated``: as continual, labels in order within each. ``mixed_correlated``: all together, labels in
            order.
        concentration: For the correlated orders. None: sorted by label; a number above 0: the images of a class are
            spread over as many stretches as there are classes in shares drawn from a Dirichlet distribution with this
            parameter, small for strong correlation.
        domain_order: ``canonical`` (as the corruptions are listed), or ``seed``: a permutation by ``order_seed``.
        rounds: Number of times that the whole is repeated.
        reset: True: the adapter is put back to its source at every new corruption (``reset_each_shift``).
        shuffle: True: images are shuffled within a domain, and clean ones. ``auto``: those that lie class by class are,
            as batches of one class would be a stream of another kind; others keep the stored order, as is usual for
            CIFAR.
        order_seed: Seed of the order of domains and images.

    Raises:
        ConfigError: for an unknown name, or a value out of range.
        StreamError: where values do not go together.

    Source: Continual and gradual orders: Wang et al., CVPR 2022 (CoTTA); Dirichlet orders: Gong et al., NeurIPS 2022
    (NOTE), Yuan et al., CVPR 2023 (RoTTA).
    """

    order: str = "continual"
    concentration: float | None = None
    domain_order: str = "canonical"
    rounds: int = 1
    reset: bool = False
    shuffle: bool | str = "auto"
    order_seed: int = 0

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_choice("domain_order", self.domain_order, ("canonical", "seed"))
        if self.shuffle != "auto" and not isinstance(self.shuffle, bool):
            raise ConfigError(f"stream.shuffle is {self.shuffle!r}; it must be true, false or auto")
        check_integers(1, MOST_SEED, rounds=self.rounds)
        check_integers(0, MOST_SEED, order_seed=self.order_seed)
        if not isinstance(self.reset, bool):
            raise ConfigError(f"stream.reset is {self.reset!r}; it must be true or false")
        if self.reset and self.is_mixed:
            raise StreamError(f"stream.reset=true needs one domain after the other; stream.order is {self.order}")
        share: Any = self.concentration
        if share is None:
            return
        if not self.is_correlated:
            raise StreamError(
                f"stream.concentration is {share!r} with stream.order={self.order}; correlated orders use it"
            )
        if not is_finite(share) or share <= 0:
            raise ConfigError(f"stream.concentration is {share!r}; it must be a number above 0, or null to sort")

    @property
    def is_mixed(self) -> bool:
        """True where all domains come together."""
        return "mixed" in self.order

    @property
    def is_correlated(self) -> bool:
        """True where the labels come in order."""
        return "correlated" in self.order

    def severities(self, highest: int) -> list[int]:
        """Severities of a domain, in order."""
        return [*range(1, highest), *range(highest, 0, -1)] if self.order == "gradual" else [highest]

    def permute(self, names: list[str]) -> list[str]:
        """Domains in the order in which they come."""
        if self.domain_order == "canonical":
            return names
        return [names[place] for place in np.random.default_rng([self.order_seed, 0]).permutation(len(names))]

    def shuffles(self, labels: Tensor) -> bool:
        """True where images with these labels, in stored order, are shuffled."""
        return bool((labels.diff() >= 0).all()) if self.shuffle == "auto" else bool(self.shuffle)


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """Source of the corrupted pixels.

    Attributes:
        data: ``files``: the published files, or ones that ``materialise`` wrote; ``generated``: corrupted here;
            ``auto``: files where the folder is there, else generated.
        folder: Folder of the files; by default CIFAR-10-C, CIFAR-100-C, ImageNet-C or NAME-C in the data root. Either
            ``NAME.npy`` and ``labels.npy``, or ``NAME/SEVERITY/CLASS/*.JPEG``.
        seed: Seed of generated pixels, from 0 to 2^32 - 1; also of the choice of images.
        table: Parameters of generated images: '32' (CIFAR-C), '64' (Tiny-ImageNet-C), '224' (ImageNet-C), or auto by
            the size of the images.
        exact_bug_compat: Generate glass blur with the published code's fault (see ``glass_blur``).
        frost_photos: Folder of photographs for generated frost. None: a made texture, and the domain is called
            ``frost_synthetic``.
        saved_as_published: Whether generated images pass through JPEG at quality 85 where the published ones do.

    Raises:
        ConfigError: for an unknown name, or a value out of range.
    """

    data: str = "auto"
    folder: str | Path | None = None
    seed: int = 0
    table: str = "auto"
    exact_bug_compat: bool = False
    frost_photos: str | Path | None = None
    saved_as_published: bool = False

    def __post_init__(self) -> None:
        check_choice("data", self.data, ("auto", "files", "generated"))
        check_choice("table", self.table, ("auto", *SETS))
        check_integers(0, MOST_SEED, seed=self.seed)

    def open(self, dataset: Dataset, root: str | Path | None, key: Key) -> CorruptedImages:
        """The files where they are there and wanted, else images made here.

        Args:
            key: One corruption and severity that is asked for.

        Raises:
            DataError: where files are missing or wrong, naming them.
        """
        where = home_path(self.folder or PUBLISHED.get(dataset.name, (f"{dataset.name}-C", ""))[0])
        where = where if where.exists() or where.is_absolute() else data_root(root) / where
        if self.folder is not None and self.data == "generated":
            raise StreamError(f"stream.folder is {self.folder} with stream.data=generated; leave one out")
        if self.data == "files" or (self.data == "auto" and (self.folder is not None or where.is_dir())):
            if not where.is_dir():
                raise DataError(
                    f"{where} does not exist; put the files there, set stream.folder, or stream.data=generated"
                )
            if any(where.glob("*.npy")):
                return ArrayFolder(where, dataset.test)
            return ImageFolders(where, dataset.classes, dataset.test.shape, key)
        return GeneratedImages(
            dataset.test, seed=self.seed, table=self.table, exact_bug_compat=self.exact_bug_compat,
            frost_photos=self.frost_photos, saved_as_published=self.saved_as_published,
        )  # fmt: skip


@register_stream("corrupted")
@accepts(DomainOrder, PixelOptions)
def corrupted(
    dataset: str | Dataset,
    *,
    corruptions: str | Sequence[str] | None = None,
    severity: int = 5,
    images: int | None = None,
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
        images: Number of images in each domain; None: all test images. Without ``shuffle`` the first so many, else a
            random choice by ``seed``: the same images in every domain.
        mean, std: One value a channel for images in [0, 1]. None: the data set's published values, else those of its
            training images.
        root: Data root; see ``cil.data.data_root``.
        options: Fields of ``DomainOrder`` and of ``PixelOptions``; and options of a data set that is given by name.

    Returns:
        The stream, called DATASET_corrupted, or DATASET_c where the files are not marked as made here, with the order
        where it is not continual. Domains are corruptions. Samples have the side data ``image``: their number in the
        test set. A segment's images are made when asked for, and those of the last segment asked for are remembered.

    Raises:
        ConfigError: for an unknown name, or a value out of range.
        StreamError: where values do not go together, or do not fit the data set.
        DataError: where files are missing or wrong, naming them.

    Source: Hendrycks, Dietterich 2019; see ``DomainOrder`` for the orders.
    """
    names = _check_corruptions(corruptions)
    check_severity(severity)
    order, pixels = take(DomainOrder, options), take(PixelOptions, options)
    loaded = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, root, **options)
    if loaded.test.targets is not None:
        raise StreamError(f"data set '{loaded.name}' is multi-label; a corruption stream needs one label an image")
    names = order.permute(names)
    keys = [(name, level) for name in names for level in sorted(set(order.severities(severity)))]
    source = pixels.open(loaded, root, keys[0])
    source.check(keys)
    shuffle = order.shuffles(source.labels)
    chosen = _choose_images(len(source.labels), images, shuffle, pixels.seed)
    plans = _Arrangement(source.labels, chosen, order, shuffle).plan(names, order.severities(severity))
    cache = _SegmentCache(source, loaded.test.shape, loaded.test.in_memory)
    clean = _clean_images(loaded.test, source.labels, chosen, order, shuffle)
    mean, std = normalisation(mean, std, loaded, lambda: loaded.train)
    settings = {
        "severity": severity,
        "order": order.order,
        "concentration": order.concentration,
        "domain_order": order.domain_order,
        "rounds": order.rounds,
        "reset_each_shift": order.reset,
        "shuffle": shuffle,
        "order_seed": order.order_seed,
        "images_per_domain": len(chosen),
        **source.settings,
    }
    return ShiftStream(
        name=_stream_name(loaded.name, source.published, order.order),
        classes=tuple(loaded.classes),
        domains=tuple(source.title(own) for own in names),
        segments=tuple(cache.segment(plan) for plan in plans),
        image_shape=loaded.test.shape,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(loaded, source, keys, chosen, plans),
        source=lambda: loaded.train,
        clean=lambda: clean,
        official=None if source.published else False,
        settings=settings,
    )


def _clean_images(test: Samples, labels: Tensor, chosen: Tensor, order: DomainOrder, shuffle: bool) -> Samples:
    """Uncorrupted images: those of the domains, with their numbers, where files hold the test set in its order."""
    paired = len(labels) == len(test) and torch.equal(labels, test.slots)
    clean = _with_numbers(test[chosen], chosen) if paired else test
    if shuffle or order.shuffles(clean.slots):
        return clean[torch.from_numpy(np.random.default_rng([order.order_seed, 2]).permutation(len(clean)))]
    return clean


def _fingerprint(
    loaded: Dataset, source: CorruptedImages, keys: Sequence[Key], chosen: Tensor, plans: Sequence[_SegmentPlan]
) -> str:
    arrangement = (value for plan in plans for value in (repr((plan.keys, plan.reset)), plan.which, plan.places))
    digest, classes = source.digest(keys, chosen), repr(tuple(loaded.classes))
    return fingerprint_of(digest, source.labels[chosen], classes, loaded.train.slots, *arrangement)


def _stream_name(dataset: str, published: bool, order: str) -> str:
    name = PUBLISHED.get(dataset, ("", f"{dataset}_c"))[1]
    name = name if published else f"{name.removesuffix('_c')}_corrupted"
    return name if order == "continual" else f"{name}_{order}"


# order of the images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _SegmentPlan:
    """A segment before its images are made: image i is test image ``places[i]`` under ``keys[which[i]]``."""

    keys: tuple[Key, ...]
    which: Tensor
    places: Tensor
    domains: Tensor
    kind: str  # '', 'mixed', or '-3' for a severity
    turn: int
    reset: bool

    def name(self, source: CorruptedImages) -> str:
        again = f" (round {self.turn + 1})" if self.turn else ""
        return (self.kind if self.kind == "mixed" else f"{source.title(self.keys[0][0])}{self.kind}") + again


@dataclass(frozen=True)
class _Arrangement:
    """Order of the images of all segments."""

    labels: Tensor
    chosen: Tensor
    how: DomainOrder
    shuffle: bool

    def plan(self, names: Sequence[str], severities: Sequence[int]) -> list[_SegmentPlan]:
        made: list[_SegmentPlan] = []
        for turn in range(self.how.rounds):
            if self.how.is_mixed:
                keys = tuple((name, severities[0]) for name in names)
                which = torch.arange(len(names)).repeat_interleave(len(self.chosen))
                places = self.chosen.repeat(len(names))
                row = self._row(places, len(made), shuffled=True)
                made.append(_SegmentPlan(keys, which[row], places[row], which[row], "mixed", turn, False))
                continue
            for domain, name in enumerate(names):
                for step, level in enumerate(severities):
                    row = self._row(self.chosen, len(made), self.shuffle)
                    again = self.how.reset and step == 0 and bool(made)
                    kind = f"-{level}" if self.how.order == "gradual" else ""
                    domains, places = torch.full((len(row),), domain), self.chosen[row]
                    made.append(
                        _SegmentPlan(((name, level),), torch.zeros_like(row), places, domains, kind, turn, again)
                    )
        return made

    def _row(self, places: Tensor, segment: int, shuffled: bool) -> Tensor:
        """The order of a segment's images, drawn for each segment anew."""
        rng = np.random.default_rng([self.how.order_seed, 1, segment])
        row = rng.permutation(len(places)) if shuffled else np.arange(len(places))
        if self.how.is_correlated:
            row = row[self._by_label(self.labels[places].numpy()[row], rng)]
        return torch.from_numpy(row)

    def _by_label(self, labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Sorted by label; or each class cut into Dirichlet shares, one a stretch, classes in random order within."""
        kinds = np.unique(labels)
        rows = [np.flatnonzero(labels == kind) for kind in kinds]
        if self.how.concentration is None:
            return np.concatenate(rows)
        stretches: list[list[NDArray[np.int64]]] = [[] for _ in kinds]
        for own in rows:
            shares = rng.dirichlet(np.full(len(kinds), self.how.concentration))
            cuts = np.rint(shares.cumsum()[:-1] * len(own)).astype(int)
            for stretch, piece in zip(stretches, np.split(own, cuts), strict=True):
                stretch.append(piece)
        return np.concatenate([stretch[place] for stretch in stretches for place in rng.permutation(len(stretch))])


def _choose_images(many: int, images: int | None, shuffle: bool, seed: int) -> Tensor:
    """Places of the test images that every domain has, in stored order."""
    if images is None:
        return torch.arange(many)
    if not is_whole(images) or not 1 <= images <= many:
        raise StreamError(f"stream.images is {images!r}; the test set has {many} images, so 1 to {many}, or null")
    if not shuffle:
        return torch.arange(images)
    return torch.from_numpy(np.sort(np.random.default_rng([seed, 2]).permutation(many)[:images]))


# pixels ---------------------------------------------------------------------------------------------------------------


class _DomainStore:
    """Corrupted images, made or read when asked for."""

    in_memory = False

    def __init__(
        self, source: CorruptedImages, shape: tuple[int, int, int], keys: Sequence[Key], which: Tensor, places: Tensor
    ) -> None:
        self.shape, self._source, self._keys, self._which, self._places = shape, source, keys, which, places

    def __len__(self) -> int:
        return len(self._places)

    def pixels(self, rows: Tensor) -> Tensor:
        made = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        which, places = self._which[rows], self._places[rows]
        for number in torch.unique(which).tolist():
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


class _SegmentCache:
    """Makes the images of a segment, and remembers those of the last one; segments too large for it stay lazy."""

    def __init__(self, source: CorruptedImages, shape: tuple[int, int, int], in_memory: bool) -> None:
        self._source, self._shape, self._in_memory = source, shape, in_memory
        self._plan: _SegmentPlan | None = None
        self._samples: Samples | None = None

    def segment(self, plan: _SegmentPlan) -> Segment:
        name = plan.name(self._source)
        return Segment(name, partial(self.samples, plan), len(plan.places), plan.domains, plan.reset)

    def samples(self, plan: _SegmentPlan) -> Samples:
        if self._samples is not None and self._plan is plan:
            return self._samples
        store = _DomainStore(self._source, self._shape, plan.keys, plan.which, plan.places)
        slots = self._source.labels[plan.places]
        made = _with_numbers(Samples(store, slots), plan.places)
        if not self._in_memory or len(plan.places) * math.prod(self._shape) > MOST_BYTES:
            return made
        self._plan, self._samples = plan, _with_numbers(Samples.from_arrays(made.pixels, slots), plan.places)
        return self._samples


def _with_numbers(samples: Samples, places: Tensor) -> Samples:
    """The samples with ``image``, their numbers in the test set."""
    samples = samples if len(samples.parts) == 1 else Samples.from_arrays(samples.pixels, samples.slots)
    store, rows = samples.parts[0]
    return Samples(store, samples.slots, rows, extras={"image": places})


def _check_corruptions(given: str | Sequence[str] | None) -> list[str]:
    if given is None:
        return list(CANONICAL)
    if isinstance(given, str):
        return list(NAMES) if given == "all" else _check_corruptions([given])
    names = [str(name) for name in given]
    for name in names:
        check_name(name)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        why = f"names {twice} twice" if twice else "is empty"
        raise StreamError(f"stream.corruptions {why}; list each once, or null for the 15; rounds repeat them all")
    return names
