"""A step that nothing is learned from, measured: what training or adaptation will hold, told before the first step.

On ``meta`` such a step takes no memory and no arithmetic, and needs no data where shapes are static. Where a method
asks for values, a step is made on the CPU, on images of noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cil.adapt import Adapter
from cil.contract import Holder, Phase, Progress
from cil.data import ArrayStore, Batch, Samples
from cil.data.samples import to_float
from cil.engine.cost import MEASURED, held_tensors
from cil.engine.fit import gradients_for
from cil.engine.loader import batch_bounds
from cil.engine.onmeta import OnMeta
from cil.engine.recipe import Recipe
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
    with gradients_for(flat, learner.trainable()), ForwardTracker(modules) as watch:
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
        parts = bytes_by_part(watch, tensors, state)
    images = max(stop - start for start, stop in bounds)
    return Measured(phase.name, images, parts, bytes_by_dtype(tensors), added, rule)


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


def _ruled(modules: Mapping[str, nn.Module], trained: Sequence[Tensor], count: LayerInputs) -> Published:
    """The published accounting of a step: what is trained is float, all other parameters are frozen."""
    everything = {id(p): p for module in modules.values() for p in module.parameters()}
    trainable = sum(p.numel() for p in trained)
    chosen = {id(p) for p in trained}
    frozen = sum(p.numel() for key, p in everything.items() if key not in chosen)
    return Published(trainable, frozen, count.inputs, count.relus_on_the_way)


def told(one: Measured, kinds: Mapping[str, int], device: torch.device, where: str, refused: str) -> TrainingMemory:
    """A measured step and what is held beside it, as a report."""
    return TrainingMemory(
        in_ledger_order(kinds), one.parts, one.dtypes, one.batch_size, device.type, where, one.published, refused
    )


def modules_of(learner: Holder) -> dict[str, nn.Module]:
    """What is kept and is a network, by name; optimizers are not."""
    held = learner.held().items()
    return {name: value for name, value in held if isinstance(value, nn.Module) and not hasattr(value, "tuned")}


def held_by_kind(holder: Holder) -> dict[str, int]:
    """Bytes of all that is kept, carried or not."""
    state = holder.state()
    kinds: dict[str, int] = {}
    for name, tensor in state.tensors.items():
        kinds[state.kinds[name]] = kinds.get(state.kinds[name], 0) + tensor_bytes(tensor)
    more = {"other": len(state.encoded_meta()), "parameters": sum(one.bytes for one in state.references)}
    for entry in holder.training_entries():
        more[entry.kind] = more.get(entry.kind, 0) + entry.bytes
    return in_ledger_order(summed(kinds, more))


def summed(*several: Mapping[str, int]) -> dict[str, int]:
    total: dict[str, int] = {}
    for kinds in several:
        for kind, size in kinds.items():
            total[kind] = total.get(kind, 0) + size
    return total


def made_up(slots: Tensor, shape: tuple[int, int, int], noise: bool) -> Samples:
    """Samples of these slots: noise, or black images that are one byte in memory."""
    count = len(slots)
    if noise:
        drawn = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0))
        return Samples(ArrayStore(drawn.to(torch.uint8)), slots)
    return Samples(ArrayStore(torch.zeros((), dtype=torch.uint8).expand(count, *shape)), slots)


def on_first(name: str, precision: str, work: Callable[[torch.device, str], TrainingMemory]) -> TrainingMemory:
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


def _said(error: Exception) -> str:
    """An error of code that asks ``meta`` for a value, in one line."""
    first = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {first[:160]}"
