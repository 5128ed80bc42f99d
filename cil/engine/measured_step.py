"""The memory of a training step, measured before the first one on a step that nothing is learned from.

On ``meta`` such a step takes no memory and no arithmetic, and needs no data where shapes are static. Where a method
asks for values, a step is made on the CPU, on images of noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cil.adapt import Adapter
from cil.contract import Holder, Phase
from cil.data import ArrayStore, Augment, Batch, Samples
from cil.data.samples import batch_bounds, to_float
from cil.engine.arrival import Pace
from cil.engine.cost import Cost, Unbilled, beside_phase, held_by_phase, held_tensors
from cil.engine.fit import Fit, LossWindow
from cil.engine.loader import Keyed, PhaseLoader
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime, autocast_on
from cil.engine.shape_inference import OnMeta
from cil.engine.step_kinds import FIRST, StepWatch
from cil.errors import CilError, ConfigError
from cil.memory import tensor_bytes
from cil.memory.published_bytes import LayerInputs, Published, counting_inputs
from cil.memory.training_memory import (
    ForwardTracker,
    PartBytes,
    SavedByPart,
    SavedTensor,
    TrainingMemory,
    bytes_by_dtype,
    bytes_by_part,
    in_ledger_order,
    optimizer_bytes,
)
from cil.strategies import Strategy


@dataclass(frozen=True)
class Measured:
    """The largest batch of the first steps of a phase."""

    name: str
    batch_size: int
    parts: tuple[PartBytes, ...]
    dtypes: dict[str, int]
    added: dict[str, int]  # bytes that it adds to what is held, by kind
    published: Published


class StepMeter(Unbilled):
    """Measures the first steps of a phase by part of the network, in place of what a run bills.

    Args:
        watch: Entered around the phase; knows which module's forward is running.
    """

    def __init__(self, modules: Mapping[str, nn.Module], watch: ForwardTracker) -> None:
        super().__init__()
        self.modules, self.watch = modules, watch
        self.trained: Sequence[Tensor] = ()
        self.meters: list[tuple[int, list[SavedTensor]]] = []  # bytes, and what was saved
        self.counts: list[LayerInputs] = []  # for the published accounting, batch by batch
        self.gradients, self.largest = 0, 0
        self.optimizer: dict[int, int] = {}

    @contextmanager
    def step(
        self, learner: Holder, watch: StepWatch, phase: Phase, sizes: Sequence[int], update: bool, drawn: bool
    ) -> Iterator[AbstractContextManager[Any]]:
        self.largest = max(self.largest, sum(sizes))
        here = torch.empty((), device=learner.device)
        beside = [tensor for tensor in beside_phase(learner, phase)[0] if tensor.layout is torch.strided]
        beside = [torch.broadcast_tensors(here, tensor)[1] for tensor in beside]  # a view, on ``meta`` of its stand-in
        yield self._forward([*held_tensors(learner), *beside])

    @contextmanager
    def _forward(self, held: Sequence[Tensor]) -> Iterator[None]:
        with counting_inputs(self.modules.values()) as count, SavedByPart(self.watch, held) as saved:
            yield
        self.meters.append((saved.peak, saved.at_peak))
        self.counts.append(count)

    @contextmanager
    def adjusting(self, learner: Holder) -> Iterator[None]:
        with SavedByPart(self.watch, held_tensors(learner)) as saved:
            yield
        self.meters.append((saved.peak, saved.at_peak))

    def bill_gradients(self, parameters: Sequence[Tensor]) -> None:
        self.gradients = sum(tensor_bytes(p.grad) for p in parameters if p.grad is not None)
        self.trained = parameters

    def bill_optimizer(self, phase: str, optimizer: Optimizer) -> None:
        self.optimizer = optimizer_bytes(optimizer)

    def measured(self, name: str) -> Measured:
        size, tensors = max(self.meters, key=lambda meter: meter[0])
        added = {"activations": size, "gradients": self.gradients, "optimizer": sum(self.optimizer.values())}
        parts = bytes_by_part(self.watch, tensors, self.optimizer)
        return Measured(name, self.largest, parts, bytes_by_dtype(tensors), added, self._published())

    def _published(self) -> Published:
        """The published accounting of the largest step: what is trained is float, all other parameters are frozen."""
        chosen, held = {id(p) for p in self.trained}, {p for one in self.modules.values() for p in one.parameters()}
        trainable, frozen = sum(p.numel() for p in self.trained), sum(p.numel() for p in held if id(p) not in chosen)
        rules = [Published(trainable, frozen, count.inputs, count.relus_on_the_way) for count in self.counts]
        return max(rules, key=lambda rule: rule.bytes)


class PlainRuntime(Runtime):
    """fp32 on any device, ``meta`` too; other precisions are the caller's to set around it."""

    def __post_init__(self) -> None:
        """Nothing to check."""


