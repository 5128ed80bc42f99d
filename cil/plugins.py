"""Names of what can be plugged in, built in or by entry point. Nothing is imported until it is asked for."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cil.errors import ConfigError, nearest

BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "cil.kinds": {
        "classes": "cil.kinds.classes:CLASSES",
        "tasks": "cil.kinds.tasks:TASKS",
        "adaptation": "cil.kinds.adaptation:ADAPTATION",
    },
}


@cache
def points(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of other packages in a group, such as ``cil.kinds``."""
    return tuple(entry_points(group=group))


def names(group: str) -> list[str]:
    """Names that ``find`` knows in a group."""
    return sorted({*BUILT_IN.get(group, {}), *(point.name for point in points(group))})


def find(group: str, name: str) -> Any:
    """The object that a name stands for; a built-in name is never replaced by another package's.

    Raises:
        ConfigError: for an unknown name, or one whose package cannot be imported.

    >>> type(find("cil.kinds", "classes")).__name__  # doctest: +SKIP
    'Classes'
    """
    built_in = BUILT_IN.get(group, {}).get(name)
    if built_in is not None:
        return pkgutil.resolve_name(built_in)
    for point in points(group):
        if point.name == name:
            try:
                return point.load()
            except Exception as error:  # whatever a package of others raises when it is imported
                raise ConfigError(f"{group} '{name}' ({point.value}) cannot be imported: {error}") from error
    raise ConfigError(f"{group} has no '{name}'; {nearest(name, names(group))}")
