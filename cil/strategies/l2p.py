"""L2P: learn prompts for a frozen transformer, and keys by which an image finds the prompts it needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import Head, NetFactory
from cil.models.base import drawn_for
from cil.models.prompts import POSITIONS, PromptPool, Selected, prompt_features
from cil.strategies.base import check
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.registry import register
from cil.streams import Experience


@register("l2p")
class L2P(FrozenTransformer):
    """A pool of prompts in front of the patches of a frozen vision transformer; no exemplars, no teacher.

    The transformer is carried as a reference to public weights where it has some (``model.weights``), and as any other
    tensors where they are random. The query network is the same transformer without prompts, so it is carried once and
    costs a second forward pass.

    Args:
        prompts: M, prompts in the pool; it never grows.
        length: L, tokens of one prompt.
        top: K <= M, prompts chosen for an image: K L more tokens.
        pull: lambda, weight of pulling the keys of the chosen prompts towards the query; 0 leaves keys as drawn.
        train_selection: ``sample``: each image is given its own prompts, in training as in answers; ``batch``: all
            images of a training batch are given those that most of them would choose, as public code does.
        transfer: Whether experience t starts by copying prompts t - 1 over prompts t, in groups of K, while there are
            as many: code calls it a shared pool. Keys stay.
        position: Position embedding added to prompts: that of the ``class`` token, or ``none``.

    Raises:
        ConfigError: for a value out of range, and for a backbone that is not a timm vision transformer.

    Source:
        Wang et al. CVPR 2022, arXiv:2112.08654, section 4. Departures: answers are always by the prompts of the image
        itself, where public code lets the test batch vote, so that they depend on its order and company; pull 0.1 as in
        that code (the paper has 0.5); classes that have no data here are masked in the cross-entropy, as in that code.
    """

    toy_model = {
        "name": "timm:vit_tiny_patch16_224",
        "options": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    }
    by_block = False
    fits = "prompts"
    net: Head  # on the output at the prompts
    pool: PromptPool

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        prompts: int = 10,
        length: int = 5,
        top: int = 5,
        pull: float = 0.1,
        train_selection: str = "sample",
        position: str = "class",
        transfer: bool = False,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "l2p", prompts=prompts, length=length, top=top)
        if top > prompts:
            raise ConfigError(f"strategy.top of l2p is {top}; it must be at most strategy.prompts, {prompts}")
        check.at_least(0, "l2p", pull=pull)
        check.one_of(("sample", "batch"), "l2p", train_selection=train_selection)
        check.one_of(POSITIONS, "l2p", position=position)
        check.one_of((True, False), "l2p", transfer=transfer)
        self.transfer = transfer
        self.pull, self.position, self.majority = pull, position, train_selection == "batch"
        pool = partial(PromptPool, prompts, length, top, self.vit.feature_dim)
        self.keep("pool", drawn_for(next(self.vit.parameters()), pool), kind="parameters")

    @classmethod
    def smallest_fit(cls, hyperparameters: Mapping[str, Any]) -> int:
        """As many as an image is given."""
        top = inspect.signature(cls).parameters["top"].default
        return int(hyperparameters.get("top", top))

    @torch.no_grad()
    def prepare(self, experience: Experience) -> None:
        here, prompts = experience.index * self.pool.top, self.pool.prompts
        if self.transfer and experience.index and here + self.pool.top <= len(prompts):
            prompts[here : here + self.pool.top] = prompts[here - self.pool.top : here].clone()

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        features, selected = self._prompted(batch.images, self.majority)
        terms = {"classes": self.local_cross_entropy(features, batch.slots)}
        if self.pull:  # equation 5, its second term: the keys of the chosen prompts towards the query
            terms["pull"] = -self.pull * selected.similarities.sum(1).mean()
        return terms

    def predict(self, images: Tensor) -> Tensor:
        """The head's logits, each image with its own prompts: (N, ...) to (N, C)."""
        return self.net(self._prompted(images)[0])

    def _prompted(self, images: Tensor, majority: bool = False) -> tuple[Tensor, Selected]:
        """Features (N, D) with prompts, and the prompts selected."""
        x = self.normalise(images)
        selected = self.pool(self.plain_features(x), majority)  # equation 3, q(x): the transformer without prompts
        return prompt_features(self.vit, x, selected.prompts, self.position), selected
