"""Class-incremental streams: disjoint groups of classes, one after the other (B0 Inc-k, B-m Inc-n)."""

from __future__ import annotations

import hashlib
import inspect
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cil.data import Augment, Dataset, Samples, dataset_names, dataset_options, load_dataset
from cil.errors import ConfigError, DataError, StreamError, nearest
from cil.streams.base import Part, Signature, Stream, fingerprint_of
from cil.streams.registry import register_stream

MOST_FILES_FOR_MEAN = 2000  # images decoded for mean and std, where the data are files


def class_order(num_classes: int, seed: int = 1993) -> list[int]:
    """The field's class order: a permutation by numpy's legacy generator. Slot -> label.

    >>> class_order(10)
    [4, 2, 7, 6, 0, 3, 5, 8, 9, 1]

    Raises:
        StreamError: where the seed is outside what that generator takes.
    """
    if not 0 <= seed < 2**32:
        raise StreamError(f"stream.order_seed is {seed}; it must be in 0 to 2^32 - 1")
    return np.random.RandomState(seed).permutation(num_classes).tolist()  # this generator is the protocol


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
def class_incremental(
    dataset: str | Dataset,
    *,
    increment: int,
    base: int = 0,
    order: str | Sequence[int] = "seed",
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
) -> Stream:
    """Split a data set into experiences of new classes.

    Args:
        dataset: A name that ``cil.data.load_dataset`` knows, or a data set.
        increment: New classes of each experience after the first.
        base: Classes of the first experience; 0: as many as ``increment``.
        order: 'seed', 'natural', or a list that gives the label of each slot.
        order_seed: Of the class order 'seed', and of the choices that ``validation`` and the caps make.
        classes: Use only the first so many of the order; None: all.
        validation: Share in [0, 1) of each class's training images that is held out, at least one image where it is
            not 0. Never test images.
        train_per_class, test_per_class: Most images of a class, chosen at random; None: all. ``validation`` takes its
            share of what is left.
        augment: Training augmentation, or its arguments, instead of the data set's own, which None keeps; {} for none.
        mean, std: Of each channel for images in [0, 1]. None: the data set's published values; where it has none they
            are computed on the training images of the first experience alone (files: at most 2000 of them), as nothing
            later is known when training starts.
        root: Data root; see ``cil.data.data_root``.
        options: Of the data set, where it is given by name: ``path``, ``size``, ...

    Returns:
        The stream. The order of images within an experience is the data set's. Pixels of small images are one tensor
        for each split, shared by all experiences until one is asked for.

    Raises:
        StreamError: where order, base, increment, classes or shares do not fit the data set.
        ConfigError: for an unknown name or option.
        DataError: where the data are wrong, or a class lacks training or test images.

    Source:
        Protocol of Zhou et al. 2024, section on benchmark splits; order after Rebuffi et al. 2017.
    """
    caps = {"classes": classes, "train_per_class": train_per_class, "test_per_class": test_per_class}
    _check_numbers({"base": base, "increment": increment, "order_seed": order_seed}, caps, validation)
    _check_options(dataset, options)
    data = dataset if isinstance(dataset, Dataset) else load_dataset(dataset, root, **options)
    if data.train.targets is not None:
        raise StreamError(f"data set '{data.name}' is multi-label; a class-incremental stream needs one label an image")
    labels = _slots_to_labels(len(data.classes), order, order_seed, classes)
    sizes = experience_sizes(len(labels), base, increment)
    train_rows, validation_rows, test_rows = _choose(
        data, labels, order_seed, validation, train_per_class, test_per_class
    )
    slot_of = torch.full((len(data.classes),), -1)
    slot_of[torch.tensor(labels)] = torch.arange(len(labels))
    train, test = (samples.with_slots(slot_of[samples.slots]) for samples in (data.train, data.test))

    signatures, parts, chosen, seen = [], [], [], 0
    for index, size in enumerate(sizes):
        slots = tuple(range(seen, seen + size))
        seen += size
        counts = {slot: len(train_rows[slot]) for slot in slots}
        signatures.append(Signature(index, slots, slots, counts, data.train.shape, seen))
        rows = [_together(chosen_rows, slots) for chosen_rows in (train_rows, validation_rows, test_rows)]
        chosen += rows
        parts.append(_part(train, test, *rows))

    if mean is None or std is None:
        known = (data.mean, data.std) if data.mean is not None and data.std is not None else None
        computed = known or channel_statistics(train[chosen[0]])
        mean, std = computed[0] if mean is None else mean, computed[1] if std is None else std
    return Stream(
        name=f"{data.name}_b{base}_inc{increment}",
        classes=[data.classes[label] for label in labels],
        order=labels,
        signatures=signatures,
        parts=parts,
        fingerprint=fingerprint_of(data.digest, labels, *chosen),
        augment=_augment(augment, data.augment),
        mean=_check_channels("mean", mean, data.train.shape[0]),
        std=_check_channels("std", std, data.train.shape[0]),
        official=data.official,
    )


