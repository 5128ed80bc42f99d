"""Further budgets: a number that is measured of every learner and capped, brought by a package (``cil.budgets``).

``budget.caps.NAME=LIMIT`` sets one. The object that the entry point names is a ``Cap``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cil import plugins
from cil.errors import BudgetExceeded, ConfigError, nearest
from cil.memory import Budget
from cil.strategies import Strategy
from cil.tracking.record_types import CapResult, Caps

PREFIX = "cap."  # before its name, of what was measured at a boundary


class Cap(Protocol):
    """A budget of one number.

    Attributes:
        unit: Unit of the number, for tables: ``parameters``, ``s/image``.
        static: True if structure alone tells it: it is then measured on the ``meta`` device too, before training.
    """

    unit: str
    static: bool

    def measure(self, learner: Strategy, predict: Callable[[Tensor], Tensor]) -> float:
        """The number, of a learner as it was rebuilt from what it carries.

        Args:
            predict: (N, C, H, W) float images in [0, 1] to scores, as the learner is evaluated.
        """
        ...


def caps_of(budget: Budget) -> dict[str, Cap]:
    """The caps that a budget sets, by name.

    Raises:
        ConfigError: for one that no package brings, and one that is no ``Cap``.
    """
    for name in budget.caps:
        if name not in plugins.names("cil.budgets"):
            raise ConfigError(f"budget.caps has no '{name}'; {nearest(name, plugins.names('cil.budgets'))}")
    found = {name: plugins.find("cil.budgets", name) for name in budget.caps}
    for name, cap in found.items():
        if lacks := [part for part in ("unit", "static", "measure") if not hasattr(cap, part)]:
            raise ConfigError(
                f"cil.budgets '{name}' is {cap!r}, which has no {' and no '.join(lacks)}; see docs/adding.md"
            )
    return found


def measure_caps(caps: Mapping[str, Cap], learner: Strategy, predict: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The number of each cap, (1,) float64, to stand among the counts of an evaluation."""
    found = {name: float(cap.measure(learner, predict)) for name, cap in caps.items()}
    return {f"{PREFIX}{name}": torch.tensor([value], dtype=torch.float64) for name, value in found.items()}


def check_caps(budget: Budget, measured: Mapping[str, Tensor], name: str, index: int, when: str = "after") -> None:
    """Refuse a learner that is over a cap.

    Raises:
        BudgetExceeded: naming the cap, what was measured and the key.
    """
    for cap in (name for name in budget.caps if f"{PREFIX}{name}" in measured and budget.enforce != "report"):
        value, limit = float(measured[f"{PREFIX}{cap}"]), budget.caps[cap]
        if value > limit:
            raise BudgetExceeded(
                f"{name} has {value:,.6g} {caps_of(budget)[cap].unit} {when} experience {index}, budget.caps.{cap} is "
                f"{limit:,.6g}; raise it, take a smaller model, or set budget.enforce=report"
            )


def caps_results(budget: Budget, rows: Sequence[Mapping[str, Tensor]]) -> Caps:
    """The part ``caps`` of results: limit, unit and what was measured at each boundary; nothing without a cap."""
    if not budget.caps:
        return {}
    found: dict[str, CapResult] = {
        name: {
            "limit": budget.caps[name],
            "unit": cap.unit,
            "measured": [float(row[f"{PREFIX}{name}"]) for row in rows if f"{PREFIX}{name}" in row],
        }
        for name, cap in caps_of(budget).items()
    }
    return {"caps": found}
