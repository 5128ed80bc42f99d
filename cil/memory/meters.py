"""Meters: bytes that autograd saves for the backward pass, floating-point operations, and steps of optimizers."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from cil.errors import ContractError

Shape = tuple[int, ...]


class SavedBytes:
    """Counts the bytes that autograd keeps for backward: each storage once and whole, whatever views of it are saved.

    Use as a context around the forward pass; ``bytes`` holds the sum afterwards. A batch that a layer saves counts too.
    Where several passes go forward and back inside, ``peak`` is the most that was kept at a time.

    A storage is identified by its handle, not by its address: ``meta`` tensors have none, and a device uses addresses
    again. The meter holds weak references, so that handles stay unique and no byte is kept alive.

    Args:
        exclude: Tensors that exist anyway (parameters, buffers): their storages are not counted.
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        dense = (tensor for tensor in exclude if tensor.layout is torch.strided)  # others have no storage
        self._references = [StorageWeakRef(tensor.untyped_storage()) for tensor in dense]
        self._known = {reference.cdata for reference in self._references}
        self._seen: dict[int, int] = {}
        self._kept: dict[int, list[int]] = {}  # by storage: its bytes, and the number of graph nodes that keep it now
        self._now = self.peak = 0
        self._watchers: dict[int, weakref.ref[Tensor]] = {}  # saved tensors, by identity of their references
        self._hooks: Any = None

    @property
    def bytes(self) -> int:
        """Bytes saved so far."""
        return sum(self._seen.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place, packed = storage._cdata, tensor.detach()
        if place not in self._known:
            if place not in self._seen:
                self._references.append(StorageWeakRef(storage))
                self._seen[place] = storage.nbytes()
            kept = self._kept.setdefault(place, [self._seen[place], 0])
            kept[1] += 1
            if kept[1] == 1:
                self._now += kept[0]
                self.peak = max(self.peak, self._now)
            note = self._note(tensor, place)

            def gone(reference: weakref.ref[Tensor]) -> None:
                del self._watchers[id(reference)]
                self._release(place, note)

            reference = weakref.ref(packed, gone)
            self._watchers[id(reference)] = reference
        return packed  # the tensor itself may be an output: a cycle, which would outlive the graph

    def _note(self, tensor: Tensor, place: int) -> Any:
        """Extra information of a saved tensor, for subclasses: passed to ``_release``."""

    def _release(self, place: int, note: Any) -> None:
        kept = self._kept[place]
        kept[1] -= 1
        if not kept[1]:
            self._now -= self._kept.pop(place)[0]

    def __enter__(self) -> Self:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._hooks.__exit__(kind, error, trace)
        if isinstance(error, RuntimeError) and "saved tensor hooks" in str(error):
            raise SavedBytesRefused(
                "torch.func.grad and its like take no hooks on saved tensors, so what this step holds cannot be "
                "counted; torch.autograd.grad does"
            ) from error


class SavedBytesRefused(ContractError):
    """What is computed takes no hooks on saved tensors."""


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Two matrix products, query-key and weights-value; two operations a multiply-add."""
    batch, heads, queries, depth = query
    keys, value_depth = key[-2], value[-1]
    return 2 * batch * heads * queries * keys * (depth + value_depth)


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Five products: the weights again, then the gradients of value, weights, query and key."""
    batch, heads, queries, depth = query
    keys, value_depth = key[-2], value[-1]
    return 2 * batch * heads * queries * keys * (3 * depth + 2 * value_depth)


def _attention_layer(query: Shape, key: Shape, value: Shape, width: int, heads: int, *args: Any, **kwargs: Any) -> int:
    """The fused layer of ``nn.MultiheadAttention`` in evaluation: four projections around the attention."""
    batch, queries, _ = query
    keys = key[1]
    projections = 2 * batch * width * width * (2 * queries + 2 * keys)
    return projections + _attention((batch, 1, queries, width), (batch, 1, keys, width), (batch, 1, keys, width))


def _encoder_layer(tokens: Shape, width: int, heads: int, *args: Any, **kwargs: Any) -> int:
    """The fused layer of ``nn.TransformerEncoderLayer`` in evaluation: attention, then two linear layers."""
    hidden, _ = args[11]  # shape of the first one's weight
    feed_forward: int = 2 * (2 * tokens[0] * tokens[1] * width * hidden)
    return _attention_layer(tokens, tokens, tokens, width, heads) + feed_forward


class OptimizerSteps:
    """Counts the steps of all optimizers of torch, whoever takes them, while its context is open."""

    def __init__(self) -> None:
        self.count = 0
        self._hook: Any = None

    def __enter__(self) -> Self:
        self._hook = register_optimizer_step_post_hook(self._stepped)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _stepped(self, *call: Any) -> None:
        self.count += 1


class BackwardPasses:
    """Tells, by ``any``, whether somebody went backward while its context was open: what was saved was asked for."""

    def __init__(self) -> None:
        self.any = False
        self._hooks: Any = None

    def __enter__(self) -> Self:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), self._asked_for)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _asked_for(self, tensor: Tensor) -> Tensor:
        self.any = True
        return tensor


