"""Comparisons that rules are made of: same bits, close scores, the first part in which two runs differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cil.engine.checkpoint import Checkpoints
from cil.errors import ContractError
from cil.memory import State
from cil.memory.tensor_bits import same_bits
from cil.tracking import Record
from cil.tracking.storage import first_difference

TOLERANCE = 1e-4  # of scores, relative to their spread: other batch sizes run other kernels


class EngineRun(Protocol):
    """What the checks use of any run of the engine."""

    run_dir: Path
    checkpoints: Checkpoints

    def execute(self) -> Record: ...


def demand(holds: bool, message: str) -> None:
    """Raise ``ContractError`` with a rule's message where the rule does not hold."""
    if not holds:
        raise ContractError(message)


def close(a: Tensor, b: Tensor) -> bool:
    """Close, infinite at the same places, up to what other kernels change."""
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    spread = float((a[finite].max() - a[finite].min()).clamp(min=1e-3)) if bool(finite.any()) else 1.0
    return bool(((a - b)[finite].abs() <= TOLERANCE * spread + 1e-6).all())


def difference(a: State, b: State) -> str:
    """Name of the first part in which two states differ; empty where they are equal."""
    return different_tensor(a.tensors, b.tensors) or ("" if dict(a.meta) == dict(b.meta) else "meta")


def different_tensor(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """Name of the first tensor that differs or is missing on one side; empty where all are equal."""
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or not same_bits(a[name], b[name]):
            return name
    return ""


def demand_same(
    how: str, one: EngineRun, first: Record, two: EngineRun, second: Record, place: str = "after experience {}"
) -> None:
    """Demand that two executed runs ended in the same bits: states, evaluations, and all results but seconds.

    Args:
        how: In what the two runs differ, for the message: 'twice with the same seed'.
        place: Name of a boundary, for the message.

    Raises:
        ContractError: naming the first part that differs.
    """
    for index in range(one.checkpoints.done()):
        named = difference(one.checkpoints.state(index), two.checkpoints.state(index))
        if not named:
            counts = ({**(run.checkpoints.evaluated(index) or {}), "seconds": torch.zeros(0)} for run in (one, two))
            named = different_tensor(*counts)
        demand(not named, f"run {how}, {named} differs {place.format(index)}")
    old, new = ({k: v for k, v in record.results.items() if k != "seconds"} for record in (first, second))
    different = first_difference(old, new)
    demand(different is None, f"run {how}, {different[0] if different else ''} differs")
