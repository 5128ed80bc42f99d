"""ResNets in the ImageNet layout, with torchvision's parameter names inside the stages."""

from __future__ import annotations

from typing import Literal

from torch import nn

from cil.errors import ConfigError
from cil.models.base import Backbone, he_normal
from cil.models.blocks import BasicBlock, Bottleneck, conv3x3, make_stages
from cil.models.registry import ImageSize, register_model

Stem = Literal["7x7", "3x3", "3x3pool"]


class ImageNetResNet(Backbone):
    """Four stages of 64, 128, 256, 512 channels (four times that with bottlenecks); D = 512 or 2048.

    Args:
        counts: Blocks in each stage; (2, 2, 2, 2) is ResNet-18.
        bottleneck: Bottleneck blocks in place of basic ones.
        stem: ``7x7`` (stride 2, then max-pool), ``3x3`` (stride 1, no pool: for 32x32 images) or ``3x3pool``.
        cosine: No ReLU at the end, so that features have signs (PODNet, Coil, LUCIR).

    Raises:
        ConfigError: for an unknown stem.

    Source: He et al. 2016; equal to torchvision's ResNet without ``fc``. Parameters as in the survey (Zhou et al.
    2024): 11,176,512 for ResNet-18, which it also charges for the cosine variant.
    """

    def __init__(
        self,
        counts: tuple[int, int, int, int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        in_channels: int = 3,
        stem: Stem = "7x7",
        cosine: bool = False,
    ) -> None:
        block = Bottleneck if bottleneck else BasicBlock
        stages = make_stages(block, counts, 64, 64, "conv", signed=cosine)
        super().__init__(_stem(stem, in_channels), stages, 512 * block.expansion)
        self.signed = cosine
        he_normal(self)


def _stem(kind: str, in_channels: int) -> nn.Sequential:
    if kind not in ("7x7", "3x3", "3x3pool"):
        raise ConfigError(f"stem '{kind}' is not 7x7, 3x3 or 3x3pool; see model.options.stem")
    if kind == "7x7":
        convolution = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        convolution = conv3x3(in_channels, 64)
    layers: list[nn.Module] = [convolution, nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    if kind != "3x3":
        layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
    return nn.Sequential(*layers)


def _register(name: str, counts: tuple[int, int, int, int], bottleneck: bool) -> None:
    @register_model(name)
    def plain(in_channels: int, image_size: ImageSize, stem: Stem = "7x7") -> ImageNetResNet:
        return ImageNetResNet(counts, bottleneck, in_channels, stem)

    @register_model(f"{name}_cosine")
    def cosine(in_channels: int, image_size: ImageSize, stem: Stem = "7x7") -> ImageNetResNet:
        return ImageNetResNet(counts, bottleneck, in_channels, stem, cosine=True)


_register("resnet10", (1, 1, 1, 1), bottleneck=False)
_register("resnet18", (2, 2, 2, 2), bottleneck=False)
_register("resnet34", (3, 4, 6, 3), bottleneck=False)
_register("resnet26b", (2, 2, 2, 2), bottleneck=True)  # resnet26 is a CIFAR ResNet
_register("resnet50", (3, 4, 6, 3), bottleneck=True)
