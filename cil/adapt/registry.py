"""Adapters by name: a file each here, and those of other packages."""

from __future__ import annotations

import importlib
from pathlib import Path

from cil.adapt.base import Adapter
from cil.errors import ConfigError
from cil.plugins import Registry, place_of

_NOT_METHODS = {"__init__", "base", "parts", "registry"}


def built_in() -> list[str]:
    """Names of the adapters that ship here: one file each."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_METHODS)


def _load(name: str) -> None:
    if name in built_in():
        importlib.import_module(f"cil.adapt.{name}")


def _accept(name: str, adapter: object) -> None:
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise ConfigError(f"adapter '{name}' of a package is {place_of(adapter)}, which is no class of Adapter")


ADAPTERS: Registry[type[Adapter]] = Registry("adapter", "cil.adapters", built_in, _load, accept=_accept)
register, names = ADAPTERS.register, ADAPTERS.names


def find(name: str) -> type[Adapter]:
    """The class of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known ones.
    """
    return ADAPTERS.find(name, " (config group adapter)")
