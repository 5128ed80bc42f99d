"""Residual networks cut into parts of consecutive blocks, each of which a meta network may stand beside (EcoTTA)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cil.errors import ConfigError
from cil.models.base import Backbone

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """A residual block: the layer that its input enters first, and the one that gives its output (often the same)."""

    enter: nn.Module
    leave: nn.Module


@dataclass(frozen=True)
class NetworkPart:
    """F_k: consecutive blocks of the frozen network.

    Attributes:
        enter, leave: Its first and its last layer.
        inputs, outputs: (C, H, W) of the maps that enter and leave it.
        bottleneck: True where its blocks are bottlenecks (three convolutions).
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
    """Number of blocks in each part: shallow layers, where shifts of the input live, get the shorter parts.

    All blocks make 2 S equal units. Where S <= K <= 2 S, the first 2 K - 2 S parts are one unit long, the others two;
    for other K all parts are as equal as whole blocks allow.

    Args:
        blocks: N, residual blocks of the network.
        stages: S, its stages.
        count: K, the model partition factor.
        key: Key of the configuration, for messages.

    Raises:
        ConfigError: for less than one part, or more parts than blocks.

    Source: Song et al. 2023: this gives their parts for WRN-28-10, WRN-40-2 and ResNet-50 at K = 4 and 5, the latter's
    at K = 4 as the reported megabytes have it.

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


@contextmanager
def hooks(
    parts: Sequence[Block | NetworkPart], enter: Callable[[int, Any], Any], leave: Callable[[int, Tensor], Any]
) -> Iterator[None]:
    """Inside the block, ``enter(k, args)`` is called before part k and ``leave(k, output)`` after it.

    A result that is not None replaces the arguments, or the output.
    """
    with ExitStack() as stack:
        for index, part in enumerate(parts):
            before = part.enter.register_forward_pre_hook(lambda _, args, k=index: enter(k, args))
            after = part.leave.register_forward_hook(lambda _, args, out, k=index: leave(k, out))
            for handle in (before, after):
                stack.callback(handle.remove)
        yield


class NoChain(ConfigError):
    """Residual blocks that do not follow one another."""


def cut_network(
    net: nn.Module, image_shape: Shape, parts: int | Sequence[int] = 4, key: str = "adapter.parts"
) -> list[NetworkPart]:
    """Cut a network into parts. Shapes are found by one pass, on ``meta`` where it can be, which also checks that the
    blocks form a chain.

    Args:
        net: Images (N, C, H, W) to scores.
        image_shape: (C, H, W).
        parts: K, for the rule of ``partition``; or the number of blocks of each part.
        key: Key of the configuration, for messages.

    Raises:
        NoChain: for blocks that do not follow one another.
        ConfigError: for a network without residual blocks, or parts that do not fit.
    """
    if isinstance(parts, str | float | bool) or parts is None:
        raise ConfigError(f"{key} is {parts!r}; it must be a number of parts, or a list: the blocks of each part")
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
        made.append(NetworkPart(inside[0].enter, inside[-1].leave, size, *ends, bottleneck))
        start += size
    return made


def _shapes(net: nn.Module, blocks: Sequence[Block], image_shape: Shape) -> list[tuple[Shape, Shape]]:
    """Shapes of the maps that enter and leave each block."""
    order: list[tuple[str, int, Any]] = []

    def note(what: str, index: int, value: Any) -> None:
        order.append((what, index, value))

    held = dict((*net.named_parameters(), *net.named_buffers()))
    there = {name: tensor.to("meta") for name, tensor in held.items()}
    with torch.no_grad(), hooks(blocks, lambda k, args: note("in", k, args[0]), lambda k, out: note("out", k, out)):
        try:
            functional_call(net, there, (torch.empty(2, *image_shape, device="meta"),))
        except RuntimeError:  # the network of a finished learner may hold more than its tensors
            order.clear()
            net(torch.zeros(2, *image_shape, device=next(iter(held.values())).device))
    expected = [(what, index) for index in range(len(blocks)) for what in ("in", "out")]
    chained = [(what, index) for what, index, _ in order] == expected
    if not chained or any(order[k][2] is not order[k + 1][2] for k in range(1, len(order) - 1, 2)):
        raise NoChain(f"the blocks of a {type(net).__name__} do not follow one another; choose another model.name")
    if any(not isinstance(value, Tensor) or value.ndim != 4 for _, _, value in order):
        raise ConfigError(f"the blocks of a {type(net).__name__} do not map maps to maps; choose another model.name")
    shapes: list[Any] = [tuple(value.shape[1:]) for _, _, value in order]
    return list(zip(shapes[::2], shapes[1::2], strict=True))
