"""Hyperparameters: those that cannot be meant are refused in one line, those left open are chosen by the data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cil.errors import ConfigError

T = TypeVar("T")


def within(low: float, high: float | None, adapter: str, **given: Any) -> None:
    """Refuse numbers outside [low, high], high None for no upper bound; None as a value is the method's own and passes.

    Raises:
        ConfigError: naming the key, the method, what was given and what is allowed.

    >>> within(0, 1, "cotta", momentum=1.5)
    Traceback (most recent call last):
    cil.errors.ConfigError: adapter.momentum of cotta is 1.5; it must be between 0 and 1
    """
    said = f"{low} or more" if high is None else f"between {low} and {high}"
    for key, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and low <= value and (high is None or value <= high)):
            raise ConfigError(f"adapter.{key} of {adapter} is {value!r}; it must be {said}")


def one_of(allowed: Sequence[Any], adapter: str, **given: Any) -> None:
    """Refuse what is not one of a few values.

    >>> one_of(("adam", "sgd"), "tent", optimizer="adagrad")
    Traceback (most recent call last):
    cil.errors.ConfigError: adapter.optimizer of tent is 'adagrad'; allowed: adam, sgd
    """
    for key, value in given.items():
        if value not in allowed:
            names = ", ".join("null" if item is None else str(item) for item in allowed)
            raise ConfigError(f"adapter.{key} of {adapter} is {value!r}; allowed: {names}")


def by_classes(given: T | None, num_classes: int, published: Mapping[int, T]) -> T:
    """What was given, else what was published for the data set whose number of classes is nearest by ratio.

    Args:
        given: None for no choice.
        num_classes: K of the network.
        published: By number of classes: 10 (CIFAR-10), 100 (CIFAR-100), 1000 (ImageNet).

    >>> published = {10: "CIFAR-10", 100: "CIFAR-100", 1000: "ImageNet"}
    >>> [by_classes(None, classes, published) for classes in (2, 31, 32, 200, 1000)]
    ['CIFAR-10', 'CIFAR-10', 'CIFAR-100', 'CIFAR-100', 'ImageNet']
    """
    if given is not None:
        return given
    return published[min(published, key=lambda classes: abs(math.log(max(1, num_classes) / classes)))]
