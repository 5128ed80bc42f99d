"""Cumulative: all tasks seen, trained together in one network. It keeps all data: an upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cil.contract import Phase, Settings
from cil.data import Batch, Samples
from cil.memory import Budget
from cil.models import NetFactory, TaskNet
from cil.strategies.parts.past import Past
from cil.strategies.parts.tasks import SEARCH, TaskLearner
from cil.strategies.ranges import between, one_of
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("cumulative")
class Cumulative(TaskLearner):
    """From the previous weights, each image of a batch is of a task seen, chosen at random, with the loss of its head.

    It keeps all past data and is charged for them; a budget only reports on it, and tables keep it out of rankings. An
    event has as many steps as with other learners, so that the new task has a t-th part of them; or t times as many.

    Args:
        search: See ``cil.strategies.parts.tasks.TaskRecipe``. Trials are judged on the new task.
        power: A task of n images is chosen in proportion to n^power; 0: all alike.
        growing: Whether the t-th task has t times ``search.steps`` steps.

    Source:
        Specification of task streams, section 8 (the paper's multi-task learner, not confirmed in its code). Departure:
        there all of a batch is of one task, which batch norm does not survive: it is trained with the statistics of one
        task and tested with those of all (ResNet-14, second of two tasks: 23 % error on `textures`, where this has 0).
    """

    bound = True
    net: TaskNet

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        search: Mapping[str, Any] = SEARCH,
        power: float = 0.0,
        growing: bool = False,
    ) -> None:
        super().__init__(make_net, budget, search=search)
        between(0, 1, "cumulative", power=power)
        one_of((False, True), "cumulative", growing=growing)
        self.power, self.growing = power, growing
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

    def phase(self, data: Samples, settings: Settings) -> Phase:
        phase = super().phase(data, settings)
        return replace(phase, steps=self.recipe.steps * len(self.past.tasks)) if self.growing else phase

    def loss_with(self, settings: Settings, batch: Batch) -> Tensor:
        parts = self.past.mixture(self.task, batch, self.weights)
        losses = torch.stack(self.losses_of(parts, settings))
        sizes = losses.new_tensor([len(part) for _, part in parts])
        return (sizes * losses).sum() / sizes.sum()

    def after_experience(self, experience: Experience) -> None:
        self.past.remember(self.task, experience.train, None)
