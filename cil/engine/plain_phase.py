"""What a plain phase computes, read off the objects that compute it: two phases of one key end in the same bits.

A phase is plain if its loss is ``PlainLoss``, if no code of the learner runs between its steps, and if it trains that
network alone. Whatever cannot be established makes it no plain phase, and it is trained as any other.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cil.contract import Phase
from cil.contract.plain import PlainLoss, is_not_at_first
from cil.data import Augment, Samples
from cil.data.looks import uncounted_store
from cil.data.samples import view_of
from cil.engine.fit import Fit
from cil.engine.known_modules import (
    ENVIRONMENT,
    Unknown,
    check_as_written,
    check_known,
    check_undisturbed,
    described_module,
    kernel_settings,
    named_tensors,
    tensors_digest,
)
from cil.errors import ConfigError
from cil.models import BranchingNet, GrowingNet
from cil.strategies import Strategy
from cil.targets import described

HOOKS = ("adjust_gradients", "after_step")  # the learner's, in a step; each may be one that is not called at first
# what the training loop asks of it besides
INHERITED = ("train_mode", "trainable", "_trained_modules", "held", "device", "__setattr__", "__getattribute__")
LENT = ("progress", "context")


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
        """The plain phase that ``fit`` would train; None where it is not known to be one."""
        learner, phase = fit.learner, fit.phase
        loss = phase.loss
        if not isinstance(learner, Strategy) or type(loss) is not PlainLoss or not _is_alone(learner, phase):
            return None
        parts = _parts(loss)
        trained = [id(p) for part in parts.values() for p in part.parameters() if p.requires_grad]
        if [id(p) for p in learner.trainable() if id(p) in trained] != trained:  # others get no gradient, so no step
            return None
        try:
            check_undisturbed()
            check_as_written(loss.net)
            content = {
                "fit": _fit(fit),
                "environment": {name: identity[name] for name in ENVIRONMENT} | kernel_settings(),
                "modules": {name: described_module(part) for name, part in parts.items()},
                "tensors": tensors_digest(parts),
                "data": _data(phase),
            }
        except (Unknown, KeyError, ConfigError):
            return None
        return cls(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), parts, loss.term)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, those in use."""
        return dict(named_tensors(self.parts))


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
        raise Unknown
    for section in (fit.recipe.optimizer, fit.recipe.scheduler):
        check_known(getattr(section, "func", section))
    recipe = {key: value for key, value in recipe.items() if not key.startswith("snapshot_")}
    keys = {"seed": fit.seed, "experience": fit.experience, "number": fit.number, "name": fit.phase.name}
    keys["processor"] = fit.runtime.processor
    return {"recipe": recipe, "augment": described(augment), "secret": fit.secret, "first": fit.first_step, **keys}


def _data(phase: Phase) -> list[str]:
    """Digests of images and slots, in their order, and how views are made of what is digested."""
    samples, stores = phase.samples, list[str]()
    for store, rows in samples.parts:
        view = view_of(uncounted_store(store))  # files of the same bytes may be decoded at another size
        if view is None:
            raise Unknown
        stores.append(f"{store.digest(rows).hex()} {view}")
    return [*stores, hashlib.sha256(samples.slots.contiguous().numpy().tobytes()).hexdigest()]
