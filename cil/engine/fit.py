"""The one training loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cil.data import Augment, Batch
from cil.engine.keys import generator, reseed
from cil.engine.loader import PhaseLoader
from cil.engine.process import Stopped
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.errors import ConfigError, TrainingError
from cil.memory import Entry, Flops, SavedBytes, tensor_bytes
from cil.strategies import Phase, Progress, Strategy


@dataclass
class Cost:
    """What a phase costs; measured on its first batch, multiplied by the images seen."""

    flops_per_image: float = 0.0
    activations: int = 0
    images: int = 0
    steps: int = 0
    entries: list[Entry] = field(default_factory=list)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Cost:
        """What ``dataclasses.asdict`` made of a cost."""
        return cls(**{**saved, "entries": [Entry(**entry) for entry in saved["entries"]]})

    @property
    def flops(self) -> int:
        """Training operations, two for each multiply-add."""
        return round(self.flops_per_image * self.images)


@dataclass
class Fit:
    """One phase of one experience, trained from some step to its end.

    Args:
        learner: Holds what is trained.
        phase, number: The phase and its place in the experience.
        recipe: As it applies to this phase.
        experience: Index of the experience, part of every key.
        seed: The run's.
        first_step: Steps of the run before this phase, for logs.
        on_log: Called every ``recipe.log_every`` steps, with values by name.
        on_snapshot: Called with tensors and content when it is time to save.
        stop: Says whether the run was asked to stop; training then saves and raises ``Stopped``.
    """

    learner: Strategy
    phase: Phase
    number: int
    recipe: Recipe
    experience: int
    seed: int
    augment: Augment
    runtime: Runtime
    first_step: int = 0
    on_log: Callable[[str, dict[str, float], dict[str, Any]], None] = lambda kind, values, axes: None
    on_snapshot: Callable[[dict[str, Tensor], dict[str, Any]], None] = lambda tensors, content: None
    stop: Callable[[], bool] = lambda: False
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self._optimizer: Optimizer | None = None
        self._parameters: list[Tensor] = []

    def run(self, resume: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None) -> None:
        """Train to the end of the phase.

        Args:
            resume: A snapshot of this phase: tensors and content.

        Raises:
            TrainingError: where a loss is not finite, naming experience, phase and step.
        """
        learner, recipe = self.learner, self.recipe
        loader = PhaseLoader(self.phase.data, self.augment, self.runtime.torch_device, self._keyed, recipe.batch_size)
        if loader.count == 0:
            return
        optimizer = self._optimizer = self._make_optimizer()
        schedule = recipe.scheduler(optimizer, recipe.epochs)
        stepper = self.runtime.optimizer(optimizer)
        window = _Window(recipe.log_every, self.runtime.torch_device)
        start_epoch, start_step = 0, 0
        if resume is not None:
            start_epoch, start_step = self._resume(optimizer, schedule, window, *resume)
        in_epoch = len(loader.bounds)
        total = min(recipe.epochs * in_epoch, (recipe.max_steps or 10**12) * recipe.accumulate)
        progress = learner.progress = Progress(start_epoch, recipe.epochs, start_epoch * in_epoch + start_step, total)
        saved = time.monotonic()
        (self.phase.train_mode or learner.train_mode)()
        optimizer.zero_grad(set_to_none=True)
        for epoch in range(start_epoch, recipe.epochs):
            progress.epoch = epoch
            first = start_step if epoch == start_epoch else 0
            for step, batch in enumerate(loader.epoch(epoch, first), first):
                if progress.step >= total:
                    break
                reseed(self.seed, "step", self.experience, self.number, epoch, step)
                update = (step + 1) % recipe.accumulate == 0 or step + 1 == in_epoch
                values = self._step(batch, stepper, optimizer, update)
                progress.step += 1
                self.cost.steps += 1
                self.cost.images += len(batch) + sum(len(more) for more in batch.streams.values() if more is not batch)
                window.add(values)
                if window.full:
                    self._log("step", window, epoch, step, progress.step)
                if update and self._due(saved, progress.step):
                    self._check(window, epoch, step)
                    self._snapshot(optimizer, window, epoch, step + 1)
                    saved = time.monotonic()
                if update and self.stop():
                    self._check(window, epoch, step)
                    self._snapshot(optimizer, window, epoch, step + 1)
                    raise Stopped
            schedule.step()
            self._log("epoch", window, epoch, in_epoch - 1, progress.step)
            if progress.step >= total:
                break
        optimizer.zero_grad(set_to_none=True)

    # one step -------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch, stepper: Any, optimizer: Optimizer, update: bool) -> dict[str, Tensor]:
        if not self.cost.flops_per_image:
            terms, loss = self._measured(batch)
        else:
            terms, loss = self._loss(batch)
            self.runtime.backward(loss)
        if update:
            self.learner.adjust_gradients(batch)
            if self.recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_norm)
            if not self.cost.entries:
                self._bill_gradients()
            stepper.step()
            optimizer.zero_grad(set_to_none=True)
            self.learner.after_step(batch)
            if not any(entry.kind == "optimizer" for entry in self.cost.entries):
                self._bill_optimizer(optimizer)
        return terms

    def _loss(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with self.runtime.autocast():
            result = self.phase.loss(batch)
        terms = dict(result) if isinstance(result, Mapping) else {"loss": result}
        loss = next(iter(terms.values())) if len(terms) == 1 else torch.stack(list(terms.values())).sum()
        named = {"loss": loss.detach()} | ({} if len(terms) == 1 else {k: v.detach() for k, v in terms.items()})
        return named, loss / self.recipe.accumulate if self.recipe.accumulate > 1 else loss

    def _measured(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The first batch of a phase: counts operations and saved bytes, computes the same bits."""
        flops = Flops()
        exclude = [tensor for value in self.learner.held().values() for tensor in _tensors(value)]
        with flops.counting():
            with SavedBytes(exclude) as saved:
                terms, loss = self._loss(batch)
            self.runtime.backward(loss)
        images = len(batch) + sum(len(more) for more in batch.streams.values() if more is not batch)
        self.cost.flops_per_image = max(flops.count / images, 1e-9)
        self.cost.activations = saved.bytes
        return terms, loss

    def _bill_gradients(self) -> None:
        self._bill("gradients", [p.grad for p in self._parameters if p.grad is not None])
        self.cost.entries.append(
            Entry(
                f"{self.phase.name}.activations", "activations", "training", "tensor", self.cost.activations, 0, "mixed"
            )
        )

    def _bill_optimizer(self, optimizer: Optimizer) -> None:
        held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        self._bill("optimizer", held)

    def _bill(self, kind: str, tensors: list[Tensor]) -> None:
        size, numel = sum(map(tensor_bytes, tensors)), sum(t.numel() for t in tensors)
        self.cost.entries.append(Entry(f"{self.phase.name}.{kind}", kind, "training", "tensor", size, numel, "float32"))

    # around it ------------------------------------------------------------------------------------------------------

    def _keyed(self, purpose: str, *parts: int | str) -> torch.Generator:
        return generator(self.seed, "phase", self.experience, self.number, purpose, *parts)

    def _make_optimizer(self) -> Optimizer:
        given: Any = self.phase.parameters
        given = self.learner.trainable() if given is None else given
        groups = list(given)
        flat = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
        if not flat:
            raise ConfigError(f"phase '{self.phase.name}' has nothing to train: no kept parameter requires a gradient")
        self._parameters = flat
        try:
            return self.recipe.optimizer(groups)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the optimizer cannot be made: {error} (config group optimizer)") from error

    def _due(self, saved: float, step: int) -> bool:
        steps, minutes = self.recipe.snapshot_steps, self.recipe.snapshot_minutes
        return bool(steps and step % steps == 0) or bool(minutes and time.monotonic() - saved > 60 * minutes)

    def _log(self, kind: str, window: _Window, epoch: int, step: int, done: int) -> None:
        self._check(window, epoch, step)
        values = window.means()
        if values and self._optimizer is not None:
            values["lr"] = float(self._optimizer.param_groups[0]["lr"])
            progress = self.learner.progress
            where = {"experience": self.experience, "phase": self.phase.name, "epoch": epoch}
            where |= {"step": self.first_step + done, "epochs": progress.epochs, "share": progress.share}
            self.on_log(kind, values, where)

    def _check(self, window: _Window, epoch: int, step: int) -> None:
        bad = window.first_bad()
        if bad is not None:
            raise TrainingError(
                f"the loss is {bad[1]} in experience {self.experience}, phase '{self.phase.name}', epoch {epoch}, "
                f"step {step - (window.count - 1 - bad[0])}; lower optimizer.lr or set trainer.clip_norm"
            )

    # snapshots ------------------------------------------------------------------------------------------------------

    def _snapshot(self, optimizer: Optimizer, window: _Window, epoch: int, step: int) -> None:
        tensors, meta = self.learner.full_state()
        tensors |= {f"window|{name}": values for name, values in window.held().items()}
        state = optimizer.state_dict()
        for index, held in state["state"].items():
            for key, value in held.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer|{index}|{key}"] = value
        scalars = {
            str(index): {key: value for key, value in held.items() if not isinstance(value, Tensor)}
            for index, held in state["state"].items()
        }
        self.on_snapshot(
            tensors,
            {
                "phase": self.number,
                "epoch": epoch,
                "step": step,
                "meta": meta,
                "optimizer": scalars,
                "groups": [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]],
                "cost": asdict(self.cost),
            },
        )

    def _resume(
        self, optimizer: Optimizer, schedule: Any, window: _Window, tensors: Mapping[str, Tensor],
        content: Mapping[str, Any],
    ) -> tuple[int, int]:  # fmt: skip
        self.learner.load_full_state({name: t for name, t in tensors.items() if "|" not in name}, content["meta"])
        window.load({name.removeprefix("window|"): t for name, t in tensors.items() if name.startswith("window|")})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the schedule is wound forward before the optimizer's first step
            for _ in range(content["epoch"]):
                schedule.step()
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            held: dict[str, Any] = dict(content["optimizer"].get(str(index), {}))
            prefix = f"optimizer|{index}|"
            for name, value in tensors.items():
                if name.startswith(prefix):  # in the parameter's layout, so that kernels do the same arithmetic
                    like = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else value
                    held[name.removeprefix(prefix)] = like.copy_(value) if like is not value else value.clone()
            if held:
                optimizer.state[parameter] = held
        for group, saved in zip(optimizer.param_groups, content["groups"], strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
        self.cost = Cost.of(content["cost"])
        return content["epoch"], content["step"]


class _Window:
    """The losses since the last line of the log, on the device: nothing is read before it is logged."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._device = size, device
        self._buffers: dict[str, Tensor] = {}
        self.count = 0

    @property
    def full(self) -> bool:
        return self.count >= self._size

    def add(self, values: Mapping[str, Tensor]) -> None:
        if self.count >= self._size:
            self.count = 0
        for name, value in values.items():
            if name not in self._buffers:
                self._buffers[name] = torch.zeros(self._size, device=self._device)
            self._buffers[name][self.count] = value
        self.count += 1

    def first_bad(self) -> tuple[int, float] | None:
        if not self.count or "loss" not in self._buffers:
            return None
        losses = self._buffers["loss"][: self.count]
        bad = (~torch.isfinite(losses)).nonzero()
        return (int(bad[0]), float(losses[bad[0]])) if len(bad) else None

    def held(self) -> dict[str, Tensor]:
        """The losses that no line has yet."""
        return {name: buffer[: self.count].clone() for name, buffer in self._buffers.items()} if self.count else {}

    def load(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what was held."""
        for name, values in held.items():
            self.count = len(values)
            self._buffers[name] = torch.zeros(self._size, device=self._device)
            self._buffers[name][: self.count] = values

    def means(self) -> dict[str, float]:
        count, self.count = self.count, 0
        return {name: float(buffer[:count].mean()) for name, buffer in self._buffers.items()} if count else {}


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value.values() if isinstance(v, Tensor)] if isinstance(value, dict) else []
