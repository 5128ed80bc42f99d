"""What a step of training or adaptation will hold: told before the first step, by one that nothing is learned from.

On ``meta`` such a step takes no memory and no arithmetic, and needs no data where shapes are static. Where a method
asks for values, a step is made on the CPU, on images of noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cil.adapt import Adapter, Source
from cil.contract import Desk, Holder, Phase, Progress, Search
from cil.data import ArrayStore, Augment, Batch, Samples
from cil.data.samples import to_float
from cil.engine.cost import MEASURED, held_tensors
from cil.engine.dryrun import Bill, MakeLearner, held_in
from cil.engine.fit import gradients_for
from cil.engine.incoming import met
from cil.engine.keys import generator
from cil.engine.learners import MakeFactory, all_evaluating
from cil.engine.loader import batch_bounds
from cil.engine.onmeta import OnMeta
from cil.engine.recipe import Recipe
from cil.errors import CilError, ConfigError
from cil.memory import Budget, ExemplarMemory, FeatureMemory, selection, tensor_bytes
from cil.memory.exemplars import label_dtype
from cil.memory.features import DTYPES
from cil.memory.training import (
    Count,
    Part,
    Published,
    SavedByPart,
    SavedTensor,
    TrainingMemory,
    Watch,
    by_kind,
    counting_inputs,
    dtypes_of,
    optimizer_bytes,
    parts_of,
)
from cil.strategies import Strategy
from cil.streams import Experience, Signature

ENOUGH = 4  # batches of noise on the CPU, where an experience has more images


@dataclass(frozen=True)
class Measured:
    """The largest batch of the first steps of a phase."""

    name: str
    batch_size: int
    parts: tuple[Part, ...]
    dtypes: dict[str, int]
    added: dict[str, int]  # bytes that it adds to what is held, by kind
    published: Published


# strategies -----------------------------------------------------------------------------------------------------------


@dataclass
class StrategySteps:
    """The steps of a strategy on a stream, measured before anything is trained.

    Args:
        make_learner, make_factory, recipe, augment, precision, seed: As of a run.
        signatures: Of the stream; nothing else of it is looked at.
        budget: Not changed.
        bills: What is carried after each experience.
        name: Of the strategy, for messages.
    """

    make_learner: MakeLearner
    make_factory: MakeFactory
    signatures: Sequence[Signature]
    budget: Budget
    bills: Sequence[Bill]
    recipe: Recipe
    name: str
    augment: Augment = field(default_factory=Augment)
    precision: str = "fp32"
    seed: int = 0

    def largest(self, batch_size: int | None = None) -> TrainingMemory:
        """The largest step of the first, the second and the last experience.

        A method grows towards the last one, or trains at the first alone, or rehearses most of a class in the second.
        """
        last = len(self.signatures) - 1
        indices = sorted({0, min(1, last), last}, reverse=True)
        return max((self.at(index, batch_size) for index in indices), key=lambda memory: memory.total)

    def at(self, index: int, batch_size: int | None = None) -> TrainingMemory:
        """The largest step of experience ``index``.

        Args:
            index: From 0.
            batch_size: In place of the recipe's, in all phases.

        Raises:
            CilError: where the strategy refuses its configuration.
            ConfigError: where it cannot be stepped on images of noise either.
        """
        return _on_first(f"{self.name}, experience {index + 1}", self.precision, partial(self._at, index, batch_size))

    def _at(self, index: int, batch_size: int | None, device: torch.device, refused: str) -> TrainingMemory:
        learner, experience = self._met(index, device)
        found: list[Measured] = []
        phases = learner.phases(experience)
        while True:
            with all_evaluating(learner):
                phase = next(phases, None)
            if phase is None:
                return self._told(learner, index, found, device, refused)
            learner.to(device)
            phase = phase.trial(phase.middle) if isinstance(phase, Search) else phase
            step = self._step_of(learner, phase, index, batch_size)
            if step is not None:
                found.append(step)

    def _met(self, index: int, device: torch.device) -> tuple[Strategy, Experience]:
        """A learner that has come to the phases of an experience, as in a run but for the values."""
        own = replace(self.budget)
        on_meta = device.type == "meta"
        factory = self.make_factory(seed=self.seed, device=device, meta=on_meta)
        learner = self.make_learner(factory, own)
        learner.desk = Desk(device, partial(generator, self.seed, "strategy", index), augment=self.augment)
        learner.to(device)
        held: dict[int, int] = {}
        for past in range(index):
            signature = met(learner, self.signatures[past], own)
            learner.grow(signature)
            learner.to(device)
            choice = {slot: held.get(slot, 0) + signature.counts.get(slot, 0) for slot in range(signature.num_classes)}
            held = learner.exemplar_plan(own.exemplar_slots(learner), choice)
        for name, memory in learner.memories().items():
            fill(memory, held_in(learner, name, held), learner.image_shape)
            if memory.select.needs != "nothing":
                memory.select = selection("random")  # which exemplars a rule would choose changes no byte
        if index:
            with all_evaluating(learner):
                learner.load_state(learner.state())  # what is computed anew at each boundary
            learner.to(device)
        signature = met(learner, self.signatures[index], own)
        experience = self._experience(signature, noise=not on_meta)
        with all_evaluating(learner):
            learner.before_experience(experience)
        learner.grow(signature)
        learner.to(device)
        with all_evaluating(learner):
            learner.prepare(experience)
        learner.to(device)
        return learner, experience

    def _experience(self, signature: Signature, noise: bool) -> Experience:
        counts = dict(signature.counts)
        if noise:  # methods look at all images; a few batches of them are as good
            most = ENOUGH * self.recipe.batch_size * self.recipe.accumulate
            share = min(1.0, most / max(1, sum(counts.values())))
            counts = {slot: min(count, max(2, math.ceil(count * share))) for slot, count in counts.items()}
        slots = torch.repeat_interleave(torch.tensor(sorted(counts)), torch.tensor([counts[s] for s in sorted(counts)]))
        train, task = made_up(slots, signature.image_shape, noise), signature.task
        if task is not None and task.multilabel:
            train = Samples(train.parts[0][0], slots, targets=torch.zeros(len(slots), task.classes))
        return Experience(replace(signature, counts=counts), train, None if task is None else train)

    def _step_of(self, learner: Strategy, phase: Phase, index: int, batch_size: int | None) -> Measured | None:
        recipe = self.recipe.of(phase, index)
        if batch_size is not None:
            recipe = replace(recipe, batch_size=batch_size)
        return phase_step(learner, phase, recipe)

    def _told(
        self, learner: Strategy, index: int, found: list[Measured], device: torch.device, refused: str
    ) -> TrainingMemory:
        kinds = dict(self.bills[index].by_kind)
        for entry in learner.training_entries():
            kinds[entry.kind] = kinds.get(entry.kind, 0) + entry.bytes
        where = f"experience {index + 1} of {len(self.signatures)}"
        if not found:
            parts = parts_of(Watch(modules_of(learner)), (), {})
            return TrainingMemory(by_kind(kinds), parts, {}, 0, device.type, f"{where}, where nothing is trained")
        largest = max(found, key=lambda measured: sum(measured.added.values()))
        for kind, value in largest.added.items():
            kinds[kind] = kinds.get(kind, 0) + value
        where = f"{where}, phase {largest.name}"
        return told(largest, kinds, device, where, refused)


# adapters -------------------------------------------------------------------------------------------------------------


@dataclass
class AdapterSteps:
    """The steps of an adapter on a network, measured before it meets an image.

    Args:
        make_adapter, make_source: As of an adaptation run.
        name: Of the adapter, for messages.
        recipe: How its source phases are trained, where it has some.
        precision, seed: As of a run.
    """

    make_adapter: Callable[[Source], Adapter]
    make_source: Callable[[torch.device], Source]
    name: str
    recipe: Recipe = field(default_factory=Recipe)
    precision: str = "fp32"
    seed: int = 0

    def at(self, batch_size: int) -> TrainingMemory:
        """What an update on ``batch_size`` images holds; the second one, as the first makes state.

        Raises:
            CilError: where the adapter refuses its configuration or the network.
            ConfigError: where it cannot be stepped on images of noise either.
        """
        return _on_first(self.name, self.precision, partial(self._at, batch_size))

    def source_phases(self) -> TrainingMemory | None:
        """The largest step on source data before deployment; None where there is none."""
        found = _on_first(self.name, self.precision, self._of_phases)
        return found if found.batch_size else None

    def _made(self, device: torch.device) -> tuple[Adapter, Samples | None]:
        """An adapter that is deployed, and source data that nobody has seen where it wants some."""
        source = self.make_source(torch.device("cpu"))
        adapter = self.make_adapter(replace(source, net=source.net.to(device), reference=None))
        adapter.desk = Desk(device, partial(generator, self.seed, "adapter", "memory"))
        adapter.to(device)
        if not adapter.needs_source:
            return adapter, None
        slots = torch.arange(max(2 * adapter.num_classes, 2 * self.recipe.batch_size)) % adapter.num_classes
        return adapter, made_up(slots, adapter.image_shape, noise=device.type != "meta")

    def _of_phases(self, device: torch.device, refused: str) -> TrainingMemory:
        adapter, source = self._made(device)
        steps = () if source is None else map(partial(self._step_of, adapter), adapter.phases(source))
        found = [step for step in steps if step is not None]
        kinds = held_by_kind(adapter)
        if not found:
            return TrainingMemory(kinds, (), {}, 0, device.type)
        largest = max(found, key=lambda measured: sum(measured.added.values()))
        return told(largest, _sum(kinds, largest.added), device, f"source phase {largest.name}", refused)

    def _step_of(self, adapter: Adapter, phase: Phase) -> Measured | None:
        return phase_step(adapter, phase, self.recipe.of(phase, 0))

    def _at(self, batch_size: int, device: torch.device, refused: str) -> TrainingMemory:
        adapter, source = self._made(device)
        if source is not None:
            for _ in adapter.phases(source):
                pass  # code between two phases makes what an update reads
        adapter.deploy(source)
        modules = modules_of(adapter)
        batch = made_up(torch.zeros(batch_size), adapter.image_shape, noise=device.type != "meta")
        images = to_float(batch.pixels.to(device))
        with Watch(modules) as watch:
            adapter.adapt_and_predict(images)  # makes state
            with SavedByPart(watch, held_tensors(adapter)) as saved, torch.enable_grad():
                adapter.adapt_and_predict(images)
        added = {"activations": saved.peak, "gradients": sum(map(tensor_bytes, watch.graded.values()))}
        state = carried_moments(adapter)
        rule = self._published(adapter, images)
        parts, dtypes = parts_of(watch, saved.at_peak, state), dtypes_of(saved.at_peak)
        one = Measured("update", batch_size, parts, dtypes, added, rule)
        return told(one, _sum(held_by_kind(adapter), added), device, "update on a batch", refused)

    def _published(self, adapter: Adapter, images: Tensor) -> Published:
        """By the rule: every float copy that is kept counts four bytes, what is frozen in the network itself one."""
        trained = {id(p) for p in adapter.trainable()}
        if not trained:
            return Published(0, sum(p.numel() for p in adapter.net.parameters()), 0, 0)
        with counting_inputs(modules_of(adapter).values()) as count, torch.enable_grad():
            forward(adapter, images)
        with counting_inputs([]) as plain, torch.no_grad():
            adapter.source_predict(images)
        own = {id(p): p.numel() for p in adapter.net.parameters()}
        others = [module for name, module in modules_of(adapter).items() if name != "net"]
        numbers = {id(p): p.numel() for module in others for p in module.parameters()} | own
        trainable = sum(size for key, size in numbers.items() if key in trained)
        copies = sum(size for key, size in numbers.items() if key not in trained and key not in own)
        frozen = sum(size for key, size in own.items() if key not in trained)
        return Published(trainable, frozen, count.inputs, plain.relus, 1 + copies / max(1, trainable))


def forward(adapter: Adapter, images: Tensor) -> Any:
    """The forward pass that is learned from: through the meta networks where there are some."""
    adapted = getattr(adapter, "adapted", None)
    return adapted(images) if callable(adapted) else adapter.logits(images)


def held_by_kind(holder: Holder) -> dict[str, int]:
    """Bytes of all that is kept, carried or not."""
    state = holder.state()
    kinds: dict[str, int] = {}
    for name, tensor in state.tensors.items():
        kinds[state.kinds[name]] = kinds.get(state.kinds[name], 0) + tensor_bytes(tensor)
    more = {"other": len(state.encoded_meta()), "parameters": sum(one.bytes for one in state.references)}
    for entry in holder.training_entries():
        more[entry.kind] = more.get(entry.kind, 0) + entry.bytes
    return by_kind(_sum(kinds, more))


def carried_moments(adapter: Adapter) -> dict[int, int]:
    """Bytes of kept optimizers by ``id`` of the parameter that they move."""
    found: dict[int, int] = {}
    optimizers: list[Any] = [value for value in adapter.modules() if hasattr(value, "tuned")]
    for optimizer in optimizers:
        size = sum(tensor_bytes(value) for value in optimizer.buffers())
        count = sum(p.numel() for p in optimizer.tuned)
        found |= {id(p): size * p.numel() // count for p in optimizer.tuned}
    return found


def _sum(*several: Mapping[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for kinds in several:
        for kind, size in kinds.items():
            total[kind] = total.get(kind, 0) + size
    return total


def admission(budget: Budget, steps: AdapterSteps) -> Callable[[Adapter, tuple[int, ...]], None]:
    """What an adaptation run asks before anything else is done (``AdaptationRun.admit``)."""

    def admit(adapter: Adapter, shape: tuple[int, ...]) -> None:
        budget.check_training(steps.name, lambda size: steps.at(size or shape[0]), "adaptation.batch_size")

    return admit


def _on_first(name: str, precision: str, work: Callable[[torch.device, str], TrainingMemory]) -> TrainingMemory:
    """Do it on ``meta``; where values are asked for, on the CPU."""
    refused = "" if precision == "fp32" else f"types of trainer.precision={precision} are chosen on a device alone"
    if not refused:
        try:
            with OnMeta(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # values that are copied to where there are none
                return work(torch.device("meta"), "")
        except CilError:
            raise
        except Exception as error:  # of any kind: code that asks for values fails in its own way
            refused = _said(error)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    try:
        with torch.autocast("cpu", kinds[precision]) if precision in kinds else nullcontext():
            return work(torch.device("cpu"), refused)
    except CilError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} cannot make a step on images of noise: {_said(error)}") from error


# any phase ------------------------------------------------------------------------------------------------------------


def phase_step(learner: Strategy | Adapter, phase: Phase, recipe: Recipe) -> Measured | None:
    """The first steps of a phase, as ``Fit`` would make and bill them; None where there is nothing to train on."""
    data = {"": phase.data} if isinstance(phase.data, Samples) else dict(phase.data)
    main = next(iter(data))
    bounds = batch_bounds(len(data[main]), recipe.batch_size)[: MEASURED * recipe.accumulate]
    if not len(data[main]):
        return None
    given: Any = learner.trainable() if phase.parameters is None else phase.parameters
    groups = [{**group, "params": list(group["params"])} if isinstance(group, dict) else group for group in given]
    flat = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    if not flat:
        raise ConfigError(f"phase '{phase.name}' has nothing to train: no kept parameter requires a gradient")
    optimizer = recipe.optimizer(groups)
    learner.progress = Progress(0, recipe.epochs, 0, recipe.epochs * len(bounds))
    (phase.train_mode or learner.train_mode)()
    modules = modules_of(learner)
    meters: list[tuple[int, list[SavedTensor]]] = []  # bytes, and what was saved
    rule, gradients = Published(0, 0, 0, 0), 0
    with gradients_for(flat, learner.trainable()), Watch(modules) as watch:
        for step, (start, stop) in enumerate(bounds):
            batch = _batch(learner, data, start, stop, recipe.batch_size)
            with counting_inputs(modules.values()) as count, SavedByPart(watch, held_tensors(learner)) as saved:
                terms = phase.loss(batch)
                values = list(terms.values()) if isinstance(terms, Mapping) else [terms]
                loss = values[0] if len(values) == 1 else torch.stack(values).sum()
            learner.desk.backward(loss)
            meters.append((saved.bytes, saved.saved))
            rule = max(rule, _ruled(modules, flat, count), key=lambda one: one.bytes)
            if (step + 1) % recipe.accumulate == 0 or step + 1 == len(bounds):
                with SavedByPart(watch, held_tensors(learner)) as saved:
                    learner.adjust_gradients(batch)
                meters.append((saved.peak, saved.at_peak))
                gradients = sum(tensor_bytes(p.grad) for p in flat if p.grad is not None)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                learner.after_step(batch)
            learner.progress.step += 1
        size, tensors = max(meters, key=lambda meter: meter[0])
        state = optimizer_bytes(optimizer)
        added = {"activations": size, "gradients": gradients, "optimizer": sum(state.values())}
        parts = parts_of(watch, tensors, state)
    images = max(stop - start for start, stop in bounds)
    return Measured(phase.name, images, parts, dtypes_of(tensors), added, rule)


def _batch(learner: Holder, data: Mapping[str, Samples], start: int, stop: int, size: int) -> Batch:
    """A batch of each stream of a phase, as the loader makes them; images are not augmented, which changes no byte."""
    main, device = next(iter(data)), learner.device
    made = {}
    for name, samples in data.items():
        if not len(samples):
            continue
        order = torch.randperm(len(samples), generator=learner.generator(f"order:{name}"))
        rows = order[start:stop] if name == main else order[: min(size, len(samples))]
        part = samples[rows]
        pixels, targets = part.pixels, part.targets
        made[name] = Batch(
            to_float(pixels.to(device)),
            part.slots,
            None if targets is None else targets.to(device),
            partial(_same, pixels),
            rows,
            {key: values.to(device) for key, values in part.extras.items()},
        )
    batch = made[main]
    return replace(batch, streams=made) if main or len(made) > 1 else batch


def _same(pixels: Tensor) -> Tensor:
    return pixels


def _ruled(modules: Mapping[str, nn.Module], trained: Sequence[Tensor], count: Count) -> Published:
    """The published accounting of a step: what is trained is float, all other parameters are frozen."""
    everything = {id(p): p for module in modules.values() for p in module.parameters()}
    trainable = sum(p.numel() for p in trained)
    chosen = {id(p) for p in trained}
    frozen = sum(p.numel() for key, p in everything.items() if key not in chosen)
    return Published(trainable, frozen, count.inputs, count.relus_on_the_way)


def told(one: Measured, kinds: Mapping[str, int], device: torch.device, where: str, refused: str) -> TrainingMemory:
    """A measured step and what is held beside it, as a report."""
    return TrainingMemory(
        by_kind(kinds), one.parts, one.dtypes, one.batch_size, device.type, where, one.published, refused
    )


def modules_of(learner: Holder) -> dict[str, nn.Module]:
    """What is kept and is a network, by name; optimizers are not."""
    held = learner.held().items()
    return {name: value for name, value in held if isinstance(value, nn.Module) and not hasattr(value, "tuned")}


# images and exemplars that nobody has seen ----------------------------------------------------------------------------


def made_up(slots: Tensor, shape: tuple[int, int, int], noise: bool) -> Samples:
    """Samples of these slots: noise, or black images that are one byte in memory."""
    count = len(slots)
    if noise:
        drawn = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0))
        return Samples(ArrayStore(drawn.to(torch.uint8)), slots)
    return Samples(ArrayStore(torch.zeros((), dtype=torch.uint8).expand(count, *shape)), slots)


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


def _said(error: Exception) -> str:
    """An error of code that asks ``meta`` for a value, in one line."""
    first = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {first[:160]}"
