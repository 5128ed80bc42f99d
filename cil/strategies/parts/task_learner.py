"""Learners of task streams: task-aware networks, losses by task, and the search around training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.contract import Choice, Phase, Range, Search, Settings
from cil.data import Batch, Samples
from cil.errors import ConfigError, nearest
from cil.memory import Budget
from cil.models import NetFactory, TaskNet
from cil.strategies.base import Strategy, check
from cil.strategies.parts.setup_warnings import method_name
from cil.streams import Experience, Signature, TaskKey
from cil.values import is_whole

SEARCH: Mapping[str, Any] = {
    "trials": 4,
    "steps": 200,
    "batch_size": None,
    "lr": [1e-4, 1e-1],
    "smoothing": [0.0, 0.3],
    "refit": False,
}


@dataclass(frozen=True)
class TaskRecipe:
    """Training of a task by the learners of task streams: ``strategy.search`` of each.

    Args:
        trials: Trials of the random search; 0: none, with ``optimizer.lr`` and no smoothing.
        steps: Optimizer steps of a trial.
        batch_size: None: by the rule of NEVIS'22, see ``task_batch``.
        lr: Range of the learning rate, log-uniform.
        smoothing: Range of the label smoothing, uniform.
        refit: Whether the chosen settings are trained again, on train and dev together, in place of the trial.

    Raises:
        ConfigError: for values out of range.

    Source:
        Bornschein et al., NEVIS'22, JMLR 24 (308), 2023: 16 trials of 50,000 steps, lr in [1e-4, 1e-1], smoothing in
        [0, 0.3]; the trial with the lowest dev error is kept. Departures: fewer and shorter trials by default; a trial
        is judged by its last weights, not by the best of several moments; no early stopping.
    """

    trials: int
    steps: int
    batch_size: int | None
    lr: Sequence[float]
    smoothing: Sequence[float]
    refit: bool

    @classmethod
    def of(cls, given: Mapping[str, Any], strategy: str) -> TaskRecipe:
        """The recipe of a configuration, with the values of ``SEARCH`` for the keys that it leaves out.

        Raises:
            ConfigError: for unknown keys and values out of range.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(given, Mapping):
            raise ConfigError(f"strategy.search of {strategy} is {given!r}; give its keys: {', '.join(known)}")
        for name in given:
            if name not in known:
                raise ConfigError(f"strategy.search.{name} of {strategy} is not known; {nearest(name, known)}")
        made = cls(**{**SEARCH, **given})
        for key, least in (("trials", 0), ("steps", 1), ("batch_size", 1)):
            value = getattr(made, key)
            if not (is_whole(value) and value >= least) and not (key == "batch_size" and value is None):
                raise ConfigError(
                    f"strategy.search.{key} of {strategy} is {value!r}; it must be a whole number from {least}"
                )
        check.one_of((False, True), strategy, **{"search.refit": made.refit})
        for key, low, high in (("lr", 0.0, float("inf")), ("smoothing", -1e-12, 1.0)):
            pair = getattr(made, key)
            listed = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
            fits = listed and all(isinstance(value, int | float) and low < value < high for value in pair)
            if not fits or pair[0] > pair[1]:
                raise ConfigError(
                    f"strategy.search.{key} of {strategy} is {pair}; it must be a range [low, high]"
                    f"{', both above 0' if key == 'lr' else ' in [0, 1)'}"
                )
        return made

    @property
    def space(self) -> dict[str, Range | Choice]:
        """The settings that a trial draws."""
        return {"lr": Range(self.lr[0], self.lr[1], log=True), "smoothing": Range(self.smoothing[0], self.smoothing[1])}


def task_batch(images: int) -> int:
    """min(512, max(16, 2^floor(log2(0.0025 n)))) images a batch, for n training images.

    Source: NEVIS'22.

    >>> task_batch(35_000), task_batch(1_153_050), task_batch(1_000)
    (64, 512, 16)
    """
    power: int = 2 ** max(0, int(0.0025 * images).bit_length() - 1)
    return min(512, max(16, power))


def task_loss(logits: Tensor, batch: Batch, task: TaskKey, smoothing: float) -> Tensor:
    """Cross-entropy within a task, labels smoothed: y (1 - a) + a / C.

    With several labels an image: mean over labels of the binary cross-entropy, smoothed to y (1 - a) + a / 2.

    Args:
        logits: (N, task.classes).
        smoothing: a, in [0, 1).

    Source: NEVIS'22.
    """
    if task.multilabel:
        assert batch.targets is not None
        return F.binary_cross_entropy_with_logits(logits, batch.targets * (1 - smoothing) + smoothing / 2)
    return F.cross_entropy(logits, batch.slots - task.first, label_smoothing=smoothing)


