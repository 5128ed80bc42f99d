"""Run directories made by hand, with numbers that can be checked in the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filled import filled

from cil import plugins
from cil.tracking import Record

MIB = 2**20
FLOPS = ("training", "consolidation", "evaluation")
NO_BUDGET = {"kind": "none", "exemplars": None, "limits": None, "convention": "exact", "at": "end"}


def exemplar_budget(count: int) -> dict[str, Any]:
    return {**NO_BUDGET, "kind": "exemplars", "exemplars": count}


def byte_budget(limit: int, convention: str = "exact", experiences: int = 2) -> dict[str, Any]:
    return {**NO_BUDGET, "kind": "bytes", "limits": [limit] * experiences, "convention": convention}


def stream(order: list[int], **changes: Any) -> dict[str, Any]:
    """Four classes in two experiences of two."""
    return {
        "name": "toy",
        "experiences": 2,
        "classes": ["ant", "bee", "cat", "dog"],
        "new_slots": [[0, 1], [2, 3]],
        "train_counts": [200, 200],
        "image_shape": [3, 8, 8],
        "fingerprint": "f" + "".join(map(str, order)) * 16,
        "data": "no official checksum known",
    } | changes


def make_run(root: Path) -> Callable[..., Record]:
    def leave(
        strategy: str = "icarl",
        seed: int = 0,
        *,
        matrix: tuple[tuple[float | None, ...], ...] = ((80.0, None), (60.0, 70.0)),
        forgetting: float | None = 20.0,
        parameters: int = 1_000_000,
        exemplars: int = 100,
        public: int = 0,
        beside: int = 0,
        budget: dict[str, Any] | None = None,
        order: tuple[int, ...] = (2, 0, 3, 1),
        status: str = "finished",
        error: str | None = None,
        config: dict[str, Any] | None = None,
        stream_changes: dict[str, Any] | None = None,
        results: dict[str, Any] | None = None,
        name: str = "",
        command: str | None = None,
        **identity: Any,
    ) -> Record:
        budget = exemplar_budget(200) if budget is None else budget
        settings = {
            "seed": seed,
            "strategy": {"name": strategy},
            "stream": {"name": "toy", "order_seed": 7},
            "model": {"name": "resnet14"},
            "trainer": {"epochs": 10},
            "budget": {"limit": (budget["limits"] or [None])[-1]},
        }
        identity = {
            "config": settings | (config or {}),
            "config_hash": "0123456789ab",
            "seed": seed,
            "strategy": strategy,
            "bound": False,
            "uses_horizon": False,
            "class_order": list(order),
            "stream": stream(list(order), **(stream_changes or {})),
            "budget": budget,
            "versions": {"cil": "0.1.0", "torch": "2.9.0"},
            "device": "cpu",
            "threads": 1,
            "precision": "fp32",
        } | identity
        number = len(list(root.glob("*"))) if root.exists() else 0
        directory = root / (name or f"{strategy}-{seed}-{number}")
        kind = plugins.find("cil.kinds", "tasks" if "tasks" in identity["stream"] else "classes")
        identity = filled(identity, kind.identity_type())
        record = Record.open(directory, identity, {"cores": 2, "command": command})
        if status in ("finished", "interrupted", "running", "failed"):
            found = _results(matrix, forgetting, parameters, exemplars, public, beside) | (results or {})
        else:
            found = {"bills": [_bill(step, parameters) for step in range(2)]}
        record.update(filled(found, kind.results_type(), missing=status == "finished"))
        record.set_status(status, error)
        record.close()
        return Record.load(directory)

    return leave


def _results(
    matrix: Any, forgetting: float | None, parameters: int, exemplars: int, public: int, beside: int
) -> dict[str, Any]:
    """Both experiences have as many test images, so the curve is the mean of what has been met of each row."""
    curve = [sum(row[: step + 1]) / (step + 1) for step, row in enumerate(matrix)]
    pixels, labels = 192 * exemplars, exemplars
    exact = {"parameters": parameters, "exemplars": pixels, "labels": labels}
    survey = {"parameters": parameters - 1000, "exemplars": pixels}
    totals = {name: {**kinds, "total": sum(kinds.values())} for name, kinds in (("exact", exact), ("survey", survey))}
    return {
        "accuracy_matrix": [list(row) for row in matrix],
        "accuracy_curve": curve,
        "average_incremental_accuracy": sum(curve) / len(curve),
        "last_accuracy": curve[-1],
        "forgetting": forgetting,
        "ledger": [
            {"entries": [], "totals": totals, "public": public, "beside": {"bytes": beside, "images": beside / 192}}
            for _ in curve
        ],
        "exemplars": [exemplars for _ in curve],
        "over_budget": [None for _ in curve],
        "flops": {name: [10**9 * (step + 1) for step in range(len(curve))] for name in FLOPS} | {"total": 6 * 10**9},
        "seconds": {"total": 12.0},
        "peak_training_bytes": 5_000_000,
    }


def _bill(step: int, parameters: int) -> dict[str, Any]:
    size = parameters * (step + 1)
    return {
        "experience": step,
        "fixed": {"exact": size, "survey": size - 1000},
        "exemplars": 0,
        "total": {"exact": size, "survey": size - 1000},
        "by_kind": {"parameters": size},
    }