class Flops:
    """Counts floating-point operations, two for each multiply-add; ``count`` holds the sum.

    Formulas are torch's own, by operator, and those of the attention kernels that it lacks (on the CPU, and in fused
    layers). A frozen layer costs no weight gradient. Torch's ``FlopCounterMode`` gives the same sums, but also follows
    modules, which makes a pass a fifth slower.

    Attributes:
        updates: Steps of optimizers taken while it counted.
        open: True while it counts.
    """

    def __init__(self) -> None:
        self.count = self.updates = 0
        self.open = False

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the operations inside the context."""
        self.open, before = True, self.open
        try:
            with rest_paused(), _Counting(_formulas()) as mode, OptimizerSteps() as steps:
                yield
        finally:
            self.open = before
        self.count += mode.count
        self.updates += steps.count

    @contextmanager
    def counting_rest(self) -> Iterator[None]:
        """Count what no counter that opens inside the context counts, nor what runs under ``rest_paused``.

        So that work in a place where nobody expects any, as a property or a setter, is counted too.
        """
        mode, steps = _Counting(_formulas()), OptimizerSteps()
        _rest.counters = (mode, steps)
        try:
            with mode, steps:
                yield
        finally:
            _rest.counters = ()
        self.count += mode.count
        self.updates += steps.count


_rest = threading.local()  # ``counters``: those of the rest, while they count


@contextmanager
def rest_paused() -> Iterator[None]:
    """Around work that is counted otherwise, or not at all."""
    counters = getattr(_rest, "counters", ())
    _rest.counters = ()
    for counter in reversed(counters):
        counter.__exit__(None, None, None)
    try:
        yield
    finally:
        for counter in counters:
            counter.__enter__()
        _rest.counters = counters


@contextmanager
def set_aside() -> Iterator[list[_Counting]]:
    """Around work that no open counter shall see; those there are, for whoever bills it by another number."""
    from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

    found = [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, _Counting)]
    rest = getattr(_rest, "counters", ())
    _rest.counters = ()  # they are on the stack, and stay there
    try:
        with _disable_current_modes():
            yield found
    finally:
        _rest.counters = rest


def _formulas() -> dict[Any, Callable[..., int]]:
    """Formulas by operator: torch's, and ours."""
    from torch.utils.flop_counter import flop_registry

    formulas = dict(flop_registry)
    for name, formula in (
        ("_scaled_dot_product_flash_attention_for_cpu", _attention),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", _attention_backward),
        ("_native_multi_head_attention", _attention_layer),
        ("_transformer_encoder_layer_fwd", _encoder_layer),
    ):
        operator = getattr(torch.ops.aten, name, None)
        if operator is not None:
            formulas[operator] = _of_shapes(formula)
    return formulas


def _of_shapes(formula: Callable[..., int]) -> Callable[..., int]:
    """A formula of shapes as a formula of tensors, which is the form that torch calls."""

    def of_tensors(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        shapes = tree_map(lambda value: tuple(value.shape) if isinstance(value, Tensor) else value, args)
        return formula(*shapes, **kwargs)

    return of_tensors


class _Counting(TorchDispatchMode):
    """Adds the formula's value for each operator, or decomposes it where it is made of others."""

    _simple: ClassVar[set[Any]] = set()  # neither counted nor made of others

    def __init__(self, formulas: Mapping[Any, Callable[..., int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.formulas, self.count = formulas, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._simple:
            return func(*args, **kwargs)
        formula = self.formulas.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            out = func(*args, **kwargs)
            self.count += formula(*args, **kwargs, out_val=out)
            return out
        with self:
            out = func.decompose(*args, **kwargs) if hasattr(func, "decompose") else NotImplemented
        if out is NotImplemented:
            self._simple.add(func)
            out = func(*args, **kwargs)
        return out


# Torch wraps the method so that its compiler leaves it alone. That costs a quarter of the counting, and the import of
# the compiler; a step that is counted is not compiled.
_Counting.__torch_dispatch__ = inspect.unwrap(_Counting.__torch_dispatch__)  # type: ignore[method-assign]
