"""Recipes: how long, with which optimizer, under which schedule a phase is trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from cil.data.samples import batch_bounds
from cil.engine import compiler
from cil.engine.arrival import Pace
from cil.errors import ConfigError, in_words
from cil.strategies import Phase
from cil.values import check_value

compiler.put_off()  # before the first optimizer

MakeOptimizer = Callable[..., Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


def with_default_snapshots(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with snapshots as by default: they change no number, so other ones are no other run.

    >>> with_default_snapshots({"seed": 0, "trainer": {"epochs": 2, "snapshot_minutes": 0.5}})
    {'seed': 0, 'trainer': {'epochs': 2, 'snapshot_minutes': 5.0}}
    """
    trainer = config.get("trainer")
    if not isinstance(trainer, Mapping):
        return dict(config)
    snapshots = {f.name: f.default for f in fields(Recipe) if f.name.startswith("snapshot_") and f.name in trainer}
    return {**config, "trainer": {**trainer, **snapshots}}


def _with_warmup(optimizer: Optimizer, rest: LRScheduler, warmup: int, factor: float) -> LRScheduler:
    if not warmup:
        return rest
    ramp = lr_scheduler.LinearLR(optimizer, start_factor=factor, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [ramp, rest], milestones=[warmup])


def constant(optimizer: Optimizer, epochs: int, *, warmup: int = 0, warmup_factor: float = 0.1) -> LRScheduler:
    """No decay. ``warmup`` epochs rise linearly from ``warmup_factor`` times the learning rate."""
    rest = lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    return _with_warmup(optimizer, rest, warmup, warmup_factor)


def cosine(
    optimizer: Optimizer, epochs: int, *, minimum: float = 0.0, warmup: int = 0, warmup_factor: float = 0.1
) -> LRScheduler:
    """Cosine decay to ``minimum`` over the epochs after the warm-up."""
    rest = lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs - warmup), eta_min=minimum)
    return _with_warmup(optimizer, rest, warmup, warmup_factor)


def quarter_cosine(optimizer: Optimizer, epochs: int, *, warmup: int = 0, warmup_factor: float = 0.1) -> LRScheduler:
    """Times cos(99 pi e / (200 (E - 1))) in epoch e of E: slow at first, and near 0 in the last one.

    Source: code of CODA-Prompt and InfLoRA, which as it runs is one epoch late: epochs 0 and 1 have the full rate.
    """
    last = max(1, epochs - warmup - 1)
    rest = lr_scheduler.LambdaLR(optimizer, lambda e: max(0.0, math.cos(99 * math.pi * e / (200 * last))))
    return _with_warmup(optimizer, rest, warmup, warmup_factor)


def warm_restarts(
    optimizer: Optimizer,
    epochs: int,
    *,
    first: int = 1,
    factor: int = 2,
    minimum: float = 0.0,
    warmup: int = 0,
    warmup_factor: float = 0.1,
) -> LRScheduler:
    """Cosine decay to ``minimum``, again and again: over ``first`` epochs, then each time ``factor`` times as many."""
    rest = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first, factor, eta_min=minimum)
    return _with_warmup(optimizer, rest, warmup, warmup_factor)


def multistep(
    optimizer: Optimizer,
    epochs: int,
    *,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.1,
    warmup: int = 0,
    warmup_factor: float = 0.1,
) -> LRScheduler:
    """Times ``gamma`` at each milestone: an epoch, or (below 1) a share of the epochs."""
    steps = [max(1, round(at * epochs)) if at < 1 else int(at) for at in milestones]  # none before the first epoch
    rest = lr_scheduler.MultiStepLR(optimizer, [step - warmup for step in steps], gamma)
    return _with_warmup(optimizer, rest, warmup, warmup_factor)


SCHEDULES: dict[str, MakeSchedule] = {"constant": constant, "cosine": cosine}
FIRST = ("epochs", "batch_size", "lr", "weight_decay", "milestones", "schedule")  # what a phase may say of itself
CHECKED = (
    *("epochs", "batch_size", "max_steps", "clip_norm", "accumulate", "snapshot_minutes", "snapshot_steps"),
    *("log_every", "looks", "schedule_by"),
)


