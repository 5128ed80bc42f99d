"""InfLoRA: low-rank sums to keys and values whose inputs are orthogonal to those of earlier experiences."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.data import Batch, Samples
from cil.memory import Budget, tensor_bytes
from cil.models import NetFactory, evaluating
from cil.models.low_rank import AttentionSums
from cil.strategies.base import check
from cil.strategies.parts.frozen_transformer import FrozenTransformer
from cil.strategies.parts.subspace import DIRECTIONS, Subspace, input_moments
from cil.strategies.registry import register
from cil.streams import Experience, Signature


@register("inflora")
class InfLoRA(FrozenTransformer):
    """W + sum_i B_i A_i for keys and values of a frozen transformer: A_t is designed and then stays, B_t is trained.

    Rows of A_t are leading directions of the experience's inputs, without what earlier ones span, so that B_t cannot
    change what the network makes of those. Two further passes over the images of an experience. Bytes go by ``rank``.

    Args:
        rank: r of each sum.
        threshold: epsilon, share of the squared inputs that is protected; in (0, 1].
        step: Added to epsilon in each experience, up to 1.
        energy: What the share is of: ``variance`` of inputs, or as ``published``, its square once more.
        directions: Of the first experience: ``met``: as many as it takes to reach epsilon; ``published``: one fewer.

    Source:
        Liang and Li. "InfLoRA: interference-free low-rank adaptation for continual learning", CVPR 2024,
        arXiv:2404.00228. Departures: epsilon grows by ``step``, where code divides by the number of
        experiences to come; projectors are made of the bases when they are needed. Code squares the squared singular
        values again, and stops one direction short in the first experience: ``energy=published directions=published``.
    """

    fits = "rank"
    toy = {"rank": 2}
    sums: AttentionSums
    bases: Any  # a Subspace for each block

    def __init__(
        self,
        make_net: NetFactory,
        budget: Budget,
        *,
        rank: int = 10,
        threshold: float = 0.95,
        step: float = 0.005,
        energy: str = "variance",
        directions: str = "met",
    ) -> None:
        super().__init__(make_net, budget)
        check.at_least(1, "inflora", rank=rank)
        check.above(0, "inflora", threshold=threshold)
        check.between(0, 1, "inflora", threshold=threshold)
        check.at_least(0, "inflora", step=step)
        check.one_of(("variance", "published"), "inflora", energy=energy)
        check.one_of(DIRECTIONS, "inflora", directions=directions)
        self.threshold, self.step, self.squared = threshold, step, energy == "published"
        self.directions = directions
        self.keep("sums", AttentionSums(self.vit, rank, ("k", "v"), shared=True), kind="parameters")
        bases = nn.ModuleList(Subspace(self.vit.feature_dim) for _ in range(self.sums.depth))
        self.keep("bases", bases.to(self.net.weight.device), kind="statistics")

    def grow_net(self, signature: Signature) -> None:
        super().grow_net(signature)
        self.sums.grow(self.net.weight).down.requires_grad_(False)

    def side_bytes(self) -> int:
        """Bases go by the width of the transformer."""
        return sum(map(tensor_bytes, self.bases.state_dict().values()))

    @torch.no_grad()
    def prepare(self, experience: Experience) -> None:
        """Design A_t; B_t is 0, so that the network is still as it was."""
        moments, down = self._moments(experience.train), self.sums.pairs[-1].down
        for index, found in enumerate(moments):
            rows = designed(found, self.bases[index], self.sums.rank)
            down[index, 0] = F.pad(rows, (0, 0, 0, self.sums.rank - len(rows))).to(down)  # beyond D there are none

    def loss(self, batch: Batch) -> Tensor:
        return self.local_cross_entropy(self.features(batch.images), batch.slots)

    @torch.no_grad()
    def after_experience(self, experience: Experience) -> None:
        share = min(1.0, self.threshold + self.step * experience.index)
        fewer = int(self.directions == "published" and experience.index == 0)
        for index, moments in enumerate(self._moments(experience.train)):
            self.bases[index].extend(moments @ moments if self.squared else moments, share, fewer, least=1)

    def features(self, images: Tensor) -> Tensor:
        """(N, D) of images in [0, 1]."""
        return self.sums.features(self.vit, self.normalise(images))

    def predict(self, images: Tensor) -> Tensor:
        return self.net(self.features(images))

    def _moments(self, samples: Samples) -> list[Tensor]:
        """C of each block, (D, D): sum x x' of all tokens that enter its attention."""
        layers = {str(index): block.attn.qkv for index, block in enumerate(self.vit.model.blocks)}
        with evaluating(self.sums), input_moments(layers) as found:
            for batch in samples.batches(500, self.device):
                self.features(batch.images)
        return [found[name] for name in layers]


def designed(moments: Tensor, basis: Subspace, rank: int) -> Tensor:
    """A, (r, D): leading left singular vectors of C - M M' C over the root of three; 0 where nothing is left.

    Args:
        moments: C, (D, D), of inputs.
        basis: M, of earlier inputs.
        rank: r.

    Source: Liang and Li, "InfLoRA", CVPR 2024; the factor is that of its code.
    """
    rest = basis.outside(moments.double())  # symmetric C: its right singular vectors are those wanted
    _, values, rows = torch.linalg.svd(rest)
    left = values[:rank, None] > 1e-6 * moments.trace()
    found: Tensor = basis.outside(rows[:rank]) * left / 3**0.5
    return found
