"""ResNeXt for 32x32 images: bottlenecks of grouped convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cil.models.base import Backbone, check_sizes, he_normal
from cil.models.blocks import conv1x1, make_shortcut
from cil.models.registry import ImageSize, register_model


class GroupedBottleneck(nn.Module):
    """conv1x1, grouped conv3x3 (with the stride) and conv1x1, each with BN, ReLU between; plus shortcut; ReLU.

    Names of the parts are those of the public weights.
    """

    def __init__(self, inputs: int, inside: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv_reduce, self.bn_reduce = conv1x1(inputs, inside), nn.BatchNorm2d(inside)
        self.conv_conv = nn.Conv2d(inside, inside, 3, stride, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(inside)
        self.conv_expand, self.bn_expand = conv1x1(inside, outputs), nn.BatchNorm2d(outputs)
        self.downsample = make_shortcut(inputs, outputs, stride, "conv")

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn_reduce(self.conv_reduce(x)), inplace=True)
        out = F.relu(self.bn(self.conv_conv(out)), inplace=True)
        return F.relu(self.downsample(x) + self.bn_expand(self.conv_expand(out)))


class CifarResNeXt(Backbone):
    """A 3x3 convolution and three stages of three bottlenecks with 256, 512, 1024 channels; D = 1024.

    Args:
        groups: Cardinality.
        base_width: Channels of a group in the first stage, doubled in each later one, over two: 32 gives 32 / 64 of 64.

    Source: Xie et al., CVPR 2017, arXiv:1611.05431, as AugMix (Hendrycks et al., ICLR 2020) and RobustBench have it:
    ResNeXt-29 (32x4), 6,807,882 parameters with 10 outputs. Weights N(0, 2 / (k k outputs)).
    """

    usual_size = 32

    def __init__(self, groups: int = 4, base_width: int = 32, in_channels: int = 3) -> None:
        check_sizes(groups=groups, base_width=base_width)
        stages, inputs = [], 64
        for index in range(3):
            planes, stride = 64 * 2**index, 1 if index == 0 else 2
            inside, outputs = groups * (planes * base_width // 64), 4 * planes
            blocks = [GroupedBottleneck(inputs, inside, outputs, stride, groups)]
            blocks += [GroupedBottleneck(outputs, inside, outputs, 1, groups) for _ in range(2)]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        stem = nn.Sequential(nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        super().__init__(stem, stages, inputs)
        he_normal(self)


@register_model("resnext29")
def build(in_channels: int, image_size: ImageSize, groups: int = 4, base_width: int = 32) -> CifarResNeXt:
    return CifarResNeXt(groups, base_width, in_channels)
