"""Factory of a strategy's networks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from functools import cached_property
from typing import Any

import torch
from torch import nn

from cil.errors import ConfigError
from cil.models.base import Backbone, drop_counters
from cil.models.branching import BranchingNet
from cil.models.growing import GrowingNet, Normalise
from cil.models.heads import CosineHead, Head, LinearHead

_HEADS: dict[str, Callable[[int], Head]] = {"linear": LinearHead, "cosine": CosineHead}


class NetFactory:
    """Makes networks of one configuration, each reproducible by its number.

    The k-th backbone is drawn from a generator keyed by (seed, "net", k): it neither uses nor moves torch's global one.
    A learner is built with a factory of its own, so that k counts from the same place whenever it is rebuilt.

    Args:
        backbone: Makes a backbone: a module whose forward gives (features, stages), with ``feature_dim`` and
            ``survey_parameters`` (``functools.partial(build_backbone, "resnet32", 3, 32)``).
        head: ``linear``, ``cosine``, or a function of D that makes a head without outputs.
        mean, std: One value a channel for images in [0, 1]. None: the backbone's own ``mean`` and ``std``, where its
            weights expect some (timm); else images pass as they are.
        seed: Seed of the run.
        device: Device of the networks.
        meta: Build on the ``meta`` device: structure without values, for dry runs.
        channels_last: Memory format of convolution weights, and so of the maps.
        pretrained: Name of the public weights that backbones start from; None where they start at random.

    Raises:
        ConfigError: for an unknown head, or mean without std.
    """

    def __init__(
        self,
        backbone: Callable[[], nn.Module],
        head: str | Callable[[int], Head] = "linear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        meta: bool = False,
        channels_last: bool = True,
        pretrained: str | None = None,
    ) -> None:
        self.pretrained = pretrained
        if (mean is None) != (std is None):
            raise ConfigError(f"mean {mean} and std {std}: give both or neither")
        self._make = backbone
        self._head = _head_maker(head)
        self._statistics = None if mean is None or std is None else (tuple(mean), tuple(std))
        self._seed = seed
        self._made = 0
        self._device = torch.device("meta" if meta else device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, head: str | Callable[[int], Head] | None = None) -> GrowingNet:
        """A fresh network without outputs; ``head`` in place of the configured one for methods that need their own."""
        make_head = self._head if head is None else _head_maker(head)
        backbone: Any = self.backbone()
        return GrowingNet(backbone, make_head(backbone.feature_dim), self.normalise()).to(self._device)

    def fresh(self) -> NetFactory:
        """The same factory with nothing made yet; what it knows of the structure need not be found again."""
        _ = self.template
        other = copy(self)
        other._made = 0
        return other

    def branching(self, specialised: int | None = None) -> BranchingNet:
        """A network without branches; each ``add_branch`` makes a fresh backbone.

        Args:
            specialised: Number of last stages that each backbone but the first contributes, on top of the stages that
                all branches share (MEMO: 1); None for whole backbones.

        Raises:
            ConfigError: where the backbone has no stages to cut, or too few.
        """
        if specialised is not None:
            template = self.template
            if not isinstance(template, Backbone):
                raise ConfigError(
                    f"cannot share a part of a {type(template).__name__}: it is not made of a stem and stages; choose "
                    f"a model.name that is (resnet32, resnet18, convnet2, ...)"
                )
            template.cut(specialised)
        return BranchingNet(self.backbone, self.normalise(), specialised).to(self._device)

    def backbone(self) -> nn.Module:
        """A fresh backbone; it takes normalised images."""
        key = _key(self._seed, "net", self._made)
        self._made += 1
        if self._device.type == "meta":  # without values all are alike
            return deepcopy(self.template)
        return self._build(key, on_meta=False)

    def normalise(self) -> nn.Module:
        """The first step of every network of this factory."""
        statistics = self._statistics
        if statistics is None:
            template: Any = self.template
            statistics = None if getattr(template, "mean", None) is None else (template.mean, template.std)
        return nn.Identity() if statistics is None else Normalise(*statistics).to(self._device)

    @cached_property
    def template(self) -> nn.Module:
        """A backbone on ``meta``: parameter counts and shapes without values. It is not counted as made."""
        return self._build(0, on_meta=True)

    @property
    def feature_dim(self) -> int:
        """D, length of a feature of one backbone."""
        template: Any = self.template
        return int(template.feature_dim)

    def _build(self, key: int, on_meta: bool) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
            torch.default_generator.manual_seed(key)
            backbone = drop_counters(self._make())
        backbone = backbone.to("meta" if on_meta else self._device)
        formatted: nn.Module = backbone.to(memory_format=self._format)  # type: ignore[call-overload]
        return formatted


def _head_maker(head: str | Callable[[int], Head]) -> Callable[[int], Head]:
    if not isinstance(head, str):
        return head
    if head not in _HEADS:
        raise ConfigError(f"head '{head}' is not {' or '.join(_HEADS)}; see model.head")
    return _HEADS[head]


def _key(*parts: Any) -> int:
    """A generator's seed from a purpose: 63 bits, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
