"""Class-incremental streams: disjoint groups of classes, one after the other (B0 Inc-k, B-m Inc-n)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data import Dataset, Samples, dataset_names, dataset_options, load_dataset
from cil.data.columns import relabelled
from cil.errors import ConfigError, DataError, StreamError, nearest
from cil.streams.base import ExperienceData, Provenance, Signature, Stream, fingerprint_of, take_rows
from cil.streams.class_choice import Increment, check_increment, experience_sizes, sizes_by_set, slots_to_labels
from cil.streams.options import SplitOptions, accepts, check_integers, normalisation, take
from cil.streams.registry import register_stream


@register_stream("class_incremental")
@accepts(SplitOptions)
def class_incremental(
    dataset: str | Sequence[Any] | Dataset,
    *,
    increment: Increment = None,
    base: int = 0,
    shots: int | None = None,
    **options: Any,
) -> Stream:
    """Split a data set, or a pool of several, into experiences of new classes.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set; or a list of them, see ``cil.data.pooled``.
        increment: New classes of each experience after the first; a list of numbers; None: as many as each set of a
            pool has, and else so many that there are five experiences.
        base: Classes of the first experience; 0: as many as ``increment``.
        shots: Training images of each class that arrives after the base, chosen at random by ``order_seed`` (few-shot
            streams); with a base of 0, of every class. None: all.
        options: Fields of ``SplitOptions``; and options of a data set that is given by name: ``path``, ``size``, ...

    Returns:
        The stream. The order of images within an experience is the data set's. Pixels of small images are one tensor
        for each split, shared by all experiences until one is asked for.

    Raises:
        StreamError: where order, base, increment, classes or shares do not fit the data set.
        ConfigError: for an unknown name or option.
        DataError: where the data are wrong, or a class lacks training or test images.

    Source: Protocol of Zhou et al. 2024, section on benchmark splits; order after Rebuffi et al. 2017.
    """
    check_increment(base, increment)
    check_integers(1, **({} if shots is None else {"shots": shots}))
    chosen = take(SplitOptions, options)
    _check_dataset_options(dataset, options)
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, chosen.root, **options)
    if data.train.targets is not None:
        raise StreamError(f"data set '{data.name}' is multi-label; a class-incremental stream needs one label an image")
    labels = slots_to_labels(data, chosen)
    if increment is None and data.origins and not base:
        taken = labels if chosen.interleave else sorted(labels)
        turns = sizes_by_set([data.origins[label] for label in taken], chosen.interleave)
        increment = turns[0] if chosen.interleave and len(set(turns)) == 1 else turns
    sizes = experience_sizes(len(labels), base, increment)
    rows_of_slots = _choose_rows(data, labels, chosen, [None if slot < base else shots for slot in range(len(labels))])
    slot_of = torch.full((len(data.classes),), -1)
    slot_of[torch.tensor(labels)] = torch.arange(len(labels))
    train, test = (relabelled(samples, slot_of) for samples in (data.train, data.test))

    signatures, parts, rows, seen = [], [], [], 0
    for index, size in enumerate(sizes):
        slots = tuple(range(seen, seen + size))
        seen += size
        counts = {slot: len(rows_of_slots[0][slot]) for slot in slots}
        signatures.append(Signature(index, slots, slots, counts, data.train.shape, seen))
        own = [torch.cat([split[slot] for slot in slots]).sort().values for split in rows_of_slots]
        parts.append(_experience_data(train, test, *own))
        rows += own
    mean, std = normalisation(chosen.mean, chosen.std, data, lambda: train[rows[0]])
    stream = Stream(
        name=_name(data, base, sizes, increment, shots, chosen),
        classes=[data.classes[label] for label in labels],
        order=labels,
        signatures=signatures,
        parts=parts,
        fingerprint=fingerprint_of(data.digest, labels, *rows),
        augment=chosen.augmentation(data.augment).in_order(labels),
        mean=mean,
        std=std,
        official=data.official,
    )
    stream.provenance = _provenance(data, labels, *(torch.cat(list(rows_of_slots[split])) for split in (0, 2)))
    return stream


def _name(
    data: Dataset, base: int, sizes: Sequence[int], increment: Increment, shots: int | None, chosen: SplitOptions
) -> str:  # fmt: skip
    each = sizes[bool(base and sizes[1:])] if increment is None else increment
    step = "-".join(map(str, each)) if isinstance(each, Sequence) else each
    by_set = isinstance(chosen.order, str) and chosen.order == "by_set"
    turns = "" if chosen.interleave is None else f"_turns{chosen.interleave}"
    return f"{data.name}_b{base}_inc{step}{'' if shots is None else f'_{shots}shots'}{'_by_set' * by_set}{turns}"


def _provenance(data: Dataset, labels: Sequence[int], train_rows: Tensor, test_rows: Tensor) -> Provenance:
    groups = {column: tuple(names) for column, names in data.groups.items()}
    notes = () if data.official else _doubled_images(data, train_rows, test_rows)
    if not data.origins:
        return Provenance(groups=groups, notes=notes)
    origins = tuple(data.origins[label] for label in labels)
    images = (rows.sort().values for rows in (train_rows, test_rows))
    return Provenance(fingerprint_of(data.digest, sorted(labels), *images), origins, groups, notes)


def _check_dataset_options(dataset: str | Sequence[Any] | Dataset, options: Mapping[str, Any]) -> None:
    if isinstance(dataset, Dataset):
        name, allowed = dataset.name, []
    elif not isinstance(dataset, str) or ":" in dataset or dataset in dataset_names():
        name, allowed = str(dataset), dataset_options(dataset)
    else:
        return  # a set in the data root, or a wrong name: load_dataset knows
    own = [key for key in inspect.signature(class_incremental).parameters if key != "options"]
    for option in options:
        if option not in allowed:
            raise ConfigError(f"stream.{option} is not known for data set '{name}'; {nearest(option, own + allowed)}")


def _choose_rows(
    data: Dataset, labels: Sequence[int], chosen: SplitOptions, shots: Sequence[int | None]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Rows of each slot for training, validation and test. The draws of a class do not depend on other classes.

    Args:
        shots: Most training images of each slot; None: as many as ``chosen`` says.
    """
    train, held_out, test = [], [], []
    training_rows, test_rows = (_rows_by_label(split, len(data.classes)) for split in (data.train, data.test))
    for label, few in zip(labels, shots, strict=True):
        for split, rows in (("training", training_rows[label]), ("test", test_rows[label])):
            if not len(rows):
                raise DataError(f"{data.name}: class '{data.classes[label]}' has no {split} image ({data.source})")
        mine = _shuffle(training_rows[label], chosen.order_seed, "training", label)[: chosen.train_per_class][:few]
        count = max(1, round(chosen.validation * len(mine))) if chosen.validation else 0
        if count >= len(mine):
            raise StreamError(
                f"stream.validation={chosen.validation} leaves no training image of class '{data.classes[label]}',"
                f" which has {len(mine)}; lower it or raise stream.train_per_class"
            )
        held_out.append(mine[:count])
        train.append(mine[count:])
        test.append(_shuffle(test_rows[label], chosen.order_seed, "test", label)[: chosen.test_per_class])
    return train, held_out, test


