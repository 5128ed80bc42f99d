"""A strategy of Avalanche as one of ours: trained by its own loop, carried, charged and evaluated by our rules."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from cil.contract import Phase
from cil.errors import ConfigError
from cil.interop.avalanche.carried import Host, Logits
from cil.interop.avalanche.library import ToInput, dataset_of, library, require
from cil.interop.avalanche.methods import checked_options, method
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies.base import check
from cil.strategies.registry import register
from cil.streams import Experience, Signature

NO_OPTIONS: Mapping[str, Any] = {}


@register("avalanche")
class AvalancheStrategy(Host):
    """A strategy of Avalanche, trained by its own loop; the network, budget, boundary, evaluation and record are ours.

    Before each experience a fresh object of Avalanche is made and given what was carried: the network, its exemplars,
    importances or teacher. After it, what its plugins hold is kept, and charged by kind.

    Args:
        name: Its class in ``avalanche.training.supervised``.
        options: Its own arguments, in place of Avalanche's defaults. The size of its memory is what the budget allows.
        epochs, batch_size: Of each experience, and of new images.
        lr, momentum, weight_decay: Of the SGD that trains it, constant.

    Source:
        Lomonaco et al., Avalanche: an end-to-end library for continual learning, CVPR workshops 2021; its release 0.6.
        Departures: the head has the classes seen, where its examples have all of them from the start; the optimizer
        starts anew in each experience; ``AGEM`` keeps to a budget by fewer images of each experience.
    """

    whole_batches = "Avalanche trains it"
    gradients: dict[str, Tensor] | None
    moments: dict[str, Tensor] | None

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        name: str = "Replay",
        options: Mapping[str, Any] = NO_OPTIONS,
        epochs: int = 5,
        batch_size: int = 32,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(make_net, budget)
        require("strategy=avalanche")
        check.at_least(1, "avalanche", epochs=epochs, batch_size=batch_size)
        check.at_least(0, "avalanche", lr=lr, momentum=momentum, weight_decay=weight_decay)
        check.below(1, "avalanche", momentum=momentum)
        _refuse_unseen(self.budget.budget)
        found = method(name, type(self).bound)
        self.class_name, self.restarts = name, found.restarts
        self.options = checked_options(name, found, options)
        self.epochs, self.batch_size = epochs, batch_size
        self.recipe = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.experiences = 0  # before the one that is learned
        self.arrivals: dict[int, int] = {}  # slot: the experience in which it came
        self.keep("gradients", None, kind="gradients")
        self.keep("moments", None, kind="optimizer")
        self.carried = found.carried(self)

    @classmethod
    def ignored_keys(cls, hyperparameters: Mapping[str, Any]) -> dict[str, str]:
        own = {f"optimizer.{key}": f"strategy.{key}" for key in ("lr", "momentum", "weight_decay")}
        own["scheduler"] = "a constant rate"
        return {**own, "trainer.epochs": "strategy.epochs", "trainer.batch_size": "strategy.batch_size"}

    def grow(self, signature: Signature) -> None:
        super().grow(signature)
        self.experiences = signature.index
        self.arrivals |= dict.fromkeys(signature.new_slots, signature.index)
        self.carried.grow()

    def exemplar_plan(self, slots: int, counts: Mapping[int, int]) -> dict[int, int]:
        return self.carried.plan(slots, counts)

    def side_bytes(self) -> int:
        return self.carried.side_bytes()

    def before_experience(self, experience: Experience) -> None:
        self.carried.before()

    def prepare(self, experience: Experience) -> None:
        if self.restarts and experience.index:
            fresh = self.make_net()
            fresh.grow(self.num_classes)
            self.net.load_state_dict(fresh.state_dict())

    def phases(self, experience: Experience) -> Iterator[Phase]:
        """No phase of the engine's: its own loop trains, and its steps are counted as own steps."""
        held = self.memory.samples() if self.memories() else experience.train[:0]
        training, evaluation = ToInput(self.context.augment, self.generator("augment")), ToInput()
        data = [
            dataset_of(samples, training, evaluation, {"rows": range(first, first + len(samples))})
            for samples, first in ((held, 0), (experience.train, len(held)))
        ]
        with warnings.catch_warnings(record=True):  # it says its deprecations in every experience, whatever the filter
            strategy = self._make(experience.index)
            self.carried.restore(strategy, data[0])
            self._train(strategy, *data)
            self.carried.save(strategy, held + experience.train)
        yield from ()

    def _make(self, index: int) -> Any:
        """A fresh strategy of Avalanche that stands before experience ``index``."""
        supervised, plugins = library("training.supervised"), library("training.plugins")
        own = deepcopy(self.net).to(memory_format=torch.contiguous_format)  # A-GEM views gradients as vectors
        model, weights = Logits(own), [p for p in own.parameters() if p.requires_grad]
        sgd: Any = torch.optim.SGD
        optimizer = sgd(weights, **self.recipe)
        strategy = getattr(supervised, self.class_name)(
            model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(),
            train_mb_size=self.batch_size, train_epochs=self.epochs, eval_mb_size=self.batch_size, device=self.device,
            evaluator=plugins.EvaluationPlugin(loggers=[]), **self.options, **self.carried.arguments(),
        )  # fmt: skip
        strategy.clock.train_exp_counter = index
        return strategy

    def _train(self, strategy: Any, held: Any, new: Any) -> None:
        """Train on one experience, as many steps as the budget allows."""
        make = library("benchmarks.scenarios").DatasetExperience
        experiences = [make(dataset=new, current_experience=self.experiences)]
        if self.class_name == "JointTraining" and len(held):
            experiences.insert(0, make(dataset=held, current_experience=0))
        counter = _counter(self.budget.budget.updates)
        strategy.plugins.insert(0, counter)
        strategy.train(experiences, eval_streams=[])
        trained = strategy.model.net
        self.net.load_state_dict(trained.state_dict())
        named = {name: p for name, p in trained.named_parameters() if p.grad is not None}
        self.gradients = {name: p.grad.detach() for name, p in named.items() if p.grad is not None}
        states = {name: strategy.optimizer.state.get(p, {}).get("momentum_buffer") for name, p in named.items()}
        self.moments = {name: state for name, state in states.items() if state is not None}
        found = {"strategy": self.class_name, "version": version("avalanche-lib"), "iterations": counter.count}
        self.diagnostics["avalanche"] = {**found, "stopped_by_budget": counter.stopped}