class UnreadLosses(LossWindow):
    """Losses that nobody looks at: on ``meta`` they have no values."""

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Let them go."""


class PlainLoader(PhaseLoader):
    """Batches as the loader of a run makes them, but for the augmentation, which changes no byte. No set is copied."""

    def __init__(
        self, data: Samples | Mapping[str, Samples], augment: Augment, device: torch.device, keyed: Keyed, size: int,
        pace: Pace | None = None, arriving: int | None = None,
    ) -> None:  # fmt: skip
        self.data = {"": data} if isinstance(data, Samples) else dict(data)
        self.main, self.size, self.device, self.keyed = next(iter(self.data)), size, device, keyed
        self.bounds = batch_bounds(len(self.data[self.main]), size)

    def epoch(self, epoch: int, first: int = 0, stop: int | None = None) -> Iterator[Batch]:
        for start, end in self.bounds[first:stop]:
            made = {name: self._part(name, start, end) for name, samples in self.data.items() if len(samples)}
            batch = made[self.main]
            yield replace(batch, streams=made) if self.main or len(made) > 1 else batch

    def _part(self, name: str, start: int, end: int) -> Batch:
        samples = self.data[name]
        order = torch.randperm(len(samples), generator=self.keyed(name, "order", 0))
        rows = order[start:end] if name == self.main else order[: min(self.size, len(samples))]
        part = samples[rows]
        pixels, targets = part.pixels, part.targets
        return Batch(
            to_float(pixels.to(self.device)),
            part.slots,
            None if targets is None else targets.to(self.device),
            lambda: pixels,
            rows,
            {key: values.to(self.device) for key, values in part.extras.items()},
        )

    def before(self, step: int, last: bool = False) -> None:
        """Nothing arrives between steps."""

    def arrived(self, epoch: int, step: int) -> int:
        return self.bounds[step][1]


def phase_step(
    learner: Strategy | Adapter, phase: Phase, recipe: Recipe, batch_size: int | None = None
) -> Measured | None:  # fmt: skip
    """Make the first steps of a phase as ``Fit`` makes them, and measure them; None without data to train on."""
    recipe = recipe if batch_size is None else replace(recipe, batch_size=batch_size)
    modules = modules_of(learner)
    with ForwardTracker(modules) as watch:
        meter = StepMeter(modules, watch)
        first_steps(learner, phase, recipe, meter, lambda cost: cost.steps >= FIRST)
        if not meter.meters:
            return None
        step, beside = meter.measured(phase.name), held_by_phase(learner, phase)
        return replace(step, added=summed(step.added, *({line.kind: line.bytes} for line in beside)))


def first_steps(
    learner: Strategy | Adapter, phase: Phase, recipe: Recipe, cost: Unbilled, enough: Callable[[Cost], bool]
) -> None:  # fmt: skip
    """Make steps of a phase as ``Fit`` makes them until there are ``enough``, with ``cost`` looking at them."""
    Fit(
        learner, phase, 0, recipe, 0, 0, Augment(), PlainRuntime(str(learner.device)), cost=cost, spent=enough,
        make_loader=PlainLoader, window=UnreadLosses(),
    ).run()  # fmt: skip


def report(one: Measured, kinds: Mapping[str, int], device: torch.device, where: str, refused: str) -> TrainingMemory:
    return TrainingMemory(
        in_ledger_order(kinds), one.parts, one.dtypes, one.batch_size, device.type, where, one.published, refused
    )


def modules_of(learner: Holder) -> dict[str, nn.Module]:
    """The networks that are kept, by name; optimizers are left out."""
    held = learner.held().items()
    return {name: value for name, value in held if isinstance(value, nn.Module) and not hasattr(value, "tuned")}


def held_by_kind(holder: Holder) -> dict[str, int]:
    """Bytes of all that is kept, carried or not."""
    state = holder.state()
    tensors = ({state.kinds[name]: tensor_bytes(tensor)} for name, tensor in state.tensors.items())
    more = {"other": len(state.encoded_meta()), "parameters": sum(one.bytes for one in state.references)}
    return in_ledger_order(summed(*tensors, more, *({e.kind: e.bytes} for e in holder.training_entries())))


def summed(*several: Mapping[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for kinds in several:
        for kind, size in kinds.items():
            total[kind] = total.get(kind, 0) + size
    return total


def noise_samples(slots: Tensor, shape: tuple[int, int, int], noise: bool) -> Samples:
    """Samples of these slots: noise, or black images that are one byte in memory."""
    count = len(slots)
    if noise:
        pixels = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0))
        return Samples(ArrayStore(pixels.to(torch.uint8)), slots)
    return Samples(ArrayStore(torch.zeros((), dtype=torch.uint8).expand(count, *shape)), slots)


def on_meta_or_cpu(name: str, precision: str, work: Callable[[torch.device, str], TrainingMemory]) -> TrainingMemory:
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
            refused = reason_of(error)
    try:
        with autocast_on("cpu", precision):
            return work(torch.device("cpu"), refused)
    except CilError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} cannot make a step on images of noise: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """An error of code that asks ``meta`` for a value, in one line."""
    first = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {first[:160]}"
