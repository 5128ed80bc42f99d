"""The things a learner holds, and which of them cross a boundary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cil.contract.phase import RuntimeContext
from cil.contract.reachable import data_beside
from cil.contract.renamed import old_name
from cil.contract.unkept import copied_by, data_in, lost_buffers
from cil.data import Samples
from cil.errors import ConfigError, ContractError, NotKept, StateError
from cil.memory import Entry, ExemplarMemory, Reference, State, check_kind, encode_meta, tensor_bytes, tensor_entry
from cil.memory.ledger import TRAINING_KINDS
from cil.memory.libcontinual import paid, parameter_bytes, stored
from cil.memory.tensor_bits import digest_of

_META = (bool, int, float, str)
_OWN = ("_kept", "_made", "context", "num_classes", "image_shape")  # attributes of a holder that are no entries


@dataclass(frozen=True)
class _Kept:
    kind: str
    lifetime: str
    reference: Reference | None = None


class Holder:
    """Holds what ``keep`` names; that alone is carried, charged, saved and loaded again."""

    _kept: dict[str, _Kept]
    _made: list[Any] | None  # data that what is not kept has by structure alone; None: not known
    teacher_copies: ClassVar[Mapping[str, str]] = {}  # a teacher's name to that of the module it copies, if not net
    desk = old_name("desk", "context")

    def __init__(self) -> None:
        object.__setattr__(self, "_kept", {})
        object.__setattr__(self, "_made", None)
        self.num_classes = 0
        self.image_shape: tuple[int, int, int] = (0, 0, 0)
        self.context = RuntimeContext()  # lent by the engine

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.context.device

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator, keyed by seed, experience and purpose: same key, same draws."""
        return self.context.generator(purpose)

    def keep(
        self,
        name: str,
        value: Any,
        kind: str = "other",
        lifetime: str | None = None,
        reference: Reference | None = None,
    ) -> None:
        """Hold ``value`` as ``self.name``, charged as ``kind``.

        Args:
            name: Attribute name.
            value: A module, a tensor, a dict of tensors, an ``ExemplarMemory``, None, or (kind ``other``) a JSON
                scalar or short list, None too. In training only also samples, which a hook before the phases sets.
            kind: One of ``cil.memory.KINDS``. Of a module kept as ``parameters`` the buffers are charged as such.
            lifetime: ``carried`` or ``training``; by default teachers, temporaries, optimizers, gradients and
                activations are gone at the boundary, all else is carried.
            reference: Public weights that the module is, unmodified: carried and charged as a reference.

        Raises:
            ConfigError: if the kind is unknown, or the name is not free.
        """
        check_kind(kind)
        if lifetime is None:
            lifetime = "training" if kind in TRAINING_KINDS else "carried"
        if lifetime not in ("carried", "training"):
            raise ConfigError(f"keep('{name}'): lifetime is '{lifetime}'; allowed: carried, training")
        if isinstance(value, nn.Parameter):
            raise ConfigError(f"keep('{name}'): a bare parameter is trained only inside a module; put it into one")
        if hasattr(type(self), name):
            raise ConfigError(f"keep('{name}'): the name is taken by a method of the class")
        if name in _OWN or not name.isidentifier():
            what = "used by the contract itself" if name in _OWN else "no name of an attribute"
            raise ConfigError(f"keep('{name}'): the name is {what}; choose another one")
        self._kept[name] = _Kept(kind, lifetime, reference)
        setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._kept:
            self._refuse_data(name, value)
        elif isinstance(value, nn.Module):
            self._refuse_teacher(name, value)
        object.__setattr__(self, name, value)

    def _refuse_teacher(self, name: str, value: nn.Module) -> None:
        """Refuse a frozen copy of a kept network held in training as anything but a teacher: those are charged."""
        kept = self._kept[name]
        if kept.kind == "teacher" or kept.lifetime == "carried":
            return
        copied = copied_by(value, {other: vars(self).get(other) for other in self._kept.keys() - {name}})
        if copied:
            raise ContractError(
                f"{type(self).__name__}.{name} is a frozen copy of {copied}, kept as {kept.kind}: that is a "
                f"teacher, and conventions charge teachers; self.keep('{name}', None, kind='teacher')"
            )

    def refuse_lost(self) -> None:
        """Refuse data in what is not kept: also what was put into a container or an object after it was assigned.

        Raises:
            NotKept: naming the attribute.
        """
        for name in vars(self).keys() - self._kept.keys() - {"make_net", "context", "_made"}:
            self._refuse_data(name, vars(self)[name])
        if self._made is None:
            return
        made = set(map(id, self._made))
        for name, found in Holder._data_beside(self):
            if id(found) not in made:
                raise NotKept(
                    f"{type(self).__name__}.{name} came to hold a {type(found).__name__}, inside an object, that was "
                    f"not kept: it would not survive the boundary; keep it as a tensor, module or memory of its own, "
                    f"self.keep(..., kind='temporary') for training only, or set {name} to None in after_experience"
                )

    @contextmanager
    def making(self) -> Iterator[None]:
        """Around what every learner of this structure does alike: data that it puts into own objects are not lost.

        The first time, all that is there at the beginning is of that sort.
        """
        before = None if self._made is None else {id(found) for _, found in self._data_beside()}
        yield
        new = [found for _, found in self._data_beside() if before is None or id(found) not in before]
        object.__setattr__(self, "_made", [*(self._made or []), *new])

    def _data_beside(self) -> Iterator[tuple[str, Any]]:
        own = {name: value for name, value in vars(self).items() if name not in ("context", "_made")}
        return data_beside(own, Holder.held(self), self.context)

    def _refuse_data(self, name: str, value: Any) -> None:
        """Raise where data would be lost at the boundary."""
        found = data_in(value)
        if found is None:
            return
        what = f"a {type(value).__name__}" + ("" if found is value else f" with a {type(found).__name__} in it")
        keep = f"call self.keep('{name}', ..., kind=...) first (kind='temporary' for training only)"
        if isinstance(found, np.ndarray):
            keep = f"{keep}, as a tensor"
        elif isinstance(found, Optimizer):
            keep = (
                "the engine makes the optimizer of a phase: name its parameters and rate, Phase(parameters=..., lr=...)"
            )
        elif isinstance(found, Samples):
            keep = "keep it as kind='temporary' for this experience; an ExemplarMemory stores images for later ones"
        elif found is not value and callable(value):
            keep = f"{keep}, and let the function take it from there"
        raise NotKept(
            f"{type(self).__name__}.{name} is {what} that was not kept: it would not survive the boundary; {keep}"
        )

    def trainable(self) -> list[nn.Parameter]:
        """All parameters that require a gradient, in modules that are neither teachers nor references."""
        held = (p for module in self._trained_modules() for p in module.parameters() if p.requires_grad)
        return list({id(p): p for p in held}.values())

    def held(self) -> dict[str, Any]:
        """Everything that is kept, by name."""
        return {name: getattr(self, name) for name in self._kept}

    def modules(self) -> list[nn.Module]:
        """The modules that are kept, teachers too."""
        return [value for value in self.held().values() if isinstance(value, nn.Module)]

    def memories(self) -> dict[str, ExemplarMemory]:
        """The rehearsal memories that are kept, by name."""
        return {name: value for name, value in self.held().items() if isinstance(value, ExemplarMemory)}

    def to(self, device: torch.device | str) -> Self:
        """Move modules and tensors."""
        self.context.device = torch.device(device)
        for name, value in self.held().items():
            if isinstance(value, nn.Module | Tensor):
                object.__setattr__(self, name, value.to(device))
            elif _is_tensor_dict(value):
                object.__setattr__(self, name, {key: tensor.to(device) for key, tensor in value.items()})
        return self

    def state(self) -> State:
        """All that is carried. Tensors are those in use, not copies: the engine copies what it stores.

        Raises:
            StateError: where public weights are not what they were when they were kept, bit for bit.
        """
        for name, kept in self._kept.items():
            if kept.reference is not None and reference_of(getattr(self, name), kept.reference.tag) != kept.reference:
                raise StateError(f"{name} refers to the public weights '{kept.reference.tag}' but was modified")
        return self.structure()

    def structure(self) -> State:
        """As ``state``, but no value is looked at: public weights are not verified.

        Raises:
            NotKept: where a kept module has buffers that are not saved.
        """
        for name, kept in self._kept.items():
            module = vars(self).get(name)
            lost = lost_buffers(name, module) if isinstance(module, nn.Module) and kept.lifetime == "carried" else []
            if lost:
                raise NotKept(
                    f"{type(self).__name__}: {', '.join(lost[:3])} would not survive the boundary: a buffer registered "
                    f"with persistent=False is not carried; make it persistent, or list it in the layer's class as "
                    f"constants = ({lost[0].rpartition('.')[2]!r},) where its values never change"
                )
        tensors, kinds, meta, references = self._flatten("carried")
        memories = [name for name in self._kept if isinstance(vars(self).get(name), ExemplarMemory)]
        nominal = paid(Holder._libcontinual(self), stored(memories, tensors, kinds))
        return State(tensors, kinds, meta, references, Holder._survey(self), nominal)

    def load_state(self, state: State) -> None:
        """Take over what was carried. The structure must be the one that ``grow`` gave.

        Raises:
            StateError: where names, shapes or types differ.
        """
        self._unflatten(state.tensors, state.meta, "carried")

    def unallocated(self) -> list[str]:
        """Names that are kept as carried, for tensors that are not there: nobody knows their bytes yet."""
        carried = [name for name, kept in self._kept.items() if kept.lifetime == "carried" and kept.kind != "other"]
        return [name for name in carried if getattr(self, name) is None]

    def full_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything kept, training entries too, for a snapshot inside an experience."""
        carried, _, meta, _ = self._flatten("carried")
        training, _, more, _ = self._flatten("training")
        return carried | training, meta | more

    def load_full_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take over what ``full_state`` gave, into the same structure."""
        self._unflatten(tensors, meta, None)

    def fixed_bytes(self, convention: str = "exact") -> int:
        """Bytes of all that is carried but rehearsal memories."""
        if convention == "survey":
            return Holder._survey(self).get("parameters", 0)
        if convention == "libcontinual":
            return sum(Holder._libcontinual(self).values())
        total = len(encode_meta(self._flatten("carried")[2]))
        for name, kept in self._kept.items():
            value = getattr(self, name)
            if kept.lifetime == "carried" and not isinstance(value, ExemplarMemory):
                if kept.reference is not None:
                    total += kept.reference.bytes
                else:
                    total += sum(tensor_bytes(tensor) for tensor, _ in self._tensors_of(name, value, kept).values())
        return total

    def training_entries(self) -> list[Entry]:
        """Ledger lines of what is held in training only."""
        tensors, kinds, _, _ = self._flatten("training")
        return [tensor_entry(name, kinds[name], tensor, "training") for name, tensor in tensors.items()]

    def _trained_modules(self) -> list[nn.Module]:
        """Modules that are neither teachers nor public weights."""
        trained = (name for name, kept in self._kept.items() if kept.kind != "teacher" and kept.reference is None)
        return [value for value in map(self.__getattribute__, trained) if isinstance(value, nn.Module)]

    def replaced_at_inference(self) -> Sequence[str]:
        """Names of kept networks that are not needed to answer, since a larger one that is kept does: the survey does
        not charge them."""
        return ()

    def _survey(self) -> dict[str, int]:
        """The survey's charge: backbones needed at inference, as each states it, and nominal raw pixels.

        Raises:
            StateError: where networks are said to be replaced and none that is larger than all of them is kept.
        """
        exemplars, sizes = 0, {}
        for name, kept in self._kept.items():
            value = getattr(self, name)
            if isinstance(value, ExemplarMemory):
                exemplars += value.survey_bytes()
            elif isinstance(value, nn.Module) and kept.lifetime == "carried":
                sizes[name] = 4 * int(getattr(value, "survey_parameters", 0))
        replaced = self.replaced_at_inference()
        needed = {name: size for name, size in sizes.items() if name not in replaced}
        if (less := sum(sizes.values()) - sum(needed.values())) and less >= max(needed.values(), default=0):
            raise StateError(f"{', '.join(replaced)}: replaced at inference, it says, but no larger network is kept")
        return {"parameters": sum(needed.values()), "exemplars": exemplars}

    def _libcontinual(self) -> dict[str, int]:
        """LibContinual's charge of all but rehearsal memories, bytes by kind: see ``cil.memory.libcontinual``."""
        charge: dict[str, int] = {}
        for name, kept in self._kept.items():
            charge[kept.kind] = charge.get(kept.kind, 0) + Holder._libcontinual_bytes(self, name, kept)
        return paid(charge)

    def _libcontinual_bytes(self, name: str, kept: _Kept) -> int:
        value = getattr(self, name)
        if kept.kind == "teacher" and kept.lifetime == "training":  # whether there is one yet or not
            copied = getattr(self, self.teacher_copies.get(name, "net"), None)
            return max(parameter_bytes(one) if isinstance(one, nn.Module) else 0 for one in (copied, value))
        if kept.lifetime == "training" or kept.reference is not None or isinstance(value, ExemplarMemory):
            return 0
        if isinstance(value, nn.Module) and kept.kind in ("parameters", "teacher"):
            return parameter_bytes(value)
        found = self._tensors_of(name, value, kept).values()
        return sum(tensor_bytes(tensor) for tensor, _ in found)

    def _tensors_of(self, name: str, value: Any, kept: _Kept) -> dict[str, tuple[Tensor, str]]:
        if isinstance(value, nn.Module):
            buffers = {key for key, _ in value.named_buffers()}
            found = {}
            for key, tensor in value.state_dict().items():
                if not isinstance(tensor, Tensor):
                    raise StateError(
                        f"{name}.{key} is a {type(tensor).__name__}: extra state of a module is not carried"
                    )
                kind = "buffers" if kept.kind == "parameters" and key in buffers else kept.kind
                found[f"{name}.{key}"] = (_storable(f"{name}.{key}", tensor), kind)
            return found
        if isinstance(value, Tensor):
            return {name: (_storable(name, value), kept.kind)}
        if isinstance(value, ExemplarMemory):
            return {f"{name}.{key}": held for key, held in value.tensors(self.num_classes).items()}
        if _is_tensor_dict(value):
            return {f"{name}.{key}": (_storable(f"{name}.{key}", t), kept.kind) for key, t in value.items()}
        return {}

    def _flatten(
        self, lifetime: str
    ) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any], tuple[Reference, ...]]:
        tensors: dict[str, Tensor] = {}
        kinds: dict[str, str] = {}
        meta: dict[str, Any] = {}
        references = []
        for name, kept in self._kept.items():
            if kept.lifetime != lifetime:
                continue
            value = getattr(self, name)
            if kept.reference is not None:
                references.append(kept.reference)
            elif isinstance(value, nn.Module | Tensor | ExemplarMemory) or _is_tensor_dict(value):
                for key, (tensor, kind) in self._tensors_of(name, value, kept).items():
                    tensors[key], kinds[key] = tensor.detach(), kind
            elif isinstance(value, Samples) and lifetime == "training":
                continue  # the hooks before the phases set it again
            elif value is not None or kept.kind == "other":  # None of another kind: no tensor yet
                if not _is_meta(value):
                    raise StateError(
                        f"{name} is a {type(value).__name__}: keep modules, tensors, memories, JSON scalars"
                    )
                meta[name] = value
        return tensors, kinds, meta, tuple(references)

    def _unflatten(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], lifetime: str | None) -> None:
        left = dict(tensors)
        for name, kept in self._kept.items():
            if (lifetime or kept.lifetime) != kept.lifetime or kept.reference is not None:
                continue
            value = getattr(self, name)
            prefix = f"{name}."
            given = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
            if isinstance(value, ExemplarMemory):
                value.load(given, self.image_shape)
            elif isinstance(value, nn.Module):
                _check_structure(name, value.state_dict(), given)
                value.load_state_dict(given)
            elif kept.lifetime == "training" and not isinstance(value, dict) and name in left:
                object.__setattr__(self, name, left.pop(name).to(self.device))
            elif kept.lifetime == "training" and given and not _is_tensor_dict(value):
                object.__setattr__(self, name, {key: t.to(self.device) for key, t in given.items()})
            elif _is_tensor_dict(value):
                _check_structure(name, value, given)
                object.__setattr__(self, name, {key: _like(own, given[key]) for key, own in value.items()})
            elif isinstance(value, Tensor):
                if name not in left:
                    raise StateError(f"the state lacks {name}")
                _check_structure(name, {"": value}, {"": left[name]})
                object.__setattr__(self, name, _like(value, left.pop(name)))
            elif name in meta:
                object.__setattr__(self, name, meta[name])
            elif kept.kind == "other" and kept.lifetime == "carried":
                raise StateError(f"the state lacks {name}")
        if left:
            raise StateError(
                f"{type(self).__name__} has no place for {', '.join(sorted(left)[:3])}: allocate in __init__ or grow, "
                f"at its final size, whatever is carried"
            )


