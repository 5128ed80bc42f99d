"""Gradient paths through frozen layers (EcoTTA): exact, or with no more kept than the gradient of the input needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

_CONV2D, _RELU = (torch.conv2d, F.conv2d), (torch.relu, F.relu)
_GATHER = sum(1 << 56 - 7 * bit for bit in range(8))  # times eight bytes of 0 or 1: their bits are the highest byte
_COPIES = sum(1 << 8 * byte for byte in range(8))  # times a byte: that byte eight times
_DIAGONAL = sum(1 << 9 * bit for bit in range(8)) - (1 << 64)  # bit i of byte i, as a signed number


class FrozenLayers(TorchFunctionMode):
    """Context that changes how batch norms in evaluation mode normalise, and what frozen layers keep for backward.

    A layer is frozen where neither its weight nor its bias needs a gradient. Batch norms that are in training mode are
    left as they are; all others never write to their running statistics, so that what is frozen does not drift.

    Args:
        share: Share of the batch in the statistics of batch norms, in [0, 1]: mean = (1 - share) stored + share batch,
            and so the variance (biased). 1: the batch alone; 0: the stored ones.
        lean: True: layers keep as little as they can. A frozen convolution keeps its weight alone; a frozen batch norm
            computes its statistics without gradient and is a scale and a shift for each channel; a ReLU, wherever it
            stands, keeps a mask. Outputs stay the same, bit for bit on the CPU; the gradient lacks the derivative
            through the batch statistics of frozen layers.
        packed: True: eight entries of a mask in a byte; else one.

    Source: Cai, Gan, Zhu, Han, "TinyTL", NeurIPS 2020, arXiv:2007.11622, section 3.1.
    """

    def __init__(self, share: float = 1.0, lean: bool = False, packed: bool = True) -> None:
        super().__init__()
        self.share, self.lean, self.packed = share, lean, packed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if self.lean and torch.is_grad_enabled():
            if func in _CONV2D:
                return _conv2d(func, *args, **kwargs)
            if func in _RELU:
                return self._relu(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training and running_mean is not None:
            return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
        share = 1.0 if running_mean is None else self.share
        stored = None if running_mean is None or running_var is None else (running_mean, running_var)
        frozen = not any(value is not None and value.requires_grad for value in (weight, bias))
        if self.lean and frozen and x.requires_grad and torch.is_grad_enabled():
            return _apply(_LeanBatchNorm, x, stored, weight, bias, share, eps)
        return _normalise(x, stored, weight, bias, share, eps)

    def _relu(self, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
        if not input.requires_grad:
            return F.relu(input, inplace) if func is F.relu else torch.relu(input)
        return _apply(_LeanReLU, input, inplace, self.packed)


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    found: Tensor = function.apply(*arguments)
    return found


def _normalise(
    x: Tensor,
    stored: tuple[Tensor, Tensor] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    share: float,
    eps: float,
) -> Tensor:
    if share == 1 or stored is None:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    if share == 0:
        return F.batch_norm(x, *stored, weight, bias, False, 0.0, eps)
    mean, var = _mix_statistics(x, stored, share)
    scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * _by_channel(scale) + _by_channel(shift)


def _mix_statistics(x: Tensor, stored: tuple[Tensor, Tensor], share: float) -> tuple[Tensor, Tensor]:
    """mu = (1 - share) mu_stored + share mu_batch, and so the variance."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return (1 - share) * stored[0] + share * mean, (1 - share) * stored[1] + share * var


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


class _LeanBatchNorm(Function):
    """y = scale x + shift, the statistics taken as constants: only ``scale`` (C,) is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stored: Any, weight: Tensor | None, bias: Tensor | None, share: float, eps: float
    ) -> Tensor:  # fmt: skip
        if share == 1 or stored is None:
            y, _, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)  # 1 / deviation
        else:
            y = _normalise(x, stored, weight, bias, share, eps)
            var = stored[1] if share == 0 else _mix_statistics(x, stored, share)[1]
            inverse = torch.rsqrt(var + eps)
        ctx.save_for_backward(inverse if weight is None else inverse * weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (scale,) = ctx.saved_tensors
        return grads[0] * _by_channel(scale).to(grads[0].dtype), None, None, None, None, None


class _LeanConv2d(Function):
    """A convolution whose weight needs no gradient: its input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.how = x.shape, x.dtype, how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (weight,) = ctx.saved_tensors
        found = conv2d_input(ctx.shape, weight.to(grads[0].dtype), grads[0], *ctx.how)
        return found.to(ctx.dtype), None, None, *(None for _ in ctx.how)


def _conv2d(
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or not input.requires_grad or isinstance(padding, str):
        found: Tensor = func(input, weight, bias, stride, padding, dilation, groups)
        return found
    return _apply(_LeanConv2d, input, weight, bias, stride, padding, dilation, groups)


class _LeanReLU(Function):
    """max(x, 0), which keeps the places where the result is positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool, packed: bool) -> Tensor:
        y = x.relu_() if inplace else x.relu()
        if inplace:
            ctx.mark_dirty(x)
        ctx.last = y.ndim == 4 and y.is_contiguous(memory_format=torch.channels_last)
        mask = y.permute(0, 2, 3, 1) > 0 if ctx.last else y > 0  # in the order of memory, which is packed faster
        ctx.shape, ctx.packed = mask.shape, packed
        ctx.save_for_backward(pack(mask) if packed else mask)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (kept,) = ctx.saved_tensors
        mask = _spread(kept, ctx.shape) if ctx.packed else kept
        mask = mask.permute(0, 3, 1, 2) if ctx.last else mask
        return torch.ops.aten.threshold_backward(grads[0], mask.to(grads[0].dtype), 0), None, None


def pack(mask: Tensor) -> Tensor:
    """Eight entries in a byte, the first one lowest: (any shape) bool to (ceil(numel / 8),) uint8.

    >>> pack(torch.tensor([True, False, True] + 6 * [False])).tolist()
    [5, 0]
    """
    bits = mask.flatten().view(torch.uint8)
    bits = F.pad(bits, (0, -bits.numel() % 8))
    return ((bits.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask that ``pack`` was given, of that shape."""
    return _spread(packed, shape) != 0


def _spread(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The same as bytes that are 0 or not."""
    spread = (packed.to(torch.int64) * _COPIES) & _DIAGONAL
    return spread.view(torch.uint8)[: torch.Size(shape).numel()].view(torch.Size(shape))
