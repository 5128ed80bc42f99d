"""Task replay: each step a batch of the new task and one of an earlier task, each with the loss of its head."""

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
from cil.strategies.ranges import at_least
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("task_replay")
class TaskReplay(TaskLearner):
    """One backbone; old and new batch weigh the same. The earlier task of a step is chosen at random, all alike.

    Args:
        search: See ``cil.strategies.parts.tasks.TaskRecipe``. Trials are judged on the new task.
        examples: m, images kept of each task: floor(m / C) a class, of several labels a random m. The budget caps it.

    Source:
        Specification of task streams, section 8, Replay(m). ``replay`` is its like on class-incremental streams.
    """

    net: TaskNet

    def __init__(
        self, make_net: NetFactory, budget: Budget, *, search: Mapping[str, Any] = SEARCH, examples: int = 100
    ) -> None:
        super().__init__(make_net, budget, search=search)
        at_least(0, "task_replay", examples=examples)
        self.examples = examples
        self.past = Past(self)

    def build_net(self) -> TaskNet:
        return TaskNet(self.make_net("linear"))

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.past.open(signature)

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return self.past.plan(min(slots, self.examples), counts)

    def memory_of(self, slot: int) -> str | None:
        return self.past.memory_of(slot)

    def prepare(self, experience: Experience) -> None:
        held = [task for task in self.past.tasks if task != self.task and len(self.past.memory(task))]
        self.weights = dict.fromkeys(held, 1.0)

    def tuned(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    def loss_with(self, settings: Settings, batch: Batch) -> dict[str, Tensor]:
        parts = [(self.task, batch)]
        for task in self.past.draw_tasks(self.weights):
            old = self.past.batch(task, len(batch))
            parts += [] if old is None else [(task, old)]
        return dict(zip(("new", "old"), self.losses_of(parts, settings), strict=False))

    def after_experience(self, experience: Experience) -> None:
        most = min(self.budget.exemplar_slots(self), self.examples)
        self.past.remember(self.task, experience.train, most)
