"""Checks of hyperparameters: a value out of range is refused in one line, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cil.errors import ConfigError
from cil.values import MOST_NUMBER, MOST_RATE, is_finite, is_in, yaml_word


@dataclass(frozen=True)
class Checks:
    """Refuses values that are not allowed. None passes the numeric checks: methods give it a meaning of their own.

    Args:
        group: Configuration group of the methods, ``strategy`` or ``adapter``.

    Each check takes the limits, the method's name and the hyperparameters by key.

    Raises:
        ConfigError: naming the key, the method, the value and what is allowed.

    >>> Checks("strategy").at_least(0, "si", strength=-1.0)
    Traceback (most recent call last):
    cil.errors.ConfigError: strategy.strength of si is -1.0; it must be 0 or more
    """

    group: str

    def at_least(self, least: float, method: str, /, **given: object) -> None:
        """Numbers from ``least`` on."""
        self._numbers(method, given, f"{least} or more", lambda value: value >= least)

    def above(self, bound: float, method: str, /, **given: object) -> None:
        """Numbers greater than ``bound``."""
        self._numbers(method, given, f"above {bound}", lambda value: value > bound)

    def below(self, bound: float, method: str, /, **given: object) -> None:
        """Numbers less than ``bound``."""
        self._numbers(method, given, f"below {bound}", lambda value: value < bound)

    def between(self, low: float, high: float, method: str, /, **given: object) -> None:
        """Numbers in [low, high]."""
        self._numbers(method, given, f"between {low} and {high}", lambda value: low <= value <= high)

    def whole_or_share(self, method: str, /, **given: object) -> None:
        """Whole numbers above 0, and shares in (0, 1)."""
        allowed = "a whole number above 0, or a share below 1"
        self._numbers(method, given, allowed, lambda value: 0 < value < 1 or (value >= 1 and value == int(value)))

    def one_of(self, allowed: Sequence[object], method: str, /, **given: object) -> None:
        """One of a few values.

        >>> Checks("strategy").one_of(("head", "network"), "podnet", tuned="all")
        Traceback (most recent call last):
        cil.errors.ConfigError: strategy.tuned of podnet is 'all'; allowed: head, network
        """
        for key, value in given.items():
            if not is_in(value, allowed):
                words = ", ".join(map(yaml_word, allowed))
                raise ConfigError(f"{self.group}.{key} of {method} is {value!r}; allowed: {words}")

    def choices(self, allowed: Mapping[str, Sequence[object]], method: str, /, **given: object) -> None:
        """``one_of`` for several hyperparameters, with the values allowed by key."""
        for key, value in given.items():
            self.one_of(allowed[key], method, **{key: value})

    def _numbers(self, method: str, given: Mapping[str, object], words: str, allows: Callable[[float], bool]) -> None:
        for key, value in given.items():
            most = MOST_RATE if key.endswith("lr") else MOST_NUMBER
            if value is None or (is_finite(value) and allows(value) and value <= most):
                continue
            upper = f", at most {most:g}" if is_finite(value) and value > most else ""
            raise ConfigError(f"{self.group}.{key} of {method} is {value!r}; it must be {words}{upper}")
