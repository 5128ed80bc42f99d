"""Which classes a stream has, in which order they arrive, and how many arrive at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest
from typing import Any

import numpy as np

from cil.data import Dataset
from cil.errors import ConfigError, StreamError, nearest
from cil.streams.options import SplitOptions, check_choice, check_seed
from cil.values import is_whole

ORDERS = ("seed", "natural", "by_set")
_EXPERIENCES = 5  # where no increment is given
Increment = int | Sequence[int] | None


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


def experience_sizes(num_classes: int, base: int, increment: Increment) -> list[int]:
    """New classes of each experience; what does not divide is left to a smaller last one.

    Args:
        base: Classes of the first experience; 0: none apart.
        increment: Classes of each further experience; a list of one number for each; None: five experiences in all.

    >>> experience_sizes(100, 50, 20), experience_sizes(10, 0, 5)
    ([50, 20, 20, 10], [5, 5])
    >>> experience_sizes(20, 0, [10, 4, 6]), experience_sizes(100, 60, None)
    ([10, 4, 6], [60, 10, 10, 10, 10])

    Raises:
        StreamError: where base or increment do not fit the number of classes.
    """
    if not 0 <= base <= num_classes:
        raise StreamError(f"stream.base is {base}; with {num_classes} classes it must be in 0 to {num_classes}")
    rest, first = num_classes - base, [base] if base else []
    if isinstance(increment, Iterable):
        each = list(increment)
        if min(each, default=0) < 1 or sum(each) != rest:
            raise StreamError(
                f"stream.increment is {each}, {sum(each)} classes; list a number from 1 on for each experience after"
                f" stream.base={base}, {rest} in all"
            )
        return [*first, *each]
    if increment is None:
        increment = max(1, -(-rest // (_EXPERIENCES - len(first))))
    if rest and not 1 <= increment <= rest:
        raise StreamError(f"stream.increment is {increment}; after stream.base={base} it must be in 1 to {rest}")
    sizes = first
    while rest:
        sizes.append(min(increment, rest))
        rest -= sizes[-1]
    return sizes


def check_increment(base: Any, increment: Any) -> None:
    """Refuse what is no number of classes."""
    several = isinstance(increment, Iterable) and not isinstance(increment, str)
    if not is_whole(base):
        raise ConfigError(f"stream.base is {base!r}; it must be a whole number")
    if increment is not None and not all(map(is_whole, increment if several else [increment])):
        raise ConfigError(f"stream.increment is {increment!r}; it must be a whole number, or a list of them, or null")


def slots_to_labels(data: Dataset, chosen: SplitOptions) -> list[int]:
    """Label of each slot that is used.

    Raises:
        ConfigError, StreamError: for an unknown name, or an order that is no permutation of the classes.
    """
    known = range(len(data.classes))
    named = chosen.classes is not None and not is_whole(chosen.classes)
    kept = _named_classes(data, chosen.classes) if named else list(known)
    order = chosen.order
    if isinstance(order, str):
        check_choice("order", order, ORDERS, ", or a list of labels or names")
        labels = _ordered(data, kept, order, chosen.order_seed, chosen.interleave)
    else:
        given = list(order) if isinstance(order, Iterable) else [order]
        labels = _labels_of(data, "order", given)
        if sorted(labels) != sorted(kept):
            what = "the names in stream.classes" if named else f"0 to {len(known) - 1}"
            raise StreamError(
                f"stream.order is no permutation of {what}: it has {len(labels)} entries,"
                f" {len(set(labels) & set(kept))} of the {len(kept)} labels occur"
            )
    most: Any = chosen.classes
    if named or most is None:
        return labels
    if most > len(known):
        raise StreamError(
            f"stream.classes is {most}; the data set has {len(known)} classes, so 1 to {len(known)} or null"
        )
    return labels[:most]


def _ordered(data: Dataset, kept: Sequence[int], order: str, seed: int, interleave: int | None) -> list[int]:
    if order == "by_set":
        if not data.origins:
            raise StreamError(
                f"stream.order is by_set, and data set '{data.name}' is one set; name several: stream.dataset=[A, B]"
            )
        groups = [[label for label in kept if data.origins[label] == name] for name in dict.fromkeys(data.origins)]
    elif order == "seed":
        groups = [list(kept)]
    else:
        return sorted(kept)
    each = [[group[place] for place in class_order(len(group), seed)] for group in groups]
    if interleave is not None:
        turns = [[group[first : first + interleave] for first in range(0, len(group), interleave)] for group in each]
        each = [part for turn in zip_longest(*turns, fillvalue=[]) for part in turn]
    return [label for part in each for label in part]


def sizes_by_set(origins: Sequence[str], interleave: int | None) -> list[int]:
    """New classes of each experience where none mixes data sets: those of a set, or of one turn of it.

    >>> sizes_by_set(["a", "a", "a", "b", "b"], None), sizes_by_set(["a", "a", "b", "b", "a"], 2)
    ([3, 2], [2, 2, 1])

    Args:
        origins: Data set of the class in each slot, in turn.
        interleave: Most classes of a turn.
    """
    sizes = []
    for _, run in groupby(origins):
        left = len(list(run))
        most = interleave or left
        sizes += [most] * (left // most) + [left % most] * bool(left % most)
    return sizes


def _named_classes(data: Dataset, given: Any) -> list[int]:
    labels = _labels_of(data, "classes", given if isinstance(given, Iterable) else [given])
    last = len(data.classes) - 1
    if not labels or len(set(labels)) < len(labels) or not 0 <= min(labels) <= max(labels) <= last:
        raise StreamError(f"stream.classes is {given!r}; name each class once, by its name or a number of 0 to {last}")
    return labels


def _labels_of(data: Dataset, key: str, given: Iterable[Any]) -> list[int]:
    """Labels that are given as numbers or as names of classes."""
    place = {name: label for label, name in enumerate(data.classes)}
    labels = []
    for item in given:
        if isinstance(item, str):
            if item not in place:
                raise ConfigError(
                    f"stream.{key} has '{item}', no class of data set '{data.name}'; {nearest(item, place)}"
                )
            labels.append(place[item])
        elif is_whole(item):
            labels.append(int(item))
        else:
            words = "'seed', 'natural', 'by_set' or " if key == "order" else ""
            raise ConfigError(f"stream.{key} has {item!r}; it must be {words}a list of labels, or of names of classes")
    return labels
