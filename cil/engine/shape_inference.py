"""Code that was written for values, run on ``meta`` without any."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_SET_DATA: Any = Tensor.data
_AS_THEY_ARE = (torch._has_compatible_shallow_copy_type, _SET_DATA.__set__)  # by which a module is moved


class OnMeta(TorchFunctionMode):
    """Where a tensor on ``meta`` meets one on the CPU, the latter goes to ``meta`` too; none comes back from there.

    Slots and row numbers stay on the CPU until they meet an image, so that code which counts or sorts them works.
    What asks for the value of something on ``meta`` still fails, but for a condition where nothing is differentiated:
    it holds, as what autograd keeps does not hang on it. A storage that goes to ``meta`` twice is one storage
    there, so that bytes are counted as on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._moved: dict[int, tuple[Any, Any]] = {}  # storages here and there; held, so that handles stay theirs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _AS_THEY_ARE:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            if func is Tensor.cpu:
                return args[0]
            if func is Tensor.__bool__ and not torch.is_grad_enabled():
                return True
            if func is Tensor.to:
                args = tuple("meta" if _is_cpu(arg) else arg for arg in args)
                kwargs = {key: "meta" if _is_cpu(value) else value for key, value in kwargs.items()}
            args, kwargs = tree_map(self._moved_there, (args, kwargs))
        return func(*args, **kwargs)

    def _moved_there(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.is_meta or value.ndim == 0:
            return value
        storage = value.untyped_storage()
        if storage._cdata not in self._moved:
            self._moved[storage._cdata] = (storage, torch.UntypedStorage(storage.nbytes(), device="meta"))
        there = torch.empty(0, dtype=value.dtype, device="meta")
        return there.set_(self._moved[storage._cdata][1], value.storage_offset(), value.shape, value.stride())


def _is_cpu(value: Any) -> bool:
    return isinstance(value, str | torch.device) and torch.device(value).type == "cpu"
