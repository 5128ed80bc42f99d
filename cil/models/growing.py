"""A backbone with a head that grows; and the normalisation both kinds of networks begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cil.models.base import Output
from cil.models.heads import Head
from cil.models.known import backbone_output


class Normalise(nn.Module):
    """(images - mean) / std by channel. Mean and std come from the configuration: they are not in the state dict.

    Args:
        mean, std: One value for each channel, in units of images in [0, 1].
    """

    constants = ("mean", "std")  # not saved, and never changed
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class HeadedNet(nn.Module):
    """A network whose outputs are those of one head."""

    __call__: Callable[..., Output]
    head: Head

    def grow(self, count: int) -> None:
        """Add ``count`` outputs in place; old logits stay as they were.

        Raises:
            ShapeError: if the network has no features yet.
        """
        self.head.grow(count)

    @property
    def num_classes(self) -> int:
        """C, columns of the logits."""
        return self.head.num_classes

    @property
    def feature_dim(self) -> int:
        """D, columns of the features."""
        return self.head.in_features


class GrowingNet(HeadedNet):
    """One backbone and one head that widens as classes arrive.

    Args:
        backbone: Returns (features, stages) and has ``feature_dim`` and ``survey_parameters``.
        head: On ``backbone.feature_dim`` features.
        normalise: Applied to the images first; None for images that are normalised already.
    """

    backbone: Any

    def __init__(self, backbone: nn.Module, head: Head, normalise: nn.Module | None = None) -> None:
        super().__init__()
        self.normalise = normalise or nn.Identity()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Output:
        """Float images (N, C, H, W) in [0, 1] to logits, features and stages."""
        features, stages = backbone_output(self.backbone, self.normalise(images))
        return Output(self.head(features), features, stages)

    @property
    def survey_parameters(self) -> int:
        """Parameters that the survey charges: the backbone's."""
        return int(self.backbone.survey_parameters)
