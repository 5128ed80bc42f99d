"""Class-incremental learning under one honest memory budget.

    from cil import Budget, class_incremental, train

    record = train("icarl", class_incremental("mnist5k", increment=2), budget=Budget(exemplars=200), epochs=3)

Importing ``cil`` imports nothing else: names are loaded when they are first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Adapter": "cil.adapt",
    "Batch": "cil.data",
    "Budget": "cil.memory",
    "CilError": "cil.errors",
    "Comparison": "cil.comparison",
    "Experience": "cil.streams",
    "ExemplarMemory": "cil.memory",
    "NetFactory": "cil.models",
    "Phase": "cil.strategies",
    "Recipe": "cil.engine.recipe",
    "Record": "cil.tracking",
    "RunOptions": "cil.engine.options",
    "Samples": "cil.data",
    "ShiftStream": "cil.streams.shifts",
    "Strategy": "cil.strategies",
    "Stream": "cil.streams",
    "adapt_to": "cil.adaptation",
    "audit": "cil.cli.audit",
    "class_incremental": "cil.streams",
    "compare": "cil.comparison",
    "evaluate": "cil.trained",
    "export": "cil.exchange",
    "from_torch": "cil.data.torch_sets",
    "load": "cil.trained",
    "load_dataset": "cil.data",
    "plan": "cil.api",
    "register": "cil.strategies",
    "run": "cil.cli.build",
    "train": "cil.api",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from cil.adapt import Adapter as Adapter
    from cil.adaptation import adapt_to as adapt_to
    from cil.api import plan as plan
    from cil.api import train as train
    from cil.cli.audit import audit as audit
    from cil.cli.build import run as run
    from cil.comparison import Comparison as Comparison
    from cil.comparison import compare as compare
    from cil.data import Batch as Batch
    from cil.data import Samples as Samples
    from cil.data import load_dataset as load_dataset
    from cil.data.torch_sets import from_torch as from_torch
    from cil.engine.options import RunOptions as RunOptions
    from cil.engine.recipe import Recipe as Recipe
    from cil.errors import CilError as CilError
    from cil.exchange import export as export
    from cil.memory import Budget as Budget
    from cil.memory import ExemplarMemory as ExemplarMemory
    from cil.models import NetFactory as NetFactory
    from cil.strategies import Phase as Phase
    from cil.strategies import Strategy as Strategy
    from cil.strategies import register as register
    from cil.streams import Experience as Experience
    from cil.streams import Stream as Stream
    from cil.streams import class_incremental as class_incremental
    from cil.streams.shifts import ShiftStream as ShiftStream
    from cil.tracking import Record as Record
    from cil.trained import evaluate as evaluate
    from cil.trained import load as load

    __version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("cil")
    if name not in _HOMES:
        raise AttributeError(f"module 'cil' has no attribute '{name}'")
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported: threads that spin slow down what runs beside
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
