"""Residual blocks, with the parameter names that torchvision uses."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["append", "centre", "conv"]


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)


class PadShortcut(nn.Module):
    """Shortcut without parameters (He et al. 2016, option A): every second pixel, and ``extra`` channels of zeros.

    Args:
        centre: Half of them on each side of the existing ones; else all after them.
    """

    def __init__(self, extra: int, centre: bool) -> None:
        super().__init__()
        before = extra // 2 if centre else 0
        self.padding = (0, 0, 0, 0, before, extra - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], self.padding)


def make_shortcut(inputs: int, outputs: int, stride: int, kind: Shortcut) -> nn.Module:
    """Identity where shapes agree, else the shortcut asked for."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "conv":
        return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
    return PadShortcut(outputs - inputs, centre=kind == "centre")


class BasicBlock(nn.Module):
    """conv3x3, BN, ReLU, conv3x3, BN; plus shortcut; ReLU unless ``signed``."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, signed: bool = False) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(inputs, width, stride, shortcut)
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return out if self.signed else F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """conv1x1, conv3x3 (with the stride), conv1x1 to four times the width; plus shortcut; ReLU unless ``signed``."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, signed: bool = False) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = make_shortcut(inputs, outputs, stride, shortcut)
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return out if self.signed else F.relu(out, inplace=True)


def make_stages(
    block: type[BasicBlock] | type[Bottleneck],
    counts: tuple[int, ...],
    inputs: int,
    width: int,
    shortcut: Shortcut,
    signed: bool,
) -> list[nn.Sequential]:
    """Stages of ``counts`` blocks; width doubles and stride is 2 from the second on; ``signed``: no ReLU at the end."""
    stages = []
    for index, count in enumerate(counts):
        blocks = []
        for number in range(count):
            stride = 2 if index > 0 and number == 0 else 1
            last = index == len(counts) - 1 and number == count - 1
            blocks.append(block(inputs, width * 2**index, stride, shortcut, signed=signed and last))
            inputs = width * 2**index * block.expansion
        stages.append(nn.Sequential(*blocks))
    return stages


def paddings(backbone: nn.Module) -> set[str]:
    """How the parameter-free shortcuts of a network pad: a subset of {'append', 'centre'}."""
    shortcuts = (layer for layer in backbone.modules() if isinstance(layer, PadShortcut))
    return {"append" if shortcut.padding[4] == 0 else "centre" for shortcut in shortcuts}