def _rows_by_label(samples: Samples, many: int) -> tuple[Tensor, ...]:
    counts = samples.slots.bincount(minlength=many)
    return torch.split(samples.slots.argsort(stable=True), counts.tolist())


def _shuffle(rows: Tensor, seed: int, purpose: str, label: int) -> Tensor:
    key = hashlib.blake2b(f"{seed}/{purpose}/{label}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
    return rows[torch.randperm(len(rows), generator=generator)]


def _experience_data(
    train: Samples, test: Samples, train_rows: Tensor, validation_rows: Tensor, test_rows: Tensor
) -> ExperienceData:
    """Functions that each hold one half only."""
    return ExperienceData(
        train=partial(take_rows, train, train_rows),
        test=partial(take_rows, test, test_rows),
        validation=partial(take_rows, train, validation_rows),
    )


def _doubled_images(data: Dataset, train_rows: Tensor, test_rows: Tensor) -> tuple[str, ...]:
    """Notes on images that are there twice, byte for byte: in training and test, or in two classes."""
    train, test = (keys[rows.numpy()] for keys, rows in zip(data.image_keys, (train_rows, test_rows), strict=True))
    notes = []
    if shared := int(np.isin(test, train).sum()):
        notes.append(
            f"{shared:,} of {len(test):,} test images of '{data.name}' are training images too, so accuracy is too "
            f"high: remove them from one of the two"
        )
    with_label = np.stack([train, data.train.slots[train_rows].numpy().astype(train.dtype)], 1)
    if doubled := len(np.unique(with_label, axis=0)) - len(np.unique(train)):
        notes.append(
            f"{doubled:,} training images of '{data.name}' stand in two classes or more, so one of their labels is "
            f"wrong: remove them from all but one"
        )
    return tuple(notes)
