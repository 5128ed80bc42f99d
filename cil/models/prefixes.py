"""Learned prefixes of attention: one for each experience, or components that are mixed for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import full_precision, in_full_precision
from cil.models.block_pass import prefixed_block, run_blocks
from cil.models.timm_zoo import TimmBackbone
from cil.models.tuners import Tuner

Prefixes = Mapping[int, tuple[Tensor, Tensor]]  # of blocks, by number: keys and values, (L, D) or (N, L, D)


def prefixed_features(backbone: TimmBackbone, images: Tensor, prefixes: Prefixes) -> Tensor:
    """(N, D) of normalised images (N, C, H, W), with prefixes in some blocks."""

    def run(index: int, block: Any, x: Tensor) -> Tensor:
        return prefixed_block(block, x, *prefixes[index]) if index in prefixes else block(x)

    return run_blocks(backbone, images, run)


def check_blocks(blocks: Sequence[int], backbone: TimmBackbone, key: str, user: str) -> None:
    """Refuse numbers of blocks that the transformer does not have."""
    depth = len(backbone.model.blocks)
    if any(not 0 <= block < depth for block in blocks) or len(set(blocks)) < len(blocks):
        raise ConfigError(
            f"strategy.{key} of {user} is {list(blocks)}; the transformer has blocks 0 to {depth - 1}; name each once"
        )


class BlockPrefixes(nn.Module):
    """P_K and P_V for some blocks.

    Args:
        blocks: Their number, B.
        length: L, tokens of each of P_K and P_V.
        width: D.

    Source: Wang et al., "DualPrompt", ECCV 2022; U(-1, 1), as in its code.
    """

    def __init__(self, blocks: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(blocks, 2, length, width).uniform_(-1, 1))


class TunedPrefixes(Tuner):
    """P_K and P_V of the first blocks as a tuner of the network; the weights of a prefix sum to 1.

    Args:
        blocks: Their number, B.
        length: L.
        width: D.

    Source: Gao et al., "LAE", ICCV 2023; U(0, 0.01), and a factor of each that learns from 1 on, as in its code. The
        network does not start exactly as it is.
    """

    def __init__(self, blocks: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(blocks, 2, length, width).uniform_(0, 0.01))
        self.scales = nn.Parameter(torch.ones(blocks, 2, 1, 1))

    def features(self, backbone: TimmBackbone, images: Tensor) -> Tensor:
        def run(index: int, block: Any, x: Tensor) -> Tensor:
            if index >= len(self.tokens):
                found: Tensor = block(x)
                return found
            keys, values = self.scales[index] * self.tokens[index]
            return prefixed_block(block, x, keys, values, whole=True)

        return run_blocks(backbone, images, run)


class Components(nn.Module):
    """Prefixes to be summed, with what weighs them, for some blocks: those of one experience.

    Args:
        blocks: Their number, B.
        count: M, components.
        length: Tokens of a component: the first half are keys, the second values.
        width: D.

    Source: Smith et al., "CODA-Prompt", CVPR 2023.
    """

    def __init__(self, blocks: int, count: int, length: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(blocks, count, length, width).uniform_(-1, 1))  # P
        self.keys = nn.Parameter(torch.empty(blocks, count, width).uniform_(-1, 1))  # K
        self.attention = nn.Parameter(torch.empty(blocks, count, width).uniform_(-1, 1))  # A


def component_weights(queries: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """alpha_m = cos(q * A_m, K_m): queries (N, D), attention and keys (M, D) to (N, M).

    Source: Smith et al., "CODA-Prompt", CVPR 2023.

    >>> component_weights(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0]])).item()
    1.0
    """
    with in_full_precision(queries):
        queries, keys = full_precision(queries), F.normalize(keys, dim=1)
        norms = (queries.square() @ attention.square().T).clamp(min=1e-24).sqrt()  # |q * A_m|
        return queries @ (attention * keys).T / norms


@torch.no_grad()
def orthogonalised(new: Tensor, old: Tensor) -> Tensor:
    """Rows of ``new`` (M, D) as unit vectors, without their parts along rows of ``old`` (R, D) and along one another.

    A row for which no direction is left is scaled to unit length and stays.
    """
    held = torch.linalg.qr(old.cpu().double().T).Q if len(old) else new.new_zeros(new.shape[1], 0).cpu().double()
    rows = []
    for row in F.normalize(new.cpu().double()):
        rest = row - held @ (held.T @ row)
        rest = rest - held @ (held.T @ rest)  # once more: rounding
        if rest.norm() > 1e-6:
            rest = rest / rest.norm()
            held = torch.cat([held, rest[:, None]], dim=1)
            rows.append(rest)
        else:
            rows.append(row)
    return torch.stack(rows).to(new)


def orthogonality(rows: Tensor) -> Tensor:
    """Mean square of B B' - I, for the rows of B (M, D).

    >>> orthogonality(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).item()
    0.75
    """
    return (rows @ rows.T - torch.eye(len(rows)).to(rows)).square().mean()
