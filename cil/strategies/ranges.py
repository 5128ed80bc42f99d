"""Hyperparameters that cannot be meant are refused in one line, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from cil.errors import ConfigError


def at_least(least: float, strategy: str, **given: Any) -> None:
    """Refuse numbers below ``least``; None, where a method takes it, is a value of its own and passes.

    Raises:
        ConfigError: naming the key, the method, what was given and what is allowed.

    >>> at_least(0, "si", strength=-1.0)
    Traceback (most recent call last):
    cil.errors.ConfigError: strategy.strength of si is -1.0; it must be 0 or more
    """
    _check(strategy, given, f"{least} or more", lambda value: value >= least)


def above(bound: float, strategy: str, **given: Any) -> None:
    """Refuse numbers that are not greater than ``bound``; see ``at_least``."""
    _check(strategy, given, f"above {bound}", lambda value: value > bound)


def below(bound: float, strategy: str, **given: Any) -> None:
    """Refuse numbers that are not less than ``bound``; see ``at_least``."""
    _check(strategy, given, f"below {bound}", lambda value: value < bound)


def between(low: float, high: float, strategy: str, **given: Any) -> None:
    """Refuse numbers outside [low, high]; see ``at_least``."""
    _check(strategy, given, f"between {low} and {high}", lambda value: low <= value <= high)


def whole_or_share(strategy: str, **given: Any) -> None:
    """Refuse what is neither a whole number above 0 nor a share below 1; see ``at_least``."""
    said = "a whole number above 0, or a share below 1"
    _check(strategy, given, said, lambda value: 0 < value < 1 or (value >= 1 and value == int(value)))


def one_of(allowed: Sequence[Any], strategy: str, **given: Any) -> None:
    """Refuse what is not one of a few values.

    >>> one_of(("head", "network"), "podnet", tuned="all")
    Traceback (most recent call last):
    cil.errors.ConfigError: strategy.tuned of podnet is 'all'; allowed: head, network
    """
    for key, value in given.items():
        if value not in allowed:
            names = ", ".join(str(item).lower() if isinstance(item, bool) else str(item) for item in allowed)
            raise ConfigError(f"strategy.{key} of {strategy} is {value!r}; allowed: {names}")


def _check(strategy: str, given: dict[str, Any], said: str, allowed: Callable[[float], bool]) -> None:
    for key, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and allowed(value)):
            raise ConfigError(f"strategy.{key} of {strategy} is {value!r}; it must be {said}")
