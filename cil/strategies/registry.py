"""Strategies by name: a file each here, bridges to other toolboxes, and those of other packages."""

from __future__ import annotations

import importlib
from keyword import iskeyword
from pathlib import Path

from cil.errors import ConfigError
from cil.plugins import BUILT_IN, Registry, place_of
from cil.plugins import find as plugin
from cil.strategies.base import Strategy

_BRIDGES = BUILT_IN["cil.strategies"]
_NOT_METHODS = {"__init__", "base", "parts", "registry"}


def built_in() -> list[str]:
    """Names of the strategies that ship here: one file each (``pass_.py`` is ``pass``, a word of Python)."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(path.stem.removesuffix("_") for path in files if path.stem not in _NOT_METHODS)


def _load(name: str) -> None:
    if name in _BRIDGES:
        plugin("cil.strategies", name)
    if name in built_in():
        importlib.import_module(f"cil.strategies.{name}{'_' if iskeyword(name) else ''}")


def _name(name: str, strategy: object) -> None:
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        raise ConfigError(f"strategy '{name}' of a package is {place_of(strategy)}, which is no class of Strategy")
    strategy.name = name  # type: ignore[attr-defined]


STRATEGIES: Registry[type[Strategy]] = Registry(
    "strategy", "cil.strategies", lambda: [*built_in(), *_BRIDGES], _load, accept=_name
)
register, names = STRATEGIES.register, STRATEGIES.names


def find(name: str, key: str = "strategy") -> type[Strategy]:
    """The strategy of that name, built in or of a plugin.

    Args:
        name: As ``register`` or an entry point knows it.
        key: Of the configuration, for the message.

    Raises:
        ConfigError: if there is none.
    """
    own = f"; a class of {name}.py is named {name}:CLASS" if Path(f"{name}.py").is_file() else ""
    return STRATEGIES.find(name, f" (key {key}){own}")
