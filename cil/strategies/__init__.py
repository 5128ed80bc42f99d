"""Strategies: the contract, named parts, and one file for each method."""

from __future__ import annotations

import importlib
from keyword import iskeyword
from pathlib import Path

from cil.contract import Choice, Phase, Progress, Range, RuntimeContext, Search, reference_of
from cil.memory import State
from cil.plugins import BUILT_IN, points
from cil.plugins import find as plugin
from cil.strategies.base import Strategy
from cil.strategies.registry import find, register

_BRIDGES = BUILT_IN["cil.strategies"]
_NOT_METHODS = {"__init__", "base", "parts", "registry"}

__all__ = [
    "Choice",
    "Phase",
    "Progress",
    "Range",
    "RuntimeContext",
    "Search",
    "State",
    "Strategy",
    "built_in",
    "find",
    "names",
    "reference_of",
    "register",
]


def built_in() -> list[str]:
    """Names of the strategies that ship here: one file each (``pass_.py`` is ``pass``, a word of Python)."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(path.stem.removesuffix("_") for path in files if path.stem not in _NOT_METHODS)


def names() -> list[str]:
    """All names, those of plugins too."""
    return sorted({*built_in(), *_BRIDGES, *(point.name for point in points("cil.strategies"))})


def load_built_in(name: str) -> None:
    """Import the file of a built-in strategy, or of a bridge to other toolboxes, which registers it."""
    if name in _BRIDGES:
        plugin("cil.strategies", name)
    if name in built_in():
        importlib.import_module(f"cil.strategies.{name}{'_' if iskeyword(name) else ''}")
