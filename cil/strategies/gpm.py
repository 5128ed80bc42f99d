"""GPM: gradients lose their part in the subspaces that the inputs of earlier classes span, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cil.contract import Phase
from cil.data import Batch
from cil.memory import Budget, tensor_bytes
from cil.models import NetFactory, evaluating
from cil.strategies.base import Strategy, check
from cil.strategies.parts import new_class_cross_entropy
from cil.strategies.parts.subspace import (
    DIRECTIONS,
    Subspace,
    freeze_unprojected,
    input_moments,
    layer_key,
    norms_in_evaluation,
    weighted_layers,
)
from cil.strategies.registry import register
from cil.streams import Experience


@register("gpm")
class GPM(Strategy):
    """g <- g - g M M' for each layer of the backbone, so that it answers as before on what it was given before.

    Class-incremental: one head over all classes, trained by cross-entropy over those of the experience. Norms (their
    statistics too), biases and embeddings of the backbone learn in the first experience alone. Exact with optimizers
    whose step is a sum of gradients (SGD, with momentum); nothing decays. Bytes are those of the network: half of d^2
    numbers a layer with d inputs.

    Args:
        threshold: epsilon, the share of the squared inputs that lies in the subspace; in (0, 1].
        step: Added to epsilon in each experience, up to 1.
        images: Images of the experience whose inputs are looked at.
        directions: Of the first experience: ``met``: as many as it takes to reach epsilon; ``published``: one fewer.

    Source:
        Saha, Garg, Roy. "Gradient projection memory for continual learning", ICLR 2021, arXiv:2103.09762, algorithm 1.
        Departures: no task is told, so that answers are over all classes; the complement is held where it is smaller.
        The authors' code stops one direction short in the first experience: ``directions=published``.
    """

    bases: Any  # a Subspace for each layer

    def __init__(
        self, make_net: NetFactory, budget: Budget, *, threshold: float = 0.97, step: float = 0.003, images: int = 125,
        directions: str = "met",
    ) -> None:  # fmt: skip
        super().__init__(make_net, budget)
        check.above(0, "gpm", threshold=threshold)
        check.between(0, 1, "gpm", threshold=threshold)
        check.at_least(0, "gpm", step=step)
        check.at_least(1, "gpm", images=images)
        check.one_of(DIRECTIONS, "gpm", directions=directions)
        self.threshold, self.step, self.images, self.directions = threshold, step, images, directions
        sizes = {name: layer.weight[0].numel() for name, layer in weighted_layers(self.net.backbone).items()}
        bases = {layer_key(name): Subspace(size) for name, size in sizes.items()}
        self.keep("bases", nn.ModuleDict(bases).to(self.net.head.weight.device), kind="statistics")

    @classmethod
    def ignored_keys(cls, hyperparameters: Mapping[str, object]) -> dict[str, str]:
        return {"optimizer.weight_decay": "no decay"}  # it would move weights along what is protected

    def side_bytes(self) -> int:
        """Bases go by the inputs of the layers."""
        return sum(map(tensor_bytes, self.bases.state_dict().values()))

    def prepare(self, experience: Experience) -> None:
        if experience.index:
            freeze_unprojected(self.net.backbone)

    def phases(self, experience: Experience) -> Iterator[Phase]:
        yield Phase("main", self.training_set(experience), self.loss, weight_decay=0.0)

    def train_mode(self) -> None:
        self.net.train()
        if self.old_classes:
            norms_in_evaluation(self.net.backbone)

    def loss(self, batch: Batch) -> Tensor:
        return new_class_cross_entropy(self.net(batch.images).logits, batch.slots, self.first_slot)

    def adjust_gradients(self, batch: Batch) -> None:
        if self.old_classes:
            for name, layer in weighted_layers(self.net.backbone).items():
                gradient = layer.weight.grad
                if gradient is not None:  # equations 7 and 10
                    gradient.copy_(self.bases[layer_key(name)].outside(gradient.flatten(1)).view_as(gradient))

    @torch.no_grad()
    def after_experience(self, experience: Experience) -> None:
        count = len(experience.train)
        rows = torch.randperm(count, generator=self.generator("inputs"))[: self.images]
        share = min(1.0, self.threshold + self.step * experience.index)
        with evaluating(self.net), input_moments(weighted_layers(self.net.backbone)) as moments:
            for batch in experience.train[rows].batches(self.images, self.device):
                self.net(batch.images)
        fewer = int(self.directions == "published" and experience.index == 0)
        for name, found in moments.items():
            self.bases[layer_key(name)].extend(found, share, fewer)
