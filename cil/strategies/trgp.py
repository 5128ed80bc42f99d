"""TRGP: GPM, where a task also scales what related earlier tasks learned, within the subspaces of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cil.contract import Phase, Settings
from cil.data import Batch, Samples
from cil.memory import Budget, tensor_bytes
from cil.models import NetFactory, Output, TaskNet, evaluating
from cil.models.base import in_full_precision
from cil.strategies.base import check
from cil.strategies.parts.subspace import (
    TaskSubspaces,
    freeze_unprojected,
    input_moments,
    layer_key,
    norms_in_evaluation,
    weighted_layers,
)
from cil.strategies.parts.task_learner import SEARCH, TaskLearner, task_loss
from cil.strategies.registry import register
from cil.streams import Experience, Signature, TaskKey


@register("trgp")
class TRGP(TaskLearner):
    """A task answers by W + sum_j W (S_j Q_j S_j' - S_j S_j'), j the tasks in its trust region, Q_j its own.

    W learns outside the inputs of all earlier tasks (``gpm``), Q_j freely, from the identity on. The trust region of a
    layer has the earlier tasks whose subspace S_j holds most of the first gradient. Norms (their statistics too) and
    biases of the backbone learn in the first task alone; nothing decays. The Q_j of a task are carried as their sum:
    d^2 numbers a task for each layer with d inputs, as many for the basis, and a bit for each of its columns and task.

    Args:
        threshold: epsilon, the share of the squared inputs of a task that its subspace holds; in (0, 1].
        step: Added to epsilon in each experience, up to 1.
        images: Images of the experience whose inputs and gradient are looked at.
        trust: Least share of the gradient's length in a subspace, for its task to be in the trust region; in [0, 1].
        regions: Most tasks in the trust region of a layer.
        search: See ``TaskRecipe``.

    Source:
        Lin, Yang, Fan, Zhang. "TRGP: trust region gradient projection for continual learning", ICLR 2022,
        arXiv:2202.02931, algorithm 1. Departures: a criterion that is met, where the authors' code stops one direction
        short in the first task and leaves out the first new direction in later ones.
    """

    net: TaskNet
    subspaces: Any  # TaskSubspaces for each layer
    scalings: Any  # the sum of the Q_j - I of a task, for each layer
    trusted: dict[str, Tensor]  # of each layer, (regions, d): columns of the tasks in its trust region, as 0 and 1

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        threshold: float = 0.97,
        step: float = 0.003,
        images: int = 125,
        trust: float = 0.5,
        regions: int = 2,
        search: Mapping[str, Any] = SEARCH,
    ) -> None:
        super().__init__(make_net, budget, search=search)
        check.above(0, "trgp", threshold=threshold)
        check.between(0, 1, "trgp", threshold=threshold, trust=trust)
        check.at_least(0, "trgp", step=step)
        check.at_least(1, "trgp", images=images, regions=regions)
        self.threshold, self.step, self.images, self.trust, self.regions = threshold, step, images, trust, regions
        self.layers = {name: layer_key(name) for name in weighted_layers(self.net.backbone)}
        spaces = {self.layers[name]: TaskSubspaces(d) for name, d in self._sizes().items()}
        self.keep("subspaces", nn.ModuleDict(spaces).to(self._like().device), kind="statistics")
        self.keep("scalings", nn.ModuleDict(), kind="parameters")
        self.keep("trusted", {}, kind="temporary")

    @classmethod
    def ignored_keys(cls, hyperparameters: Mapping[str, Any]) -> dict[str, str]:
        return super().ignored_keys(hyperparameters) | {"optimizer.weight_decay": "no decay"}

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        for space in self.subspaces.values():
            space.grow()
        if signature.index and self.task.name not in self.scalings:  # the first task has none before it
            own = {self.layers[name]: self._like().detach().new_zeros(d, d) for name, d in self._sizes().items()}
            self.scalings[self.task.name] = nn.ParameterDict(own)

    def side_bytes(self) -> int:
        """Bases and scalings go by the inputs of the layers."""
        held = [self.subspaces.state_dict(), self.scalings.state_dict()]
        return sum(tensor_bytes(tensor) for tensors in held for tensor in tensors.values())

    def prepare(self, experience: Experience) -> None:
        if experience.index:
            freeze_unprojected(self.net.backbone)
            gradients = self._first_gradient(experience)
            chosen = {}
            for name, gradient in gradients.items():
                key = self.layers[name]
                chosen[name] = trust_region(self.subspaces[key].shares(gradient)[:-1], self.trust, self.regions)
                self.trusted[key] = self.subspaces[key].columns_of(chosen[name], self.regions)
            self.diagnostics["trust_region"] = chosen

    def phase(self, data: Samples, settings: Settings) -> Phase:
        return replace(super().phase(data, settings), weight_decay=0.0, train_mode=self.train_mode)

    def tuned(self) -> list[nn.Parameter]:
        own = self.scalings[self.task.name].parameters() if self.later else ()
        return [*(p for p in super().tuned() if p.requires_grad), *own]

    def train_mode(self) -> None:
        self.net.train()
        if self.later:
            norms_in_evaluation(self.net.backbone)

    def loss_of(self, task: TaskKey, batch: Batch, settings: Settings) -> Tensor:
        return task_loss(self.answer(batch.images, task).logits, batch, task, settings["smoothing"])

    def adjust_gradients(self, batch: Batch) -> None:
        if not self.later:
            return
        for name, layer in weighted_layers(self.net.backbone).items():
            if layer.weight.grad is not None:  # W: outside what all earlier tasks need
                rows = layer.weight.grad.flatten(1)
                layer.weight.grad.copy_(self.subspaces[self.layers[name]].outside(rows).view_as(layer.weight))
            own = self.scalings[self.task.name][self.layers[name]]
            if own.grad is not None:  # each Q_j: within its own columns, where they add up
                columns = self.trusted[self.layers[name]]
                own.grad.mul_(columns.T @ columns)

    @torch.no_grad()
    def after_experience(self, experience: Experience) -> None:
        share = min(1.0, self.threshold + self.step * experience.index)
        with evaluating(self.net), input_moments(weighted_layers(self.net.backbone)) as moments:
            for batch in self._some(experience).batches(self.images, self.device):
                self.answer(batch.images, self.task)
        for name, found in moments.items():
            self.subspaces[self.layers[name]].add(found, share)

    def answer(self, images: Tensor, task: TaskKey) -> Output:
        """The network's output for a task, by its own weights."""
        found: Output = functional_call(self.net, self.weights_of(task), (images, task.name))
        return found

    def weights_of(self, task: TaskKey) -> dict[str, Tensor]:
        """Weights of the layers as a task uses them, where they are not those that all share: W + W M K M'.

        M is the basis, and K the sum of Q_j - I in its columns.
        """
        if task.name not in self.scalings:
            return {}
        made = {}
        for name, layer in weighted_layers(self.net.backbone).items():
            key, rows = self.layers[name], layer.weight.flatten(1)
            basis = self.subspaces[key].basis
            with in_full_precision(rows):
                scaled = rows + rows @ basis @ self.scalings[task.name][key] @ basis.T
            made[f"backbone.{name}.weight"] = scaled.view_as(layer.weight)
        return made

    def predict(self, images: Tensor, task: TaskKey | None = None) -> Tensor:
        assert task is not None
        return self.answer(images, task).logits

    @property
    def later(self) -> bool:
        """True where the task in training is not the first experience."""
        return self.task.name in self.scalings

    def _first_gradient(self, experience: Experience) -> dict[str, Tensor]:
        """Of each layer's weight, (outputs, d), before the task trains."""
        layers = weighted_layers(self.net.backbone)
        with evaluating(self.net):
            batch = next(iter(self._some(experience).batches(self.images, self.device)))
            loss = self.loss_of(self.task, batch, {"smoothing": 0.0})
            found = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
        return {name: gradient.flatten(1) for name, gradient in zip(layers, found, strict=True)}

    def _some(self, experience: Experience) -> Samples:
        rows = torch.randperm(len(experience.train), generator=self.generator("inputs"))
        return experience.train[rows[: self.images]]

    def _sizes(self) -> dict[str, int]:
        return {name: layer.weight[0].numel() for name, layer in weighted_layers(self.net.backbone).items()}

    def _like(self) -> Tensor:
        found: Tensor = next(self.net.backbone.parameters())
        return found


def trust_region(shares: Tensor | Sequence[float], least: float, most: int) -> list[int]:
    """The tasks with the largest shares of the gradient, of those that have ``least`` of it.

    >>> trust_region(torch.tensor([0.6, 0.2, 0.9, 0.7]), least=0.5, most=2)
    [2, 3]
    """
    shares = torch.as_tensor(shares)
    order = shares.argsort(descending=True, stable=True)[:most].tolist()
    return [task for task in order if shares[task] >= least]
