"""Test-time adaptation: its contract, and one file for each method."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from cil.adapt.base import Adapter, SourceModel
from cil.adapt.registry import find, register
from cil.contract.renamed import warn_of
from cil.plugins import points

__all__ = ["Adapter", "SourceModel", "built_in", "find", "load_built_in", "names", "register"]

_NOT_METHODS = {"__init__", "base", "parts", "registry"}


def built_in() -> list[str]:
    """Names of the adapters that ship here: one file each."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in _NOT_METHODS)


def names() -> list[str]:
    """All names, those of plugins too."""
    return sorted({*built_in(), *(point.name for point in points("cil.adapters"))})


def load_built_in(name: str) -> None:
    """Import the file of a built-in adapter, which registers it."""
    if name in built_in():
        importlib.import_module(f"cil.adapt.{name}")


def __getattr__(name: str) -> Any:
    if name == "Source":  # its old name, for one release
        warn_of("cil.adapt.Source", "cil.adapt.SourceModel")
        return SourceModel
    raise AttributeError(f"module 'cil.adapt' has no attribute '{name}'")
