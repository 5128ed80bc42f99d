"""DualPrompt: prefixes for all experiences in the first blocks, and one for each experience in the next ones."""

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
from cil.models.prefixes import BlockPrefixes, check_blocks, prefixed_features
from cil.models.prompts import cosines
from cil.strategies.base import check
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.registry import register
from cil.streams import Experience, Signature

GENERAL = [0, 1]  # blocks
EXPERTS = [2, 3, 4]


class Expert(BlockPrefixes):
    """Prefixes of one experience, e_t, and the key k_t by which images find it: (D,), or one a block, (B, D)."""

    def __init__(self, blocks: int, length: int, width: int, by_block: bool = False) -> None:
        super().__init__(blocks, length, width)
        self.key = nn.Parameter(torch.empty(*[blocks] * by_block, width).uniform_(-1, 1))


@register("dualprompt")
class DualPrompt(FrozenTransformer):
    """A general prefix g and an expert prefix e_t of each experience in a frozen vision transformer; no exemplars.

    In training the images of experience t get e_t; in answers each image gets that of the key nearest to its feature
    without prefixes, a second pass.

    Args:
        general_blocks: Numbers of the blocks that have g.
        expert_blocks: Numbers of those that have e_t.
        general_length, expert_length: Tokens of each of a prefix's keys and values. The second is what
            ``budget.fit=true`` sets.
        keys: ``shared``: one for the prefixes of an experience in all blocks; ``block``: one for each, so that an image
            may be given other experiences' prefixes in other blocks, as in one public code (LibContinual).
        pull: Weight of pulling k_t towards the features of the experience; 0 leaves keys as drawn.

    Source:
        Wang et al. "DualPrompt: complementary prompting for rehearsal-free continual learning", ECCV 2022,
        arXiv:2204.04799. Departures: experts come with experiences, where code allots all of them at
        first; e_t starts as e_(t-1), as in that code; keys and values of an image are its own in any batch, where the
        PyTorch port mixes them among images; 5 tokens each as in that port (the paper: 20 in all).
    """

    fits = "expert_length"
    toy = {"general_blocks": [0], "expert_blocks": [1]}
    general: BlockPrefixes
    experts: Any  # an Expert for each experience

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        general_blocks: Sequence[int] = GENERAL,
        expert_blocks: Sequence[int] = EXPERTS,
        general_length: int = 5,
        expert_length: int = 5,
        keys: str = "shared",
        pull: float = 0.1,
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "dualprompt", general_length=general_length, expert_length=expert_length)
        check.one_of(("shared", "block"), "dualprompt", keys=keys)
        check.at_least(0, "dualprompt", pull=pull)
        check_blocks([*general_blocks, *expert_blocks], self.vit, "general_blocks and expert_blocks", "dualprompt")
        if keys == "block" and not expert_blocks:
            raise ConfigError("strategy.keys of dualprompt is 'block', and strategy.expert_blocks names none: name one")
        self.general_blocks, self.expert_blocks = list(general_blocks), list(expert_blocks)
        self.expert_length, self.keys, self.pull = expert_length, keys, pull
        general = partial(BlockPrefixes, len(self.general_blocks), general_length, self.vit.feature_dim)
        self.keep("general", drawn_for(self.net.weight, general), kind="parameters")
        self.keep("experts", nn.ModuleList(), kind="parameters")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.experts.requires_grad_(False)
        blocks, by_block = len(self.expert_blocks), self.keys == "block"
        expert = partial(Expert, blocks, self.expert_length, self.vit.feature_dim, by_block)
        self.experts.append(drawn_for(self.net.weight, expert))

    @torch.no_grad()
    def prepare(self, experience: Experience) -> None:
        if len(self.experts) > 1:
            self.experts[-1].tokens.copy_(self.experts[-2].tokens)

    def loss(self, batch: Batch) -> Tensor | dict[str, Tensor]:
        x = self.normalise(batch.images)
        terms = {"classes": self.local_cross_entropy(self._prefixed(x, self.experts[-1].tokens), batch.slots)}
        if self.pull:  # L = CE - pull cos(q(x), k_t), summed over the keys of blocks
            keys = self.experts[-1].key.view(-1, self.vit.feature_dim)
            terms["pull"] = -self.pull * cosines(self.plain_features(x), keys).sum(1).mean()
        return terms

    def predict(self, images: Tensor) -> Tensor:
        """The head's logits, each image with the expert that it finds: (N, ...) to (N, C)."""
        x = self.normalise(images)
        tokens = torch.stack([expert.tokens for expert in self.experts])
        found = tokens[self.chosen(x), torch.arange(len(self.expert_blocks))]  # (N, B, 2, L, D)
        return self.net(self._prefixed(x, found.movedim(0, 2)))

    def chosen(self, x: Tensor) -> Tensor:
        """(N, B) int64 of normalised images, for each block with experts: argmax over experiences of cos(q(x), k_t)."""
        keys = torch.stack([expert.key for expert in self.experts])
        queries = self.plain_features(x)
        by_key = [cosines(queries, key).argmax(1) for key in keys.view(len(keys), -1, keys.shape[-1]).unbind(1)]
        return torch.stack(by_key, dim=1).expand(-1, len(self.expert_blocks))

    def _prefixed(self, x: Tensor, expert: Tensor) -> Tensor:
        """(N, D) of normalised images with g and an expert, (B, 2, L, D) for all or (B, 2, N, L, D)."""
        general = zip(self.general_blocks, self.general.tokens, strict=True)
        own = zip(self.expert_blocks, expert, strict=True)
        return prefixed_features(self.vit, x, {block: (keys, values) for block, (keys, values) in [*general, *own]})
