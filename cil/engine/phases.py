"""The phases of training, one after the other: of an experience of a strategy, or of an adapter's source data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from cil.adapt import Adapter
from cil.contract import Holder, Phase, Search
from cil.data import Augment, Samples
from cil.data.looks import Looks
from cil.engine.anytime import AnytimeObserver
from cil.engine.arrival import leading
from cil.engine.cost import Cost, beside_phase, carried_modules, held_by_phase
from cil.engine.fit import Fit
from cil.engine.keys import reseed
from cil.engine.lifecycle import all_evaluating
from cil.engine.look_limits import own_images, refuse_copies, refuse_hoard
from cil.engine.plain_phase import PlainPhase
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.engine.search import Trials
from cil.engine.shared_phases import SharedPhases
from cil.engine.work import Context
from cil.errors import Diverged
from cil.memory import Budget, Flops
from cil.strategies import Strategy


@dataclass
class Training:
    """Where and how phases are trained.

    Args:
        context: The run's. Its snapshots: ``phase-k`` holds what phase k's definition saw, ``now`` some step inside
            one, ``search-k`` the best trial so far of phase k.
        index: The experience, part of every key.
        first_step: Optimizer steps of the run before.
        budget: Caps on FLOPs and updates, which are not exceeded by more than a step.
        before: What the experience cost before its phases, for the budget.
        error: Learner and held-out data to an error in percent, by which trials of a search are judged.
        arriving: Images of the experience: in a single pass they come in their order.
        observer: Looks at the learner between steps, outside trials.
        looks: Counts how often images of the experience are read.
    """

    context: Context
    index: int
    seed: int
    recipe: Recipe
    augment: Augment
    runtime: Runtime
    first_step: int = 0
    budget: Budget = field(default_factory=Budget)
    before: Cost = field(default_factory=Cost)
    error: Callable[[Any, Any], float] | None = None
    arriving: Samples | None = None
    observer: AnytimeObserver | None = None
    looks: Looks | None = None

    def run(self, learner: Strategy | Adapter, phases: Iterator[Phase | Search]) -> list[Cost]:
        """Run all phases, from wherever a snapshot stands; what each of them cost."""
        number = 0
        costs: list[Cost] = []
        while True:
            entry = self.context.snapshot(f"phase-{number}")
            if entry is not None:
                learner.load_full_state(entry[0], entry[1]["meta"])
                self.go_on_from(entry[1])
                costs = [Cost.of(saved) for saved in entry[1]["costs"]]
            reseed(self.seed, "phase", self.index, number)
            between = Flops()  # features that a phase is trained on, for one
            with (
                self.reading("phases"),
                self.runtime.autocast(),
                self.runtime.frozen_features(),
                between.counting(),
                all_evaluating(learner),
            ):
                phase = next(phases, None)  # as if nothing ran just now
            if between.count or between.updates:
                costs.append(Cost.once(between))
            if phase is None:
                return costs
            learner.to(self.runtime.torch_device)
            if self.context.snapshots.find(f"phase-{number + 1}") is None:
                if isinstance(phase, Search):
                    costs = Trials(self, learner, phase, number).run(costs)
                else:
                    costs.append(self.fit(learner, phase, number, costs))
                if self.observer is not None:
                    self.observer.phase_ends()
                tensors, meta = learner.full_state()
                self.runtime.ranks.check_same(tensors, meta, f"after phase {number} of experience {self.index}")
                self.keep(f"phase-{number + 1}", costs, tensors, {"meta": meta})
            number += 1

    def fit(
        self, learner: Strategy | Adapter, phase: Phase, number: int | str, costs: Sequence[Cost], trial: bool = False
    ) -> Cost:
        """Train one phase, from the snapshot inside it where there is one; what it cost.

        Args:
            costs: Bills of all phases before it.
            trial: Its loss may become infinite: the cost then says so.
        """
        beside_phase(learner, phase)  # refuses a teacher
        if self.looks is not None and self.arriving is not None:
            refuse_copies(phase, self.looks, self.arriving.shape)
        fit = Fit(
            learner, phase, number, self.recipe.of(phase, self.index), self.index, self.seed, self.augment,
            self.runtime, first_step=self.first_step + sum(cost.steps for cost in costs), on_log=self.context.log,
            on_snapshot=partial(self.keep, "now", costs), stop=self.context.stop, spent=partial(self.spent, costs),
            secret=str(self.context.record.identity["stream"]["fingerprint"]),
            arriving=None if self.arriving is None else leading(phase.samples, self.arriving),
        )  # fmt: skip
        if self.observer is not None and not trial:
            assert isinstance(learner, Strategy)
            fit.watch, fit.ahead = partial(self.observer.batch, learner), partial(self.observer.ahead, learner)
        if self._looks_are_limited and self.looks is not None and self.arriving is not None:
            assert isinstance(learner, Strategy)
            fit.held = partial(refuse_hoard, self.looks, learner, phase, self.arriving.shape)
        now = self.context.snapshot("now")
        now = now if now is not None and now[1]["phase"] == number else None
        if now is not None:
            self.go_on_from(now[1])
        try:
            with self.reading(f"phase '{phase.name}'"):
                if now is not None or trial or not self._shared(fit):
                    fit.run(now)
        except Diverged:
            if not trial:
                raise
            fit.cost.trial = {"diverged": True}
        fit.cost.held = [*Holder.training_entries(learner), *held_by_phase(learner, phase)]
        fit.cost.weighed, fit.cost.own_images = carried_modules(learner), own_images(phase, self.looks)
        if self.observer is not None and not trial and fit.cost.cut and fit.recipe.pace is not None:
            self.observer.all_arrived(len(phase.samples))
        return fit.cost

    def _shared(self, fit: Fit) -> bool:
        """Train a plain phase for other runs too, or take over what one of them trained; False where it is not one.

        Steps that are looked at, come in the order of the stream or may be cut short by a budget are made, and so are
        those whose looks at images are limited.
        """
        folder, clock = self.context.shared, self.context.clock
        capped = self.budget.flops is not None or self.budget.updates is not None
        if (
            folder is None
            or capped
            or self._looks_are_limited
            or self.observer is not None
            or fit.recipe.pace is not None
        ):
            return False
        plain = PlainPhase.of(fit, self.context.record.identity)
        if plain is None:
            return False
        began = clock.seconds
        reused = SharedPhases(folder, self.context.stop.here, self.looks).run(fit, plain)
        if reused:
            fit.cost.reused = reused
            clock.set(began + reused)
        return True

    @property
    def _looks_are_limited(self) -> bool:
        return self.looks is not None and self.looks.limit is not None

    def spent(self, costs: Sequence[Cost], more: Cost | None = None) -> bool:
        """True if the budget leaves no further step after these costs, and some more."""
        if self.budget.flops is None and self.budget.updates is None:
            return False
        each = [self.before, *costs, *([] if more is None else [more])]
        flops = self.runtime.ranks.total(sum(cost.flops for cost in each))
        return self.budget.spent(flops, sum(cost.updates for cost in each))

    def keep(self, name: str, costs: Sequence[Cost], tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        given = {**content, "costs": [asdict(cost) for cost in costs]}
        if self.observer is not None:
            given["watched"] = self.observer.state()
        if self.looks is not None:
            given["looks"] = self.looks.state()
        self.context.save(name, tensors, given)

    def go_on_from(self, content: Mapping[str, Any]) -> None:
        """Observer and looks as a snapshot has them."""
        if self.observer is not None:
            self.observer.load(content["watched"])
        if self.looks is not None:
            self.looks.load(content["looks"])

    def reading(self, reader: str) -> AbstractContextManager[None]:
        """Looks inside the context are those of ``reader``."""
        return nullcontext() if self.looks is None else self.looks.by(reader)
