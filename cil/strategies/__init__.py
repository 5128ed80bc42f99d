"""Strategies: the contract, named parts, and one file for each method."""

from __future__ import annotations

from cil.contract import Choice, Phase, Progress, Range, RuntimeContext, Search, reference_of
from cil.memory import State
from cil.strategies.base import Strategy
from cil.strategies.registry import built_in, find, names, register

__all__ = [
    "Choice", "Phase", "Progress", "Range", "RuntimeContext", "Search", "State", "Strategy", "built_in", "find",
    "names", "reference_of", "register",
]  # fmt: skip
