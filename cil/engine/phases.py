"""The phases of training, one after the other: of an experience of a strategy, or of an adapter's source data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from cil.adapt import Adapter
from cil.contract import Phase, Search
from cil.data import Augment, Samples
from cil.engine.anytime import Watch
from cil.engine.arrival import leading
from cil.engine.cost import Cost
from cil.engine.fit import Fit
from cil.engine.keys import reseed
from cil.engine.learners import all_evaluating
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.engine.search import Trials
from cil.engine.session import Clock, Snapshots
from cil.errors import Diverged
from cil.memory import Budget, Flops
from cil.strategies import Strategy
from cil.tracking import Record


@dataclass
class Training:
    """Where and how phases are trained.

    Args:
        index: Of the experience, part of every key.
        snapshots: Of this experience: ``phase-k`` holds what phase k's definition saw, ``now`` some step inside one,
            ``search-k`` the best trial so far of phase k.
        first_step: Optimizer steps of the run before.
        on_log, stop: As of ``Fit``.
        budget: Whose operations and updates are not exceeded by more than a step; None: no cap.
        before: Operations of the experience before its phases, for the budget.
        arriving: Images of the experience: in a single pass they come in their order.
        watch: Evaluates between steps, outside trials.
        error: Learner and held-out data to an error in percent, by which trials of a search are judged.
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
    budget: Budget = field(default_factory=Budget)
    before: int = 0
    error: Callable[[Any, Any], float] | None = None
    arriving: Samples | None = None
    watch: Watch | None = None

    def run(self, learner: Strategy | Adapter, phases: Iterator[Phase | Search]) -> list[Cost]:
        """Run all phases, from wherever a snapshot stands; what each of them cost."""
        number = 0
        costs: list[Cost] = []
        while True:
            entry = self.snapshots.find(f"phase-{number}")
            if entry is not None:
                learner.load_full_state(entry[0], entry[1]["meta"])
                self._watch_from(entry[1])
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
                if isinstance(phase, Search):
                    costs = Trials(self, learner, phase, number).run(costs)
                else:
                    costs.append(self.fit(learner, phase, number, costs))
                if self.watch is not None:
                    self.watch.phase_ends()
                tensors, meta = learner.full_state()
                self.keep(f"phase-{number + 1}", costs, tensors, {"meta": meta})
            number += 1

    def fit(
        self, learner: Strategy | Adapter, phase: Phase, number: int | str, costs: Sequence[Cost], trial: bool = False
    ) -> Cost:
        """Train one phase, from the snapshot inside it where there is one; what it cost.

        Args:
            costs: Of all before it.
            trial: Whether its loss may become infinite: the cost then says so.
        """
        fit = Fit(
            learner, phase, number, self.recipe.of(phase, self.index), self.index, self.seed, self.augment,
            self.runtime, first_step=self.first_step + sum(cost.steps for cost in costs), on_log=self.on_log,
            on_snapshot=partial(self.keep, "now", costs), stop=self.stop, spent=partial(self.spent, costs),
            arriving=None if self.arriving is None else leading(phase.samples, self.arriving),
        )  # fmt: skip
        if self.watch is not None and not trial:
            fit.watch, fit.ahead = partial(self.watch.batch, learner), partial(self.watch.ahead, learner)
        now = self.snapshots.find("now")
        now = now if now is not None and now[1]["phase"] == number else None
        if now is not None:
            self._watch_from(now[1])
        try:
            fit.run(now)
        except Diverged:
            if not trial:
                raise
            fit.cost.trial = {"diverged": True}
        if self.watch is not None and not trial and fit.cost.cut and fit.recipe.pace is not None:
            self.watch.all_arrived(len(phase.samples))
        return fit.cost

    def spent(self, costs: Sequence[Cost], more: Cost | None = None) -> bool:
        """Whether the budget leaves no further step after these costs, and some more."""
        if self.budget.flops is None and self.budget.updates is None:
            return False
        each = [*costs, more] if more is not None else costs
        return self.budget.spent(self.before + sum(cost.flops for cost in each), sum(cost.steps for cost in each))

    def keep(self, name: str, costs: Sequence[Cost], tensors: Any, content: Any) -> None:
        """Write a snapshot."""
        given = {**content, "costs": [asdict(cost) for cost in costs]}
        if self.watch is not None:
            given["watched"] = self.watch.state()
        self.snapshots.keep(name, tensors, given, record=self.record, clock=self.clock)

    def _watch_from(self, content: Mapping[str, Any]) -> None:
        if self.watch is not None:
            self.watch.load(content["watched"])