@register("avalanche_bound")
class AvalancheBound(AvalancheStrategy):
    """A strategy of Avalanche that keeps all data: ``Cumulative`` goes on, ``JointTraining`` starts anew.

    A bound is charged for all it keeps; a budget only reports on it, and tables keep it out of rankings.

    Args:
        name, options, epochs, batch_size, lr, momentum, weight_decay: See ``avalanche``.

    Source:
        As ``avalanche``. Departure: ``JointTraining`` is trained once on all data there; here at each experience, on
        the data so far.
    """

    bound = True

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        name: str = "Cumulative",
        options: Mapping[str, Any] = NO_OPTIONS,
        epochs: int = 5,
        batch_size: int = 32,
        lr: float = 0.05,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            make_net, budget, name=name, options=options, epochs=epochs, batch_size=batch_size, lr=lr,
            momentum=momentum, weight_decay=weight_decay,
        )  # fmt: skip


def _refuse_unseen(budget: Budget) -> None:
    """Refuse caps on what only the engine's own loop can measure."""
    for key, other in (("flops", "budget.updates"), ("training_bytes", "trainer.batch_size of a strategy of cil")):
        if getattr(budget, key) is not None:
            raise ConfigError(
                f"budget.{key} is {getattr(budget, key):,}, and a strategy of Avalanche trains in its own loop, which "
                f"cannot be stopped by it: set budget.{key}=null, or use {other}"
            )


def _counter(limit: int | None) -> Any:
    """A plugin that counts iterations, and stops training when there were ``limit`` of them."""

    class Counter(library("core").SupervisedPlugin):  # type: ignore[misc]
        count, stopped = 0, False

        def after_training_iteration(self, strategy: Any, **rest: Any) -> None:
            self.count += 1
            if limit is not None and self.count >= limit:
                self.stopped = True
                strategy.stop_training()

    return Counter()
