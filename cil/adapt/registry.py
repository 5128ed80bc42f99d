"""Adapters by name; those of other packages are found through entry points and loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cil.adapt.base import Adapter
from cil.errors import ConfigError, nearest
from cil.plugins import load, points, warn_if_shadowed

A = TypeVar("A", bound=type[Adapter])
_adapters: dict[str, type[Adapter]] = {}


def register(name: str) -> Callable[[A], A]:
    """Make an adapter class known by ``name``.

    Other packages name such a class in an entry point of the group ``cil.adapters``.

    Raises:
        ConfigError: where another class has the name.
    """

    def registered(kind: A) -> A:
        if _adapters.get(name, kind) is not kind:
            raise ConfigError(f"the adapter name '{name}' is taken by {_adapters[name].__module__}; choose another")
        _adapters[name] = kind
        return kind

    return registered


def find(name: str) -> type[Adapter]:
    """The class of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known ones.
    """
    from cil.adapt import load_built_in, names

    if name not in _adapters:
        load_built_in(name)
    if name not in _adapters:
        for point in points("cil.adapters"):
            if point.name == name:
                _adapters[name] = load(point)
    if name not in _adapters:
        raise ConfigError(f"unknown adapter '{name}'; {nearest(name, names())} (config group adapter)")
    warn_if_shadowed("cil.adapters", name, _adapters[name])
    return _adapters[name]
