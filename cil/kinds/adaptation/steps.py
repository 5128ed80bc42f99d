"""The bytes that a step of an adapter will hold, on source data and on test images, before it meets one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cil.adapt import Adapter, SourceModel
from cil.contract import RuntimeContext
from cil.data import Samples
from cil.data.samples import to_float
from cil.engine.cost import held_tensors
from cil.engine.keys import generator
from cil.engine.measured_step import (
    Measured,
    held_by_kind,
    modules_of,
    noise_samples,
    on_meta_or_cpu,
    phase_step,
    report,
    summed,
)
from cil.engine.recipe import Recipe
from cil.memory import Budget, tensor_bytes
from cil.memory.published_bytes import Published, counting_inputs
from cil.memory.training_memory import ForwardTracker, SavedByPart, TrainingMemory, bytes_by_dtype, bytes_by_part


@dataclass
class AdapterSteps:
    """The steps of an adapter on a network, measured before it meets an image; made of parts of an adaptation run."""

    make_adapter: Callable[[SourceModel], Adapter]
    make_source: Callable[[torch.device], SourceModel]
    name: str
    recipe: Recipe = field(default_factory=Recipe)
    precision: str = "fp32"
    seed: int = 0

    def at(self, batch_size: int) -> TrainingMemory:
        """The bytes of an update on ``batch_size`` images: the second one, as the first makes state.

        Raises:
            CilError: where the adapter refuses its configuration or the network.
            ConfigError: where it cannot be stepped on images of noise either.
        """
        return on_meta_or_cpu(self.name, self.precision, partial(self._at, batch_size))

    def source_phases(self, batch_size: int | None = None) -> TrainingMemory | None:
        """The largest step on source data before deployment; None where there is none.

        Args:
            batch_size: In place of the recipe's or the adapter's own, in all phases.
        """
        found = on_meta_or_cpu(self.name, self.precision, partial(self._of_phases, batch_size))
        return found if found.batch_size else None

    def _made(self, device: torch.device) -> tuple[Adapter, Samples | None]:
        """An adapter that is deployed, and source data that nobody has seen where it wants some."""
        source = self.make_source(torch.device("cpu"))
        adapter = self.make_adapter(replace(source, net=source.net.to(device), reference=None))
        adapter.context = RuntimeContext(device, partial(generator, self.seed, "adapter", "memory"))
        adapter.to(device)
        if not adapter.needs_source:
            return adapter, None
        slots = torch.arange(max(2 * adapter.num_classes, 2 * self.recipe.batch_size)) % adapter.num_classes
        return adapter, noise_samples(slots, adapter.image_shape, noise=device.type != "meta")

    def _of_phases(self, batch_size: int | None, device: torch.device, refused: str) -> TrainingMemory:
        adapter, source = self._made(device)
        phases = () if source is None else adapter.phases(source)
        steps = (phase_step(adapter, phase, self.recipe.of(phase, 0), batch_size) for phase in phases)
        found = [step for step in steps if step is not None]
        kinds = held_by_kind(adapter)
        if not found:
            return TrainingMemory(kinds, (), {}, 0, device.type)
        largest = max(found, key=lambda measured: sum(measured.added.values()))
        return report(largest, summed(kinds, largest.added), device, f"source phase {largest.name}", refused)

    def _at(self, batch_size: int, device: torch.device, refused: str) -> TrainingMemory:
        adapter, source = self._made(device)
        if source is not None:
            for _ in adapter.phases(source):
                pass  # code between two phases makes what an update reads
        adapter.deploy(source)
        modules = modules_of(adapter)
        batch = noise_samples(torch.zeros(batch_size), adapter.image_shape, noise=device.type != "meta")
        images = to_float(batch.pixels.to(device))
        with ForwardTracker(modules) as watch:
            adapter.adapt_and_predict(images)  # makes state
            adapter.fill(images)
            with SavedByPart(watch, held_tensors(adapter)) as saved, torch.enable_grad():
                adapter.adapt_and_predict(images)
        added = {"activations": saved.peak, "gradients": sum(map(tensor_bytes, watch.graded.values()))}
        state = carried_moments(adapter)
        rule = self._published(adapter, images)
        parts, dtypes = bytes_by_part(watch, saved.at_peak, state), bytes_by_dtype(saved.at_peak)
        one = Measured("update", batch_size, parts, dtypes, added, rule)
        return report(one, summed(held_by_kind(adapter), added), device, "update on a batch", refused)

    def _published(self, adapter: Adapter, images: Tensor) -> Published:
        """By the rule: every float copy that is kept counts four bytes, what is frozen in the network itself one."""
        trained, images = {id(p) for p in adapter.trainable()}, adapter.learned_from(images)
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
        copied = sum(size for key, size in numbers.items() if key not in trained and key not in own)
        frozen = sum(size for key, size in own.items() if key not in trained)
        return Published(trainable, frozen, count.inputs, plain.relus, copied)


def forward(adapter: Adapter, images: Tensor) -> Any:
    """The forward pass that is learned from: through the meta networks where there are some."""
    adapted = getattr(adapter, "adapted", None)
    return adapted(images) if callable(adapted) else adapter.logits(images)


def carried_moments(adapter: Adapter) -> dict[int, int]:
    """Bytes of kept optimizers by ``id`` of the parameter that they move."""
    found: dict[int, int] = {}
    optimizers: list[Any] = [value for value in adapter.modules() if hasattr(value, "tuned")]
    for optimizer in optimizers:
        size = sum(tensor_bytes(value) for value in optimizer.buffers())
        count = sum(p.numel() for p in optimizer.tuned)
        found |= {id(p): size * p.numel() // count for p in optimizer.tuned}
    return found


def admission(
    budget: Budget, steps: AdapterSteps, source_key: str = "trainer.batch_size"
) -> Callable[[Adapter, tuple[int, ...]], None]:
    """A check that an adaptation run makes before anything else (``AdaptationWork.admit``).

    Both an update on test images and the largest step on source data are held to ``budget.training_bytes``.

    Args:
        source_key: Configuration key of the batch size on source data.
    """

    def admit(adapter: Adapter, shape: tuple[int, ...]) -> None:
        budget.check_training(steps.name, lambda size: steps.at(size or shape[0]), "adaptation.batch_size")
        asked = None if budget.training_bytes is None else steps.source_phases()
        if asked is None:
            return

        def on_source(batch_size: int | None) -> TrainingMemory:
            found = asked if batch_size is None else steps.source_phases(batch_size)
            assert found is not None
            return found

        budget.check_training(steps.name, on_source, source_key)

    return admit
