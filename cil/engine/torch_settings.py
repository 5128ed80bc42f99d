"""Settings of torch that hold for the whole process: what a learner changes of them ends with its run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from cil.engine.known_modules import GLOBAL_HOOKS

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]  # what reads it, and what sets it
STEP_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


@contextmanager
def torch_as_before() -> Iterator[None]:
    """However it ends, torch is afterwards set as it was: the next run in this process is none of a learner's business.

    Put back are types, gradients, threads, choices of kernels, and hooks on all modules and optimizers.
    """
    before = [(write, _read(read), read) for read, write in _settings()]
    hooks = [(hooked, dict(hooked)) for hooked in _hooked()]
    try:
        yield
    finally:
        for write, value, read in before:
            if value is not None and _read(read) != value:
                write(value)
        for hooked, held in hooks:
            if hooked != held:
                hooked.clear()
                hooked.update(held)


def _read(read: Callable[[], Any]) -> Any:
    """A setting; None where torch does not tell: of a precision that was set by its new names, and not as a whole."""
    try:
        return read()
    except RuntimeError:
        return None


def _settings() -> list[Setting]:
    backends = (torch.backends.mkldnn, torch.backends.cudnn)
    flags = [(backends[0], "enabled"), *((backends[1], name) for name in ("enabled", "benchmark", "deterministic"))]
    return [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.is_anomaly_enabled, torch.autograd.anomaly_mode.set_detect_anomaly),
        (torch.get_default_device, _set_device),
        (partial(torch.is_autocast_enabled, "cpu"), partial(torch.set_autocast_enabled, "cpu")),
        (partial(torch.get_autocast_dtype, "cpu"), partial(torch.set_autocast_dtype, "cpu")),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),  # or a warning alone
        *((partial(getattr, owner, name), partial(setattr, owner, name)) for owner, name in flags),
    ]


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # a device by name would be a mode left open


def _hooked() -> list[dict[Any, Any]]:
    optimizers = sys.modules["torch.optim.optimizer"]
    of_modules = [getattr(torch.nn.modules.module, name) for name in GLOBAL_HOOKS]
    return [*of_modules, *(getattr(optimizers, name) for name in STEP_HOOKS)]
