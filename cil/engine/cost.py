"""The bill of a phase: FLOPs, bytes kept for backward, gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from cil.contract import Holder, Phase
from cil.contract.reachable import data_of_phase
from cil.contract.unkept import copied_by
from cil.engine.step_kinds import StepKinds, StepWatch
from cil.errors import ContractError
from cil.memory import Entry, Flops, SavedBytes, tensor_bytes
from cil.memory.meters import SavedBytesRefused


@dataclass
class Cost:
    """The bill of a phase: operations of its steps by kind, and the most bytes that a counted step held.

    Counting computes the same bits.
    """

    kinds: StepKinds = field(default_factory=StepKinds)
    gradients: int = 0
    activations: int = 0
    steps: int = 0  # of the optimizer
    own_updates: int = 0  # steps of optimizers that the learner takes by itself
    extra: int = 0  # operations counted as they were, in the steps by ``context.flops``
    entries: list[Entry] = field(default_factory=list)
    held: list[Entry] = field(default_factory=list)  # of what the learner held in training only, beside the phase
    part: str = "training"  # of the bill: training, search or validation
    trial: dict[str, Any] = field(default_factory=dict)  # settings and error, where it is one of a search
    cut: bool = False  # whether training ended here because the budget left no further step
    loss: float | None = None  # mean of the last epoch
    reused: float = 0.0  # seconds of another run that trained it
    weighed: int = 0  # bytes of carried modules when it ended
    own_images: int = 0  # of the phase, that are neither new ones nor exemplars

    def __post_init__(self) -> None:
        self._saved: SavedBytes | None = None  # of a step that is counted
        self.saves = True  # False where the loss does not let saved bytes be counted

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Cost:
        """From what ``dataclasses.asdict`` made of a cost."""
        lines = {name: [Entry(**entry) for entry in saved.get(name, ())] for name in ("entries", "held")}
        return cls(**{**saved, "kinds": StepKinds.of(saved["kinds"]), **lines})

    @classmethod
    def once(cls, flops: Flops, part: str = "training") -> Cost:
        """Work that was counted as it was."""
        return cls(extra=flops.count, own_updates=flops.updates, part=part)

    @property
    def flops(self) -> int:
        """Operations, two for each multiply-add."""
        return self.kinds.flops + self.extra

    @property
    def updates(self) -> int:
        """Steps of optimizers, whoever takes them."""
        return self.steps + self.own_updates

    @contextmanager
    def hook(self) -> Iterator[None]:
        """Around a hook that is called once."""
        flops = Flops()
        with flops.counting():
            yield
        self.extra += flops.count
        self.own_updates += flops.updates

    @contextmanager
    def step(
        self, learner: Holder, watch: StepWatch, phase: Phase, sizes: Sequence[int], update: bool, drawn: bool
    ) -> Iterator[AbstractContextManager[Any]]:
        """Around a batch, from its loss to ``after_step``; what it gives goes around the forward pass alone.

        Args:
            sizes: Images in each stream of the batch.
        """
        size, before = repr((tuple(sizes), update)), learner.context.flops.count
        self.own_updates += watch.take(0).updates  # between the steps
        flops = Flops() if drawn or self.kinds.due(size) else None
        if flops is None:
            yield nullcontext()
        elif not self.saves:
            with flops.counting():
                yield nullcontext()
        else:
            self._saved = SavedBytes([*held_tensors(learner), *beside_phase(learner, phase)[0]])
            with flops.counting():
                yield self._saved
            self._bill(phase.name, self._saved.peak)  # a loss may go back inside
            self._saved = None
        extra = max(0, learner.context.flops.count - before)
        self.extra += extra
        seen = watch.take(sum(sizes), int(update))
        self.own_updates += seen.updates
        self.kinds.add(size, seen, None if flops is None else flops.count - extra, drawn)

    @contextmanager
    def adjusting(self, learner: Holder) -> Iterator[None]:
        """Around ``adjust_gradients``: what its graphs save at a time."""
        if self._saved is None:
            yield
            return
        try:
            with SavedBytes(held_tensors(learner)) as saved:
                yield
        except SavedBytesRefused as error:  # gradients are there: the step cannot be made anew
            raise ContractError(f"adjust_gradients: {error}") from error
        self.activations = max(self.activations, saved.peak)

    def bill_gradients(self, parameters: Sequence[Tensor]) -> None:
        if self._saved is not None:
            self.gradients = max(self.gradients, sum(tensor_bytes(p.grad) for p in parameters if p.grad is not None))

    def bill_optimizer(self, phase: str, optimizer: Optimizer) -> None:
        """A line for what the optimizer holds; at the end, as a step left out for an overflow makes no state."""
        held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        self.add(phase, "optimizer", held)

    def add(self, phase: str, kind: str, tensors: Sequence[Tensor]) -> None:
        """A line for tensors that are held beside the learner while it is trained."""
        size, numel = sum(map(tensor_bytes, tensors)), sum(t.numel() for t in tensors)
        self.entries.append(_entry(phase, kind, size, numel, "float32"))

    def _bill(self, phase: str, activations: int) -> None:
        """Lines for the gradients of the steps counted so far, and what was kept for them."""
        self.activations = max(self.activations, activations)
        sizes = {"gradients": self.gradients, "activations": self.activations}
        self.entries = [_entry(phase, kind, size, 0, "mixed") for kind, size in sizes.items()]


class Unbilled(Cost):
    """For subclasses that look at steps in place of billing them: hooks are let be."""

    @contextmanager
    def hook(self) -> Iterator[None]:
        yield

    @contextmanager
    def adjusting(self, learner: Holder) -> Iterator[None]:
        yield


def held_in_training(learner: Holder, costs: Sequence[Cost]) -> list[Entry]:
    """Ledger lines of when most was held in training only: at the end, or beside a phase if that was given up since."""
    largest = max((cost.entries for cost in costs), key=_bytes_of, default=[])
    end, left = [*Holder.training_entries(learner), *largest], carried_modules(learner)
    return max([end, *([*cost.held, *_taken_out(cost, left), *cost.entries] for cost in costs)], key=_bytes_of)


def carried_modules(learner: Holder) -> int:
    """Bytes of the modules that are kept as carried."""
    kept = (name for name, kept in learner._kept.items() if kept.lifetime == "carried" and kept.reference is None)
    modules = [value for name in kept if isinstance(value := vars(learner)[name], torch.nn.Module)]
    return sum(tensor_bytes(tensor) for module in modules for tensor in module.state_dict().values())


def _taken_out(cost: Cost, left: int) -> list[Entry]:
    """A line for parts of carried modules that were there beside a phase and are not carried."""
    return [_entry("parts", "temporary", cost.weighed - left, 0, "mixed")] if cost.weighed > left else []


def held_by_phase(learner: Holder, phase: Phase) -> list[Entry]:
    """A ledger line for what a phase holds beside the learner; see ``beside_phase``."""
    tensors, arrays = beside_phase(learner, phase)
    size = sum(map(tensor_bytes, tensors)) + sum(array.nbytes for array in arrays)
    numel = sum(tensor.numel() for tensor in tensors) + sum(array.size for array in arrays)
    return [_entry(phase.name, "temporary", size, numel, "mixed")] if size else []


def beside_phase(learner: Holder, phase: Phase) -> tuple[list[Tensor], list[np.ndarray]]:
    """Tensors and arrays that the loss and the training mode of a phase close over, and the learner does not keep.

    Raises:
        ContractError: for a frozen copy of a network that is kept: that is a teacher, and conventions charge teachers.
    """
    held, tensors, arrays = Holder.held(learner), dict[int, Tensor](), list[np.ndarray]()
    known = {_storage(tensor) for value in held.values() for tensor in _tensors(value)}
    for found in data_of_phase([phase.loss, phase.train_mode], held.values()):
        if isinstance(found, np.ndarray):
            arrays.append(found)
            continue
        if isinstance(found, torch.nn.Module) and (copied := copied_by(found, held)):
            raise ContractError(
                f"the loss of phase '{phase.name}' closes over a frozen copy of {copied}: that is a teacher, and "
                f"conventions charge teachers; self.keep('teacher', None, kind='teacher') in __init__, and read "
                f"self.teacher there"
            )
        for tensor in _tensors(found):
            if _storage(tensor) not in known:  # a view of what is kept is no copy of it
                tensors.setdefault(_storage(tensor), tensor)
    return list(tensors.values()), arrays


def _storage(tensor: Tensor) -> int:
    """A number of where the values of a tensor are, which views of it share."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _bytes_of(lines: Sequence[Entry]) -> int:
    return sum(line.bytes for line in lines)


def _entry(phase: str, kind: str, size: int, numel: int, dtype: str) -> Entry:
    return Entry(f"{phase}.{kind}", kind, "training", "tensor", size, numel, dtype)


def held_tensors(learner: Holder) -> list[Tensor]:
    return [tensor for value in learner.held().values() for tensor in _tensors(value)]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value.values() if isinstance(v, Tensor)] if isinstance(value, dict) else []
