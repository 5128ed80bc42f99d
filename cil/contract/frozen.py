"""The frozen state: what a learner carries, as plain data for which no code of the learner answers any more."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from cil.contract.holder import Holder
from cil.errors import StateError
from cil.memory import Beside, Entry, ExemplarMemory, Ledger, State, encode_meta, label_dtype, tensor_bytes
from cil.memory.libcontinual import paid, stored

NETWORK = ("parameters", "buffers")  # kinds
BOOKKEEPING = ("structure", "_flatten", "_tensors_of")  # by which the base class lists what is carried


@dataclass(frozen=True)
class Frozen:
    """A carried state, and what was counted on it; the same object is charged, held to the budget and committed.

    Attributes:
        state: Plain tensors and JSON.
        exemplars: Rows of all exemplar memories.
        beside: All that is carried beside networks, public weights and ordinary exemplars. An exemplar is ordinary up
            to a raw image, and beside it a label, its logits (4 bytes a class) and 16 bytes more; networks are the
            floating-point parameters of the modules kept as ``parameters``, and their buffers of one dimension.
    """

    state: State
    exemplars: int = 0
    beside: Beside = field(default_factory=Beside)

    def ledger(self, training: Iterable[Entry] = ()) -> Ledger:
        """The bill, with the entries held in training only."""
        return Ledger.of(self.state, training, self.beside)


def freeze(learner: Holder, shape: tuple[int, int, int], num_classes: int, networks: int | None = None) -> Frozen:
    """The state of a learner as plain data; kinds and counts are those of its structure, not what it says of them.

    Args:
        shape: (C, H, W) of an image of the stream.
        num_classes: Classes seen.
        networks: Most bytes that count as networks; None: all.

    Raises:
        StateError: where the state is not plain, not of the learner's structure, or its exemplars are not one a row.
    """
    method = type(learner)
    for name in BOOKKEEPING:
        if getattr(method, name) is not getattr(Holder, name) or name in vars(learner):
            raise StateError(f"{method.__name__}.{name} is an override; what is carried is listed by the base class")
    Holder.refuse_lost(learner)
    given = learner.state()
    own = given if method.state is Holder.state and "state" not in vars(learner) else Holder.state(learner)
    if type(given) is not State:
        raise StateError(f"{method.__name__}.state() gives a {type(given).__name__}; it must be a cil.memory.State")
    tensors = {name: _plain(name, tensor) for name, tensor in dict(given.tensors).items()}
    odd = sorted(tensors.keys() ^ own.tensors.keys())
    if odd or tuple(given.references) != own.references:
        raise StateError(
            f"{method.__name__}.state() differs from what is kept in {', '.join(odd[:3]) or 'references'}: keep all "
            f"that is carried, and nothing else"
        )
    meta = json.loads(encode_meta(given.meta) or b"{}")
    memories = exemplar_memories(learner)
    rows = {name: _rows(name, tensors) for name in memories}
    pixels = {name: _nominal(name, tensors, shape) for name in memories}
    survey = dict(own.survey) | {"exemplars": sum(rows[name] * pixels[name] for name in memories)}
    libcontinual = paid(Holder._libcontinual(learner), stored(memories, tensors, own.kinds))
    state = State(tensors, dict(own.kinds), meta, own.references, survey, libcontinual)
    beside_image = label_dtype(num_classes).itemsize + 4 * num_classes + 16
    ordinary = sum(_ordinary(name, tensors, rows[name], math.prod(shape), beside_image) for name in memories)
    network = sum(tensor_bytes(tensors[name]) for name in _network_names(learner, own.kinds, tensors))
    public = sum(reference.bytes for reference in own.references)
    counted = network if networks is None else min(network, networks)
    beside = state.bytes - public - ordinary - counted
    return Frozen(state, sum(rows.values()), Beside(beside, round(beside / math.prod(shape), 2)))


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A tensor without a class of its own; a subclass of ``Tensor`` is refused."""
    if type(tensor) not in (Tensor, nn.Parameter):
        raise StateError(f"state(): {name} is a {type(tensor).__name__}; what is carried are plain tensors")
    return tensor.detach()


def exemplar_memories(learner: Holder) -> dict[str, ExemplarMemory]:
    """The exemplar memories that are kept, whatever ``memories`` says."""
    held = {name: vars(learner)[name] for name in learner._kept}
    return {name: value for name, value in held.items() if isinstance(value, ExemplarMemory)}


def _of(memory: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{memory}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _ordinary(memory: str, tensors: Mapping[str, Tensor], rows: int, pixels: int, beside: int) -> int:
    """Bytes of ordinary exemplars; what a codec saves on images is no room for what lies beside them."""
    sizes = {name: tensor_bytes(tensor) for name, tensor in _of(memory, tensors).items()}
    if "images" not in sizes:  # features in place of images
        return min(sum(sizes.values()), rows * (pixels + beside))
    images = sizes.pop("images")
    return min(images, rows * pixels) + min(sum(sizes.values()), rows * beside)


def _rows(memory: str, tensors: Mapping[str, Tensor]) -> int:
    """Exemplars of a memory: rows of its labels, each with one row in everything beside them."""
    held = _of(memory, tensors)
    if not held:
        return 0
    rows = {name: len(tensor) if tensor.ndim else 0 for name, tensor in held.items()}
    if "sizes" in held:  # encoded images, one after the other
        rows["images"] = rows["sizes"] if int(held["sizes"].sum()) == held["images"].numel() else -1
    if "slots" not in held or set(rows.values()) != {rows["slots"]}:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(rows.items()))
        raise StateError(f"{memory} carries {counts}: an exemplar is one row of each, with a label in slots")
    return rows["slots"]


def _nominal(memory: str, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> int:
    """The survey's charge for an exemplar: its raw pixels; of a stored feature its bytes."""
    held = _of(memory, tensors)
    if "images" in held or not held:
        return math.prod(shape)
    beside_labels = sum(tensor_bytes(tensor) for name, tensor in held.items() if name != "slots")
    return beside_labels // max(1, len(held["slots"]))


def _network_names(learner: Holder, kinds: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, kept in learner._kept.items():
        module = vars(learner)[name]
        if isinstance(module, nn.Module) and kept.kind == "parameters" and kept.lifetime == "carried":
            parameters = {f"{name}.{key}" for key, _ in module.named_parameters(remove_duplicate=False)}
            found += [
                key
                for key in tensors
                if key.startswith(f"{name}.")
                and kinds[key] in NETWORK
                and tensors[key].is_floating_point()
                and (key in parameters or tensors[key].ndim < 2)
            ]
    return found
