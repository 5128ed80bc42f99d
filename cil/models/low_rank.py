"""Low-rank sums (LoRA) to queries, keys and values of a frozen transformer, one pair of factors an experience."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.models.base import drawn_for
from cil.models.timm_zoo import TimmBackbone
from cil.models.tuners import LayerSum, LowRankSums

PARTS = ("q", "k", "v")  # thirds of the rows of qkv.weight, in this order


class Factors(nn.Module):
    """B A of each block and each part of attention that gets a sum.

    Args:
        depth: Blocks.
        parts: P, parts of attention.
        shared: One A for all parts of a block.

    Source: Hu et al., "LoRA", ICLR 2022. A Kaiming-uniform, B 0: the sum is 0 at first.
    """

    def __init__(self, depth: int, width: int, rank: int, parts: int, shared: bool = False) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(depth, 1 if shared else parts, rank, width))  # A
        self.up = nn.Parameter(torch.zeros(depth, parts, width, rank))  # B
        bound = width**-0.5  # of kaiming_uniform_(a=sqrt(5)) for rows of D numbers
        nn.init.uniform_(self.down, -bound, bound)


class AttentionSums(LowRankSums):
    """W + sum over experiences of B_i A_i, for some of the parts q, k, v of each block.

    Args:
        backbone: A vision transformer; see ``plain_transformer``.
        rank: r.
        parts: Of attention, some of ``PARTS``.
        shared: One A for all parts of a block.
        blocks: The first ones that have sums; all of them where left out.
    """

    def __init__(
        self, backbone: TimmBackbone, rank: int, parts: Sequence[str], shared: bool = False, blocks: int | None = None
    ) -> None:
        super().__init__()
        self.depth, self.width, self.rank = len(backbone.model.blocks[:blocks]), backbone.feature_dim, rank
        self.parts, self.shared = tuple(parts), shared
        self.pairs: Any = nn.ModuleList()  # of ``Factors``

    def grow(self, like: Tensor, rank: int | None = None) -> Factors:
        """Add a pair on the device of ``like``, of ``rank`` in place of r; those before it no longer change."""
        self.pairs.requires_grad_(False)
        make = partial(Factors, self.depth, self.width, rank or self.rank, len(self.parts), self.shared)
        added = drawn_for(like, make)
        self.pairs.append(added)
        return added

    def scaled_ups(self) -> list[Tensor]:
        """B_i of each experience, (depth, P, D, r), times what its sum is multiplied with. Default: 1."""
        return [pair.up for pair in self.pairs]

    def all_factors(self) -> tuple[Tensor, Tensor]:
        """A (depth, P or 1, R, D) and B (depth, P, D, R) of all experiences, R the sum of their ranks."""
        return torch.cat([pair.down for pair in self.pairs], dim=-2), torch.cat(self.scaled_ups(), dim=-1)

    def narrow(self) -> bool:
        ranks: int = sum(pair.down.shape[-2] for pair in self.pairs)
        return 2 * len(self.parts) * ranks < self.width  # 3 times 4 R D a part, against 6 D D for the gradient of W

    def sums(self, backbone: nn.Module) -> Mapping[str, LayerSum]:
        layers = zip(*self.all_factors(), strict=True)
        return {
            f"model.blocks.{index}.attn.qkv": partial(self._sum, down.expand(len(up), -1, -1), up)
            for index, (down, up) in enumerate(layers)
        }

    def _sum(self, down: Tensor, up: Tensor, x: Tensor, output: Tensor) -> Tensor:
        parts = dict(zip(PARTS, output.chunk(3, dim=-1), strict=True))
        for part, first, second in zip(self.parts, down, up, strict=True):
            parts[part] = parts[part] + F.linear(F.linear(x, first), second)
        return torch.cat(list(parts.values()), dim=-1)

    def values(self, backbone: nn.Module) -> Mapping[str, Tensor]:
        own = dict(backbone.named_parameters())
        made = {}
        down, up = self.all_factors()
        for index, added in enumerate(up @ down):
            name = f"model.blocks.{index}.attn.qkv.weight"
            by_part = dict(zip(self.parts, added, strict=True))
            thirds = zip(PARTS, own[name].chunk(3), strict=True)
            made[name] = torch.cat([third + by_part[part] if part in by_part else third for part, third in thirds])
        return made


class Directions(AttentionSums):
    """W + sum_i alpha_i B_i A_i, where all alpha_i learn, from 1 on.

    Args:
        backbone, rank, parts, blocks: See ``AttentionSums``.
        by_layer: An alpha for each sum, in place of one for all of an experience.
    """

    def __init__(
        self, backbone: TimmBackbone, rank: int, parts: Sequence[str], by_layer: bool, blocks: int | None = None
    ) -> None:
        super().__init__(backbone, rank, parts, blocks=blocks)
        self.by_layer = by_layer
        self.magnitudes = nn.ParameterList()  # alpha, (depth, P, 1, 1) or (1, 1, 1, 1)

    def grow(self, like: Tensor, rank: int | None = None) -> Factors:
        shape = (self.depth, len(self.parts), 1, 1) if self.by_layer else (1, 1, 1, 1)
        self.magnitudes.append(nn.Parameter(like.detach().new_ones(shape)))
        return super().grow(like, rank)

    def scaled_ups(self) -> list[Tensor]:
        return [alpha * pair.up for alpha, pair in zip(self.magnitudes, self.pairs, strict=True)]

    @torch.no_grad()
    def normalise_last(self) -> None:
        """B and A of the last experience get length 1, their lengths go into alpha where there is one for each."""
        pair = self.pairs[-1]
        sizes = [factor.norm(dim=(2, 3), keepdim=True).clamp(min=1e-12) for factor in (pair.up, pair.down)]
        pair.up.div_(sizes[0])
        pair.down.div_(sizes[1])
        if self.by_layer:
            self.magnitudes[-1].mul_(sizes[0] * sizes[1])

    @torch.no_grad()
    def merge_last(self, below: float) -> None:
        """Put the last direction into those before it where they nearly span it: alpha_j + c_j alpha_t, and B_t = 0.

        c are the least squares of B_t A_t on the others: of each sum where each has an alpha, else of all of them
        together. To be called after ``normalise_last``. A direction that went in learns no more; its place stays.

        Args:
            below: Merged is what leaves a smaller sum of squares.
        """
        *others, last = self.pairs
        if not others:
            return
        products = torch.stack([torch.stack([_inner(one, two) for two in self.pairs]) for one in self.pairs])
        products = products.movedim((0, 1), (-2, -1))  # (depth, P, t, t)
        if not self.by_layer:
            products = products.sum(dim=(0, 1), keepdim=True)
        old, new = products[..., :-1, :-1], products[..., :-1, -1:]
        shares = torch.linalg.pinv(old, hermitian=True) @ new  # (depth, P, t - 1, 1)
        left = products[..., -1:, -1:] - new.mT @ shares
        merged = (left < below).to(last.up.dtype)  # (depth, P, 1, 1)
        *before, alpha = list(self.magnitudes)
        for index, magnitude in enumerate(before):
            magnitude.add_(merged * alpha * shares[..., index : index + 1, :].to(alpha.dtype))
        last.up.mul_(1 - merged)


def _inner(one: Factors, two: Factors) -> Tensor:
    """Sum of the products of the entries of B A of both: (depth, P), in double precision, without making them."""
    ups, downs = one.up.double().mT @ two.up.double(), one.down.double() @ two.down.double().mT
    return (ups * downs).sum(dim=(-2, -1))
