"""The one training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cil.adapt import Adapter
from cil.data import Augment, Batch, Samples
from cil.engine.cost import Cost
from cil.engine.keys import generator, reseed
from cil.engine.loader import PhaseLoader
from cil.engine.process import Stopped
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.engine.step_kinds import StepWatch, drawn_steps
from cil.errors import ConfigError, ContractError, Diverged
from cil.memory.meters import SavedBytesRefused, rest_paused
from cil.models.frozen import constant
from cil.strategies import Phase, Progress, Strategy

_say = logging.getLogger("cil.engine")
MOST_BATCHES = 100_000_000  # of a phase: each has a place in what is drawn for it
WINDOW, OPTIMIZER = "window|", "optimizer|"  # beside the learner's own tensors in a snapshot


class LossWindow:
    """The losses since the last line of the log, on the device: nothing is read before it is logged.

    Attributes:
        sums: Sum and number of each named value, over the lines of this epoch.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self.sums: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value)

    def first_bad(self) -> tuple[int, float] | None:
        """The first loss that is not finite: how many batches ago it was (the last one: 1), and its value."""
        losses = self.held().get("loss")
        if losses is None:
            return None
        bad = (~torch.isfinite(losses)).nonzero()
        return (len(losses) - int(bad[0]), float(losses[bad[0]])) if len(bad) else None

    def held(self) -> dict[str, Tensor]:
        """The values that no line has yet, by name."""
        return {name: torch.stack(values).float() for name, values in self._values.items()}

    def load(self, held: Mapping[str, Tensor], sums: Mapping[str, list[float]]) -> None:
        self._values = {name: list(values) for name, values in held.items()}
        self.sums = {name: list(pair) for name, pair in sums.items()}

    def means(self) -> dict[str, float]:
        """Means of the values that no line has yet."""
        means = {}
        for name, values in self.held().items():
            means[name] = float(values.mean())
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + means[name] * len(values), count + len(values)]
        self._values = {}
        return means

    def epoch_means(self) -> dict[str, float]:
        """Means of the epoch, which ends here."""
        self.means()
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


