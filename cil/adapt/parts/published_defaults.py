"""Hyperparameters that are left open get the values published for the data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def default_by_classes(given: T | None, num_classes: int, published: Mapping[int, T]) -> T:
    """The given value, or the one published for the data set whose number of classes is nearest by ratio.

    Args:
        given: None for no choice.
        num_classes: K of the network.
        published: By number of classes: 10 (CIFAR-10), 100 (CIFAR-100), 1000 (ImageNet).

    >>> published = {10: "CIFAR-10", 100: "CIFAR-100", 1000: "ImageNet"}
    >>> [default_by_classes(None, classes, published) for classes in (2, 31, 32, 200, 1000)]
    ['CIFAR-10', 'CIFAR-10', 'CIFAR-100', 'CIFAR-100', 'ImageNet']
    """
    if given is not None:
        return given
    return published[min(published, key=lambda classes: abs(math.log(max(1, num_classes) / classes)))]