@dataclass(frozen=True)
class Recipe:
    """The configured way to train a phase.

    Args:
        epochs: Epochs of all main phases.
        batch_size: Images a step.
        optimizer: Parameters to an optimizer (a partial of a torch class).
        scheduler: Optimizer and epochs to a schedule that is stepped once an epoch.
        schedule_by: ``epoch``, or ``step``: optimizer steps are in the place of epochs, warm-up and milestones too. So
            they are in any case in phases that say how many steps they have, as those may be less than an epoch.
            Phases with a schedule of their own count epochs.
        max_steps: Optimizer steps a phase at most; None for no cap.
        clip_norm: Gradients are scaled down to this norm; None for no clipping.
        accumulate: Batches whose gradients are summed into one step.
        first: Other values in the first experience: ``epochs``, ``batch_size``, ``lr``, ``weight_decay``,
            ``milestones``, ``schedule``, as of a ``Phase``.
        snapshot_minutes, snapshot_steps: How often training is saved inside a phase.
        log_every: Steps between two lines of the log.
        updates_per_batch: Main phases pass once over the batches in the order of the stream, with so many steps on each
            (``Pace``); a number or a fraction as ``1/4``. None, as ``complexity``: epochs in random order.
        complexity: The same, missing the batches that arrive while a step of so many batches' time is taken.
        looks: How often each new image of an experience may be read for training: a number, or ``free``
            (``cil.data.looks``).
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: MakeOptimizer = field(
        default_factory=lambda: partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    )
    scheduler: MakeSchedule = cosine
    max_steps: int | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    first: dict[str, Any] = field(default_factory=dict)
    snapshot_minutes: float | None = 5.0
    snapshot_steps: int | None = None
    log_every: int = 50
    updates_per_batch: Any = None
    complexity: Any = None
    looks: int | str = "free"
    schedule_by: str = "epoch"

    def __post_init__(self) -> None:
        for name in CHECKED:
            check_value(f"trainer.{name}", getattr(self, name))
        unknown = set(self.first) - set(FIRST)
        if unknown:
            raise ConfigError(f"trainer.first has no key {sorted(unknown)}; it has: {', '.join(FIRST)}")
        for key, value in self.first.items():
            check_value(f"trainer.first.{key}", value)
        for key, epochs in (("epochs", self.epochs), ("first.epochs", self.first.get("epochs") or 1)):
            if self.pace is not None and epochs != 1:
                raise ConfigError(
                    f"trainer.{key} is {epochs} with trainer.updates_per_batch or trainer.complexity, which pass once "
                    f"over the stream; set it to 1"
                )
            if not isinstance(self.looks, str) and epochs > self.looks:
                raise ConfigError(
                    f"trainer.{key} is {epochs} with trainer.looks={self.looks}, and an epoch reads each image once; "
                    f"set it to {self.looks}, or trainer.looks=free"
                )
        for section, given in (("optimizer", self.optimizer), ("scheduler", self.scheduler)):
            for key, value in getattr(given, "keywords", {}).items():
                check_value(f"{section}.{key}", value)
        if self.first.get("schedule") is not None and self.first.get("milestones") is not None:
            raise ConfigError(
                f"trainer.first.schedule is '{self.first['schedule']}' and trainer.first.milestones is "
                f"{list(self.first['milestones'])}; each is a whole schedule, so set one of them to null"
            )

    def check(self) -> None:
        """Make optimizer and schedule once, on a parameter of their own, so that what they refuse is known now.

        Raises:
            ConfigError: naming the keys.
        """
        try:
            tried = self.optimizer([torch.nn.Parameter(torch.zeros(2, 2))])
        except Exception as error:  # optimizers of others raise all sorts of things
            raise ConfigError(f"optimizer: {in_words(error)}; see the keys optimizer.*") from error
        minimum, lr = getattr(self.scheduler, "keywords", {}).get("minimum", 0.0), tried.param_groups[0]["lr"]
        rates = {"optimizer.lr": lr, "trainer.first.lr": self.first.get("lr") or lr}
        for key, rate in rates.items():
            if minimum > rate > 0:
                raise ConfigError(f"scheduler.minimum is {minimum}; it must be at most {key}, which is {rate}")
        try:
            self.scheduler(tried, self.epochs)
        except Exception as error:
            raise ConfigError(f"scheduler: {in_words(error)}; see the keys scheduler.*") from error

    def warnings(self) -> list[str]:
        """Sentences on settings that do what they say, and are seldom meant."""
        optimizer, scheduler = (getattr(made, "keywords", {}) for made in (self.optimizer, self.scheduler))
        found, warmup = [], scheduler.get("warmup", 0)
        if optimizer.get("lr") == 0:
            found.append("optimizer.lr is 0: phases without a rate of their own train nothing")
        if warmup >= self.epochs > 1 and self.schedule_by == "epoch":
            found.append(
                f"scheduler.warmup={warmup} is not over when trainer.epochs={self.epochs} are: the learning rate never "
                f"reaches optimizer.lr"
            )
        milestones = [at for at in scheduler.get("milestones", ()) if at >= 1]
        lost = [at for at in milestones if not warmup <= at < self.epochs]
        if lost and self.epochs > 1 and self.schedule_by == "epoch":
            found.append(
                f"scheduler.milestones has {', '.join(map(str, lost))}, where the learning rate does not fall: that is "
                f"so in epochs from {max(1, warmup)} to {self.epochs - 1}; below 1 milestones are shares of the epochs"
            )
        return found

    @property
    def pace(self) -> Pace | None:
        """The pace of a single pass; None where epochs are in random order."""
        return Pace.of(self.updates_per_batch, self.complexity)

    def snapshot_due(self, steps: int, saved: float) -> bool:
        """True if training shall be saved after so many steps, last saved at ``saved`` by the monotonic clock."""
        by_steps = bool(self.snapshot_steps and steps % self.snapshot_steps == 0)
        return by_steps or bool(self.snapshot_minutes and time.monotonic() - saved > 60 * self.snapshot_minutes)

    def of(self, phase: Phase, index: int) -> Recipe:
        """The recipe of one phase of experience ``index``: what the phase says goes before what is configured."""
        if not phase.main and phase.epochs is None and phase.steps is None:
            raise ConfigError(f"phase '{phase.name}' is not a main one, so it must say its epochs")
        stated = {name: getattr(phase, name) for name in FIRST if getattr(phase, name) is not None}
        fresh = index == 0 if phase.fresh is None else phase.fresh
        first = self.first if phase.main and fresh else {}
        if stated.keys() & {"milestones", "schedule"}:  # either is a whole schedule
            first = {name: value for name, value in first.items() if name not in ("milestones", "schedule")}
        given = {name: value for name, value in {**first, **stated}.items() if value is not None}
        own: dict[str, Any] = {name: given[name] for name in ("epochs", "batch_size") if name in given}
        own["looks"] = "free"  # the run's: a phase may have more epochs of exemplars alone
        if not phase.main or phase.steps is not None:
            own |= {"updates_per_batch": None, "complexity": None}
        if "epochs" in own:
            own["epochs"] = max(1, round(own["epochs"] * self.epochs)) if own["epochs"] < 1 else int(own["epochs"])
        terms = {name: given[name] for name in ("lr", "weight_decay") if name in given}
        if terms:
            own["optimizer"] = partial(self.optimizer, **terms)
        if given.keys() & {"schedule", "milestones"}:
            own["schedule_by"] = "epoch"
        if "schedule" in given:
            own["scheduler"] = SCHEDULES[given["schedule"]]
        if "milestones" in given:
            own["scheduler"] = partial(
                multistep, milestones=tuple(given["milestones"]), gamma=0.1 if phase.gamma is None else phase.gamma
            )
        made = replace(self, **own)
        return made if phase.steps is None else made.lasting(phase.steps, len(phase.samples))

    def lasting(self, steps: int, images: int) -> Recipe:
        """The same for so many optimizer steps: as many epochs of ``images`` as they take, the last one cut short."""
        each = math.ceil(max(1, len(batch_bounds(images, self.batch_size))) / self.accumulate)
        most = steps if self.max_steps is None else min(steps, self.max_steps)
        return replace(self, epochs=math.ceil(steps / each), max_steps=most, schedule_by="step")
