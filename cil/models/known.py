"""The seam at which features of a frozen backbone may come from elsewhere than from its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

Features = Callable[[nn.Module, Tensor], Any]  # backbone and normalised images to (features, stages)
_given: ContextVar[Features | None] = ContextVar("features", default=None)


def backbone_output(backbone: nn.Module, images: Tensor) -> Any:
    """(features, stages) of normalised images (N, C, H, W): the backbone's forward, unless another gives them."""
    given = _given.get()
    return backbone(images) if given is None else given(backbone, images)


@contextmanager
def features_from(given: Features | None) -> Iterator[None]:
    """Inside, ``given`` is asked in place of backbones; None: backbones."""
    token = _given.set(given)
    try:
        yield
    finally:
        _given.reset(token)
