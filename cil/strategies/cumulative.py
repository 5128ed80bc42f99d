"""Cumulative: all tasks seen, trained together in one network. It keeps all data: an upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cil.contract import Phase, Settings
from cil.data import Batch, Samples
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.parts.task_learner import SEARCH
from cil.strategies.parts.task_rehearsal import TaskRehearsal
from cil.strategies.registry import register
from cil.streams import Experience


@register("cumulative")
class Cumulative(TaskRehearsal):
    """From the previous weights, each image of a batch is of a task seen, chosen at random, with the loss of its head.

    It keeps all past data and is charged for them; a budget only reports on it, and tables keep it out of rankings. An
    event has as many steps as with other learners, so that the new task has a t-th part of them; or t times as many.

    Args:
        search: See ``TaskRecipe``. Trials are judged on the new task.
        power: A task of n images is chosen in proportion to n^power; 0: all alike.
        growing: Whether the t-th task has t times ``search.steps`` steps.

    Source:
        The multi-task learner of NEVIS'22 (Bornschein et al., JMLR 24 (308), 2023), not confirmed in its code.
        Departure: there all of a batch is of one task, which batch norm does not survive: it is trained with the
        statistics of one task and tested with those of all (ResNet-14, second of two tasks: 23 % error on `textures`,
        where this has 0).
    """

    bound = True

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
        check.between(0, 1, "cumulative", power=power)
        check.one_of((False, True), "cumulative", growing=growing)
        self.power, self.growing = power, growing

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return self.plan(None, counts)

    def prepare(self, experience: Experience) -> None:
        sizes = {task: len(self.past(task)) for task in self.tasks} | {self.task: len(experience.train)}
        self.weights = {task: size**self.power for task, size in sizes.items() if size}

    def phase(self, data: Samples, settings: Settings) -> Phase:
        phase = super().phase(data, settings)
        return replace(phase, steps=self.recipe.steps * len(self.tasks)) if self.growing else phase

    def loss_with(self, settings: Settings, batch: Batch) -> Tensor:
        parts = self.mixture(batch, self.weights)
        losses = torch.stack(self.losses_of(parts, settings))
        sizes = losses.new_tensor([len(part) for _, part in parts])
        return (sizes * losses).sum() / sizes.sum()

    def after_experience(self, experience: Experience) -> None:
        self.remember(experience.train, None)
