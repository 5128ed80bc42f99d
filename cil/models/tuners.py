"""Small trained parts for a frozen network: low-rank sums, scales and shifts, parallel adapters, learned tokens.

The frozen network is never written to, so public weights stay a reference: the first two replace its values for the
time of a forward pass, the others join its blocks. ``cil.models.low_rank`` has sums for attention alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cil.errors import ConfigError
from cil.models.base import drawn_for
from cil.models.block_pass import plain_transformer, run_blocks
from cil.models.timm_zoo import TimmBackbone

SCALE, DROPOUT = 0.1, 0.1  # of adapters beside an MLP

LayerSum = Callable[[Tensor, Tensor], Tensor]  # a layer's input (..., in) and output (..., out) to its new output

TUNERS = ("none", "adapter", "scale_shift")
ALL_TUNERS = ("adapter", "scale_shift", "shallow_prompts", "deep_prompts", "finetune")


class Tuner(nn.Module):
    """Trained beside a backbone that is frozen."""

    def features(self, backbone: Any, images: Tensor) -> Tensor:
        """(N, D) of normalised images (N, C, H, W)."""
        raise NotImplementedError


class Replaced(Tuner):
    """A tuner that gives the backbone other values for the time of a forward pass."""

    def values(self, backbone: nn.Module) -> Mapping[str, Tensor]:
        """Values in place of those of the same name."""
        raise NotImplementedError

    def features(self, backbone: nn.Module, images: Tensor) -> Tensor:
        found: Tensor = functional_call(backbone, dict(self.values(backbone)), (images,))[0]
        return found


class LowRankSums(Replaced):
    """W + B A in linear layers.

    Training computes W x + B (A x): the frozen W then needs no gradient, a third of the work where all layers have a
    sum. Without gradients, and where r is so large that this is more work, W + B A is made first.
    """

    def narrow(self) -> bool:
        """Whether the way through B and A costs less than a gradient of W."""
        raise NotImplementedError

    def sums(self, backbone: nn.Module) -> Mapping[str, LayerSum]:
        """For the name of each layer that has a sum: what gives its output from its input and the output of W."""
        raise NotImplementedError

    def other_values(self) -> Mapping[str, Tensor]:
        """Values in place of others of the backbone. Default: none."""
        return {}

    def features(self, backbone: nn.Module, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.narrow()):
            return super().features(backbone, images)
        with ExitStack() as stack:
            for name, summed in self.sums(backbone).items():
                hook = backbone.get_submodule(name).register_forward_hook(partial(_summed_output, summed))
                stack.callback(hook.remove)
            found: Tensor = functional_call(backbone, dict(self.other_values()), (images,))[0]
            return found


def _summed_output(summed: LayerSum, layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return summed(given[0], output)


class LowRank(LowRankSums):
    """W + 0.8 B A for linear layers; norms, biases and the class token are trained copies.

    Args:
        rank: r, rows of A and columns of B.

    Raises:
        ConfigError: where the backbone has no such layers.

    Source: Zhang et al., "SLCA++", 2024, arXiv:2408.08295. A: the leading right singular vectors of W; B: zero, so that
        the network starts as it is.
    """

    scale = 0.8
    layers = ("qkv", "fc1", "fc2")  # last names of those that get a sum

    def __init__(self, backbone: nn.Module, rank: int = 4) -> None:
        super().__init__()
        linear = {
            f"{name}.weight": layer
            for name, layer in backbone.named_modules()
            if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in self.layers
        }
        if not linear:
            raise ConfigError(
                f"low-rank tuning needs layers named {', '.join(self.layers)}: set model.name to a transformer"
            )
        self._summed = list(linear)
        self._copied = [name for name, value in backbone.named_parameters() if value.ndim < 2 or "cls_token" in name]
        own = dict(backbone.named_parameters())
        self.down = nn.ParameterList(own[n].detach().new_zeros(rank, own[n].shape[1]) for n in self._summed)  # A
        self.up = nn.ParameterList(own[n].detach().new_zeros(own[n].shape[0], rank) for n in self._summed)  # B
        self.copies = nn.ParameterList(own[n].detach().clone() for n in self._copied)

    @torch.no_grad()
    def initialise(self, backbone: nn.Module) -> None:
        """A from the weights of the backbone; done once, as it takes a decomposition of each."""
        own = dict(backbone.named_parameters())
        for name, down in zip(self._summed, self.down, strict=True):
            down.copy_(torch.linalg.svd(own[name], full_matrices=False).Vh[: len(down)])

    def values(self, backbone: nn.Module) -> Mapping[str, Tensor]:
        own = dict(backbone.named_parameters())
        factors = zip(self._summed, self.up, self.down, strict=True)
        summed = {name: own[name] + self.scale * (up @ down) for name, up, down in factors}
        return summed | self.other_values()

    def other_values(self) -> dict[str, Tensor]:
        return dict(zip(self._copied, self.copies, strict=True))

    def narrow(self) -> bool:
        factors = list(zip(self.up, self.down, strict=True))
        ways = sum(3 * len(down) * (len(up) + down.shape[1]) for up, down in factors)  # forward, and two gradients
        return bool(ways < sum(len(up) * down.shape[1] for up, down in factors))

    def sums(self, backbone: nn.Module) -> Mapping[str, LayerSum]:
        layers = (name.removesuffix(".weight") for name in self._summed)
        return {name: partial(self._sum, down, up) for name, down, up in zip(layers, self.down, self.up, strict=True)}

    def _sum(self, down: Tensor, up: Tensor, x: Tensor, output: Tensor) -> Tensor:
        return output + self.scale * F.linear(F.linear(x, down), up)


class ScaleShift(Replaced):
    """gamma y + beta after each linear layer, norm, and the patch embedding, folded into their values (SSF).

    Source: Lian et al., "Scaling & shifting your features", NeurIPS 2022. gamma N(1, 0.02), beta N(0, 0.02): the
        network does not start exactly as it is.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        kinds = (nn.Linear, nn.LayerNorm, nn.Conv2d)
        layers = {name: layer for name, layer in backbone.named_modules() if isinstance(layer, kinds)}
        self._layers = {name: layer.bias is not None for name, layer in layers.items()}
        if not all(self._layers.values()):
            raise ConfigError("scale_shift folds into biases, and this network has layers without: set model.name")
        own = dict(backbone.named_parameters())
        sizes = [own[f"{name}.bias"] for name in self._layers]
        self.scales = nn.ParameterList(1 + 0.02 * torch.randn_like(bias) for bias in sizes)
        self.shifts = nn.ParameterList(0.02 * torch.randn_like(bias) for bias in sizes)

    def values(self, backbone: nn.Module) -> Mapping[str, Tensor]:
        own, made = dict(backbone.named_parameters()), {}
        for name, scale, shift in zip(self._layers, self.scales, self.shifts, strict=True):
            weight = own[f"{name}.weight"]
            made[f"{name}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            made[f"{name}.bias"] = own[f"{name}.bias"] * scale + shift
        return made


class BlockAdapters(Tuner):
    """x + attention, then x + mlp(norm(x)) + 0.1 (U relu(V x + b) + c) in each block of a vision transformer.

    Args:
        backbone: A vision transformer; see ``plain_transformer``.
        rank: r, length of V x.

    Source: Chen et al., "AdaptFormer", NeurIPS 2022, equation 3. V Kaiming-uniform, U and biases 0: the network starts
        as it is.
    """

    def __init__(self, backbone: TimmBackbone, rank: int = 64) -> None:
        super().__init__()
        made = partial(bottleneck, backbone.feature_dim, rank, nn.ReLU, DROPOUT)
        self.adapters = nn.ModuleList(drawn_for(next(backbone.parameters()), made) for _ in backbone.model.blocks)

    def features(self, backbone: TimmBackbone, images: Tensor) -> Tensor:
        def run(index: int, block: Any, x: Tensor) -> Tensor:
            x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
            added: Tensor = SCALE * self.adapters[index](x)
            found: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) + added
            return found

        return run_blocks(backbone, images, run)


