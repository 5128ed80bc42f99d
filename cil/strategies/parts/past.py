"""Images of earlier tasks: one memory for each data set, whatever kind of labels it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from cil.data import Batch, Samples
from cil.memory import ExemplarMemory
from cil.strategies.base import Strategy
from cil.strategies.parts.rehearsal import draw
from cil.streams import Signature, TaskKey


@dataclass
class Past:
    """The memories of a learner's tasks. It holds nothing itself: the memories are kept by the learner.

    Attributes:
        tasks: Met so far, in order of arrival, the one that is trained included.
        arriving: Images of each slot in the experience that is trained.
    """

    learner: Strategy
    tasks: list[TaskKey] = field(default_factory=list)
    arriving: dict[int, int] = field(default_factory=dict)

    def open(self, signature: Signature) -> None:
        """Keep a memory for a data set that is new; call it in ``grow_net``."""
        task = signature.task
        assert task is not None
        self.arriving = dict(signature.counts)
        if task not in self.tasks:
            self.tasks.append(task)
            several = {"targets": "labels"} if task.multilabel else {}
            memory = ExemplarMemory(selection="random", extras=several, extra_bytes=task.classes if several else 0)
            self.learner.keep(_name(task), memory, kind="exemplars")

    def memory(self, task: TaskKey) -> ExemplarMemory:
        """The memory of a task."""
        return self.learner.memories()[_name(task)]

    def memory_of(self, slot: int) -> str | None:
        """See ``Strategy.memory_of``."""
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
                plan[slot] = count if most is None else min(_each(task, most), count)
        return plan

    def remember(self, task: TaskKey, train: Samples, most: int | None) -> None:
        """Hold images of a task in place of what was held of it, and no more of the others: an equal number a class.

        Args:
            most: Images of each task, floor(most / C) a class; None: all.
        """
        if train.targets is not None:
            store, extras = train.joined().parts[0][0], {"targets": train.targets.to(torch.uint8)}
            train = Samples(store, train.slots, extras=extras)
        for held in self.tasks if most is not None else ():
            self.memory(held).shrink(_each(held, most))  # type: ignore[arg-type]
        self.memory(task).replace([])
        quota = len(train) if most is None else _each(task, most)
        self.memory(task).rebuild(train, quota, _unseen, self.learner.generator(f"remember:{task.name}"))

    def batch(self, task: TaskKey, size: int) -> Batch | None:
        """Images of a task, drawn for this step and mirrored where it allows that; None where none are held."""
        held = self.memory(task).samples()
        if not len(held):
            return None
        if "targets" in held.extras:
            held = Samples(held.parts[0][0], held.slots, targets=held.extras["targets"].float())
        augment = self.learner.desk.augment
        augment = replace(augment, flip=augment.flip and task.mirrored)
        return draw(self.learner, held, size, f"past:{task.name}", augment)

    def mixture(self, new: TaskKey, batch: Batch, weights: Mapping[TaskKey, float]) -> list[tuple[TaskKey, Batch]]:
        """As many images as in a batch of the new task, each of a task drawn by weight: a part for each task drawn.

        Images of a task that holds fewer than were drawn of it come again.
        """
        parts = []
        for task, count in self.draw_tasks(weights, len(batch)).items():
            part = batch if task == new else self.batch(task, count)
            if part is not None:
                parts.append((task, _rows(part, torch.arange(count, device=part.slots.device) % len(part))))
        return parts

    def draw_tasks(self, weights: Mapping[TaskKey, float], count: int = 1) -> dict[TaskKey, int]:
        """How often each task comes in ``count`` draws by weight for this step; none where all weights are 0."""
        tasks = [task for task, weight in weights.items() if weight > 0]
        if not tasks:
            return {}
        generator = self.learner.generator(f"task:{self._progress.step}")
        shares = torch.tensor([weights[task] for task in tasks], dtype=torch.float64)
        drawn = torch.multinomial(shares, count, replacement=True, generator=generator).tolist()
        return {tasks[place]: drawn.count(place) for place in sorted(set(drawn))}

    @property
    def _progress(self) -> Any:
        return self.learner.progress


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return Batch(batch.images[rows], batch.slots[rows], None if batch.targets is None else batch.targets[rows])


def _name(task: TaskKey) -> str:
    return f"past_{task.name}"


def _each(task: TaskKey, most: int) -> int:
    """Images of a class; of a task with several labels, whose images have no class, of all."""
    return most if task.multilabel else most // task.classes


def _unseen(samples: Samples) -> Tensor:
    return torch.empty(len(samples), 0)
