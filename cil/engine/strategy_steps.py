"""The bytes that a step of a strategy will hold, experience by experience, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch

from cil.contract import RuntimeContext, Search
from cil.data import Samples
from cil.engine.dry_run import Bill, held_in, planned_exemplars
from cil.engine.keys import generator
from cil.engine.lifecycle import MakeFactory, MakeLearner, admit, all_evaluating, enter
from cil.engine.measured_step import Measured, modules_of, noise_samples, on_meta_or_cpu, phase_step, report, summed
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.memory import Allowance, Budget, ExemplarMemory, FeatureMemory, selection, tensor_bytes
from cil.memory.exemplars import label_dtype
from cil.memory.features import DTYPES
from cil.memory.training_memory import ForwardTracker, TrainingMemory, bytes_by_part, in_ledger_order
from cil.strategies import Strategy
from cil.streams import Experience, Signature, Stream

ENOUGH = 4  # batches of noise on the CPU, where an experience has more images


class Planned(Protocol):
    """What is planned: ``cil.engine.planned.PlannedWork``."""

    stream: Stream
    budget: Budget
    recipe: Recipe
    name: str
    runtime: Runtime
    seed: int

    @property
    def make_learner(self) -> MakeLearner: ...

    @property
    def make_factory(self) -> MakeFactory: ...

    @property
    def final_bytes(self) -> int | None: ...

    @property
    def bill(self) -> Sequence[Bill]: ...


class StrategySteps:
    """The steps of a strategy on a stream, measured before anything is trained.

    Args:
        work: What is planned; nothing of its stream is looked at but the signatures.
    """

    def __init__(self, work: Planned) -> None:
        self.work, self.signatures = work, work.stream.signatures

    def largest(self, batch_size: int | None = None) -> TrainingMemory:
        """The largest step of the first, the second and the last experience, and of those of most images and classes.

        A method grows towards the last one, or trains at the first alone, or rehearses most of a class in the second;
        batches and heads of tasks go by their size.
        """
        last = len(self.signatures) - 1
        images = [sum(signature.counts.values()) for signature in self.signatures]
        classes = [len(one.counts) if one.task is None else one.task.classes for one in self.signatures]
        most = {sizes.index(max(sizes)) for sizes in (images, classes)}
        indices = sorted({0, min(1, last), last} | most, reverse=True)
        return max((self.at(index, batch_size) for index in indices), key=lambda memory: memory.total)

    def at(self, index: int, batch_size: int | None = None) -> TrainingMemory:
        """The largest step of experience ``index``.

        Args:
            batch_size: In place of the recipe's, in all phases.

        Raises:
            CilError: where the strategy refuses its configuration.
            ConfigError: where it cannot be stepped on images of noise either.
        """
        name, precision = f"{self.work.name}, experience {index + 1}", self.work.runtime.precision
        return on_meta_or_cpu(name, precision, partial(self._at, index, batch_size))

    def _at(self, index: int, batch_size: int | None, device: torch.device, refused: str) -> TrainingMemory:
        learner, experience = self.reach_phases(index, device)
        found: list[Measured] = []
        phases = learner.phases(experience)
        while True:
            with all_evaluating(learner):
                phase = next(phases, None)
            if phase is None:
                return self._report(learner, index, found, device, refused)
            learner.to(device)
            copies = _copied(learner, phase) if isinstance(phase, Search) else 0
            phase = phase.trial(phase.middle) if isinstance(phase, Search) else phase
            step = phase_step(learner, phase, self.work.recipe.of(phase, index), batch_size)
            if step is not None:
                step = replace(step, added=summed(step.added, {"temporary": copies} if copies else {}))
                found.append(step)

    def reach_phases(self, index: int, device: torch.device) -> tuple[Strategy, Experience]:
        """A learner that has come to the phases of an experience, as in a run but for the values."""
        noise = device.type != "meta"
        work, budget, final = self.work, self.work.budget, self.work.final_bytes
        factory = work.make_factory(seed=work.seed, device=device, meta=not noise)
        learner = work.make_learner(factory, Allowance(budget))
        keyed = partial(generator, work.seed, "strategy", index)
        learner.context = RuntimeContext(device, keyed, augment=work.stream.augment)
        learner.to(device)

        def grow(signature: Signature) -> None:
            learner.grow(signature.lent())
            learner.to(device)

        held: dict[int, int] = {}
        for past in range(index):
            signature = admit(learner, self.signatures[past], budget, final)
            grow(signature)
            held = planned_exemplars(learner, signature, held)
        for name, memory in learner.memories().items():
            fill(memory, held_in(learner, name, held), learner.image_shape)
            if memory.select.needs != "nothing":
                memory.select = selection("random")  # which exemplars a rule would choose changes no byte
        if index:
            with all_evaluating(learner):
                learner.load_state(learner.state())  # what is computed anew at each boundary
            learner.to(device)
        signature = admit(learner, self.signatures[index], budget, final)
        experience = self._experience(signature, noise)
        enter(learner, experience, partial(grow, signature), lambda hook: all_evaluating(learner), lambda: None)
        return learner, experience

    def _experience(self, signature: Signature, noise: bool) -> Experience:
        counts = dict(signature.counts)
        if noise:  # methods look at all images; a few batches of them are as good
            most = ENOUGH * self.work.recipe.batch_size * self.work.recipe.accumulate
            share = min(1.0, most / max(1, sum(counts.values())))
            counts = {slot: min(count, max(2, math.ceil(count * share))) for slot, count in counts.items()}
        slots = torch.repeat_interleave(torch.tensor(sorted(counts)), torch.tensor([counts[s] for s in sorted(counts)]))
        train, task = noise_samples(slots, signature.image_shape, noise), signature.task
        if task is not None and task.multilabel:
            train = Samples(train.parts[0][0], slots, targets=torch.zeros(len(slots), task.classes))
        return Experience(replace(signature, counts=counts), train, None if task is None else train)

    def _report(
        self, learner: Strategy, index: int, found: list[Measured], device: torch.device, refused: str
    ) -> TrainingMemory:
        lines = learner.training_entries()
        kinds = summed(self.work.bill[index].by_kind, *({line.kind: line.bytes} for line in lines))
        where = f"experience {index + 1} of {len(self.signatures)}"
        if not found:
            parts = bytes_by_part(ForwardTracker(modules_of(learner)), (), {})
            return TrainingMemory(
                in_ledger_order(kinds), parts, {}, 0, device.type, f"{where}, where nothing is trained"
            )
        largest = max(found, key=lambda measured: sum(measured.added.values()))
        return report(largest, summed(kinds, largest.added), device, f"{where}, phase {largest.name}", refused)


def _copied(learner: Strategy, search: Search) -> int:
    """Bytes that a search holds beside the learner: where its trials start, and from the second on the best so far."""
    size = sum(map(tensor_bytes, learner.full_state()[0].values()))
    return size * (2 if search.trials > 1 or search.refit is not None else 1)


def fill(memory: ExemplarMemory, counts: Mapping[int, int], shape: tuple[int, int, int]) -> None:
    """Let a memory hold so many exemplars of each slot; what they show is one byte in memory where sizes are fixed."""
    slots = torch.tensor([slot for slot, count in sorted(counts.items()) for _ in range(count)], dtype=torch.int64)
    if not len(slots):
        return
    count, tensors = len(slots), {"slots": slots.to(label_dtype(int(slots.max()) + 1))}
    if memory.codec.fixed:
        stored = memory.codec.stored_shape(shape)
        tensors["images"] = torch.zeros((), dtype=torch.uint8).expand(count, *stored)
    else:
        data, sizes = memory.codec.encode(torch.zeros(1, *shape, dtype=torch.uint8))
        tensors["images"], tensors["sizes"] = data.repeat(count), sizes.repeat(count)
    if isinstance(memory, FeatureMemory):
        tensors["features"] = torch.zeros(count, memory.dim, dtype=DTYPES[memory.bits])
        tensors |= {name: torch.ones(count) for name in memory.extra_kinds if name != "features"}
    else:
        each = memory.extra_bytes // max(1, len(memory.extra_kinds))
        for name, kind in memory.extra_kinds.items():
            dtype = torch.uint8 if kind == "labels" else torch.float32
            tensors[name] = torch.zeros(count, each // dtype.itemsize, dtype=dtype)
    memory.load({name: tensors[name] for name in memory.tensor_names & tensors.keys()}, shape)
