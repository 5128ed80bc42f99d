"""Task replay: each step a batch of the new task and one of an earlier task, each with the loss of its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cil.contract import Settings
from cil.data import Batch
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.task_learner import SEARCH
from cil.strategies.parts.task_rehearsal import TaskRehearsal
from cil.strategies.registry import register
from cil.streams import Experience


@register("task_replay")
class TaskReplay(TaskRehearsal):
    """One backbone; old and new batch weigh the same. The earlier task of a step is chosen at random, all alike.

    Args:
        search: See ``TaskRecipe``. Trials are judged on the new task.
        examples: m, images kept of each task: floor(m / C) a class, of several labels a random m. The budget caps it.

    Source:
        A baseline: ``replay`` on task streams.
    """

    def __init__(
        self, make_net: NetFactory, budget: Budget, *, search: Mapping[str, Any] = SEARCH, examples: int = 100
    ) -> None:
        super().__init__(make_net, budget, search=search)
        check.at_least(0, "task_replay", examples=examples)
        self.examples = examples

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return self.plan(min(slots, self.examples), counts)

    def prepare(self, experience: Experience) -> None:
        held = [task for task in self.tasks if task != self.task and len(self.past(task))]
        self.weights = dict.fromkeys(held, 1.0)

    def loss_with(self, settings: Settings, batch: Batch) -> dict[str, Tensor]:
        parts = [(self.task, batch)]
        for task in self.draw_tasks(self.weights):
            old = self.past_batch(task, len(batch))
            parts += [] if old is None else [(task, old)]
        return dict(zip(("new", "old"), self.losses_of(parts, settings), strict=False))

    def after_experience(self, experience: Experience) -> None:
        self.remember(experience.train, min(self.budget.exemplar_slots(self), self.examples))
