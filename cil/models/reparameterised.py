"""1x1 convolutions beside the 3x3 convolutions of a network, which are folded into these once they have learned."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class ParallelAdapters(nn.Module):
    """One 1x1 convolution of zeros beside each 3x3 convolution of a network, whose output is added to that one's.

    The network keeps its structure and names: what is added comes from a forward hook. The adapters are no part of its
    state, so that they can be kept, billed and dropped on their own; they see the input that the convolution sees, with
    its stride and groups, and have a bias where it has one. Convolutions of other sizes stay alone, as do those whose
    padding differs from their dilation, where a 1x1 kernel has no place over the middle of the 3x3 one.

    Args:
        net: Any network; hooked in place.

    Source: Zhu, Zhai, Cao, Luo, Zha, "Self-Sustaining Representation Expansion", CVPR 2022, section 3.2.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
    >>> [tuple(beside.weight.shape) for beside in ParallelAdapters(net).beside]
    [(4, 3, 1, 1)]
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_layers", adaptable(net))  # not registered: they belong to the network
        self.beside: Any = nn.ModuleList(_make_adapter(layer) for layer in self._layers)
        self._hooks = [
            layer.register_forward_hook(partial(_add_adapter, adapter))
            for layer, adapter in zip(self._layers, self.beside, strict=True)
        ]

    _layers: list[nn.Conv2d]

    @torch.no_grad()
    def fold(self) -> None:
        """Add the adapters to the middle of the 3x3 kernels and to the biases, zero them, and take them off."""
        for layer, adapter in zip(self._layers, self.beside, strict=True):
            layer.weight[:, :, 1:2, 1:2] += adapter.weight
            adapter.weight.zero_()
            if layer.bias is not None and adapter.bias is not None:
                layer.bias += adapter.bias
                adapter.bias.zero_()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def adaptable(net: nn.Module) -> list[nn.Conv2d]:
    """The 3x3 convolutions that an adapter fits beside, in order."""
    found = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3))
    return [layer for layer in found if layer.padding == layer.dilation]


def _make_adapter(layer: nn.Conv2d) -> nn.Conv2d:
    inputs, outputs, stride, has_bias = layer.in_channels, layer.out_channels, layer.stride, layer.bias is not None
    made = nn.Conv2d(inputs, outputs, 1, (stride[0], stride[1]), groups=layer.groups, bias=has_bias, device="meta")
    made.to_empty(device=layer.weight.device).to(layer.weight.dtype)  # nothing was drawn
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made


def _add_adapter(adapter: nn.Module, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.add(adapter(inputs[0]))
