"""Shared parts of strategies and adapters: what they hold and carry, phases of training, the runtime context."""

from cil.contract.frozen import Frozen, exemplar_memories, freeze
from cil.contract.holder import Holder, loaded_reference, reference_of
from cil.contract.hyperparameters import Checks
from cil.contract.phase import Phase, Progress, RuntimeContext
from cil.contract.search import Choice, Range, Search, Settings

__all__ = [
    "Checks", "Choice", "Frozen", "Holder", "Phase", "Progress", "Range", "RuntimeContext", "Search", "Settings",
    "exemplar_memories", "freeze", "loaded_reference", "reference_of",
]  # fmt: skip
