"""Memory: exemplars, selection rules, codecs; the ledger, budgets and meters."""

from cil.memory.budget import UNLIMITED, Alignment, Allowance, Budget, NextBoundary
from cil.memory.exemplars import ExemplarMemory, label_dtype
from cil.memory.features import FeatureMemory, Prototypes, feature_samples
from cil.memory.ledger import CONVENTIONS, KINDS, Beside, Entry, Ledger, check_kind, tensor_entry
from cil.memory.meters import BackwardPasses, Flops, OptimizerSteps, SavedBytes
from cil.memory.published_bytes import Published, published
from cil.memory.reservoir import ReservoirMemory, greedily_balanced, reservoir_places
from cil.memory.rules import class_means, herd, unit
from cil.memory.selections import Gradients, Predictions, RuleInput, register_selection, selection
from cil.memory.state import Reference, State, encode_meta, tensor_bytes
from cil.memory.training_memory import TrainingMemory, measure_step

__all__ = [
    "CONVENTIONS", "KINDS", "UNLIMITED", "Alignment", "Allowance", "BackwardPasses", "Beside", "Budget", "Entry",
    "ExemplarMemory", "FeatureMemory", "Flops", "Gradients", "Ledger", "NextBoundary", "OptimizerSteps",
    "Predictions", "Prototypes", "Published", "Reference", "ReservoirMemory", "RuleInput", "SavedBytes", "State",
    "TrainingMemory", "check_kind", "class_means", "encode_meta", "feature_samples", "greedily_balanced", "herd",
    "label_dtype", "measure_step", "published", "register_selection", "reservoir_places", "selection",
    "tensor_bytes", "tensor_entry", "unit",
]  # fmt: skip
