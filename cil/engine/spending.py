"""What an experience spent; and the part of the results that all strategies share: bytes, FLOPs, seconds, exemplars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from cil.engine.cost import Cost
from cil.memory import Budget, Flops
from cil.tracking.record_types import Spending

Rows = Sequence[Mapping[str, Tensor]]


def spent(rows: Rows, facts: Sequence[Mapping[str, Any]]) -> Spending:
    """Carried and spent by a run: ledger, FLOPs by part (summed up over experiences), seconds, peaks."""
    parts = dict.fromkeys(name for fact in facts for name in fact["flops"])
    flops = {name: list(accumulate(fact["flops"].get(name, 0) for fact in facts)) for name in parts}
    both = [(row, fact.get("anytime", {"flops": 0, "seconds": 0.0})) for row, fact in zip(rows, facts, strict=True)]
    flops["evaluation"] = list(accumulate(int(row["flops"]) + inside["flops"] for row, inside in both))
    train, consolidate = ([fact["seconds"][name] for fact in facts] for name in ("train", "consolidate"))
    evaluate = [float(row["seconds"]) + inside["seconds"] for row, inside in both]
    peaks = [fact["peak_parameters"] for fact in facts if "peak_parameters" in fact]
    found: Spending = {
        "ledger": [fact["ledger"] for fact in facts],
        "exemplars": [fact["exemplars"] for fact in facts],
        "given_up": [fact.get("given_up", 0) for fact in facts],
        "over_budget": [fact["over_budget"] for fact in facts],
        "flops": {**flops, "total": sum(each[-1] for each in flops.values())},
        "seconds": {
            "train": train,
            "consolidate": consolidate,
            "evaluate": evaluate,
            "total": sum(map(sum, (train, consolidate, evaluate))),
        },
        "losses": [fact.get("loss") for fact in facts],
        "peak_training_bytes": max(fact["peak_training_bytes"] for fact in facts),
        "peak_parameters": max(peaks, default=None),
    }
    if all("looks" in fact for fact in facts):
        found["looks"] = [fact["looks"] for fact in facts]
    own = [fact.get("own_updates", 0) for fact in facts]
    if any(own):
        found["own_updates"] = own
    images = [fact.get("own_images", 0) for fact in facts]
    if any(images):
        found["own_images"] = images
    reused = [fact.get("reused_seconds", 0.0) for fact in facts]
    if any(reused):
        found["reused_seconds"] = reused
    if "compute" in facts[-1]:
        found["compute"] = [fact.get("compute") for fact in facts]
    return found


def flops_by_part(costs: Sequence[Cost], parts: Mapping[str, Flops], hooks: int) -> dict[str, int]:
    """FLOPs of an experience: ``training``, what a search adds, and of hooks what they name and the rest."""
    trained = {"training": 0}
    for cost in costs:
        trained[cost.part] = trained.get(cost.part, 0) + cost.flops
    named = {name: flops.count for name, flops in parts.items()}
    own = {**trained, "consolidation": hooks - sum(named.values())}
    return {**own, **named, **own}  # no name takes the place of what was counted here


def compute(budget: Budget, flops: Mapping[str, int], steps: int) -> dict[str, Any]:
    """FLOPs and updates that an experience had available, and spent."""
    spent = {"flops": (budget.flops, sum(flops.values())), "updates": (budget.updates, steps)}
    return {name: {"available": pair[0], "spent": pair[1]} for name, pair in spent.items() if pair[0] is not None}


def largest_loss(costs: Sequence[Cost]) -> float | None:
    """The largest mean loss of the last epochs of phases, of trials those that were chosen; None without training."""
    kept = (cost.loss for cost in costs if not cost.trial or cost.trial.get("chosen"))
    return max((loss for loss in kept if loss is not None), default=None)
