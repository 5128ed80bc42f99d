"""Meta networks: small trainable networks beside the parts of a frozen residual network (EcoTTA)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cil.errors import ConfigError
from cil.models.base import Backbone, count_parameters, drop_counters
from cil.models.lean import FrozenLayers

GRAD_PATHS = ("full", "lean", "stop")
Shape = tuple[int, int, int]
OnGroup = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Block:
    """A residual block: the layer that its input enters first, and the one that gives its output (often the same)."""

    enter: nn.Module
    leave: nn.Module


@dataclass(frozen=True)
class Part:
    """F_k: consecutive blocks of the frozen network.

    Attributes:
        enter, leave: Its first and its last layer.
        blocks: Their number.
        inputs, outputs: (C, H, W) of the maps that enter and leave it.
        bottleneck: Whether its blocks are bottlenecks (three convolutions).
    """

    enter: nn.Module
    leave: nn.Module
    blocks: int
    inputs: Shape
    outputs: Shape
    bottleneck: bool

    @property
    def stride(self) -> int:
        """Product of the strides inside."""
        return round(self.inputs[1] / self.outputs[1])


def residual_stages(net: nn.Module) -> list[list[Block]]:
    """The residual blocks of a network, by stage.

    Known are each ``Backbone`` of this package whose stages are made of blocks (CIFAR ResNets, ResNets, WRNs), networks
    with ``layer1``, ``layer2`` ... (torchvision's and timm's ResNets), and those of timm with ``stages`` or ``s1``,
    ``s2`` ... (ResNetV2, RegNet, ConvNeXt); around them may stand whatever normalises, pools and classifies.

    Raises:
        ConfigError: where there are none, or several networks side by side.
    """
    found = [stages for module in net.modules() if (stages := _stages_of(module))]
    if len(found) != 1:
        how = "is not made of residual blocks" if not found else f"has {len(found)} chains of residual blocks"
        raise ConfigError(
            f"a {type(net).__name__} {how}, so it cannot be cut into parts for meta networks; choose one network of "
            f"blocks (model=resnet32, wrn_40_2, resnet50, timm:resnet18 ...)"
        )
    return found[0]


def _stages_of(module: nn.Module) -> list[list[Block]]:
    children = dict(module.named_children())
    if isinstance(module, Backbone):
        stages = list(module.stages)
    elif "layer1" in children and "layer2" in children:
        stages = [children[f"layer{k}"] for k in range(1, 10) if f"layer{k}" in children]
    elif "s1" in children and "s2" in children:
        stages = [children[f"s{k}"] for k in range(1, 10) if f"s{k}" in children]
    elif isinstance(children.get("stages"), nn.Sequential):
        stages = list(children["stages"].children())
    else:
        return []
    blocks = [_blocks_of(stage) for stage in stages]
    return blocks if all(blocks) else []


def _blocks_of(stage: nn.Module) -> list[Block]:
    """Blocks are modules of modules: a plain layer at the end (WRN's last BN and ReLU) is none, nor a plain network."""
    children = dict(stage.named_children())
    inner = children.get("blocks")
    if inner is None:
        return [Block(child, child) for child in children.values() if any(True for _ in child.children())]
    blocks = [Block(child, child) for child in inner.children()]
    first = next(iter(children.values()))  # ConvNeXt halves the map before the blocks of a stage
    return blocks if first is inner or not blocks else [Block(first, blocks[0].leave), *blocks[1:]]


def partition(blocks: int, stages: int, count: int, key: str = "adapter.parts") -> list[int]:
    """How many blocks each part has: shallow layers, where shifts of the input live, get the shorter parts.

    All blocks make 2 S equal units. Where S <= K <= 2 S, the first 2 K - 2 S parts are one unit long, the others two;
    for other K all parts are as equal as whole blocks allow.

    Args:
        blocks: N, residual blocks of the network.
        stages: S.
        count: K, the model partition factor.
        key: Of the configuration, for messages.

    Raises:
        ConfigError: for less than one part, or more parts than blocks.

    Source:
        Song et al. 2023: this gives their parts for WRN-28-10, WRN-40-2 and ResNet-50 at K = 4 and 5, the latter's at
        K = 4 as the reported megabytes have it.

    >>> partition(18, 3, 4), partition(18, 3, 5)
    ([3, 3, 6, 6], [3, 3, 3, 3, 6])
    >>> partition(16, 4, 4), partition(16, 4, 5)
    ([4, 4, 4, 4], [2, 2, 4, 4, 4])
    """
    if not 1 <= count <= blocks:
        raise ConfigError(f"{key} is {count}; this network has {blocks} residual blocks, so 1 to {blocks}")
    units, short = 2 * stages, 2 * (count - stages)
    ends = [k if k <= short else 2 * k - short for k in range(count + 1)]
    if not stages <= count <= units:
        units, ends = count, list(range(count + 1))
    sizes = _sizes(ends, blocks, units)
    return sizes if all(sizes) else _sizes(list(range(count + 1)), blocks, count)


def _sizes(ends: Sequence[int], blocks: int, units: int) -> list[int]:
    bounds = [end * blocks // units for end in ends]
    return [high - low for low, high in pairwise(bounds)]


def cut(net: nn.Module, image_shape: Shape, parts: int | Sequence[int] = 4, key: str = "adapter.parts") -> list[Part]:
    """Cut a network into parts. Shapes are found by one pass on ``meta``, which also checks that blocks form a chain.

    Args:
        net: Images (N, C, H, W) to scores.
        image_shape: (C, H, W).
        parts: K, for the rule of ``partition``; or the number of blocks of each part.
        key: Of the configuration, for messages.

    Raises:
        ConfigError: for a network without residual blocks, blocks that do not follow one another, or numbers that do
            not fit.
    """
    stages = residual_stages(net)
    blocks = [block for stage in stages for block in stage]
    sizes = partition(len(blocks), len(stages), parts, key) if isinstance(parts, int) else [int(size) for size in parts]
    if sum(sizes) != len(blocks) or any(size < 1 for size in sizes):
        raise ConfigError(f"{key} is {sizes}; this network has {len(blocks)} residual blocks, so they sum to it")
    shapes = _shapes(net, blocks, image_shape)
    made, start = [], 0
    for size in sizes:
        inside = blocks[start : start + size]
        bottleneck = any(hasattr(block.leave, "conv3") for block in inside)
        ends = shapes[start][0], shapes[start + size - 1][1]
        made.append(Part(inside[0].enter, inside[-1].leave, size, *ends, bottleneck))
        start += size
    return made


def _shapes(net: nn.Module, blocks: Sequence[Block], image_shape: Shape) -> list[tuple[Shape, Shape]]:
    """Shapes of the maps that enter and leave each block."""
    order: list[tuple[str, int, Any]] = []

    def note(what: str, index: int, value: Any) -> None:
        order.append((what, index, value))

    handles = []
    for index, block in enumerate(blocks):
        handles.append(block.enter.register_forward_pre_hook(lambda _, args, k=index: note("in", k, args[0])))
        handles.append(block.leave.register_forward_hook(lambda _, args, out, k=index: note("out", k, out)))
    tensors = {name: t.to("meta") for name, t in (*net.named_parameters(), *net.named_buffers())}
    try:
        with torch.no_grad():
            functional_call(net, tensors, (torch.empty(2, *image_shape, device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
    expected = [(what, index) for index in range(len(blocks)) for what in ("in", "out")]
    chained = [(what, index) for what, index, _ in order] == expected
    if not chained or any(order[k][2] is not order[k + 1][2] for k in range(1, len(order) - 1, 2)):
        raise ConfigError(f"the blocks of a {type(net).__name__} do not follow one another; choose another model.name")
    if any(not isinstance(value, Tensor) or value.ndim != 4 for _, _, value in order):
        raise ConfigError(f"the blocks of a {type(net).__name__} do not map maps to maps; choose another model.name")
    shapes: list[Any] = [tuple(value.shape[1:]) for _, _, value in order]
    return list(zip(shapes[::2], shapes[1::2], strict=True))


class MetaNetwork(nn.Module):
    """What is trained beside part k: BN_k, Conv_k, BN'_k.

    Args:
        part: Gives channels and stride.
        kernel: Of the convolution; odd.

    Source:
        Song et al. 2023, section 3.1; the convolution has no bias, and pads by floor(kernel / 2).
    """

    def __init__(self, part: Part, kernel: int) -> None:
        super().__init__()
        inputs, outputs = part.inputs[0], part.outputs[0]
        self.norm = nn.BatchNorm2d(outputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, part.stride, padding=kernel // 2, bias=False)
        self.conv_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, entered: Tensor) -> Tensor:
        """x~_k = BN_k(x_k) + ReLU(BN'_k(Conv_k(x~_{k-1}))) of ``x``, x_k, and ``entered``, x~_{k-1}."""
        return self.norm(x) + F.relu(self.conv_norm(self.conv(entered)))  # type: ignore[no-any-return]


class MetaNetworks(nn.ModuleList):
    """One meta network for each part.

    Args:
        parts: Of the frozen network.
        kernel: Of the convolutions, odd; None: 1 beside bottlenecks (ResNet-50), else 3.
        generator: Draws the initial values (see ``reset``).

    Raises:
        ConfigError: for an even kernel.

    Source:
        Song et al. 2023. Of ResNet-50 the reported megabytes hold for kernel 1 alone.
    """

    def __init__(self, parts: Sequence[Part], kernel: int | None, generator: torch.Generator) -> None:
        if kernel is not None and (kernel < 1 or kernel % 2 == 0):
            raise ConfigError(f"adapter.kernel is {kernel}; it must be odd, so that maps keep their size, or null")
        self.kernel = kernel or (1 if any(part.bottleneck for part in parts) else 3)
        with torch.random.fork_rng(devices=[]):  # torch's own draws, made anew below
            super().__init__(MetaNetwork(part, self.kernel) for part in parts)
        drop_counters(self)
        self.reset(generator)
        self.eval()

    def reset(self, generator: torch.Generator) -> None:
        """Initial values: convolutions Kaiming-uniform as torch's own, batch norms as fresh ones."""
        for meta in self:
            weight: Tensor = meta.conv.weight  # type: ignore[assignment,union-attr]
            drawn = nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                weight.copy_(drawn)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                fresh = nn.BatchNorm2d(layer.num_features).state_dict()
                layer.load_state_dict(fresh)

    @property
    def survey_parameters(self) -> int:
        """All of them are needed at inference."""
        return count_parameters(self)


class GroupedNet:
    """A frozen network and its meta networks, run together. It owns neither: both are the caller's.

    The network's own forward runs, with each part's input and output taken over on the way, so that whatever stands
    around the parts (normalisation, stem, final BN, pooling, classifier) is as it was.

    Args:
        net: The frozen network, in evaluation mode.
        parts: Of ``cut``.
        metas: Of the parts.
        grad_path: How the gradient passes F_k. ``full``: exactly, by autograd, which keeps the inputs of frozen layers
            too; ``lean``: through ``FrozenLayers``, which keep weights and masks, without the derivative through their
            batch statistics; ``stop``: not at all, so that it goes back along the convolutions of the meta networks
            alone. Values are the same in all three.
        share: Of the batch in the statistics of batch norms in evaluation mode, in [0, 1] (``FrozenLayers``).
        packed: Of ``lean``: masks of one bit an entry in place of one byte.

    Raises:
        ConfigError: for an unknown path, or a share out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        parts: Sequence[Part],
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
        """What the network returns for (N, C, H, W) images.

        Args:
            images: As the network takes them.
            on_group: Called as ``on_group(k, adapted, frozen)`` with k from 0, x~_k and x_k, as soon as they are there.
            local: Detach what each group passes on, so that a loss of its output reaches its own meta network alone,
                and its graph is free again once that was sent back.
        """
        net, parts, metas = self._run
        with self._taken_over(parts, metas, on_group, local), self.layers():
            return net(images)

    def layers(self) -> FrozenLayers:
        """The context in which the layers run."""
        return FrozenLayers(self.share, self.grad_path == "lean", self.packed)

    @torch.no_grad()
    def start_at_identity(self, batches: Iterable[Tensor], gamma: float = 0.01) -> None:
        """Give the meta networks, in place, values with which x~_k is nearly x_k: the network is nearly as it was.

        BN_k stores mean and variance of x_k, gamma is its deviation and beta its mean; gamma of BN'_k is small and its
        beta 0. A gamma of 0 would leave ReLU without gradient. What is exact holds for stored statistics (share 0).

        Args:
            batches: Images, over which mean and variance of the frozen maps are taken.
            gamma: Of BN'_k.
        """
        net, parts, metas = self._run
        sums = [torch.zeros(3, part.outputs[0], dtype=torch.float64) for part in parts]

        def note(k: int, x: Tensor) -> None:
            x = x.detach().to("cpu", torch.float64).transpose(0, 1).flatten(1)  # (C, N H W)
            sums[k] += torch.stack([torch.full((len(x),), x.shape[1]), x.sum(1), x.square().sum(1)])

        handles = [
            part.leave.register_forward_hook(lambda _, args, out, k=index: note(k, out))
            for index, part in enumerate(parts)
        ]
        try:
            with self.layers():
                for images in batches:
                    net(images)
        finally:
            for handle in handles:
                handle.remove()
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
    def _taken_over(
        self, parts: Sequence[Part], metas: Any, on_group: OnGroup | None, local: bool
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

        handles = []
        for index, part in enumerate(parts):
            handles.append(part.enter.register_forward_pre_hook(lambda _, args, k=index: enter(k, args)))
            handles.append(part.leave.register_forward_hook(lambda _, args, out, k=index: leave(k, out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
