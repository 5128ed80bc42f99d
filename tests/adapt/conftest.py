"""Small sources for tests of adaptation: networks whose gradients can be found by hand, and a convolutional one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from cil.adapt import SourceModel, find
from cil.data import Samples
from cil.engine.keys import generator
from cil.models import NetFactory, build_backbone


class OneNorm(nn.Module):
    """Batch norm of pixels: logits z = gamma (x - mean) / std + beta, one channel a class, images of one pixel."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(classes, eps=1e-12)

    def forward(self, images):
        return self.norm(images).flatten(1)


def one_norm(classes: int = 2) -> SourceModel:
    return SourceModel(OneNorm(classes), classes, (classes, 1, 1))


def conv_source(classes: int = 4, seed: int = 0) -> SourceModel:
    """Two blocks of convolution and batch norm, 12 x 12 colour images; statistics and affine values are not trivial."""
    factory = NetFactory(partial(build_backbone, "smallconv", 3, 12), mean=[0.5] * 3, std=[0.25] * 3, seed=seed)
    net = factory()
    net.grow(classes)
    draws = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in [*net.parameters(), *net.backbone.buffers()]:
            value.add_(0.1 * torch.rand(value.shape, generator=draws))
        net.head.weight.copy_(2 * torch.randn(net.head.weight.shape, generator=draws))
    return SourceModel(net.eval(), classes, (3, 12, 12))


def pictures(count: int, key: int = 0) -> torch.Tensor:
    """(N, 3, 12, 12) float in [0, 1], of 256 levels."""
    return torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(key)).float() / 255


def source_samples(count: int = 40, classes: int = 4) -> Samples:
    return Samples.from_arrays((255 * pictures(count, 99)).round().byte(), torch.arange(count) % classes)


class Made:
    """Adapters as the engine makes them: a fresh source each, draws keyed by batch."""

    def __call__(self, name, source=None, **given):
        kind = find(name)
        adapter = kind(source or conv_source(), **given)
        self.at(adapter, 0)
        return adapter

    def at(self, adapter, batch):
        adapter.context.generator = lambda purpose: generator(0, "adapt", batch, purpose)

    one_norm = staticmethod(one_norm)
    conv_source = staticmethod(conv_source)
    pictures = staticmethod(pictures)
    source_samples = staticmethod(source_samples)

    @staticmethod
    def copied(adapter):
        """The carried tensors, copied."""
        return {name: tensor.clone() for name, tensor in adapter.state().tensors.items()}

    # two images of two channels: normalised to -1, 1 and 1, -1, so with gamma 1 and beta 0 these are the logits
    crossed = torch.tensor([[0.2, 0.8], [0.6, 0.4]])[:, :, None, None]


@pytest.fixture(scope="session")
def made() -> Made:
    return Made()
