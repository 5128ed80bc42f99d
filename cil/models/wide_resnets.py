"""Wide residual networks for 32x32 images, with pre-activation blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import Backbone, he_normal
from cil.models.blocks import conv1x1, conv3x3
from cil.models.registry import ImageSize, register_model


class WideBlock(nn.Module):
    """BN, ReLU, conv3x3 (with the stride), BN, ReLU, conv3x3; plus the input.

    Where the width changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut = conv1x1(inputs, outputs, stride) if stride > 1 or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        out += x if self.shortcut is None else self.shortcut(active)
        return out


class WideResNet(Backbone):
    """WRN of depth 6n + 4: a 3x3 convolution, three stages of n blocks with 16w, 32w, 64w channels, BN, ReLU; D = 64w.

    The last BN and ReLU stand at the end of the last stage, so that its map is what is averaged.

    Args:
        depth: 10, 16, 22, 28, 40, ...: 6n + 4.
        widen: w.

    Raises:
        ConfigError: for a depth that is not 6n + 4, or a factor below 1.

    Source: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146, without dropout: 36,479,194
    parameters with 10 outputs for WRN-28-10, 2,243,546 for WRN-40-2. Weights N(0, 2 / (k k outputs)).
    """

    usual_size = 32

    def __init__(self, depth: int = 28, widen: int = 10, in_channels: int = 3) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ConfigError(f"a WRN has depth 6n + 4 (10, 16, 22, 28, 40, ...), not {depth}; see model.name")
        if widen < 1:
            raise ConfigError(f"a WRN is widened by 1 or more, not {widen}; see model.name")
        self.depth = depth
        stages, inputs = [], 16
        for index in range(3):
            width, stride = 16 * widen * 2**index, 1 if index == 0 else 2
            first = WideBlock(inputs, width, stride)
            stages.append(nn.Sequential(first, *(WideBlock(width, width, 1) for _ in range(blocks - 1))))
            inputs = width
        stages[-1].append(nn.BatchNorm2d(inputs)).append(nn.ReLU(inplace=True))
        super().__init__(conv3x3(in_channels, 16), stages, inputs)
        he_normal(self)


def _register(depth: int, widen: int) -> None:
    @register_model(f"wrn_{depth}_{widen}")
    def build(in_channels: int, image_size: ImageSize) -> WideResNet:
        return WideResNet(depth, widen, in_channels)


for _depth, _widen in ((16, 2), (28, 10), (40, 2)):
    _register(_depth, _widen)
