"""Backbones by name. Knowing the names imports no model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from cil.errors import ConfigError, nearest
from cil.models.base import drop_counters
from cil.models.weights import load_weights
from cil.plugins import Registry
from cil.targets import check_arguments

ImageSize = int | tuple[int, int]  # H, or (H, W)
Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)
MODELS: Registry[Builder] = Registry("model", "cil.models")


def register_model(name: str) -> Callable[[B], B]:
    """Make a backbone known by ``name``.

    The builder is called as ``builder(in_channels=C, image_size=size, **options)`` and returns a module whose forward
    gives (features, stages), with ``feature_dim`` and ``survey_parameters`` (see ``Backbone``). Other packages name
    such a builder in an entry point of the group ``cil.models``.

    Raises:
        ConfigError: where another builder has the name.
    """
    return MODELS.register(name)


def names() -> list[str]:
    """All known names, those of installed plugins too.

    Any timm model is known as ``timm:NAME`` besides, a CLIP model of open_clip as ``clip:ARCHITECTURE/TAG``.
    """
    return MODELS.names()


def build_backbone(
    name: str, in_channels: int, image_size: ImageSize, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """Build a backbone by name.

    Args:
        name: One of ``names()``, ``timm:NAME``, or ``clip:ARCHITECTURE/TAG``.
        in_channels: Channels of the stream's images.
        image_size: H, or (H, W), of the stream's images.
        weights: None for random ones, the path of a file, or ``hub`` (timm and CLIP models).
        **options: For the builder; see the class of the model.

    Raises:
        ConfigError: for an unknown name or option, images too small, or weights that do not fit.
    """
    if name.startswith("timm:"):
        from cil.models.timm_zoo import timm_backbone

        check_arguments(timm_backbone, options, "model.options")
        return timm_backbone(name.removeprefix("timm:"), weights, in_channels, image_size, **options)
    if name.startswith("clip:"):
        from cil.models.clip import clip_backbone

        return clip_backbone(name.removeprefix("clip:"), weights, in_channels, image_size, **options)
    if weights == "hub":
        raise ConfigError(
            f"model '{name}' has no weights on the hub; set model.weights to null or a path, or use timm:"
        )
    builder = MODELS.get(name)
    if builder is None:
        raise ConfigError(
            f"no model '{name}', {nearest(name, names())}; or timm:NAME for any timm model; see model.name"
        )
    arguments = {"in_channels": in_channels, "image_size": image_size, **options}
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"model '{name}': {error}; see model.options") from error
    check_arguments(builder, options, "model.options")
    backbone = drop_counters(builder(**arguments))
    if weights is not None:
        load_weights(backbone, weights)
    return backbone
