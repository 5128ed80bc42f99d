"""Small plain convolutional networks: the survey's for tight budgets, and one for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from cil.errors import ConfigError
from cil.models.base import Backbone
from cil.models.registry import ImageSize, register_model


def _block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, BN, ReLU, max-pool 2; torch's default initialisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


class ConvNet2(Backbone):
    """Two blocks of 64 channels for 32x32 images; D = 64.

    Source: Zhou et al., "A Model or 603 Exemplars", ICLR 2023, backbones of the smallest CIFAR budget: 38,976
    parameters, 1,920 of them before MEMO's cut.
    """

    usual_size = 32

    signed = False

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(nn.Identity(), [_block(in_channels, 64), _block(64, 64)], feature_dim=64)


class ConvNet4(Backbone):
    """Four blocks (128, 128, 128, 512 channels; the first 7x7 with stride 2) for 224x224 images; D = 512.

    Source: As ``ConvNet2``, smallest ImageNet budget: 906,240 parameters, 314,880 of them before MEMO's cut.
    """

    usual_size = 224

    signed = False

    def __init__(self, in_channels: int = 3) -> None:
        first = _block(in_channels, 128, kernel=7, stride=2)
        super().__init__(nn.Identity(), [first, _block(128, 128), _block(128, 128), _block(128, 512)], feature_dim=512)


class SmallConvNet(Backbone):
    """Two blocks of 16 and 32 channels, about 5,000 parameters, for images from 8x8; D = 32. Not in the survey."""

    usual_size = 32

    signed = False

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__(nn.Identity(), [_block(in_channels, 16), _block(16, 32)], feature_dim=32)


def _register(name: str, network: Callable[[int], Backbone], least: int) -> None:
    @register_model(name)
    def build(in_channels: int, image_size: ImageSize) -> Backbone:
        smallest = image_size if isinstance(image_size, int) else min(image_size)
        if smallest < least:
            raise ConfigError(f"{name} needs images of at least {least} pixels a side, not {smallest}; see model.name")
        return network(in_channels)


_register("convnet2", ConvNet2, least=4)
_register("convnet4", ConvNet4, least=32)
_register("smallconv", SmallConvNet, least=4)