class AttentionAdapters(Tuner):
    """x + attention(n) + s (U gelu(V n + b) + c) with n = norm(x), in the first blocks of a vision transformer.

    Args:
        backbone: A vision transformer; see ``plain_transformer``.
        rank: r, length of V n.
        blocks: So many first blocks have an adapter.

    Source: Gao et al., "LAE", ICCV 2023, as in its code: the parallel adapters of He et al., ICLR 2022, beside
        attention. V Kaiming-uniform, U and biases 0: the network starts as it is. s of each block learns, from 1 on.
    """

    def __init__(self, backbone: TimmBackbone, rank: int, blocks: int) -> None:
        super().__init__()
        like, depth = next(backbone.parameters()), len(backbone.model.blocks[:blocks])
        self.scales = nn.Parameter(like.detach().new_ones(depth))
        made = partial(bottleneck, backbone.feature_dim, rank, nn.GELU)
        self.adapters = nn.ModuleList(drawn_for(like, made) for _ in range(depth))

    def features(self, backbone: TimmBackbone, images: Tensor) -> Tensor:
        def run(index: int, block: Any, x: Tensor) -> Tensor:
            if index >= len(self.adapters):
                found: Tensor = block(x)
                return found
            normed = block.norm1(x)
            added: Tensor = self.scales[index] * self.adapters[index](normed)
            x = x + block.drop_path1(block.ls1(block.attn(normed)) + added)
            moved: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
            return moved

        return run_blocks(backbone, images, run)


