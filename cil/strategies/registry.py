"""Strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cil.errors import ConfigError, nearest
from cil.plugins import load, points, warn_if_shadowed
from cil.strategies.base import Strategy

S = TypeVar("S", bound=type[Strategy])
_STRATEGIES: dict[str, type[Strategy]] = {}


def register(name: str) -> Callable[[S], S]:
    """Make a strategy known by name. Other packages: entry points of the group ``cil.strategies``.

    Raises:
        ConfigError: where a class of another module has the name.
    """

    def add(strategy: S) -> S:
        taken = _STRATEGIES.get(name, strategy).__module__
        if taken != strategy.__module__:
            raise ConfigError(f"the strategy name '{name}' is taken by {taken}; choose another")
        strategy.name = name  # type: ignore[attr-defined]
        _STRATEGIES[name] = strategy
        return strategy

    return add


def find(name: str, key: str = "strategy") -> type[Strategy]:
    """The strategy of that name, built in or of a plugin.

    Args:
        name: As ``register`` or an entry point knows it.
        key: Of the configuration, for the message.

    Raises:
        ConfigError: if there is none.
    """
    import cil.strategies

    cil.strategies.load_built_in(name)
    if name not in _STRATEGIES:
        for point in points("cil.strategies"):
            if point.name == name:
                found = load(point)
                if not (isinstance(found, type) and issubclass(found, Strategy)):
                    raise ConfigError(f"strategy '{name}' of a package is {point.value}, which is no class of Strategy")
                register(name)(found)
    if name not in _STRATEGIES:
        own = f"; a class of {name}.py is named {name}:CLASS" if Path(f"{name}.py").is_file() else ""
        raise ConfigError(f"no strategy '{name}' (key {key}){own}; {nearest(name, cil.strategies.names())}")
    warn_if_shadowed("cil.strategies", name, _STRATEGIES[name])
    return _STRATEGIES[name]
