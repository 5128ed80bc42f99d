"""Domain-incremental streams: the same classes in every experience, seen in other ways."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import ArrayStore, Augment, Dataset, Samples, data_root, load_dataset
from cil.data.file_store import FileStore
from cil.data.tasks import column_of, read_table
from cil.errors import ConfigError, DataError, StreamError, nearest
from cil.streams.base import ExperienceData, Signature, Stream, fingerprint_of
from cil.streams.image_pool import ImagePool, generator, image_pool
from cil.streams.options import MOST_EXPERIENCES, DatasetOptions, SplitOptions, accepts, check_integers, take
from cil.streams.registry import register_stream
from cil.values import home_path, is_finite

Change = Callable[[Tensor], Tensor]  # changes (n, C, H, W) uint8
COLUMNS = ("image", "label", "domain", "split")


class DomainStream(Stream):
    """A stream whose experiences have the same classes; all of them arrive in the first.

    After each experience every domain is evaluated, also those to come: R is full.

    Args:
        domains: Name of the domain of each experience, for the evaluator and the record. No learner gets it.
    """

    def __init__(self, *, domains: Sequence[str], **given: Any) -> None:
        super().__init__(**given)
        self.domains = tuple(domains)

    def reduced(self, experiences: int = 6, images: int = 48) -> Self:
        other = super().reduced(experiences, images)
        other.domains = self.domains[:experiences]
        return other

    def description(self) -> dict[str, Any]:
        return super().description() | {"domains": list(self.domains)}


@register_stream("permuted_domains")
@accepts(DatasetOptions)
def permuted_domains(dataset: str | Sequence[Any] | Dataset, *, experiences: int, **options: Any) -> DomainStream:
    """All images of a data set in each experience, their pixels in another fixed order; first as they are.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set; its images must be arrays in memory.
        experiences: Number of domains.
        options: Fields of ``DatasetOptions`` (``order_seed`` also draws the permutations; ``augment`` acts on permuted
            images, by default none); and options of a data set that is given by name.

    Raises:
        CilError: as ``class_incremental`` does; StreamError: where images are files.

    Source: Goodfellow et al. 2013, arXiv:1312.6211; Kirkpatrick et al. 2017.
    """
    check_integers(1, MOST_EXPERIENCES, experiences=experiences)
    pool = _whole_data_set(dataset, options)
    pixels, seed = pool.train.shape[1] * pool.train.shape[2], pool.options.order_seed
    orders = [torch.from_numpy(generator(seed, 6, e).permutation(pixels)) for e in range(1, experiences)]
    changes: dict[str, Change | None] = {"as they are": None}
    changes |= {f"permutation {number}": partial(permute, order=order) for number, order in enumerate(orders, 1)}
    return _changed_images(pool, changes, f"permuted_{pool.name}", *orders)


@register_stream("rotated_domains")
@accepts(DatasetOptions)
def rotated_domains(dataset: str | Sequence[Any] | Dataset, *, angles: Sequence[float], **options: Any) -> DomainStream:
    """All images of a data set in each experience, turned by another angle.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set; its images must be arrays in memory.
        angles: Angle of each experience in degrees, to the left; corners that come in from outside are black.
        options: Fields of ``DatasetOptions`` (``augment`` acts on turned images, by default none); and options of a
            data set that is given by name.

    Raises:
        CilError: as ``class_incremental`` does; StreamError: where images are files, or two angles are the same.

    Source: Lopez-Paz, Ranzato, NeurIPS 2017 (there at random within each experience).
    """
    numbers: list[Any] = list(angles) if isinstance(angles, Iterable) and not isinstance(angles, str) else [None]
    if not all(map(is_finite, numbers)):
        raise ConfigError(f"stream.angles is {angles!r}; it must list a number of degrees for each experience")
    turns = tuple(float(angle) % 360 for angle in numbers)
    if not turns or len(set(turns)) != len(turns):
        raise StreamError(f"stream.angles is {list(numbers)}; name each angle once, one at least")
    pool = _whole_data_set(dataset, options)
    changes = {f"{angle:g} degrees": partial(rotate, angle=angle) if angle else None for angle in turns}
    return _changed_images(pool, changes, f"rotated_{pool.name}", repr(turns))


@register_stream("domain_files")
@accepts(DatasetOptions, only=True)
def domain_files(
    path: str | Path,
    *,
    domains: Sequence[str] | None = None,
    size: int = 224,
    channels: int = 3,
    in_memory: bool = False,
    **options: Any,
) -> DomainStream:
    """Image files of several domains, one experience each.

    Args:
        path: A folder with ``DOMAIN/train/CLASS/*`` and ``DOMAIN/test/CLASS/*`` (or ``val``); or a table, a ``.csv``
            file with the columns image (a path beside the file), label, domain and split (train or test). A relative
            one is looked up here, then in the data root.
        domains: Names in this order; None: all, folders by name and domains of a table in order of first appearance.
        size, channels, in_memory: Options of the data set ``folder``.
        options: Fields of ``DatasetOptions``; classes are in alphabetical order, shares and caps hold within each
            domain, and mean and std are by default computed on the training images of the first one.

    Raises:
        DataError: where folders, files or columns are missing; StreamError: where domains differ in their classes.
    """
    shared = SplitOptions(order="natural", **options)
    root = shared.root
    where = _find(path, root)
    opened = _read_domains(where, size, channels, in_memory, root) if where.suffix == ".csv" else None
    known = list(opened) if opened is not None else sorted(p.name for p in where.iterdir() if (p / "train").is_dir())
    of_folder = {"size": size, "channels": channels, "in_memory": in_memory}
    chosen = {
        name: opened[name] if opened is not None else load_dataset("folder", root, path=where / name, **of_folder)
        for name in chosen_domains(domains, known, where)
    }
    return stream_of_domains(where.stem, chosen, shared, where)


def chosen_domains(asked: Sequence[str] | None, known: Sequence[str], where: Path) -> list[str]:
    """The domains asked for, else all that are known.

    Raises:
        ConfigError: for an unknown name, one that is named twice, or none.
    """
    chosen = list(known if asked is None else asked)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"stream.domains has '{name}', which {where} lacks; {nearest(name, known)}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError(f"stream.domains is {chosen}; name each domain once, of: {', '.join(known) or 'none found'}")
    return chosen


def stream_of_domains(name: str, domains: Mapping[str, Dataset], shared: SplitOptions, where: Path) -> DomainStream:
    """Data sets with the same classes, one experience each.

    Raises:
        StreamError: where two differ in their classes.
    """
    pools: list[ImagePool] = []
    for domain, data in domains.items():
        pools.append(image_pool(data, shared, {}))
        odd = sorted({*pools[0].whole.classes} ^ {*pools[-1].whole.classes})
        if odd:
            raise StreamError(
                f"{where}: domains '{next(iter(domains))}' and '{domain}' differ in class '{odd[0]}'"
                f"{f' and {len(odd) - 1} more' if odd[1:] else ''}; a domain stream has the same classes in each"
            )
    fingerprint = fingerprint_of(*(pool.whole.fingerprint for pool in pools))
    return _domain_stream(f"{name}_domains", dict(zip(domains, pools, strict=True)), fingerprint)


def permute(pixels: Tensor, order: Tensor) -> Tensor:
    """Pixel ``i`` of each image becomes its pixel ``order[i]``: (n, C, H, W), the same in all channels."""
    return pixels.flatten(2)[:, :, order].reshape(pixels.shape)


def rotate(pixels: Tensor, angle: float) -> Tensor:
    """Images (n, C, H, W) uint8 turned to the left by ``angle`` degrees about their centre, bilinear, black around."""
    height, width = pixels.shape[2:]
    if angle % 90 == 0 and (height == width or angle % 180 == 0):
        return pixels.rot90(int(angle // 90) % 4, (2, 3))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    back = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(back[None], [1, 1, height, width], align_corners=False)
    pieces = [
        F.grid_sample(piece.float(), grid.expand(len(piece), -1, -1, -1), align_corners=False).round().byte()
        for piece in torch.split(pixels, 2000)
    ]
    return torch.cat(pieces)


# how they are made ----------------------------------------------------------------------------------------------------


def _whole_data_set(dataset: str | Sequence[Any] | Dataset, options: dict[str, Any]) -> ImagePool:
    """All images of a data set, classes in natural order, without augmentation unless some is asked for."""
    own = take(DatasetOptions, options)
    settings = vars(own) | {"augment": own.augment or {}}
    return image_pool(dataset, SplitOptions(order="natural", **settings), options)


def _changed_images(pool: ImagePool, changes: Mapping[str, Change | None], name: str, *key: Any) -> DomainStream:
    if not (pool.train.in_memory and pool.test.in_memory):
        raise StreamError(
            f"the images of data set '{pool.name}' are files; domains made of them need arrays in memory: set "
            f"stream.in_memory=true"
        )
    pools = dict.fromkeys(changes, pool)
    return _domain_stream(name, pools, fingerprint_of(name, pool.whole.fingerprint, *key), changes)


def _domain_stream(
    name: str, pools: Mapping[str, ImagePool], fingerprint: str, changes: Mapping[str, Change | None] | None = None
) -> DomainStream:
    """The images of each pool as they are, or changed; training images are changed when asked for."""
    parts, signatures = [], []
    first = next(iter(pools.values()))
    slots = tuple(range(first.num_classes))
    for index, (domain, pool) in enumerate(pools.items()):
        change = changes[domain] if changes else None
        halves = (partial(_change_pixels, half, change) for half in (pool.train, pool.test, pool.validation))
        parts.append(ExperienceData(*halves))
        new, counts = () if index else slots, pool.train.counts()
        signatures.append(Signature(index, new, slots, counts, first.train.shape, first.num_classes))
    mean, std = first.normalisation(parts[0].train())
    return DomainStream(
        name=name,
        classes=first.whole.classes,
        order=first.whole.order,
        signatures=signatures,
        parts=parts,
        fingerprint=fingerprint,
        augment=first.whole.augment,
        official=first.whole.official,
        domains=list(pools),
        mean=mean,
        std=std,
    )


def _change_pixels(samples: Any, change: Change | None) -> Any:
    """Samples with their pixels changed; None stays None."""
    if samples is None or change is None:
        return samples
    return Samples(ArrayStore(change(samples.pixels)), samples.slots)


def _find(path: str | Path, root: str | Path | None) -> Path:
    given = home_path(path)
    for place in (given, data_root(root) / given):
        if place.is_dir() or (place.is_file() and place.suffix == ".csv"):
            return place
    raise DataError(
        f"{given} is no folder of domains and no .csv table, neither here nor in {data_root(root)}; set stream.path"
    )


def _read_domains(
    path: Path, size: int, channels: int, in_memory: bool, root: str | Path | None
) -> dict[str, Dataset]:  # fmt: skip
    """The data set of each domain of a table, in order of first appearance; class names in alphabetical order."""
    header, rows = read_table(path)
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise DataError(f"{path} has no column '{missing[0]}'; it needs {', '.join(COLUMNS)}")
    for column in COLUMNS:
        column_of(path, rows, column, blank=False)
    names = sorted({row["label"] for row in rows})
    number = {name: label for label, name in enumerate(names)}
    found: dict[str, Dataset] = {}
    for domain in dict.fromkeys(row["domain"] for row in rows):
        splits = {}
        for split in ("train", "test"):
            own = [row for row in rows if row["domain"] == domain and row["split"] == split]
            if not own:
                raise DataError(f"{path}: domain '{domain}' has no row whose split is {split}")
            files = [str(path.parent / row["image"]) for row in own]
            shorter = size if in_memory else None
            store: Any = FileStore(files, size, channels, shorter, data_root(root) / "cache" / "digests")
            store = ArrayStore(store.pixels(torch.arange(len(store)))) if in_memory else store
            splits[split] = Samples(store, torch.tensor([number[row["label"]] for row in own]))
        augment = Augment(flip=True, resized_crop=not in_memory)
        source = f"{path}, domain '{domain}'"
        found[domain] = Dataset(domain, splits["train"], splits["test"], names, augment=augment, source=source)
    other = {row["split"] for row in rows} - {"train", "test"}
    if other:
        raise DataError(f"{path} has the split '{sorted(other)[0]}'; train and test are known")
    lines: dict[str, int] = {}
    for line, row in enumerate(rows, start=2):
        before = lines.setdefault(os.path.normpath(row["image"]), line)
        if before != line:
            raise DataError(f"{path} names {row['image']} in line {before} and in line {line}; name each image once")
    return found
