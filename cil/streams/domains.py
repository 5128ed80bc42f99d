"""Domain-incremental streams: the same classes in every experience, seen in other ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cil.data import Augment, Dataset, Samples, data_root, load_dataset
from cil.data.files import FileStore
from cil.data.samples import ArrayStore
from cil.data.tasks import column_of, read_table
from cil.errors import ConfigError, DataError, StreamError, nearest
from cil.streams.arranged import Whole, check_whole, generator, whole
from cil.streams.base import Part, Signature, Stream, fingerprint_of
from cil.streams.registry import register_stream

Change = Callable[[Tensor], Tensor]  # of (n, C, H, W) uint8
COLUMNS = ("image", "label", "domain", "split")


class DomainStream(Stream):
    """A stream whose experiences have the same classes; all of them arrive in the first.

    After each experience every domain is evaluated, also those to come: R is full.

    Args:
        domains: Name of the domain of each experience: for the evaluator and the record. No learner is told.
        given: As of ``Stream``.
    """

    def __init__(self, *, domains: Sequence[str], **given: Any) -> None:
        super().__init__(**given)
        self.domains = tuple(domains)

    def description(self) -> dict[str, Any]:
        return super().description() | {"domains": list(self.domains)}


@register_stream("permuted_domains")
def permuted_domains(
    dataset: str | Dataset,
    *,
    experiences: int,
    order_seed: int = 1993,
    classes: int | None = None,
    validation: float = 0.0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    augment: Augment | Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    root: str | Path | None = None,
    **options: Any,
) -> DomainStream:
    """All images of a data set in each experience, their pixels in another fixed order; first as they are.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set; its images must be arrays in memory.
        experiences: Domains.
        order_seed: Of the permutations, and of the choices that ``validation`` and the caps make.
        augment: Training augmentation, of the permuted image; None for none.
        classes, validation, train_per_class, test_per_class, mean, std, root, options: As of ``class_incremental``.

    Raises:
        CilError: as of ``class_incremental``; StreamError: where images are files.

    Source:
        Goodfellow et al. 2013, arXiv:1312.6211; Kirkpatrick et al. 2017.
    """
    check_whole(1, experiences=experiences)
    given = whole(
        dataset, root=root, options=options, classes=classes, mean=mean, std=std, order="natural",
        order_seed=order_seed, validation=validation, train_per_class=train_per_class, test_per_class=test_per_class,
        augment=augment or {},
    )  # fmt: skip
    pixels = given.train.shape[1] * given.train.shape[2]
    orders = [torch.from_numpy(generator(order_seed, 6, e).permutation(pixels)) for e in range(1, experiences)]
    changes: dict[str, Change | None] = {"as they are": None}
    changes |= {f"permutation {number}": partial(permuted, order=order) for number, order in enumerate(orders, 1)}
    return _changed(given, changes, f"permuted_{given.name}", *orders)


@register_stream("rotated_domains")
def rotated_domains(
    dataset: str | Dataset,
    *,
    angles: Sequence[float],
    order_seed: int = 1993,
    classes: int | None = None,
    validation: float = 0.0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    augment: Augment | Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    root: str | Path | None = None,
    **options: Any,
) -> DomainStream:
    """All images of a data set in each experience, turned by another angle.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set; its images must be arrays in memory.
        angles: Of each experience, in degrees, to the left; what comes in from outside is black.
        order_seed: Of the choices that ``validation`` and the caps make.
        augment: Training augmentation, of the turned image; None for none.
        classes, validation, train_per_class, test_per_class, mean, std, root, options: As of ``class_incremental``.

    Raises:
        CilError: as of ``class_incremental``; StreamError: where images are files, or two angles are the same.

    Source:
        Lopez-Paz, Ranzato, NeurIPS 2017 (there at random within each experience).
    """
    turns = _angles(angles)
    given = whole(
        dataset, root=root, options=options, classes=classes, mean=mean, std=std, order="natural",
        order_seed=order_seed, validation=validation, train_per_class=train_per_class, test_per_class=test_per_class,
        augment=augment or {},
    )  # fmt: skip
    changes = {f"{angle:g} degrees": partial(rotated, angle=angle) if angle else None for angle in turns}
    return _changed(given, changes, f"rotated_{given.name}", repr(turns))


@register_stream("domain_files")
def domain_files(
    path: str | Path,
    *,
    domains: Sequence[str] | None = None,
    size: int = 224,
    channels: int = 3,
    in_memory: bool = False,
    order_seed: int = 1993,
    classes: int | None = None,
    validation: float = 0.0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    augment: Augment | Mapping[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    root: str | Path | None = None,
) -> DomainStream:
    """Image files of several domains, one experience each.

    Args:
        path: A folder with ``DOMAIN/train/CLASS/*`` and ``DOMAIN/test/CLASS/*`` (or ``val``); or a table, a ``.csv``
            file with the columns image (a path beside the file), label, domain and split (train or test). A relative
            one is looked up here, then in the data root.
        domains: In this order; None: all, folders by name and domains of a table in order of first appearance.
        size, channels, in_memory: As of the data set ``folder``.
        order_seed: Of the choices that ``validation`` and the caps make.
        classes: Use only the first so many, in alphabetical order.
        validation, train_per_class, test_per_class, augment, root: As of ``class_incremental``; shares and caps hold
            within each domain.
        mean, std: None: computed on the training images of the first domain.

    Raises:
        DataError: where folders, files or columns are missing; StreamError: where domains differ in their classes.
    """
    where = _found(path, root)
    opened = _table(where, size, channels, in_memory, root) if where.suffix == ".csv" else None
    known = list(opened) if opened is not None else sorted(p.name for p in where.iterdir() if _is_domain(p))
    chosen = known if domains is None else list(domains)
    for name in chosen:
        if name not in known:
            raise ConfigError(f"stream.domains has '{name}', which {where} lacks; {nearest(name, known)}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError(f"stream.domains is {chosen}; name each domain once, of: {', '.join(known) or 'none found'}")
    wholes: list[Whole] = []
    for name in chosen:
        of_folder = {"path": where / name, "size": size, "channels": channels, "in_memory": in_memory}
        data = opened[name] if opened is not None else load_dataset("folder", root, **of_folder)
        own = whole(
            data, classes=classes, mean=mean, std=std, order="natural", order_seed=order_seed, augment=augment,
            validation=validation, train_per_class=train_per_class, test_per_class=test_per_class,
        )  # fmt: skip
        wholes.append(own)
        odd = sorted({*wholes[0].stream.classes} ^ {*own.stream.classes})
        if odd:
            raise StreamError(
                f"{where}: domains '{chosen[0]}' and '{name}' differ in class '{odd[0]}'"
                f"{f' and {len(odd) - 1} more' if odd[1:] else ''}; a domain stream has the same classes in each"
            )
    first = wholes[0]
    parts = [
        Part(partial(_same, own.train), partial(_same, own.test), partial(_same, own.validation)) for own in wholes
    ]
    return _domain_stream(
        f"{where.stem}_domains", first, chosen, parts, [own.train.counts() for own in wholes],
        fingerprint_of(*(own.stream.fingerprint for own in wholes)), first.normalisation(first.train),
    )  # fmt: skip


def permuted(pixels: Tensor, order: Tensor) -> Tensor:
    """Pixel ``i`` of each image becomes its pixel ``order[i]``: (n, C, H, W), the same in all channels."""
    return pixels.flatten(2)[:, :, order].reshape(pixels.shape)


def rotated(pixels: Tensor, angle: float) -> Tensor:
    """Images (n, C, H, W) uint8 turned to the left by ``angle`` degrees about their centre, bilinear, black around."""
    height, width = pixels.shape[2:]
    if angle % 90 == 0 and (height == width or angle % 180 == 0):
        return pixels.rot90(int(angle // 90) % 4, (2, 3))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    back = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(back[None], [1, 1, height, width], align_corners=False)
    pieces = [
        F.grid_sample(piece.float(), grid.expand(len(piece), -1, -1, -1), align_corners=False).round().byte()
        for piece in pixels.split(2000)
    ]
    return torch.cat(pieces)


# how they are made ----------------------------------------------------------------------------------------------------


def _changed(given: Whole, changes: Mapping[str, Change | None], name: str, *key: Any) -> DomainStream:
    if not (given.train.in_memory and given.test.in_memory):
        raise StreamError(
            f"the images of data set '{given.name}' are files; domains made of them need arrays in memory: set "
            f"stream.in_memory=true"
        )
    parts = [
        Part(
            partial(_applied, given.train, change),
            partial(_applied, given.test, change),
            partial(_applied, given.validation, change),
        )
        for change in changes.values()
    ]
    counts, first = given.train.counts(), _applied(given.train, next(iter(changes.values())))
    return _domain_stream(
        name, given, list(changes), parts, [counts] * len(parts),
        fingerprint_of(name, given.stream.fingerprint, *key), given.normalisation(first),
    )  # fmt: skip


def _domain_stream(
    name: str, first: Whole, domains: Sequence[str], parts: Sequence[Part], counts: Sequence[Mapping[int, int]],
    fingerprint: str, normalisation: Mapping[str, Sequence[float]],
) -> DomainStream:  # fmt: skip
    slots = tuple(range(first.num_classes))
    signatures = [
        Signature(index, () if index else slots, slots, dict(own), first.train.shape, first.num_classes)
        for index, own in enumerate(counts)
    ]
    return DomainStream(
        name=name, classes=first.stream.classes, order=first.stream.order, signatures=signatures, parts=parts,
        fingerprint=fingerprint, augment=first.stream.augment, official=first.stream.official, domains=domains,
        mean=normalisation["mean"], std=normalisation["std"],
    )  # fmt: skip


def _applied(samples: Any, change: Change | None) -> Any:
    """Samples with their pixels changed; None stays None."""
    if samples is None or change is None:
        return samples
    return Samples(ArrayStore(change(samples.pixels)), samples.slots)


def _same(samples: Any) -> Any:
    return samples


def _angles(given: Any) -> tuple[float, ...]:
    numbers: list[Any] = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [None]
    if not all(isinstance(a, int | float) and not isinstance(a, bool) and math.isfinite(a) for a in numbers):
        raise ConfigError(f"stream.angles is {given!r}; it must list a number of degrees for each experience")
    turns = tuple(float(angle) % 360 for angle in numbers)
    if not turns or len(set(turns)) != len(turns):
        raise StreamError(f"stream.angles is {list(numbers)}; name each angle once, one at least")
    return turns


def _found(path: str | Path, root: str | Path | None) -> Path:
    given = Path(path).expanduser()
    for place in (given, data_root(root) / given):
        if place.is_dir() or (place.is_file() and place.suffix == ".csv"):
            return place
    raise DataError(
        f"{given} is no folder of domains and no .csv table, neither here nor in {data_root(root)}; set stream.path"
    )


def _is_domain(folder: Path) -> bool:
    return (folder / "train").is_dir()


def _table(
    path: Path, size: int, channels: int, in_memory: bool, root: str | Path | None
) -> dict[str, Dataset]:  # fmt: skip
    """The data set of each domain of a table, in order of first appearance; class names in alphabetical order."""
    header, rows = read_table(path)
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise DataError(f"{path} has no column '{missing[0]}'; it needs {', '.join(COLUMNS)}")
    for column in COLUMNS:
        column_of(path, rows, column)
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
    return found
