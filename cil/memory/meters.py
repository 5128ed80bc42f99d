"""Meters: bytes that autograd saves for the backward pass, and floating-point operations."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class SavedBytes:
    """Counts the bytes that autograd keeps for backward: each storage once and whole, whatever views of it are saved.

    Use as a context around the forward pass; ``bytes`` holds the sum afterwards. A batch that a layer saves counts too.

    Args:
        exclude: Tensors that exist anyway (parameters, buffers): their storages are not counted.
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in exclude}
        self._seen: dict[int, int] = {}
        self._hooks: Any = None

    @property
    def bytes(self) -> int:
        """Bytes saved so far."""
        return sum(self._seen.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself may be an output: a cycle, which would outlive the graph

    def __enter__(self) -> SavedBytes:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Two matrix products, query-key and weights-value; two operations a multiply-add."""
    batch, heads, queries, depth = query
    keys, value_depth = key[-2], value[-1]
    return 2 * batch * heads * queries * keys * (depth + value_depth)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Five products: the weights again, then the gradients of value, weights, query and key."""
    batch, heads, queries, depth = query
    keys, value_depth = key[-2], value[-1]
    return 2 * batch * heads * queries * keys * (3 * depth + 2 * value_depth)


def _attention_layer(query: Any, key: Any, value: Any, width: int, heads: int, *args: Any, **kwargs: Any) -> int:
    """The fused layer that ``nn.MultiheadAttention`` runs in evaluation: four projections around the attention."""
    batch, queries, _ = query
    keys = key[1]
    projections = 2 * batch * width * width * (2 * queries + 2 * keys)
    return projections + _attention((batch, 1, queries, width), (batch, 1, keys, width), (batch, 1, keys, width))


def _encoder_layer(tokens: Any, width: int, heads: int, *args: Any, **kwargs: Any) -> int:
    """The fused layer that ``nn.TransformerEncoderLayer`` runs in evaluation: attention, then two linear layers."""
    hidden, _ = args[11]  # shape of the first one's weight
    feed_forward = 2 * (2 * tokens[0] * tokens[1] * width * hidden)
    return _attention_layer(tokens, tokens, tokens, width, heads) + feed_forward


class Flops:
    """Counts floating-point operations, two for each multiply-add; ``count`` holds the sum.

    Torch's counter misses the attention kernels of the CPU and of fused layers; their formulas are added here. A frozen
    layer costs no weight gradient, as measured, not as assumed.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counting(self) -> Any:
        """Count what runs inside."""
        from torch.utils.flop_counter import FlopCounterMode

        aten = torch.ops.aten
        custom: dict[Any, Any] = {}
        for name, formula in (
            ("_scaled_dot_product_flash_attention_for_cpu", _attention),
            ("_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward),
            ("_native_multi_head_attention", _attention_layer),
            ("_transformer_encoder_layer_fwd", _encoder_layer),
        ):
            operator = getattr(aten, name, None)
            if operator is not None:
                custom[operator] = formula
        with FlopCounterMode(display=False, custom_mapping=custom) as counter:
            yield
        self.count += counter.get_total_flops()
