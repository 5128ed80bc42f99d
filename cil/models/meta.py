"""Meta networks: small trainable networks beside the parts of a frozen residual network (EcoTTA)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cil.errors import ConfigError
from cil.models.base import count_parameters, drop_counters
from cil.models.gradient_paths import FrozenLayers
from cil.models.partition import NetworkPart, hooks

GRAD_PATHS = ("full", "lean", "stop")
OnGroup = Callable[[int, Tensor, Tensor], None]


class MetaNetwork(nn.Module):
    """The trainable layers beside part k: BN_k, Conv_k, BN'_k.

    Args:
        part: Part of the frozen network; it gives channels and stride.
        norm: Kind of BN'_k: ``batch``, or a ``group`` norm, which has no statistics.

    Source: Song et al. 2023, section 3.1; the convolution has no bias, and pads by floor(kernel / 2).
    """

    def __init__(self, part: NetworkPart, kernel: int, norm: str = "batch") -> None:
        super().__init__()
        inputs, outputs = part.inputs[0], part.outputs[0]
        self.norm = nn.BatchNorm2d(outputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, part.stride, padding=kernel // 2, bias=False)
        self.conv_norm: nn.Module = nn.BatchNorm2d(outputs)
        if norm == "group":
            self.conv_norm = nn.GroupNorm(_groups(outputs), outputs)

    def forward(self, x: Tensor, entered: Tensor) -> Tensor:
        """x~_k = BN_k(x_k) + ReLU(BN'_k(Conv_k(x~_{k-1}))) of ``x``, x_k, and ``entered``, x~_{k-1}."""
        found: Tensor = self.norm(x) + F.relu(self.conv_norm(self.conv(entered)))
        return found


def _groups(channels: int) -> int:
    """At most 32, of at least two channels where that is possible."""
    return next((g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels // g >= 2), 1)


class MetaNetworks(nn.ModuleList):
    """One meta network for each part.

    Args:
        kernel: Kernel size of the convolutions, odd; None: 1 beside bottlenecks (ResNet-50), else 3.
        generator: Draws the initial values (see ``reset``).
        norm: Kind of BN'_k; see ``MetaNetwork``.
        group: Group of the configuration that ``kernel`` is in, for messages.

    Raises:
        ConfigError: for an even kernel.

    Source: Song et al. 2023. For ResNet-50 the reported megabytes hold with kernel 1 alone.
    """

    def __init__(
        self,
        parts: Sequence[NetworkPart],
        kernel: int | None,
        generator: torch.Generator,
        norm: str = "batch",
        group: str = "adapter",
    ) -> None:
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            raise ConfigError(f"{group}.kernel is {kernel}; it must be odd, so that maps keep their size, or null")
        self.kernel = kernel or (1 if any(part.bottleneck for part in parts) else 3)
        with torch.random.fork_rng(devices=[]):  # torch's own draws, made anew below
            super().__init__(MetaNetwork(part, self.kernel, norm) for part in parts)
        drop_counters(self)
        self.reset(generator)
        self.eval()

    def reset(self, generator: torch.Generator) -> None:
        """Initial values: convolutions Kaiming-uniform as torch's own, batch norms as fresh ones."""
        for meta in self:
            assert isinstance(meta, MetaNetwork)
            weight = meta.conv.weight
            drawn = nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                weight.copy_(drawn)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                fresh = nn.BatchNorm2d(layer.num_features).state_dict()
                layer.load_state_dict(fresh)

    @property
    def survey_parameters(self) -> int:
        """Number of parameters: all of them are needed at inference."""
        return count_parameters(self)


class GroupedNet:
    """A frozen network and its meta networks, run together. It owns neither: both are the caller's.

    The network's own forward runs, with each part's input and output taken over on the way, so that whatever stands
    around the parts (normalisation, stem, final BN, pooling, classifier) is as it was.

    Args:
        net: The frozen network, in evaluation mode.
        parts: Parts that ``cut_network`` gave.
        grad_path: How the gradient passes F_k. ``full``: exactly, by autograd, which keeps the inputs of frozen layers
            too; ``lean``: through ``FrozenLayers``, which keep weights and masks, without the derivative through their
            batch statistics; ``stop``: not at all, so that it goes back along the convolutions of the meta networks
            alone. Values are the same in all three.
        share: Share of the batch in the statistics of batch norms in evaluation mode, in [0, 1] (``FrozenLayers``).
        packed: For ``lean``: masks of one bit an entry in place of one byte.

    Raises:
        ConfigError: for an unknown path, or a share out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        parts: Sequence[NetworkPart],
        metas: Sequence[Any] | nn.ModuleList,
        grad_path: str = "lean",
        share: float = 1.0,
        packed: bool = True,
    ) -> None:
        if grad_path not in GRAD_PATHS:
            raise ConfigError(f"adapter.grad_path is '{grad_path}'; allowed: {', '.join(GRAD_PATHS)}")
        if not 0 <= share <= 1:
            raise ConfigError(f"adapter.alpha is {share}; it must be between 0 and 1")
        self._run = (net, tuple(parts), metas)
        self.grad_path, self.share, self.packed = grad_path, share, packed

    def __call__(self, images: Tensor, on_group: OnGroup | None = None, local: bool = False) -> Any:
        """Output of the network for (N, C, H, W) images.

        Args:
            on_group: Called as ``on_group(k, adapted, frozen)`` with k from 0, x~_k and x_k, as soon as they are there.
            local: Detach what each group passes on, so that a loss of its output reaches its own meta network alone,
                and its graph is free again once that was sent back.
        """
        net, parts, metas = self._run
        with self._replace_maps(parts, metas, on_group, local), self.layers():
            return net(images)

    def maps(self, images: Tensor) -> tuple[Any, list[Tensor], list[Tensor]]:
        """Output of the network, and x~_k and x_k (detached) of all groups."""
        adapted: list[Tensor] = []
        frozen: list[Tensor] = []

        def on_group(k: int, ours: Tensor, theirs: Tensor) -> None:
            adapted.append(ours)
            frozen.append(theirs.detach())

        return self(images, on_group), adapted, frozen

    def layers(self) -> FrozenLayers:
        """The context in which the layers run."""
        return FrozenLayers(self.share, self.grad_path == "lean", self.packed)

    @torch.no_grad()
    def start_at_identity(self, batches: Iterable[Tensor], gamma: float = 0.01) -> None:
        """Give the meta networks, in place, values with which x~_k is nearly x_k: the network is nearly as it was.

        BN_k stores mean and variance of x_k, gamma is its deviation and beta its mean; gamma of BN'_k is small and its
        beta 0. A gamma of 0 would leave ReLU without gradient. It is exact for stored statistics (share 0).

        Args:
            batches: Images, over which mean and variance of the frozen maps are taken.
        """
        net, parts, metas = self._run
        sums = [torch.zeros(3, part.outputs[0], dtype=torch.float64) for part in parts]

        def note(k: int, x: Tensor) -> None:
            x = x.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)  # (C, N H W)
            sums[k] += torch.stack([torch.full((len(x),), x.shape[1]), x.sum(1), x.square().sum(1)])

        with hooks(parts, lambda k, args: None, note), self.layers():
            for images in batches:
                net(images)
        for (count, total, squares), meta in zip(sums, metas, strict=True):
            mean = total / count
            var = (squares / count - mean.square()).clamp(min=0)
            meta.norm.running_mean.copy_(mean)
            meta.norm.running_var.copy_(var)
            meta.norm.weight.copy_((meta.norm.running_var + meta.norm.eps).sqrt())
            meta.norm.bias.copy_(mean)
            meta.conv_norm.weight.fill_(gamma)
            meta.conv_norm.bias.zero_()

    @contextmanager
    def _replace_maps(
        self, parts: Sequence[NetworkPart], metas: Any, on_group: OnGroup | None, local: bool
    ) -> Iterator[None]:  # fmt: skip
        entered: dict[int, Tensor] = {}

        def enter(k: int, args: Any) -> Any:
            entered[k] = args[0]
            return (entered[k].detach() if self.grad_path == "stop" else entered[k], *args[1:])

        def leave(k: int, frozen: Tensor) -> Tensor:
            adapted: Tensor = metas[k](frozen, entered.pop(k))
            if on_group is not None:
                on_group(k, adapted, frozen)
            return adapted.detach() if local else adapted

        with hooks(parts, enter, leave):
            yield


def map_distance(adapted: Tensor, fixed: Tensor, per_sample: bool = False) -> Tensor:
    """L_k = |x~_k - fixed|, a number: the mean over all elements of two maps (N, C, H, W), or with ``per_sample`` the
    L1 norm of each image's map, averaged over the batch.

    Source: Song et al. 2023, equation 4, which leaves the reduction open.
    """
    distance = (adapted - fixed.detach()).abs()
    return distance.flatten(1).sum(1).mean() if per_sample else distance.mean()
