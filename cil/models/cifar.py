"""ResNets for 32x32 images: the plain ones of the linear-head methods, and the signed ones of cosine heads."""

from __future__ import annotations

from typing import Any

from torch import nn

from cil.errors import ConfigError
from cil.models.base import Backbone, check_sizes, count_parameters, he_normal
from cil.models.blocks import BasicBlock, Shortcut, conv3x3, make_stages
from cil.models.registry import ImageSize, register_model


class CifarResNet(Backbone):
    """ResNet of depth 6n + 2: three stages of n basic blocks, widths w, 2w, 4w; D = 4w.

    Args:
        depth: 14, 20, 26, 32, ...: 6n + 2.
        width: w, channels of the first stage.
        shortcut: Where a stage changes: ``append`` (zero channels after the existing ones, as the survey's code does),
            ``centre`` (half on each side, as in public CIFAR-10 weights) or ``conv`` (conv1x1 and BN).
        cosine: The variant for cosine heads (PODNet, Coil, LUCIR): ``conv`` shortcuts and no ReLU at the end, so that
            features have signs.

    Raises:
        ConfigError: for a depth that is not 6n + 2, or an unknown shortcut.

    Source: He et al. 2016, section 4.2. Parameters as in the survey (Zhou et al. 2024): 463,504 at depth 32; the cosine
    variant has 466,256 and is charged 463,504 there, so ``survey_parameters`` leaves the shortcuts out. Weights N(0, 2
    / (k k outputs)).
    """

    usual_size = 32

    def __init__(
        self,
        depth: int = 32,
        in_channels: int = 3,
        width: int = 16,
        shortcut: Shortcut = "append",
        cosine: bool = False,
    ) -> None:
        check_sizes(width=width)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ConfigError(f"a CIFAR ResNet has depth 6n + 2 (14, 20, 26, 32, ...), not {depth}; see model.name")
        if shortcut not in ("append", "centre", "conv"):
            raise ConfigError(f"shortcut '{shortcut}' is not append, centre or conv; see model.options.shortcut")
        self.depth = depth
        self.shortcut: Shortcut = "conv" if cosine else shortcut
        stem = nn.Sequential(conv3x3(in_channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        stages = make_stages(BasicBlock, (blocks,) * 3, width, width, self.shortcut, signed=cosine)
        first_blocks: list[Any] = [stage[0] for stage in stages]
        extra = sum(count_parameters(block.downsample) for block in first_blocks) if cosine else 0
        charged = count_parameters(stem) + sum(map(count_parameters, stages)) - extra
        super().__init__(stem, stages, 4 * width, charged)
        self.signed = cosine
        he_normal(self)


def _register(depth: int) -> None:
    @register_model(f"resnet{depth}")
    def plain(in_channels: int, image_size: ImageSize, width: int = 16, shortcut: Shortcut = "append") -> CifarResNet:
        return CifarResNet(depth, in_channels, width, shortcut)

    @register_model(f"resnet{depth}_cosine")
    def cosine(in_channels: int, image_size: ImageSize, width: int = 16) -> CifarResNet:
        return CifarResNet(depth, in_channels, width, cosine=True)


@register_model("resnet14_narrow")
def _narrow(in_channels: int, image_size: ImageSize, width: int = 8, shortcut: Shortcut = "append") -> CifarResNet:
    return CifarResNet(14, in_channels, width, shortcut)


for _depth in (14, 20, 26, 32, 44, 56, 110):
    _register(_depth)
