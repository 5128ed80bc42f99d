"""Cumulative: all tasks seen, trained together in one network. It keeps all data: an upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cil.contract import Settings
from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory, TaskNet
from cil.strategies.parts.past import Past
from cil.strategies.parts.tasks import SEARCH, TaskLearner
from cil.strategies.ranges import between
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("cumulative")
class Cumulative(TaskLearner):
    """From the previous weights, each step a batch of a task seen, chosen at random, and the loss of its head.

    It keeps all past data and is charged for them; a budget only reports on it, and tables keep it out of rankings. An
    event has as many steps as with other learners, however many tasks there are.

    Args:
        search: See ``cil.strategies.parts.tasks.TaskRecipe``. Trials are judged on the new task.
        power: A task of n images is chosen in proportion to n^power; 0: all alike.

    Source:
        Specification of task streams, section 8 (the paper's multi-task learner, not confirmed in its code).
    """

    bound = True
    net: TaskNet

    def __init__(
        self, make_net: NetFactory, budget: Budget, *, search: Mapping[str, Any] = SEARCH, power: float = 0.0
    ) -> None:
        super().__init__(make_net, budget, search=search)
        between(0, 1, "cumulative", power=power)
        self.power = power
        self.past = Past(self)

    def build_net(self) -> TaskNet:
        return TaskNet(self.make_net("linear"))

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.past.open(signature)

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return self.past.plan(None, counts)

    def memory_of(self, slot: int) -> str | None:
        return self.past.memory_of(slot)

    def prepare(self, experience: Experience) -> None:
        sizes = {task: len(self.past.memory(task)) for task in self.past.tasks} | {self.task: len(experience.train)}
        self.weights = {task: size**self.power for task, size in sizes.items() if size}

    def tuned(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    def loss_with(self, settings: Settings, batch: Batch) -> Tensor:
        task = self.past.draw_task(self.weights) or self.task
        if task != self.task:
            batch = self.past.batch(task, len(batch)) or batch
        return self.loss_of(task, batch, settings)

    def after_experience(self, experience: Experience) -> None:
        self.past.remember(self.task, experience.train, None)
