"""The phases of training, one after the other: of an experience of a strategy, or of an adapter's source data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from cil.adapt import Adapter
from cil.contract import Phase
from cil.data import Augment
from cil.engine.cost import Cost
from cil.engine.fit import Fit
from cil.engine.keys import reseed
from cil.engine.learners import all_evaluating
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.engine.session import Clock, Snapshots
from cil.memory import Flops
from cil.strategies import Strategy
from cil.tracking import Record


@dataclass
class Training:
    """Where and how phases are trained.

    Args:
        index: Of the experience, part of every key.
        snapshots: Of this experience: ``phase-k`` holds what phase k's definition saw, ``now`` some step inside one.
        first_step: Optimizer steps of the run before.
        on_log, stop: As of ``Fit``.
    """

    index: int
    seed: int
    recipe: Recipe
    augment: Augment
    runtime: Runtime
    snapshots: Snapshots
    record: Record
    clock: Clock
    first_step: int = 0
    on_log: Callable[[str, dict[str, float], dict[str, Any]], None] = lambda kind, values, axes: None
    stop: Callable[[], bool] = lambda: False

    def run(self, learner: Strategy | Adapter, phases: Iterator[Phase]) -> list[Cost]:
        """Run all phases, from wherever a snapshot stands; what each of them cost."""
        number = 0
        now = self.snapshots.find("now")
        costs: list[Cost] = []
        while True:
            entry = self.snapshots.find(f"phase-{number}")
            if entry is not None:
                learner.load_full_state(entry[0], entry[1]["meta"])
                costs = [Cost.of(saved) for saved in entry[1]["costs"]]
            reseed(self.seed, "phase", self.index, number)
            between = Flops()  # features that a phase is trained on, for one
            with self.runtime.autocast(), between.counting(), all_evaluating(learner):  # as if nothing ran just now
                phase = next(phases, None)
            if between.count:
                costs.append(Cost(flops_per_image=between.count, images=1))
            if phase is None:
                return costs
            learner.to(self.runtime.torch_device)
            if self.snapshots.find(f"phase-{number + 1}") is None:
                fit = Fit(
                    learner, phase, number, self.recipe.of(phase, self.index), self.index, self.seed, self.augment,
                    self.runtime, first_step=self.first_step + sum(cost.steps for cost in costs), on_log=self.on_log,
                    on_snapshot=partial(self._keep, "now", costs), stop=self.stop,
                )  # fmt: skip
                fit.run(now if now is not None and now[1]["phase"] == number else None)
                costs.append(fit.cost)
                tensors, meta = learner.full_state()
                self._keep(f"phase-{number + 1}", costs, tensors, {"meta": meta})
            number += 1

    def _keep(self, name: str, costs: list[Cost], tensors: Any, content: Any) -> None:
        given = {**content, "costs": [asdict(cost) for cost in costs]}
        self.snapshots.keep(name, tensors, given, record=self.record, clock=self.clock)