def _check_structure(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Names and shapes are structure: were they free, they could carry bytes that nobody pays for."""
    if own.keys() != given.keys():
        odd = sorted(own.keys() ^ given.keys())[:3]
        raise StateError(f"{name}: the state and the structure after grow differ in {', '.join(odd)}")
    for key, tensor in own.items():
        if tensor.shape != given[key].shape or tensor.dtype != given[key].dtype:
            raise StateError(
                f"{name}.{key} is {given[key].dtype} {tuple(given[key].shape)} in the state, "
                f"{tensor.dtype} {tuple(tensor.shape)} after grow: allocate it there at its final size"
            )


def _storable(name: str, tensor: Tensor) -> Tensor:
    """A tensor that a file of weights can hold: dense, of a plain type, with its own values; others are refused."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype is torch.complex32:
        raise StateError(
            f"{name} is a tensor of {tensor.dtype}, {tensor.layout}: what is kept is stored as dense numbers; keep "
            f"its parts, as values and indices, or scales"
        )
    return tensor.resolve_conj().resolve_neg()


def _like(own: Tensor, given: Tensor) -> Tensor:
    """The values given, in the layout and on the device of what is replaced."""
    return torch.empty_like(own).copy_(given)


def _is_tensor_dict(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _is_meta(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_meta(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_meta(item) for key, item in value.items())
    return value is None or isinstance(value, _META)


_loaded: dict[tuple[Any, ...], Reference] = {}  # by file as it was, and structure


def loaded_reference(module: nn.Module, tag: str) -> Reference:
    """``reference_of`` for a module as it was just made from a file of weights: hashed once per process and content.

    What was done to it since is not seen here: ``Holder.state`` hashes what it finds at each boundary.
    """
    marks = (getattr(layer, "loaded_from", None) for layer in module.modules())
    sources = tuple(mark for mark in marks if mark is not None)
    if not sources:
        return reference_of(module, tag)
    shapes = tuple((key, t.shape, t.dtype, t.is_meta) for key, t in sorted(module.state_dict().items()))
    key = (tag, sources, shapes)
    if key not in _loaded:
        _loaded[key] = reference_of(module, tag)
    return _loaded[key]


def reference_of(module: nn.Module, tag: str) -> Reference:
    """The reference that names a module's weights: SHA-256 over its tensors in order of name, and their size."""
    tensors = module.state_dict()
    size = sum(map(tensor_bytes, tensors.values()))
    return Reference(tag, digest_of(tensors), size, sum(tensor.numel() for tensor in tensors.values()))