def channel_statistics(samples: Samples) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for images in [0, 1]; a constant channel gets std 1.

    Of samples that are files, at most 2000, evenly spaced, are decoded.
    """
    if not samples.in_memory and len(samples) > MOST_FILES_FOR_MEAN:
        samples = samples[torch.linspace(0, len(samples) - 1, MOST_FILES_FOR_MEAN).long()]
    counts = torch.zeros(samples.shape[0], 256, dtype=torch.int64)  # of each value: exact, whatever the order of sums
    for start in range(0, len(samples), 500):
        for own, channel in zip(counts, samples[start : start + 500].pixels.transpose(0, 1), strict=True):
            own += channel.flatten().bincount(minlength=256).cpu()
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std < 1e-6, 1.0, std).tolist()


def _slots_to_labels(many: int, order: str | Sequence[int], seed: int, classes: int | None) -> list[int]:
    if isinstance(order, str):
        if order not in ("seed", "natural"):
            raise ConfigError(f"stream.order is '{order}'; {nearest(order, ('seed', 'natural'))}, or a list of labels")
        labels = class_order(many, seed) if order == "seed" else list(range(many))
    else:
        given = list(order) if isinstance(order, Iterable) else [order]
        if not all(map(_is_whole, given)):
            raise ConfigError(f"stream.order is {order!r}; it must be 'seed', 'natural' or a list of labels")
        labels = [int(label) for label in given]
        if sorted(labels) != list(range(many)):
            raise StreamError(
                f"stream.order is no permutation of 0 to {many - 1}: it has {len(labels)} entries,"
                f" {len(set(labels) & set(range(many)))} of the {many} labels occur"
            )
    if classes is None:
        return labels
    if not 1 <= classes <= many:
        raise StreamError(f"stream.classes is {classes}; the data set has {many} classes, so 1 to {many} or null")
    return labels[:classes]


def _check_numbers(whole: Mapping[str, Any], caps: Mapping[str, Any], validation: Any) -> None:
    """Whether these are numbers at all, as the command line may give anything."""
    for key, value in whole.items():
        if not _is_whole(value):
            raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number")
    for key, value in caps.items():
        if value is not None and not (_is_whole(value) and value >= 1):
            raise ConfigError(f"stream.{key} is {value!r}; it must be a whole number from 1 on, or null for all")
    if isinstance(validation, bool) or not isinstance(validation, int | float) or not 0 <= validation < 1:
        raise ConfigError(f"stream.validation is {validation!r}; it is the share of training images, in [0, 1)")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_options(dataset: str | Dataset, options: Mapping[str, Any]) -> None:
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


def _check_channels(key: str, values: Sequence[float], channels: int) -> list[float]:
    try:
        checked = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ConfigError(f"stream.{key} is {values!r}; it must list a number a channel, or be null") from None
    if len(checked) != channels:
        raise StreamError(f"stream.{key} has {len(checked)} values; images have {channels} channels")
    if not all(math.isfinite(value) and (value > 0 or key == "mean") for value in checked):
        raise StreamError(f"stream.{key} is {checked}; need finite numbers{', above 0' * (key == 'std')}")
    return checked


def _choose(
    data: Dataset, labels: list[int], seed: int, validation: float, most_train: int | None, most_test: int | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Rows of each slot for training, validation and test. The draws of a class do not depend on other classes."""
    train, held, test = [], [], []
    training_rows, test_rows = _by_label(data.train, len(data.classes)), _by_label(data.test, len(data.classes))
    for label in labels:
        for split, rows in (("training", training_rows[label]), ("test", test_rows[label])):
            if not len(rows):
                raise DataError(f"{data.name}: class '{data.classes[label]}' has no {split} image ({data.source})")
        mine = _shuffled(training_rows[label], seed, "training", label)[:most_train]
        count = max(1, round(validation * len(mine))) if validation else 0
        if count >= len(mine):
            raise StreamError(
                f"stream.validation={validation} leaves no training image of class '{data.classes[label]}',"
                f" which has {len(mine)}; lower it or raise stream.train_per_class"
            )
        held.append(mine[:count])
        train.append(mine[count:])
        test.append(_shuffled(test_rows[label], seed, "test", label)[:most_test])
    return train, held, test


def _by_label(samples: Samples, many: int) -> tuple[Tensor, ...]:
    """Rows of each label, in order."""
    counts = samples.slots.bincount(minlength=many)
    return samples.slots.argsort(stable=True).split(counts.tolist())


def _shuffled(rows: Tensor, seed: int, purpose: str, label: int) -> Tensor:
    key = hashlib.blake2b(f"{seed}/{purpose}/{label}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
    return rows[torch.randperm(len(rows), generator=generator)]


def _together(rows: list[Tensor], slots: Sequence[int]) -> Tensor:
    return torch.cat([rows[slot] for slot in slots]).sort().values


def _part(train: Samples, test: Samples, train_rows: Tensor, validation_rows: Tensor, test_rows: Tensor) -> Part:
    """Thunks that each close over one half only."""
    return Part(
        train=lambda: train[train_rows],
        test=lambda: test[test_rows],
        validation=lambda: train[validation_rows] if len(validation_rows) else None,
    )


def _augment(given: Augment | Mapping[str, Any] | None, default: Augment) -> Augment:
    if given is None or isinstance(given, Augment):
        return given or default
    known = Augment.__dataclass_fields__
    if not isinstance(given, Mapping):
        raise ConfigError(f"stream.augment is {given!r}; give its arguments ({', '.join(known)}) or null")
    for key in given:
        if key not in known:
            raise ConfigError(f"stream.augment.{key} is not known; {nearest(key, known)}")
    return Augment(**given)
