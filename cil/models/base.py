"""Base class of convolutional backbones, and what all modules share: output, counts, where parameters are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cil.errors import ConfigError
from cil.values import is_whole

Module = TypeVar("Module", bound=nn.Module)


MOST_SIZE = 2**16  # of one side of a layer, or of layers


def check_sizes(**options: Any) -> None:
    """Refuse options of a model that are no whole number of channels, blocks, heads, ...

    Raises:
        ConfigError: naming the key.
    """
    for key, value in options.items():
        if not (is_whole(value) and 1 <= value <= MOST_SIZE):
            raise ConfigError(f"model.options.{key} is {value!r}; it must be a whole number from 1 to {MOST_SIZE:,}")


class Output(NamedTuple):
    """Results of one forward pass that losses use, so that none reaches inside a (wrapped) network.

    Attributes:
        logits: (N, C), one column for each output of the head.
        features: (N, D), what the head sees; D = b * d for a network of b branches.
        stages: Maps (N, C_s, H_s, W_s) after each stage of the backbone, or empty where it has none.
    """

    logits: Tensor
    features: Tensor
    stages: tuple[Tensor, ...] = ()


class Backbone(nn.Module):
    """A convolutional network without classifier: stem, stages, mean over the pixels.

    ``stages[-1]`` is the part that MEMO repeats for each experience; stem and earlier stages are the part it shares.

    Args:
        stem: Maps (N, C, H, W) images to a map.
        stages: Applied one after the other; the map after each is returned too.
        feature_dim: Channels after the last stage.
        survey_parameters: Number that the survey charges where that is not every parameter.

    Attributes:
        feature_dim: D, length of a feature.
        survey_parameters: Learnable parameters that the survey charges for one backbone (Zhou et al. 2024, section on
            memory-aligned comparison): all of the backbone, no classifier, no batch-norm statistics.
        signed: True where features have both signs, as cosine heads want them; None where that is not known.
        usual_size: Height and width in pixels of the images that it was designed for; None: any.
    """

    signed: bool | None = None
    usual_size: ClassVar[int | None] = None

    def __init__(
        self, stem: nn.Module, stages: Iterable[nn.Module], feature_dim: int, survey_parameters: int | None = None
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.feature_dim = feature_dim
        self.survey_parameters = count_parameters(self) if survey_parameters is None else survey_parameters
        drop_counters(self)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised images (N, C, H, W) to features (N, D) and the map after each stage."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return x.mean((2, 3)), tuple(maps)

    def split(self) -> tuple[int, int]:
        """Parameters that MEMO shares (generalised) and that it repeats (specialised: the last stage).

        Source: Zhou et al., "A Model or 603 Exemplars", ICLR 2023, section 4; the cut is in front of the last stage.
        """
        specialised = count_parameters(self.stages[-1])
        return count_parameters(self) - specialised, specialised

    def cut(self, count: int) -> tuple[nn.Sequential, Backbone]:
        """The same layers in two parts: stem and first stages, and a backbone of the last ``count`` stages.

        Raises:
            ConfigError: where there are not so many stages, or a subclass does more than apply them in turn.
        """
        kind = type(self)
        if not 1 <= count <= len(self.stages):
            raise ConfigError(f"cannot cut off {count} stages of a {kind.__name__}: it has {len(self.stages)}")
        if kind.forward is not Backbone.forward:
            raise ConfigError(f"cannot cut a {kind.__name__}: it has a forward of its own; choose another model.name")
        first = nn.Sequential(self.stem, *self.stages[:-count])
        return first, Backbone(nn.Identity(), self.stages[-count:], self.feature_dim).train(self.training)


def count_parameters(module: nn.Module) -> int:
    """Number of parameter values, trainable or not; buffers are not parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def drop_counters(module: nn.Module) -> nn.Module:
    """Remove the batch counters of batch norm, in place: nothing uses them, and carried bytes are then 4 (P + F + B).

    State dicts load with or without counters afterwards. Layers without momentum need theirs and keep it.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.momentum is not None and layer.num_batches_tracked is not None:
            layer.num_batches_tracked = None
            layer.register_load_state_dict_pre_hook(_forget_counter)
    return module


def _forget_counter(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Batch norm adds a counter to what it loads where there is none; take it out before the strict check."""
    state_dict.pop(f"{prefix}num_batches_tracked", None)


def he_normal(module: nn.Module) -> None:
    """Convolutions of ``module`` to N(0, 2 / (k k outputs)), in place (He et al. 2015, fan-out)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def in_full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """No autocast inside, on the device of ``like``: cosines and distances in half precision tie."""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)  # on meta nothing is cast


def full_precision(values: Tensor) -> Tensor:
    """The values as float32; float64 ones as they are."""
    return values if values.dtype == torch.float64 else values.float()


def drawn_for(like: Tensor, make: Callable[[], Module]) -> Module:
    """What ``make`` gives, drawn on the CPU and moved to where ``like`` is; on ``meta`` nothing is drawn."""
    with torch.device("meta" if like.is_meta else "cpu"):
        return make().to(like.device)