def weight_decay_groups(parameters: Sequence[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on matrices and kernels alone, as in NEVIS'22."""
    groups = [{"params": [p for p in parameters if p.ndim > 1]}]
    rest = [p for p in parameters if p.ndim <= 1]
    return [*groups, {"params": rest, "weight_decay": 0.0}] if rest else groups


class TaskLearner(Strategy):
    """A task-aware learner: its ``net`` is called with the images and the name of their task.

    A subclass says what the network is, by default one backbone with a head for each task, and where its weights come
    from; this class trains and searches.

    Args:
        search: See ``TaskRecipe``.
    """

    takes_task = True
    uses_validation = True  # a dev split, by the protocol
    toy = {"search": {"trials": 2, "steps": 3, "batch_size": 8}}
    task: TaskKey  # of the experience that is trained

    def __init__(self, make_net: NetFactory, budget: Budget, *, search: Mapping[str, Any] = SEARCH) -> None:
        super().__init__(make_net, budget)
        self.recipe = TaskRecipe.of(search, method_name(self))
        self.searches = self.recipe.trials > 0

    @classmethod
    def ignored_keys(cls, hyperparameters: Mapping[str, Any]) -> dict[str, str]:
        search = {**SEARCH, **(hyperparameters.get("search") or {})}
        found = {"trainer.epochs": "strategy.search.steps", "trainer.batch_size": "strategy.search.batch_size"}
        return found | ({"optimizer.lr": "strategy.search.lr"} if search["trials"] else {})

    def build_net(self) -> nn.Module:
        """One backbone, and a head for each task."""
        return TaskNet(self.make_net("linear"))

    def grow(self, signature: Signature) -> None:
        assert signature.task is not None
        self.task = signature.task
        super().grow(signature)

    def grow_net(self, signature: Signature) -> None:
        self.net.open(self.task.name, self.task.classes)

    def put_fresh_net(self) -> None:
        """Let a fresh network answer for the task, where ``net`` is a ``TaskNets``."""
        fresh = TaskNet(self.make_net("linear"))
        fresh.open(self.task.name, self.task.classes)
        self.net.put(self.task.name, fresh)

    def phases(self, experience: Experience) -> Iterator[Phase | Search]:
        """The search, or one phase without it."""
        recipe, train, dev = self.recipe, experience.train, experience.validation
        if not recipe.trials:
            yield self.phase(train, {"smoothing": 0.0})
            return
        refit = partial(self.phase, train if dev is None else train + dev) if recipe.refit else None
        yield Search("main", recipe.space, recipe.trials, partial(self.phase, train), dev, refit)

    def phase(self, data: Samples, settings: Settings) -> Phase:
        """Training on the task with these settings."""
        net = self.net.of(self.task.name)
        return Phase(
            "main",
            data,
            partial(self.loss_with, settings),
            parameters=weight_decay_groups(self.tuned()),
            lr=settings.get("lr"),
            steps=self.recipe.steps,
            batch_size=self.recipe.batch_size or task_batch(len(data)),
            train_mode=net.train,
        )

    def tuned(self) -> list[nn.Parameter]:
        """Parameters that a task trains: its network's backbone and its head."""
        net = self.net.of(self.task.name)
        return [*net.backbone.parameters(), *net.heads[self.task.name].parameters()]

    def loss_with(self, settings: Settings, batch: Batch) -> Tensor | Mapping[str, Tensor]:
        """The loss of a phase with these settings. Default: that of the task."""
        return self.loss_of(self.task, batch, settings)

    def loss_of(self, task: TaskKey, batch: Batch, settings: Settings) -> Tensor:
        """The loss of a task's head on a batch of the task."""
        return task_loss(self.net(batch.images, task.name).logits, batch, task, settings["smoothing"])

    def losses_of(self, parts: Sequence[tuple[TaskKey, Batch]], settings: Settings) -> list[Tensor]:
        """The loss of each part of a mixed batch, by the head of its task, in one pass through the one backbone.

        Batch norm then sees the mixture in training, as it does in the statistics that it stores; with one pass for
        each task it would be trained with statistics of one task and tested with those of all.
        """
        images = torch.cat([batch.images for _, batch in parts])
        outputs = self.net(images, {task.name: len(batch) for task, batch in parts})
        return [
            task_loss(output.logits, batch, task, settings["smoothing"])
            for (task, batch), output in zip(parts, outputs, strict=True)
        ]

    def predict(self, images: Tensor, task: TaskKey | None = None) -> Tensor:
        """Score the classes of the task, which must be given: (N, C, H, W) float in [0, 1] to (N, task.classes)."""
        assert task is not None
        found: Tensor = self.net(images, task.name).logits
        return found
