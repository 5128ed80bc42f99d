"""Dynamic: fine-tune from the stored model of the earlier task that a nearest-neighbour probe ranks first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cil.memory import Budget
from cil.models import NetFactory, TaskNets
from cil.strategies.base import check
from cil.strategies.parts.knn_probe import KNNProbe
from cil.strategies.parts.task_learner import SEARCH, TaskLearner
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("dynamic")
class Dynamic(TaskLearner):
    """A network for each data set, all kept; each task starts from the stored one whose features suit it best.

    The first task starts from random weights. A data set that comes again has its head and its own network among those
    that it may start from.

    Args:
        search: See ``TaskRecipe``.
        neighbours, train, dev: See ``KNNProbe``.

    Source:
        Bornschein et al., NEVIS'22, JMLR 24 (308), 2023, "FT-d". Departure: of a repeated data set its latest network
        is the one to start from, there the first.
    """

    net: TaskNets

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        search: Mapping[str, Any] = SEARCH,
        neighbours: int = 5,
        train: int = 10_000,
        dev: int = 5_000,
    ) -> None:
        super().__init__(make_net, budget, search=search)
        check.at_least(1, "dynamic", neighbours=neighbours, train=train, dev=dev)
        self.probe = KNNProbe(neighbours, train, dev)
        self.datasets: dict[str, str] = {}  # by name of the network; part of the structure, so not carried

    def build_net(self) -> TaskNets:
        return TaskNets()

    def grow_net(self, signature: Signature) -> None:
        self.new = self.task.name not in self.net.names()
        if self.new:
            self.put_fresh_net()
            self.datasets[self.task.name] = self.task.dataset

    def prepare(self, experience: Experience) -> None:
        own = self.net.of(self.task.name)
        stored = {name: self.net.of(name) for name in self.net.names() if not (self.new and name == self.task.name)}
        scores = self.probe.scores(self, stored, experience, self.task) if stored else {}
        source = max(stored, key=lambda name: scores[name], default=None)  # the earliest of equals
        if source is not None:
            own.take_backbone(stored[source].backbone)
        named = {self.datasets[name]: round(score, 4) for name, score in scores.items()}
        self.diagnostics = {"source": None if source is None else self.datasets[source], "probe": named}
