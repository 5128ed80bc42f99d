"""CODA-Prompt: prefixes are sums of components, weighed by the attention of the image to each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cil.data import Batch
from cil.errors import ConfigError
from cil.memory import Budget
from cil.models import NetFactory
from cil.models.base import drawn_for
from cil.models.prefixes import (
    Components,
    check_blocks,
    component_weights,
    orthogonalised,
    orthogonality,
    prefixed_features,
)
from cil.strategies.base import check
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.registry import register
from cil.streams import Experience, Signature

BLOCKS = [0, 1, 2, 3, 4]
NAMES = ("prompts", "keys", "attention")


@register("coda_prompt")
class CODAPrompt(FrozenTransformer):
    """p = sum_m alpha_m P_m with alpha_m = cos(q(x) * A_m, K_m), in some blocks of a frozen vision transformer.

    Each experience trains components of its own; those before it stay, and take part. What spends bytes is
    ``components``.

    Args:
        components: Of each experience.
        length: Tokens of a component: half keys, half values.
        blocks: Numbers of the blocks that have a prefix.
        orthogonality: Weight of keeping P, K and A orthogonal by a penalty; they start so in any case.

    Source:
        Smith et al. "CODA-Prompt: continual decomposed attention-based prompting for rehearsal-free continual
        learning", CVPR 2023, arXiv:2211.13218. Departures: components come with experiences, where
        code divides 100 by the number of experiences to come; no penalty by default, as in that code; new components
        are orthogonal to the span of all old ones, not to one after the other.
    """

    fits = "components"
    toy = {"components": 2, "blocks": [0, 1], "length": 4}
    pool: Any  # Components of each experience

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        components: int = 10,
        length: int = 8,
        blocks: Sequence[int] = BLOCKS,
        orthogonality: float = 0.0,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "coda_prompt", components=components)
        check.at_least(2, "coda_prompt", length=length)
        check.at_least(0, "coda_prompt", orthogonality=orthogonality)
        if length % 2:
            raise ConfigError(f"strategy.length of coda_prompt is {length}; it must be even: half keys, half values")
        check_blocks(blocks, self.vit, "blocks", "coda_prompt")
        self.components, self.length, self.blocks, self.mu = components, length, list(blocks), orthogonality
        self.keep("pool", nn.ModuleList(), kind="parameters")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.pool.requires_grad_(False)
        added = partial(Components, len(self.blocks), self.components, self.length, self.vit.feature_dim)
        self.pool.append(drawn_for(self.net.weight, added))

    @torch.no_grad()
    def prepare(self, experience: Experience) -> None:
        """New components start orthogonal to those before them."""
        for name in NAMES:
            for block, values in enumerate(self._all(name)):
                rows = values.flatten(1)
                fresh = orthogonalised(rows[-self.components :], rows[: -self.components])
                new = getattr(self.pool[-1], name)[block]
                new.copy_(fresh.view_as(new))

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        terms = {"classes": self.local_cross_entropy(self._features(batch.images), batch.slots)}
        if self.mu:
            every = [values.flatten(1) for name in NAMES for values in self._all(name)]
            terms["orthogonality"] = self.mu * torch.stack([orthogonality(rows) for rows in every]).sum()
        return terms

    def predict(self, images: Tensor) -> Tensor:
        return self.net(self._features(images))

    def _features(self, images: Tensor) -> Tensor:
        """(N, D), each image with its own prefixes."""
        x = self.normalise(images)
        queries, half = self.plain_features(x), self.length // 2
        prefixes = {}
        for block, prompts, keys, attention in zip(self.blocks, *map(self._all, NAMES), strict=True):
            alpha = component_weights(queries, attention, keys)  # (N, M), alpha_m = cos(q * A_m, K_m)
            mixed = torch.einsum("nm,mld->nld", alpha, prompts)  # p = sum_m alpha_m P_m
            prefixes[block] = (mixed[:, :half], mixed[:, half:])
        return prefixed_features(self.vit, x, prefixes)

    def _all(self, name: str) -> Tensor:
        """Those of all experiences, (B, M t, ...)."""
        return torch.cat([getattr(part, name) for part in self.pool], dim=1)
