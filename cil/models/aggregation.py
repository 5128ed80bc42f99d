"""A backbone of two branches, a stable and a plastic one, whose maps are mixed after every stage."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import Backbone, count_parameters
from cil.models.frozen import freeze


class ScaledConv2d(nn.Module):
    """A convolution that no longer learns, with one learned factor for each kernel.

    Args:
        convolution: Its weight is taken over and frozen; a bias is frozen too, padding is by zeros.

    Attributes:
        weight: (O, I, k, k), frozen.
        scale: (O, I, 1, 1), 1 at first: phi.

    Raises:
        ConfigError: for another padding than zeros.

    Source: Sun et al., "Meta-transfer learning", CVPR 2019 (scaling); the stable blocks of Liu et al. 2021.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        if convolution.padding_mode != "zeros":
            raise ConfigError(f"a convolution padded with {convolution.padding_mode} cannot be scaled; see model.name")
        self.weight = convolution.weight.requires_grad_(False)
        self.bias = None if convolution.bias is None else convolution.bias.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones_like(convolution.weight[:, :, :1, :1]))
        self._how: tuple[Any, ...] = (
            convolution.stride, convolution.padding, convolution.dilation, convolution.groups,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, *self._how)


class AggregatedBackbone(nn.Module):
    """One backbone, until it is ``split`` into a stable and a plastic branch of the same shape.

    After each stage k the maps are mixed, and both branches go on from the mixture:
    h_k = a_k stable_k(h_{k-1}) + (1 - a_k) plastic_k(h_{k-1}).

    Args:
        backbone: Made of a stem and stages.

    Attributes:
        branches: The backbone; after the split the stable one, then the plastic one.
        mixture: (S,), the a_k, one for each stage; no entries before the split.

    Raises:
        ConfigError: for a backbone that is not a stem and stages applied in turn.

    Source: Liu, Schiele, Sun, "Adaptive Aggregation Networks", CVPR 2021, arXiv:2010.05063; the stem has two branches
    too, as in their code.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone) or type(backbone).forward is not Backbone.forward:
            raise ConfigError(
                f"a {type(backbone).__name__} is not a stem and stages applied in turn, so it has no levels to mix; "
                f"choose a model.name that is (resnet32_cosine, resnet18_cosine, convnet2, ...)"
            )
        self.branches: Any = nn.ModuleList([backbone])
        self.mixture = nn.Parameter(torch.empty(0, device=next(backbone.parameters()).device))
        self.feature_dim = backbone.feature_dim

    @property
    def is_split(self) -> bool:
        """True where there are two branches."""
        return len(self.branches) == 2

    def split(self, stable: str = "scaled") -> None:
        """Make two branches of one, in place: both, and so the network, compute what it did.

        Args:
            stable: Learning in the stable branch. ``scaled``: a factor for each kernel (``ScaledConv2d``) and batch
                norm; ``frozen``: nothing, and statistics stay too.
        """
        backbone = self.branches[0]
        self.branches.append(copy.deepcopy(backbone))
        if stable == "frozen":
            freeze(backbone)
        else:
            scale_convolutions(backbone)
        self.mixture = nn.Parameter(torch.full((len(backbone.stages),), 0.5, device=self.mixture.device))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised images (N, C, H, W) to features (N, D) and the mixed map after each stage."""
        if not self.is_split:
            found: tuple[Tensor, tuple[Tensor, ...]] = self.branches[0](images)
            return found
        stable, plastic = self.branches
        maps: list[Tensor] = []
        s, p = stable.stem(images), plastic.stem(images)
        for level, (one, other) in enumerate(zip(stable.stages, plastic.stages, strict=True)):
            share = self.mixture[level]
            s = p = share * one(s) + (1 - share) * other(p)
            maps.append(s)
        return s.mean((2, 3)), tuple(maps)

    @property
    def survey_parameters(self) -> int:
        """Parameters that the survey charges: all of both branches, factors and mixture (0.99 M at ResNet-32)."""
        return count_parameters(self)


def scale_convolutions(module: nn.Module) -> None:
    """Put a ``ScaledConv2d`` in the place of every convolution inside a module."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            setattr(module, name, ScaledConv2d(child))
        else:
            scale_convolutions(child)