class PromptTokens(Tuner):
    """Learned tokens at the end of the sequence (VPT).

    Args:
        backbone: A vision transformer; see ``plain_transformer``.
        count: n, tokens.
        deep: Others before each block, in place of what became of those before; else the same through all blocks.

    Source: Jia et al., "Visual prompt tuning", ECCV 2022. Zero at the start, as in APER's code: they
        take part in attention at once, so the network does not start as it is.
    """

    def __init__(self, backbone: TimmBackbone, count: int = 5, deep: bool = True) -> None:
        super().__init__()
        like = next(backbone.parameters())
        depth = len(backbone.model.blocks) if deep else 1
        self.tokens = nn.Parameter(like.detach().new_zeros(depth, count, backbone.feature_dim))

    def features(self, backbone: TimmBackbone, images: Tensor) -> Tensor:
        count = self.tokens.shape[1]

        def run(index: int, block: Any, x: Tensor) -> Tensor:
            if index < len(self.tokens):
                x = x if index == 0 else x[:, :-count]
                x = torch.cat([x, self.tokens[index].to(x.dtype).expand(len(x), -1, -1)], dim=1)
            found: Tensor = block(x)
            return found

        return run_blocks(backbone, images, run)


class TrainedCopy(Tuner):
    """A copy of the whole network, which is trained; of any kind of backbone. The survey charges a further backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.survey_parameters = int(getattr(backbone, "survey_parameters", 0))
        self.copy = copy.deepcopy(backbone).requires_grad_(True)
        for layer in self.copy.modules():
            vars(layer).pop("train", None)  # what keeps a frozen network in evaluation mode

    def features(self, backbone: nn.Module, images: Tensor) -> Tensor:
        found: Tensor = self.copy(images)[0]
        return found


def make_tuner(kind: str, backbone: nn.Module, rank: int, user: str, prompts: int = 5) -> Tuner:
    """A tuner, one of ``ALL_TUNERS``; of a vision transformer but for ``finetune``.

    Raises:
        ConfigError: for another kind of backbone.
    """
    if kind == "finetune":
        return TrainedCopy(backbone)
    vit = plain_transformer(backbone, user)
    if kind == "adapter":
        return BlockAdapters(vit, rank)
    return ScaleShift(vit) if kind == "scale_shift" else PromptTokens(vit, prompts, deep=kind == "deep_prompts")


def bottleneck(width: int, rank: int, activation: type[nn.Module], dropout: float = 0.0) -> nn.Sequential:
    """U f(V x + b) + c, dropout after the activation f. V Kaiming-uniform, U and biases 0, so it gives 0 at first."""
    down, up = nn.Linear(width, rank), nn.Linear(rank, width)
    nn.init.kaiming_uniform_(down.weight, a=5**0.5)
    for zero in (down.bias, up.weight, up.bias):
        nn.init.zeros_(zero)
    return nn.Sequential(down, activation(), nn.Dropout(dropout), up)
