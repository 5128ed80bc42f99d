"""Class-incremental streams: disjoint groups of classes, one after the other (B0 Inc-k, B-m Inc-n)."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data import Dataset, Samples, dataset_names, dataset_options, load_dataset
from cil.errors import ConfigError, DataError, StreamError, nearest
from cil.streams.base import ExperienceData, Signature, Stream, fingerprint_of, take_rows
from cil.streams.options import SplitOptions, accepts, check_choice, check_seed, is_integer, normalisation, take
from cil.streams.registry import register_stream


def class_order(num_classes: int, seed: int = 1993) -> list[int]:
    """The usual class order, slot to label: a permutation by numpy's legacy generator.

    >>> class_order(10)
    [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]

    Raises:
        StreamError: for a seed that this generator does not take.
    """
    check_seed(seed)
    order: list[int] = np.random.RandomState(seed).permutation(num_classes).tolist()  # this generator is the protocol
    return order


def experience_sizes(num_classes: int, base: int, increment: int) -> list[int]:
    """New classes of each experience; what does not divide is left to a smaller last one.

    >>> experience_sizes(100, 50, 20), experience_sizes(10, 0, 5)
    ([50, 20, 20, 10], [5, 5])

    Raises:
        StreamError: where base or increment do not fit the number of classes.
    """
    if not 0 <= base <= num_classes:
        raise StreamError(f"stream.base is {base}; with {num_classes} classes it must be in 0 to {num_classes}")
    rest = num_classes - base
    if rest and not 1 <= increment <= rest:
        raise StreamError(f"stream.increment is {increment}; after stream.base={base} it must be in 1 to {rest}")
    sizes = [base] if base else []
    while rest:
        sizes.append(min(increment, rest))
        rest -= sizes[-1]
    return sizes


@register_stream("class_incremental")
@accepts(SplitOptions)
def class_incremental(dataset: str | Dataset, *, increment: int, base: int = 0, **options: Any) -> Stream:
    """Split a data set into experiences of new classes.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set.
        increment: New classes of each experience after the first.
        base: Classes of the first experience; 0: as many as ``increment``.
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
    for key, value in (("base", base), ("increment", increment)):
        if not is_integer(value):
            raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number")
    chosen = take(SplitOptions, options)
    _check_dataset_options(dataset, options)
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, chosen.root, **options)
    if data.train.targets is not None:
        raise StreamError(f"data set '{data.name}' is multi-label; a class-incremental stream needs one label an image")
    labels = _slots_to_labels(len(data.classes), chosen)
    sizes = experience_sizes(len(labels), base, increment)
    rows_of_slots = _choose_rows(data, labels, chosen)
    slot_of = torch.full((len(data.classes),), -1)
    slot_of[torch.tensor(labels)] = torch.arange(len(labels))
    train, test = (samples.with_slots(slot_of[samples.slots]) for samples in (data.train, data.test))

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
    return Stream(
        name=f"{data.name}_b{base}_inc{increment}",
        classes=[data.classes[label] for label in labels],
        order=labels,
        signatures=signatures,
        parts=parts,
        fingerprint=fingerprint_of(data.digest, labels, *rows),
        augment=chosen.augmentation(data.augment),
        mean=mean,
        std=std,
        official=data.official,
    )


def _slots_to_labels(many: int, chosen: SplitOptions) -> list[int]:
    """Label of each slot that is used."""
    order = chosen.order
    if isinstance(order, str):
        check_choice("order", order, ("seed", "natural"), ", or a list of labels")
        labels = class_order(many, chosen.order_seed) if order == "seed" else list(range(many))
    else:
        given = list(order) if isinstance(order, Iterable) else [order]
        if not all(map(is_integer, given)):
            raise ConfigError(f"stream.order is {order!r}; it must be 'seed', 'natural' or a list of labels")
        labels = [int(label) for label in given]
        if sorted(labels) != list(range(many)):
            raise StreamError(
                f"stream.order is no permutation of 0 to {many - 1}: it has {len(labels)} entries,"
                f" {len(set(labels) & set(range(many)))} of the {many} labels occur"
            )
    if chosen.classes is not None and chosen.classes > many:
        raise StreamError(
            f"stream.classes is {chosen.classes}; the data set has {many} classes, so 1 to {many} or null"
        )
    return labels[: chosen.classes]


def _check_dataset_options(dataset: str | Dataset, options: Mapping[str, Any]) -> None:
    if isinstance(dataset, Dataset):
        name, allowed = dataset.name, []
    elif dataset in dataset_names():
        name, allowed = dataset, dataset_options(dataset)
    else:
        return  # a set in the data root, or a wrong name: load_dataset knows
    own = [key for key in inspect.signature(class_incremental).parameters if key != "options"]
    for option in options:
        if option not in allowed:
            raise ConfigError(f"stream.{option} is not known for data set '{name}'; {nearest(option, own + allowed)}")


def _choose_rows(
    data: Dataset, labels: Sequence[int], chosen: SplitOptions
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Rows of each slot for training, validation and test. The draws of a class do not depend on other classes."""
    train, held_out, test = [], [], []
    training_rows, test_rows = (_rows_by_label(split, len(data.classes)) for split in (data.train, data.test))
    for label in labels:
        for split, rows in (("training", training_rows[label]), ("test", test_rows[label])):
            if not len(rows):
                raise DataError(f"{data.name}: class '{data.classes[label]}' has no {split} image ({data.source})")
        mine = _shuffle(training_rows[label], chosen.order_seed, "training", label)[: chosen.train_per_class]
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
