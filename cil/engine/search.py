"""Hyperparameter search inside an experience: trials trained one after the other, judged on held-out data, billed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from cil.adapt import Adapter
from cil.contract import Phase, Search
from cil.engine.cost import Cost
from cil.engine.keys import generator
from cil.engine.lifecycle import all_evaluating
from cil.engine.work import Context
from cil.errors import ConfigError, ContractError, Diverged
from cil.memory import Flops
from cil.strategies import Strategy

RESERVED = ("phase", "trial", "error", "steps", "flops", "diverged", "chosen")  # keys of a trial in the record
Held = tuple[dict[str, Tensor], dict[str, Any]]  # what ``Holder.full_state`` gives


class Trainer(Protocol):
    """Trains a trial: ``cil.engine.phases.Training``."""

    context: Context
    index: int
    seed: int
    first_step: int
    error: Callable[[Any, Any], float] | None

    def fit(
        self, learner: Strategy | Adapter, phase: Phase, number: int | str, costs: Sequence[Cost], trial: bool = False
    ) -> Cost: ...

    def spent(self, costs: Sequence[Cost], more: Cost | None = None) -> bool:
        """True if the budget leaves no further step after these costs, and some more."""
        ...

    def keep(self, name: str, costs: Sequence[Cost], tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Write a snapshot."""
        ...

    def go_on_from(self, content: Mapping[str, Any]) -> None:
        """What is counted beside the learner, as a snapshot has it."""
        ...


@dataclass
class Trials:
    """The trials of one search phase.

    Every trial starts from the same state, with keys of its own. After each the best state so far is in a snapshot, so
    a resumed run goes on with the next trial, or inside the one it was in.
    """

    training: Trainer
    learner: Strategy | Adapter
    search: Search
    number: int

    def run(self, costs: Sequence[Cost]) -> list[Cost]:
        """Leave the learner as the best trial made it; all costs, those given first.

        Raises:
            ConfigError: where there are trials and nothing to judge them by.
            ContractError: where what is searched over has the name of what is told of a trial.
            Diverged: where no trial's loss stayed finite.
        """
        search, training = self.search, self.training
        if search.validation is None or not len(search.validation):
            raise ConfigError(
                f"phase '{search.name}' of experience {training.index} has {search.trials} trials and no held-out data "
                f"to judge them by; set stream.validation (or a dev split) and uses_validation = True on the class, or "
                f"strategy.search.trials=0"
            )
        for name in search.space:
            if name in RESERVED:
                raise ContractError(
                    f"phase '{search.name}' searches over '{name}', a name that the record needs; rename it"
                )
        start = copied(self.learner.full_state())
        costs, best, first = self._resumed(costs)
        for trial in range(first, search.trials):
            if trial and training.spent(costs):
                costs[-1].cut = True
                break
            self.learner.load_full_state(*start)
            cost, validation = self._trial(trial, costs)
            self._bill_copies(cost, start, best)
            costs = [*costs, cost, validation]
            if best is None or self._rank(cost) < min(self._rank(one) for one in costs[:-2] if self._own(one)):
                best = copied(self.learner.full_state())
            training.keep(f"search-{self.number}", costs, best[0], {"meta": best[1], "trials": trial + 1})
        assert best is not None
        chosen = min((cost for cost in costs if self._own(cost)), key=self._rank)
        if "diverged" in chosen.trial:
            raise Diverged(
                f"the loss of every trial of experience {training.index} became infinite; lower strategy.search.lr"
            )
        chosen.trial["chosen"] = True
        less = Cost(steps=max(0, chosen.updates - 1), extra=max(0, chosen.flops - 1))
        if search.refit is not None and not training.spent(costs, less):  # there is room for as much as the trial took
            self.learner.load_full_state(*start)
            phase = search.refit({name: chosen.trial[name] for name in search.space})
            cost = training.fit(self.learner, phase, f"{self.number}.refit", costs)
            self._bill_copies(cost, start, best)
            costs = [*costs, cost]
        else:
            self.learner.load_full_state(*best)
        return costs

    def _trial(self, trial: int, costs: Sequence[Cost]) -> tuple[Cost, Cost]:
        """Train one trial and judge it; what it cost, and what judging cost."""
        search, training = self.search, self.training
        settings = search.draw(generator(training.seed, "search", training.index, self.number, trial))
        phase = search.trial(settings)
        phase = replace(phase, name=f"{phase.name}-{trial}")
        cost = training.fit(self.learner, phase, f"{self.number}.{trial}", costs, trial=True)
        judging, error = Flops(), 100.0
        assert training.error is not None
        kept = self.learner.full_state()[0].values()  # which the last steps of a trial may have broken
        if not all(bool(t.isfinite().all()) for t in kept if t.is_floating_point()):
            cost.trial = {"diverged": True}
        if not cost.trial:
            with judging.counting(), all_evaluating(self.learner):
                error = training.error(self.learner, search.validation)
        cost.part = "search"
        cost.trial |= {"phase": self.number, "trial": trial, **settings, "error": error, "steps": cost.steps}
        where = {"experience": training.index, "phase": phase.name, "trial": trial}
        where |= {"step": training.first_step + sum(one.steps for one in [*costs, cost])}
        training.context.log("trial", {**settings, "error": error}, where)
        return cost, Cost.once(judging, "validation")

    def _resumed(self, costs: Sequence[Cost]) -> tuple[list[Cost], Held | None, int]:
        """Costs, best state and next trial, from the snapshot where there is one."""
        found = self.training.context.snapshot(f"search-{self.number}")
        if found is None:
            return list(costs), None, 0
        tensors, content = found
        self.training.go_on_from(content)
        return [Cost.of(saved) for saved in content["costs"]], (tensors, content["meta"]), content["trials"]

    def _bill_copies(self, cost: Cost, *held: Held | None) -> None:
        """Training memory: where trials start and the best so far are held beside the learner, two states at most."""
        tensors = [tensor for one in held if one is not None for tensor in one[0].values()]
        cost.add(self.search.name, "temporary", tensors)

    def _own(self, cost: Cost) -> bool:
        return cost.trial.get("phase") == self.number

    def _rank(self, cost: Cost) -> tuple[bool, bool, float]:
        """Less is better; a trial that diverged is behind all others, and one that a budget cut behind whole ones."""
        return "diverged" in cost.trial, cost.cut, cost.trial["error"]


def copied(held: tuple[Mapping[str, Tensor], Mapping[str, Any]]) -> Held:
    """Copies, as the tensors of a learner go on to change."""
    return {name: tensor.detach().clone() for name, tensor in held[0].items()}, dict(held[1])