@dataclass
class Fit:
    """One phase of one experience, trained from some step to its end.

    Args:
        learner: Holds what is trained.
        phase, number: The phase and its place in the experience (of a trial of a search: ``2.0``).
        recipe: As it applies to this phase.
        experience: Index of the experience, part of every key.
        first_step: Optimizer steps of the run before this phase, for logs.
        on_log: Called every ``recipe.log_every`` optimizer steps and after each epoch, with means by name.
        on_snapshot: Called with tensors and content when it is time to save.
        stop: Says whether the run was asked to stop; training then saves and raises ``Stopped``.
        arriving: Images at the front of the phase's data that arrive, for a single pass; by default all.
        held: Called after each batch with it, before ``watch``: may refuse what the learner holds.
        watch: Called after each batch with it, the images of the phase that arrived, and the run's steps so far.
        ahead: Called before each step of a single pass, and after the last, with the images that arrive by then.
        spent: Says, given what this phase cost so far, if the budget leaves no further step; training then ends.
        cost: The bill of the phase; a ``cil.engine.measured_step.StepMeter`` measures its first steps by part.
        secret: What no learner is told: part of the key by which steps are drawn that are counted.
        make_loader: Makes the batches; takes what ``PhaseLoader`` takes.
        window: Holds the losses until they are logged.
    """

    learner: Strategy | Adapter
    phase: Phase
    number: int | str
    recipe: Recipe
    experience: int
    seed: int
    augment: Augment
    runtime: Runtime
    first_step: int = 0
    arriving: int | None = None
    held: Callable[[Batch], None] = lambda batch: None
    watch: Callable[[Batch, int, int], None] = lambda batch, arrived, steps: None
    ahead: Callable[[Samples | None], None] = lambda samples: None
    on_log: Callable[[str, dict[str, float], dict[str, Any]], None] = lambda kind, values, axes: None
    on_snapshot: Callable[[dict[str, Tensor], dict[str, Any]], None] = lambda tensors, content: None
    stop: Callable[[], bool] = lambda: False
    spent: Callable[[Cost], bool] = lambda cost: False
    cost: Cost = field(default_factory=Cost)
    secret: str = ""
    make_loader: Callable[..., PhaseLoader] = PhaseLoader
    window: LossWindow = field(default_factory=LossWindow)
    _optimizer: Optimizer = field(init=False, repr=False)
    _parameters: list[Tensor] = field(init=False, repr=False)

    def run(self, resume: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None) -> None:
        """Train to the end of the phase.

        Args:
            resume: A snapshot of this phase: tensors and content.

        Raises:
            Diverged: where a loss is not finite, naming experience, phase and step.
        """
        learner, recipe, ranks = self.learner, self.recipe, self.runtime.ranks
        if resume is None and self.spent(self.cost):
            self.cost.cut = True
            return
        augment = self.phase.augment or self.augment
        device, size = self.runtime.torch_device, recipe.batch_size
        loader = self.make_loader(self.phase.data, augment, device, self._keyed, size, recipe.pace, self.arriving)
        if not loader.bounds:
            return
        optimizer = self._optimizer = self._make_optimizer()
        by_step = recipe.schedule_by == "step"
        schedule = recipe.scheduler(optimizer, _updates(recipe, len(loader.bounds)) if by_step else recipe.epochs)
        start_epoch, start_step = (0, 0) if resume is None else self._resume(schedule, *resume)
        self.runtime.scale_losses(resume[1]["scale"] if resume is not None else {})
        in_epoch = len(loader.bounds)
        total = _batches(recipe, in_epoch, f"phase '{self.phase.name}' of experience {self.experience}")
        progress = learner.progress = Progress(start_epoch, recipe.epochs, start_epoch * in_epoch + start_step, total)
        saved = time.monotonic()
        with self.cost.hook() if resume is None else nullcontext():  # it was billed before the snapshot
            (self.phase.train_mode or learner.train_mode)()
        optimizer.zero_grad(set_to_none=True)
        drawn = drawn_steps(total, self._keyed("counted", self.secret)).tolist()
        with gradients_for(self._parameters, learner.trainable()), StepWatch(learner) as watch, rest_paused():
            for epoch in range(start_epoch, recipe.epochs):
                progress.epoch = epoch
                first = start_step if epoch == start_epoch else 0
                for step, batch in enumerate(self._served(loader, watch, epoch, first, total), first):
                    if step % recipe.accumulate == 0 and self.spent(self.cost):
                        total, self.cost.cut = progress.step, True
                        break
                    self.ahead(loader.before(step))
                    if by_step and schedule.last_epoch < self.cost.steps:
                        schedule.step()
                    draws = partial(reseed, self.seed, "step", self.experience, self.number, epoch, step)
                    update = (step + 1) % recipe.accumulate == 0 or step + 1 == in_epoch
                    share = _share(loader.bounds, step, recipe.accumulate)
                    sizes = [len(part) for part in batch.streams.values()] or [len(batch)]
                    counting = partial(
                        self.cost.step, learner, watch, self.phase, sizes, update,
                        drawn[epoch * in_epoch + step],
                    )  # fmt: skip
                    losses: dict[str, Tensor] = {}
                    while not losses:
                        draws()
                        try:
                            with counting() as saving:
                                losses = self._step(batch, share, update, saving)
                                watch.note(losses)
                        except SavedBytesRefused as refused:
                            self._repeat(refused)
                    self.window.add(losses)
                    progress.step += 1
                    self.cost.steps += update
                    self.held(batch)
                    self.watch(batch, loader.arrived(epoch, step), self.first_step + self.cost.steps)
                    if not update:
                        continue
                    if self.cost.steps % recipe.log_every == 0:
                        self._log("step", epoch, step + 1)
                    saved = self._saved_if_due(watch, epoch, step + 1, saved)
                self._log("epoch", epoch, progress.step - epoch * in_epoch)
                if not by_step:
                    schedule.step()
                if progress.step >= total:
                    break
        ranks.sync_buffers(learner.modules())
        self.ahead(loader.before(progress.step, last=self.cost.cut))
        self.cost.bill_optimizer(self.phase.name, optimizer)
        optimizer.zero_grad(set_to_none=True)

    # one step -------------------------------------------------------------------------------------------------------

    def _served(
        self, loader: PhaseLoader, watch: StepWatch, epoch: int, first: int, total: int
    ) -> Iterator[Batch]:  # fmt: skip
        """The batches of an epoch; what a learner's own source or augmentation does to make them is billed."""
        batches = loader.epoch(epoch, first, total - epoch * len(loader.bounds))
        of_learner = loader.of_learner or type(self.phase.augment) not in (type(None), Augment, type(self.augment))
        while True:
            with self.cost.hook() if of_learner else nullcontext():
                batch = next(batches, None)
            if of_learner:
                watch.take(0)  # was counted just now
            if batch is None:
                return
            yield batch

    def _repeat(self, refused: SavedBytesRefused) -> None:
        """Let steps be made without counting what is saved for backward, from one on that refuses it."""
        _warn_once(f"phase '{self.phase.name}': {refused}; its activations are left out of the record")
        self.cost.saves = False

    def _step(self, batch: Batch, share: float, update: bool, saving: AbstractContextManager[Any]) -> dict[str, Tensor]:
        ranks, optimizer = self.runtime.ranks, self._optimizer
        rows, part = ranks.part(batch)  # all of it, unless several devices share it
        share *= part
        with saving, ranks.drawing(self.learner):
            with self.runtime.autocast():
                result = self.phase.loss(rows)
            terms = self._terms(result)
            loss = next(iter(terms.values())) if len(terms) == 1 else torch.stack(list(terms.values())).sum()
            if loss.ndim:
                raise ContractError(
                    f"the loss of phase '{self.phase.name}' has shape {tuple(loss.shape)}; it must be one number, "
                    f"or named terms of one number each"
                )
            named = {name: term.detach() for name, term in terms.items()} | {"loss": loss.detach()}
            scaled = loss if share == 1 else loss * share
        self.runtime.backward(scaled)
        named = ranks.add(named, part, self._parameters if update else ())
        if update:
            self.runtime.unscale(optimizer)
            with self.cost.adjusting(self.learner):
                self.learner.adjust_gradients(batch)
            if self.recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip_norm)
            self.cost.bill_gradients(self._parameters)
            self.runtime.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
            self.learner.after_step(batch)
        return named

    def _terms(self, result: Any) -> dict[str, Tensor]:
        """What a loss gave, as named terms; anything else is refused."""
        terms = dict(result) if isinstance(result, Mapping) else {"loss": result}
        odd = [type(term).__name__ for term in terms.values() if not isinstance(term, Tensor)]
        if odd or not terms:
            raise ContractError(
                f"the loss of phase '{self.phase.name}' gives {odd[0] if odd else 'no term'}; allowed: a tensor of one "
                f"number, or a mapping of names to such"
            )
        return terms

    # around it ------------------------------------------------------------------------------------------------------

    def _keyed(self, purpose: str, *parts: int | str) -> torch.Generator:
        return generator(self.seed, "phase", self.experience, self.number, purpose, *parts)

    def _make_optimizer(self) -> Optimizer:
        given: Any = self.phase.parameters
        given = self.learner.trainable() if given is None else given
        groups = [{**group, "params": list(group["params"])} if isinstance(group, dict) else group for group in given]
        flat = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
        if not flat:
            raise ConfigError(f"phase '{self.phase.name}' has nothing to train: no kept parameter requires a gradient")
        self._parameters = flat
        try:
            return self.recipe.optimizer(groups)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the optimizer cannot be made: {error} (config group optimizer)") from error

    def _log(self, kind: str, epoch: int, done: int) -> None:
        """Log a step, or an epoch of which ``done`` batches were trained."""
        self._check(epoch, done)
        values = self.window.means() if kind == "step" else self.window.epoch_means()
        if kind == "epoch":
            self.cost.loss = values.get("loss", self.cost.loss)
        if values:
            values["lr"] = float(self._optimizer.param_groups[0]["lr"])
            progress = self.learner.progress
            where = {"experience": self.experience, "phase": self.phase.name, "epoch": epoch}
            where |= {"step": self.first_step + self.cost.steps, "epochs": progress.epochs, "share": progress.share}
            self.on_log(kind, values, where)

    def _check(self, epoch: int, done: int) -> None:
        bad = self.window.first_bad()
        if bad is not None:
            raise Diverged(
                f"the loss is {bad[1]} in experience {self.experience}, phase '{self.phase.name}', epoch {epoch}, "
                f"step {done - bad[0]}; lower optimizer.lr or set trainer.clip_norm"
            )

    # snapshots ------------------------------------------------------------------------------------------------------

    def _saved_if_due(self, watch: StepWatch, epoch: int, done: int, saved: float) -> float:
        """Write a snapshot where it is time or the run shall stop; when the last one was written.

        Raises:
            Stopped: where the run was asked to stop.
        """
        ranks = self.runtime.ranks
        stopped, due = ranks.any(self.stop(), self.recipe.snapshot_due(self.cost.steps, saved))
        if stopped or due:
            ranks.sync_buffers(self.learner.modules())
            self._check(epoch, done)
            self._snapshot(epoch, done)
            watch.take(0)  # steps of optimizers in ``full_state`` are billed there
            saved = time.monotonic()
        if stopped:
            raise Stopped
        return saved

    def _snapshot(self, epoch: int, step: int) -> None:
        with self.cost.hook():
            tensors, meta = self.learner.full_state()
        tensors |= {f"{WINDOW}{name}": values for name, values in self.window.held().items()}
        state, scalars = self._optimizer.state_dict(), dict[str, dict[str, Any]]()
        for index, held in state["state"].items():
            scalars[str(index)] = {key: value for key, value in held.items() if not isinstance(value, Tensor)}
            tensors |= {f"{OPTIMIZER}{index}|{key}": value for key, value in held.items() if isinstance(value, Tensor)}
        content = {
            "phase": self.number,
            "epoch": epoch,
            "step": step,
            "meta": meta,
            "optimizer": scalars,
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in state["param_groups"]],
            "scale": self.runtime.loss_scale(),
            "epoch_sums": self.window.sums,
            "cost": asdict(self.cost),
        }
        self.on_snapshot(tensors, content)

    def _resume(self, schedule: Any, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> tuple[int, int]:
        optimizer = self._optimizer
        held = {name: t for name, t in tensors.items() if not name.startswith((WINDOW, OPTIMIZER))}
        self.learner.load_full_state(held, content["meta"])
        lines = {name.removeprefix(WINDOW): t for name, t in tensors.items() if name.startswith(WINDOW)}
        self.window.load(lines, content["epoch_sums"])
        optimizer._opt_called = True  # type: ignore[attr-defined]  # before the interruption: no warning from schedules
        made = content["epoch"] if self.recipe.schedule_by == "epoch" else max(0, content["cost"]["steps"] - 1)
        for _ in range(made):
            schedule.step()
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            state: dict[str, Any] = dict(content["optimizer"].get(str(index), {}))
            prefix = f"{OPTIMIZER}{index}|"
            for name, value in tensors.items():
                if name.startswith(prefix):
                    key = name.removeprefix(prefix)
                    state[key] = value.clone() if key == "step" else _as(parameter, value)  # steps stay on the CPU
            if state:
                optimizer.state[parameter] = state
        for group, saved in zip(optimizer.param_groups, content["groups"], strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
        self.cost = Cost.of(content["cost"])
        return content["epoch"], content["step"]


def gradients_for(parameters: Sequence[Tensor], trainable: Sequence[Tensor]) -> AbstractContextManager[None]:
    """Gradients for what a phase optimises alone: others would be computed, held and never used."""
    chosen = {id(parameter) for parameter in parameters}
    return constant([parameter for parameter in trainable if id(parameter) not in chosen])


@cache
def _warn_once(sentence: str) -> None:
    _say.warning("%s", sentence)


def _batches(recipe: Recipe, in_epoch: int, phase: str) -> int:
    """Batches of a phase: ``max_steps`` counts those of the optimizer, and an epoch ends with one.

    Raises:
        ConfigError: naming the phase, for more than any run can take.
    """
    total = recipe.epochs * in_epoch
    if recipe.max_steps is not None:
        epochs, rest = divmod(recipe.max_steps, math.ceil(in_epoch / recipe.accumulate))
        total = min(total, epochs * in_epoch + rest * recipe.accumulate)
    if total > MOST_BATCHES:
        raise ConfigError(
            f"{phase} is {recipe.epochs:,} epochs of {in_epoch:,} batches, {total:,} in all; allowed: "
            f"{MOST_BATCHES:,}; lower trainer.epochs or set trainer.max_steps"
        )
    return total


def _updates(recipe: Recipe, in_epoch: int) -> int:
    """Optimizer steps of a phase, unless a budget ends it."""
    most = recipe.epochs * math.ceil(in_epoch / recipe.accumulate)
    return most if recipe.max_steps is None else min(most, recipe.max_steps)


def _share(bounds: Sequence[tuple[int, int]], step: int, accumulate: int) -> float:
    """Share of a batch in the images of its optimizer step."""
    if accumulate == 1:
        return 1.0
    first = step - step % accumulate
    last = min(first + accumulate, len(bounds)) - 1
    return (bounds[step][1] - bounds[step][0]) / (bounds[last][1] - bounds[first][0])


def _as(parameter: Tensor, value: Tensor) -> Tensor:
    """``value`` on the parameter's device, in its layout where shapes are equal: kernels do the same arithmetic."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
