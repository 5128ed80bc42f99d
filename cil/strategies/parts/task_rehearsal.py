"""Rehearsal on task streams: one memory for each data set, whatever kind of labels it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cil.data import Batch, Samples
from cil.memory import Budget, ExemplarMemory
from cil.models import NetFactory, TaskNet
from cil.strategies.parts.rehearsal import draw_batch
from cil.strategies.parts.task_learner import SEARCH, TaskLearner
from cil.streams import Signature, TaskKey


class TaskRehearsal(TaskLearner):
    """One backbone with a head for each task, all of which learn in every experience, and a memory for each task.

    Attributes:
        tasks: Tasks seen, in order of arrival, with the one that is trained.
        arriving: Images of each slot in the experience that is trained.
    """

    net: TaskNet

    def __init__(self, make_net: NetFactory, budget: Budget, *, search: Mapping[str, Any] = SEARCH) -> None:
        super().__init__(make_net, budget, search=search)
        self.tasks: list[TaskKey] = []
        self.arriving: dict[int, int] = {}

    def grow_net(self, signature: Signature) -> None:
        """Open a head and keep a memory for a data set that is new."""
        super().grow_net(signature)
        task = self.task
        self.arriving = dict(signature.counts)
        if task not in self.tasks:
            self.tasks.append(task)
            extras = {"targets": "labels"} if task.multilabel else {}
            memory = ExemplarMemory(selection="random", extras=extras, extra_bytes=task.classes if extras else 0)
            self.keep(_name(task), memory, kind="exemplars")

    def tuned(self) -> list[nn.Parameter]:
        return list(self.net.parameters())

    def past(self, task: TaskKey) -> ExemplarMemory:
        return self.memories()[_name(task)]

    def memory_of(self, slot: int) -> str | None:
        return next((_name(task) for task in self.tasks if 0 <= slot - task.first < task.classes), None)

    def plan(self, most: int | None, counts: Mapping[int, int]) -> dict[int, int]:
        """Exemplars of each slot after an experience, for the dry run; see ``remember`` and ``Strategy.exemplar_plan``.

        Args:
            most: Images of each task; None: all there are.
            counts: Images of each slot to choose from.
        """
        plan = {}
        for task in self.tasks:
            for slot in range(task.first, task.first + task.classes):
                count = min(counts.get(slot, 0), self.arriving.get(slot, counts.get(slot, 0)))
                plan[slot] = count if most is None else min(_quota(task, most), count)
        return plan

    def remember(self, train: Samples, most: int | None) -> None:
        """Replace the exemplars of the task by images of ``train``, and shrink the other memories alike.

        Args:
            most: Images of each task, floor(most / C) a class; None: all.
        """
        if train.targets is not None:
            store, extras = train.joined().parts[0][0], {"targets": train.targets.to(torch.uint8)}
            train = Samples(store, train.slots, extras=extras)
        if most is not None:
            for held in self.tasks:
                self.past(held).shrink(_quota(held, most))
        self.past(self.task).replace([])
        quota = len(train) if most is None else _quota(self.task, most)
        self.past(self.task).rebuild(train, quota, _nothing, self.generator(f"remember:{self.task.name}"))

    def past_batch(self, task: TaskKey, size: int) -> Batch | None:
        """Images of a task, drawn for this step and mirrored where the task allows it; None where there are none."""
        held = self.past(task).samples()
        if not len(held):
            return None
        if "targets" in held.extras:
            held = Samples(held.parts[0][0], held.slots, targets=held.extras["targets"].float())
        augment = self.context.augment
        augment = replace(augment, flip=augment.flip and task.mirrored)
        return draw_batch(self, held, size, f"past:{task.name}", augment)

    def mixture(self, batch: Batch, weights: Mapping[TaskKey, float]) -> list[tuple[TaskKey, Batch]]:
        """A mixed batch of the size of the new one, each image of a task drawn by weight: a part for each task drawn.

        Images of a task that holds fewer than were drawn come again.
        """
        parts = []
        for task, count in self.draw_tasks(weights, len(batch)).items():
            part = batch if task == self.task else self.past_batch(task, count)
            if part is not None:
                parts.append((task, _rows(part, torch.arange(count, device=part.slots.device) % len(part))))
        return parts

    def draw_tasks(self, weights: Mapping[TaskKey, float], count: int = 1) -> dict[TaskKey, int]:
        """How often each task comes in ``count`` draws by weight for this step; empty if all weights are 0."""
        tasks = [task for task, weight in weights.items() if weight > 0]
        if not tasks:
            return {}
        shares = torch.tensor([weights[task] for task in tasks], dtype=torch.float64)
        generator = self.generator(f"task:{self.progress.step}")
        places = torch.multinomial(shares, count, replacement=True, generator=generator).tolist()
        return {tasks[place]: places.count(place) for place in sorted(set(places))}


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return Batch(batch.images[rows], batch.slots[rows], None if batch.targets is None else batch.targets[rows])


def _name(task: TaskKey) -> str:
    return f"past_{task.name}"


def _quota(task: TaskKey, most: int) -> int:
    """Images of a class; of a task with several labels, whose images have no class, of all."""
    return most if task.multilabel else most // task.classes


def _nothing(samples: Samples) -> Tensor:
    """Input of a random selection."""
    return torch.empty(len(samples), 0)
