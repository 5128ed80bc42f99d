"""Test-time adaptation: its contract, and one file for each method."""

from __future__ import annotations

from typing import Any

from cil.adapt.base import Adapter, SourceModel
from cil.adapt.registry import built_in, find, names, register
from cil.contract.renamed import warn_of

__all__ = ["Adapter", "SourceModel", "built_in", "find", "names", "register"]


def __getattr__(name: str) -> Any:
    if name == "Source":  # its old name, for one release
        warn_of("cil.adapt.Source", "cil.adapt.SourceModel")
        return SourceModel
    raise AttributeError(f"module 'cil.adapt' has no attribute '{name}'")
