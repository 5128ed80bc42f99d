"""Experts in the blocks of a frozen transformer: adapters, of which a router mixes some for each image or text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import drawn_for
from cil.models.tuners import DROPOUT, SCALE, bottleneck


class Router(nn.Module):
    """Scores of the experts of each block, by its first token, and what scales their noise in training; 0 at first."""

    def __init__(self, widths: list[int], experts: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(width, experts) for width in widths)  # W_g
        self.noise = nn.ParameterList(torch.zeros(width, experts) for width in widths)  # W_noise

    def chosen(self, block: int, tokens: Tensor, top: int) -> tuple[Tensor, Tensor]:
        """The ``top`` experts of each row of tokens (N, D), (N, top) int64, and the softmax of their scores.

        Source: Shazeer et al., "Outrageously large neural networks", ICLR 2017, equations 3 to 5.
        """
        scores = tokens @ self.weights[block].to(tokens)
        if self.training:
            width = F.softplus(tokens @ self.noise[block].to(tokens)) + 0.01
            scores = scores + torch.randn_like(scores) * width
        places = scores.sort(dim=1, descending=True, stable=True).indices[:, :top]
        return places, scores.gather(1, places).softmax(1)


class BlockExperts(nn.Module):
    """x + attention, then x + mlp(norm(x)) + 0.1 sum_e g_e adapter_e(x), g of one of several routers.

    The blocks may be those of several towers, as of CLIP; each has experts of its own.

    Args:
        backbone: Network whose blocks get experts; see ``expert_blocks``.
        count: E, experts of a block.
        rank: r of an adapter.

    Raises:
        ConfigError: for a backbone without such blocks.

    Source: Yu et al., "MoE-Adapters4CL", CVPR 2024, section 3.2. The network starts as it is.
    """

    def __init__(self, backbone: nn.Module, count: int, top: int, rank: int) -> None:
        super().__init__()
        like = next(backbone.parameters())
        self.widths = [norm.normalized_shape[0] for norm, _ in expert_blocks(backbone)]
        self.count, self.top = count, min(top, count)
        self.experts: Any = nn.ModuleList(
            nn.ModuleList(drawn_for(like, partial(bottleneck, width, rank, nn.ReLU, DROPOUT)) for _ in range(count))
            for width in self.widths
        )
        self.routers: Any = nn.ModuleList()

    def grow(self, like: Tensor) -> None:
        """Add a router on the device of ``like``; those before it no longer change."""
        self.routers.requires_grad_(False)
        self.routers.append(drawn_for(like, partial(Router, self.widths, self.count)))

    def stop(self, stopped: Tensor) -> None:
        """Take experts out of training: (blocks, E) bool."""
        for own, flags in zip(self.experts, stopped.tolist(), strict=True):
            for expert, flag in zip(own, flags, strict=True):
                expert.requires_grad_(not flag)

    @contextmanager
    def inside(self, backbone: nn.Module, router: int) -> Iterator[Tensor]:
        """Within it passes of the backbone go through the experts, mixed by one of the routers.

        Yields:
            (blocks, E) int64 on the CPU: how often each expert was chosen so far.
        """
        counts = torch.zeros(len(self.widths), self.count, dtype=torch.int64)
        with ExitStack() as stack:
            for block, (norm, mlp) in enumerate(expert_blocks(backbone)):
                before, after = self._hooks(block, router, counts[block])
                for handle in (norm.register_forward_pre_hook(before), mlp.register_forward_hook(after)):
                    stack.callback(handle.remove)
            yield counts

    def _hooks(self, block: int, router: int, counts: Tensor) -> tuple[Callable[..., None], Callable[..., Tensor]]:
        seen: list[Tensor] = []

        def before(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[:] = given[:1]  # the tokens after attention, before the norm

        def after(_: nn.Module, __: Any, made: Tensor) -> Tensor:
            return made + SCALE * self.mixed(block, router, seen.pop(), counts)

        return before, after

    def mixed(self, block: int, router: int, x: Tensor, counts: Tensor) -> Tensor:
        """sum_e g_e adapter_e(x) of tokens (N, T, D); each row passes its own experts alone."""
        places, gates = self.routers[router].chosen(block, x[:, 0], self.top)
        found = torch.zeros_like(x)
        for number, expert in enumerate(self.experts[block]):
            rows, rank = (places == number).nonzero(as_tuple=True)
            if len(rows):
                found = found.index_add(0, rows, (gates[rows, rank, None, None] * expert(x[rows])).to(found))
                counts[number] += len(rows)
        return found


def expert_blocks(backbone: nn.Module) -> list[tuple[Any, nn.Module]]:
    """The norm in front of the MLP, and the MLP, of each transformer block (timm's or open_clip's), in order.

    Raises:
        ConfigError: where there are none, or where tokens come before images, or what an MLP gives is scaled.
    """
    found = []
    for name, block in backbone.named_modules():
        norm, mlp = getattr(block, "norm2", getattr(block, "ln_2", None)), getattr(block, "mlp", None)
        if isinstance(norm, nn.LayerNorm) and isinstance(mlp, nn.Module):
            scale = getattr(block, "ls2", getattr(block, "ls_2", None))
            if not getattr(getattr(block, "attn", None), "batch_first", True) or not (
                scale is None or isinstance(scale, nn.Identity)
            ):
                raise ConfigError(f"experts cannot join block {name}, which is not a plain one: set model.name")
            found.append((norm, mlp))
    if not found:
        raise ConfigError("experts join transformer blocks, and the network has none: set model=clip")
    return found
