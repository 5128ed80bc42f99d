"""Training memory: bytes of one step by part of the network, measured with hooks on the tensors that autograd saves.

This is the exact accounting; that of EcoTTA's table is in ``published_bytes``, and the two are never mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from cil.memory.ledger import KINDS
from cil.memory.meters import SavedBytes
from cil.memory.published_bytes import Published
from cil.memory.state import tensor_bytes

OUTSIDE = "(outside)"  # saved by no module's forward: losses, mostly
STEP_KINDS = ("activations", "gradients", "optimizer")  # kinds that a step adds


@dataclass(frozen=True)
class SavedTensor:
    """A tensor that autograd saved.

    Attributes:
        part: Path of the innermost module whose forward was running; ``(outside)`` where none was.
        place: Identity of its storage.
        storage_bytes: Bytes of that storage, whole.
        logical_bytes: Bytes of the values saved.
    """

    part: str
    place: int
    dtype: str
    storage_bytes: int
    logical_bytes: int


class ForwardTracker:
    """Tracks the module whose forward is running, and the parameters that got a gradient. Use as a context.

    Args:
        modules: By name; modules inside are called ``name.path``. A module with two paths goes by the first.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)
        self.graded: dict[int, Tensor] = {}
        self._running: list[str] = []
        self._stack = ExitStack()

    @property
    def running(self) -> str:
        """Path of the innermost module."""
        return self._running[-1] if self._running else OUTSIDE

    def __enter__(self) -> ForwardTracker:
        seen: set[int] = set()
        for root, whole in self.modules.items():
            for path, module in whole.named_modules(memo=None):
                if id(module) not in seen:
                    seen.add(id(module))
                    name = f"{root}.{path}" if path else root
                    self._remove_later(module.register_forward_pre_hook(partial(self._enter, name)))
                    self._remove_later(module.register_forward_hook(self._leave, always_call=True))
            for parameter in whole.parameters():
                if parameter.requires_grad:
                    self._remove_later(parameter.register_hook(partial(self._grade, parameter)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _remove_later(self, handle: RemovableHandle) -> None:
        self._stack.callback(handle.remove)

    def _enter(self, name: str, module: nn.Module, inputs: object) -> None:
        self._running.append(name)

    def _leave(self, module: nn.Module, inputs: object, outputs: object) -> None:
        if self._running:  # a forward hook is called after an error too, even where the one before was not
            self._running.pop()

    def _grade(self, parameter: Tensor, gradient: Tensor) -> None:
        self.graded[id(parameter)] = parameter


class SavedByPart(SavedBytes):
    """``SavedBytes`` by the module that saved, at the end and at the peak."""

    def __init__(self, tracker: ForwardTracker, exclude: Iterable[Tensor] = ()) -> None:
        super().__init__(exclude)
        self._tracker = tracker
        self._alive: dict[int, SavedTensor] = {}
        self._at_peak: list[SavedTensor] = []
        self._stale = False  # more was saved since ``_at_peak`` was updated
        self.saved: list[SavedTensor] = []

    def _note(self, tensor: Tensor, place: int) -> int:
        dtype = str(tensor.dtype).removeprefix("torch.")
        one = SavedTensor(self._tracker.running, place, dtype, self._seen[place], tensor_bytes(tensor))
        self._alive[len(self.saved)] = one
        self.saved.append(one)
        self._stale = self._stale or self._now == self.peak
        return len(self.saved) - 1

    def _release(self, place: int, note: Any) -> None:
        self._look()
        super()._release(place, note)
        self._alive.pop(note)

    def _look(self) -> None:
        if self._stale and self._now == self.peak:
            self._at_peak, self._stale = list(self._alive.values()), False

    @property
    def at_peak(self) -> list[SavedTensor]:
        """Tensors saved at the moment of the peak."""
        self._look()
        return self._at_peak


@dataclass(frozen=True)
class PartBytes:
    """Bytes of one part of the network in a step.

    Attributes:
        activations: Storages saved for backward, each counted for the part that saved it first.
        logical: Bytes of the values saved, counted at each saving.
        entries: Tensors saved, parameters and buffers left out.
    """

    name: str
    parameters: int = 0
    buffers: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logical: int = 0
    entries: int = 0


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training or adaptation step.

    Attributes:
        kinds: Bytes by kind of the ledger, at the peak.
        parts: The same by part of the network, for tensors of a module or saved for backward.
        dtypes: Bytes saved for backward, by type.
        device: Device of the measurement: ``meta`` or ``cpu``.
        where: The step, in words.
        published: The other accounting; None where it was not asked for.
        refused: Reason why ``meta`` could not be used.
    """

    kinds: Mapping[str, int]
    parts: tuple[PartBytes, ...]
    dtypes: Mapping[str, int]
    batch_size: int = 0
    device: str = ""
    where: str = ""
    published: Published | None = None
    refused: str = ""

    @property
    def total(self) -> int:
        """All bytes: the record's ``peak_training_bytes``."""
        return sum(self.kinds.values())

    @property
    def storage_bytes(self) -> int:
        """Bytes saved for backward, each storage once and whole."""
        return sum(part.activations for part in self.parts)

    @property
    def logical_bytes(self) -> int:
        """Bytes of the values saved, each as often as it was saved."""
        return sum(part.logical for part in self.parts)

    @property
    def entries(self) -> int:
        """Tensors saved."""
        return sum(part.entries for part in self.parts)

    def describe(self) -> str:
        """Kinds and bytes for messages: those that the step adds first, then the largest."""
        rest = sorted((kind for kind in self.kinds if kind not in STEP_KINDS), key=lambda kind: -self.kinds[kind])
        return ", ".join(f"{kind} {self.kinds.get(kind, 0):,}" for kind in (*STEP_KINDS, *rest))

    def at_depth(self, depth: int) -> tuple[PartBytes, ...]:
        """The parts, merged by the first ``depth`` names of their paths."""
        groups: dict[str, list[PartBytes]] = {}
        for part in self.parts:
            groups.setdefault(".".join(part.name.split(".")[:depth]), []).append(part)
        columns = [name for name in PartBytes.__dataclass_fields__ if name != "name"]
        return tuple(
            PartBytes(name, **{key: sum(getattr(part, key) for part in group) for key in columns})
            for name, group in groups.items()
        )


def bytes_by_part(
    tracker: ForwardTracker, saved: Iterable[SavedTensor], optimizer: Mapping[int, int]
) -> tuple[PartBytes, ...]:
    """A row for each module that has or saved tensors itself, in order of definition; ``(outside)`` last.

    Args:
        saved: Tensors saved for backward, in order: the first of a storage has its bytes.
        optimizer: Bytes of state by ``id`` of the parameter.
    """
    rows: dict[str, dict[str, int]] = {}
    seen: set[int] = set()

    def row(name: str) -> dict[str, int]:
        return rows.setdefault(name, {})

    def add(name: str, **bytes_: int) -> None:
        for key, value in bytes_.items():
            row(name)[key] = row(name).get(key, 0) + value

    for root, whole in tracker.modules.items():
        for path, module in whole.named_modules():
            name = f"{root}.{path}" if path else root
            row(name)
            for kind, own in (("parameters", module._parameters), ("buffers", module._buffers)):
                for tensor in own.values():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        add(name, **{kind: tensor_bytes(tensor)})
                        add(name, optimizer=optimizer.get(id(tensor), 0))
                        add(name, gradients=tensor_bytes(tensor) if id(tensor) in tracker.graded else 0)
    places: set[int] = set()
    for one in saved:
        fresh = one.place not in places
        places.add(one.place)
        add(one.part, activations=one.storage_bytes if fresh else 0, logical=one.logical_bytes, entries=1)
    outside = rows.pop(OUTSIDE, None)
    found = [*rows.items(), *([(OUTSIDE, outside)] if outside is not None else [])]
    return tuple(PartBytes(name, **values) for name, values in found if any(values.values()))


def bytes_by_dtype(saved: Iterable[SavedTensor]) -> dict[str, int]:
    """Bytes saved by type, each storage once."""
    places, sums = set(), dict[str, int]()
    for one in saved:
        if one.place not in places:
            places.add(one.place)
            sums[one.dtype] = sums.get(one.dtype, 0) + one.storage_bytes
    return sums


def in_ledger_order(kinds: Mapping[str, int]) -> dict[str, int]:
    """The kinds present, in the ledger's order."""
    return {kind: kinds[kind] for kind in KINDS if kinds.get(kind)}


def held_tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def optimizer_bytes(optimizer: Optimizer | None) -> dict[int, int]:
    """Bytes of an optimizer's state by ``id`` of the parameter, counts of steps included."""
    if optimizer is None:
        return {}
    return {
        id(parameter): sum(tensor_bytes(value) for value in state.values() if isinstance(value, Tensor))
        for parameter, state in optimizer.state.items()
    }


def measure_step(
    modules: nn.Module | Mapping[str, nn.Module],
    loss: Callable[[], Tensor],
    optimizer: Optimizer | None = None,
    exclude: Iterable[Tensor] = (),
) -> TrainingMemory:
    """Bytes of a step of any network: forward, backward, and a step of the optimizer where one is given.

    Args:
        modules: Trained modules, and others that are held; a network alone goes by the name ``net``.
        loss: Runs the forward pass and returns a number. On ``meta`` nothing is computed and the bytes are the same but
            for batch normalisation in evaluation mode, which saves two empty vectors on the CPU and two of C values on
            ``meta``.
        optimizer: Its state after the step is counted.
        exclude: Tensors that exist anyway, beside parameters and buffers: the input batch, if it shall not count.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> batch, targets = torch.rand(5, 4), torch.tensor([0, 1, 0, 1, 0])
    >>> measure_step(net, lambda: nn.functional.cross_entropy(net(batch), targets)).storage_bytes
    224
    """
    named = {"net": modules} if isinstance(modules, nn.Module) else dict(modules)
    held = held_tensors(named.values())
    with ForwardTracker(named) as tracker:
        with SavedByPart(tracker, [*held, *exclude]) as meter:
            result = loss()
        if result.requires_grad:
            result.backward()
        if optimizer is not None:
            optimizer.step()
    state = optimizer_bytes(optimizer)
    parts = bytes_by_part(tracker, meter.saved, state)
    kinds = {key: sum(getattr(part, key) for part in parts) for key in ("parameters", "buffers", "gradients")}
    kinds |= {"optimizer": sum(state.values()), "activations": meter.bytes}
    device = "meta" if any(tensor.is_meta for tensor in held) else "cpu"
    return TrainingMemory(in_ledger_order(kinds), parts, bytes_by_dtype(meter.saved), device=device)


def largest_batch(measure: Callable[[int], TrainingMemory], limit: int, below: int, least: int = 2) -> int | None:
    """The largest batch, of ``least`` up to ``below`` - 1 images, that a limit in bytes allows; None where none does.

    Bytes grow with the size; guesses assume that they do so linearly. Batch statistics of a single image are
    undefined in some networks, hence two images at least.

    Args:
        measure: Batch size to a step, which is measured at a few sizes.
    """
    at = cache(measure)
    if below <= least or at(least).total > limit:
        return None
    fits, over = least, below
    while over - fits > 1:
        low, high = at(fits).total, at(over).total
        share = (limit - low) / max(1, high - low)
        guess = min(max(fits + int(share * (over - fits)), fits + 1), over - 1)
        if at(guess).total <= limit:
            fits = guess
            if fits + 1 < over and at(fits + 1).total > limit:
                over = fits + 1
        else:
            over = guess
    return fits
