"""What a module computes, in words: equal words and equal tensors give equal bits, where the rest is equal too."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cil.engine.answers_checked import foreign_modes
from cil.memory import OptimizerSteps
from cil.memory.tensor_bits import bits
from cil.tracking.digests import tensors_sum

CODE = ("cil", "torch", "timm")  # packages whose code the identity of a run names
ENVIRONMENT = ("code", "versions", "device", "threads", "precision")  # keys of the identity
FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = tuple(f"_global_{name}_hooks" for name in ("forward", "forward_pre", "backward", "backward_pre"))
NO_ARITHMETIC = (
    *("_parameters", "_buffers", "_modules", "training", "loaded_from"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
    *("_is_full_backward_hook", "_non_persistent_buffers_set"),
)


class Unknown(Exception):
    """Something of which it is not known what it computes."""


def kernel_settings() -> dict[str, str]:
    """What the kernels are chosen by, beside what an identity says."""
    found = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }
    return {f"now_{name}": str(value) for name, value in found.items()}


def described_module(module: nn.Module) -> dict[str, Any]:
    """Class, plain attributes and parts of a module: with its tensors, all that its forward depends on."""
    check_known(type(module))
    check_as_written(module)
    own = {k: _plain(v) for k, v in vars(module).items() if k not in (*NO_ARITHMETIC, *FORWARD_HOOKS)}
    parts = {name: described_module(part) for name, part in module._modules.items() if part is not None}
    return {"class": f"{type(module).__module__}.{type(module).__qualname__}", "own": own, "parts": parts}


def check_as_written(module: nn.Module) -> None:
    """Refuse a module whose forward is not that of its class alone."""
    if "forward" in vars(module) or any(vars(module).get(name) for name in FORWARD_HOOKS):
        raise Unknown
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters(recurse=False)):
        raise Unknown


def check_undisturbed() -> None:
    """Refuse where code that somebody left behind runs with every module, operator or step of an optimizer."""
    optimizers = sys.modules["torch.optim.optimizer"]
    steps = {**optimizers._global_optimizer_pre_hooks, **optimizers._global_optimizer_post_hooks}.values()
    if any(type(getattr(hook, "__self__", None)) is not OptimizerSteps for hook in steps):
        raise Unknown
    if any(getattr(torch.nn.modules.module, name) for name in GLOBAL_HOOKS) or foreign_modes():
        raise Unknown


def _plain(value: Any) -> Any:
    """An attribute as JSON: scalars, and names of functions and classes of packages that are known."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, partial):
        return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
    if isinstance(value, type) or inspect.isroutine(value):
        check_known(value)
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        check_known(type(value))
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return _plain(value.value)
    raise Unknown


def check_known(code: Any) -> None:
    """Refuse classes and functions of other packages: their names do not say what they compute."""
    if str(getattr(code, "__module__", "")).partition(".")[0] not in CODE:
        raise Unknown


def named_tensors(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by part and name, those that are not saved too."""
    for name, part in parts.items():
        for key, tensor in (*part.named_parameters(), *part.named_buffers()):
            yield f"{name}.{key}", tensor.detach()


def tensors_digest(parts: Mapping[str, nn.Module]) -> str:
    """Sum over values, types, shapes and layouts of all tensors, and over which of them learn."""
    learns = {f"{name}.{key}" for name, part in parts.items() for key, p in part.named_parameters() if p.requires_grad}
    found = [
        (f"{name} {tensor.stride()} {name in learns}", str(tensor.dtype), tuple(tensor.shape), bits(tensor).numpy())
        for name, tensor in named_tensors(parts)
    ]
    return tensors_sum("plain phase", found)
