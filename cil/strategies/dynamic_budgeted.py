"""Dynamic-budgeted: Dynamic with room for a few backbones; the least often chosen one is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cil.memory import Budget
from cil.models import NetFactory, TaskPool
from cil.strategies.base import check
from cil.strategies.parts.knn_probe import KNNProbe
from cil.strategies.parts.task_learner import SEARCH, TaskLearner
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("dynamic_budgeted")
class DynamicBudgeted(TaskLearner):
    """At most M backbones, each of one task, and the heads of all tasks. A task starts from the backbone that suits it.

    Where all places are taken, the backbone that was chosen least often (the oldest of equals) gives way to the new
    task; it may be started from a last time. A task whose backbone is gone is answered alike for all classes. The
    probe's operations count under ``budget.flops``, as with Dynamic.

    Args:
        search: See ``TaskRecipe``.
        models: M.
        neighbours, train, dev: See ``KNNProbe``.

    Source:
        ``dynamic`` (NEVIS'22) with at most M stored models.
    """

    net: TaskPool

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        search: Mapping[str, Any] = SEARCH,
        models: int = 4,
        neighbours: int = 5,
        train: int = 10_000,
        dev: int = 5_000,
    ) -> None:
        super().__init__(make_net, budget, search=search)
        check.at_least(1, "dynamic_budgeted", models=models, neighbours=neighbours, train=train, dev=dev)
        self.models = models
        self.probe = KNNProbe(neighbours, train, dev)
        self.datasets: dict[str, str] = {}  # by name of the task; part of the structure, so not carried

    def build_net(self) -> TaskPool:
        return TaskPool()

    def grow_net(self, signature: Signature) -> None:
        if self.task.name not in self.datasets and len(self.datasets) < self.models:
            self.net.add_place(self.make_net("linear"))
        self.datasets[self.task.name] = self.task.dataset
        super().grow_net(signature)

    def prepare(self, experience: Experience) -> None:
        net, places = self.net, {str(owner): k for k, owner in enumerate(self.net.owners.tolist()) if owner >= 0}
        scores = self.probe.scores(self, {name: net.of(name) for name in places}, experience, self.task)
        source = max(places, key=lambda name: scores[name], default=None)  # the earliest place of equals
        place = net.place(self.task.name)
        if source is not None:
            net.chosen[places[source]] += 1
        if place is None:
            place = len(places) if len(places) < len(net.backbones) else self._place_to_free()
        if source is not None:
            net.backbones[place].load_state_dict(net.backbones[places[source]].state_dict())
        owner = int(net.owners[place])
        if owner != self.task.first:
            net.owners[place], net.chosen[place] = self.task.first, 0
        self.diagnostics = {
            "source": None if source is None else self.datasets[source],
            "probe": {self.datasets[name]: round(score, 4) for name, score in scores.items()},
            "dropped": self.datasets[str(owner)] if owner not in (-1, self.task.first) else None,
        }

    def _place_to_free(self) -> int:
        """The place whose backbone was chosen least often, the oldest task's of equals."""
        chosen, owners = self.net.chosen.tolist(), self.net.owners.tolist()
        return min(range(len(owners)), key=lambda place: (chosen[place], owners[place]))
