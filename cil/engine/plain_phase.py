"""What a plain phase computes, read off the objects that compute it: two phases of one key end in the same bits.

A phase is plain if its loss is ``PlainLoss``, if no code of the learner runs between its steps, and if it trains that
network alone. Whatever cannot be established makes it no plain phase, and it is trained as any other.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cil.contract import Phase
from cil.contract.plain import PlainLoss, is_not_at_first
from cil.data import Augment, Samples
from cil.engine.fit import Fit
from cil.errors import ConfigError
from cil.models import BranchingNet, GrowingNet
from cil.strategies import Strategy
from cil.targets import described
from cil.tracking.digests import tensors_sum

HOOKS = ("adjust_gradients", "after_step")  # the learner's, in a step; each may be one that is not called at first
# what the training loop asks of it besides
INHERITED = ("train_mode", "trainable", "_trained_modules", "held", "device", "__setattr__", "__getattribute__")
LENT = ("progress", "context")
CODE = ("cil", "torch")  # packages whose code the identity of a run names
ENVIRONMENT = ("code", "versions", "device", "threads", "precision")  # keys of the identity
FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
NO_ARITHMETIC = (
    *("_parameters", "_buffers", "_modules", "training", "loaded_from"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    *("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
    *("_is_full_backward_hook", "_non_persistent_buffers_set"),
)


class _Unknown(Exception):
    """Something of which it is not known what it computes."""


@dataclass(frozen=True)
class PlainPhase:
    """A plain phase and its key.

    Attributes:
        key: SHA-256 of all that the bits depend on.
        parts: The modules that are trained or called, by names that are the same whichever network holds them.
        term: Name of the loss in logs.
    """

    key: str
    parts: Mapping[str, nn.Module]
    term: str

    @classmethod
    def of(cls, fit: Fit, identity: Mapping[str, Any]) -> PlainPhase | None:
        """The plain phase that ``fit`` would train; None where it is not known to be one.

        Args:
            identity: That of the run: code, versions and what computes are in it.
        """
        learner, phase = fit.learner, fit.phase
        loss = phase.loss
        if not isinstance(learner, Strategy) or type(loss) is not PlainLoss or not _is_alone(learner, phase):
            return None
        parts = _parts(loss)
        trained = [id(p) for part in parts.values() for p in part.parameters() if p.requires_grad]
        if [id(p) for p in learner.trainable() if id(p) in trained] != trained:  # others get no gradient, so no step
            return None
        try:
            _check_as_written(loss.net)
            content = {
                "fit": _fit(fit),
                "environment": {name: identity[name] for name in ENVIRONMENT} | _settings(fit),
                "modules": {name: _described(part) for name, part in parts.items()},
                "tensors": _sum(parts),
                "data": _data(phase),
            }
        except (_Unknown, KeyError, ConfigError):
            return None
        return cls(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), parts, loss.term)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, those in use."""
        return dict(_tensors(self.parts))


def _is_alone(learner: Strategy, phase: Phase) -> bool:
    """True where nothing of the learner but the loss runs in a step of the phase."""
    own = vars(learner)
    for name in (*HOOKS, *INHERITED, *LENT):
        found, base = (inspect.getattr_static(kind, name, None) for kind in (type(learner), Strategy))
        silent = name in HOOKS and is_not_at_first(found) and not learner.old_classes
        if (found is not base and not silent) or (name in own and name not in LENT):
            return False
    return phase.parameters is None and phase.train_mode is None and type(phase.data) is Samples


def _parts(loss: PlainLoss) -> dict[str, nn.Module]:
    """The modules of a loss: normalisation, one backbone and one head, however they are held; else the whole network.

    ``GrowingNet`` computes head(backbone(normalise(x))). So does ``BranchingNet`` of one branch without a shared part,
    and so do a network whose own head has no outputs and a head beside it.
    """
    net, head = loss.net, loss.head
    if type(net) is GrowingNet and (head is None or not net.head.num_classes):
        return {"normalise": net.normalise, "backbone": net.backbone, "head": net.head if head is None else head}
    if type(net) is BranchingNet and head is None and len(net.branches) == 1 and not len(net.shared):
        return {"normalise": net.normalise, "backbone": net.branches[0], "head": net.head}
    return {"net": net} | ({} if head is None else {"head": head})


def _fit(fit: Fit) -> dict[str, Any]:
    """Recipe, augmentation and keys of the random draws."""
    augment, recipe = fit.phase.augment or fit.augment, described(fit.recipe)
    if type(augment) is not Augment:
        raise _Unknown
    for section in (fit.recipe.optimizer, fit.recipe.scheduler):
        _check_known(getattr(section, "func", section))
    recipe = {key: value for key, value in recipe.items() if not key.startswith("snapshot_")}
    keys = {"seed": fit.seed, "experience": fit.experience, "number": fit.number, "name": fit.phase.name}
    return {"recipe": recipe, "augment": described(augment), "secret": fit.secret, "first": fit.first_step, **keys}


def _settings(fit: Fit) -> dict[str, str]:
    """What the kernels are chosen by, beside what an identity says."""
    found = {
        "processor": fit.runtime.processor,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }
    return {f"now_{name}": str(value) for name, value in found.items()}


def _data(phase: Phase) -> list[str]:
    """Digests of images and slots, in their order."""
    samples = phase.samples
    stores = [store.digest(rows).hex() for store, rows in samples.parts]
    return [*stores, hashlib.sha256(samples.slots.contiguous().numpy().tobytes()).hexdigest()]


def _described(module: nn.Module) -> dict[str, Any]:
    """Class, plain attributes and parts of a module: with its tensors, all that its forward depends on."""
    _check_known(type(module))
    _check_as_written(module)
    own = {k: _plain(v) for k, v in vars(module).items() if k not in (*NO_ARITHMETIC, *FORWARD_HOOKS)}
    parts = {name: _described(part) for name, part in module._modules.items() if part is not None}
    return {"class": f"{type(module).__module__}.{type(module).__qualname__}", "own": own, "parts": parts}


def _check_as_written(module: nn.Module) -> None:
    """Refuse a module whose forward is not that of its class alone."""
    if "forward" in vars(module) or any(vars(module).get(name) for name in FORWARD_HOOKS):
        raise _Unknown


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise _Unknown


def _check_known(code: Any) -> None:
    """Refuse classes and functions of other packages: their names do not say what they compute."""
    if str(getattr(code, "__module__", "")).partition(".")[0] not in CODE:
        raise _Unknown


def _tensors(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for name, part in parts.items():
        for key, tensor in (*part.named_parameters(), *part.named_buffers()):
            yield f"{name}.{key}", tensor.detach()


def _sum(parts: Mapping[str, nn.Module]) -> str:
    """Sum over values, types, shapes and layouts of all tensors, and over which of them learn."""
    learns = {f"{name}.{key}" for name, part in parts.items() for key, p in part.named_parameters() if p.requires_grad}
    found = [
        (f"{name} {tensor.stride()} {name in learns}", str(tensor.dtype), tuple(tensor.shape), _bytes(tensor))
        for name, tensor in _tensors(parts)
    ]
    return tensors_sum("plain phase", found)


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
