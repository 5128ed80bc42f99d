"""State: exactly what a learner carries across a boundary. It is charged, saved, resumed from and evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """Public weights that a learner uses but does not own: loaded once, never modified, charged once.

    Attributes:
        tag: Name of the weights in the model registry.
        sha256: Hash over the tensors in order of name.
        bytes: Size of the tensors.
        numel: Number of values.
    """

    tag: str
    sha256: str
    bytes: int
    numel: int


@dataclass(frozen=True)
class State:
    """The data that cross a boundary.

    Attributes:
        tensors: By name; names and shapes follow from the learner's structure, so they carry nothing.
        kinds: Ledger kind of each tensor.
        meta: JSON scalars and short lists.
        references: Public weights in use.
        survey: The survey's charge (bytes by kind), as stated by the parts that are held; see
            ``cil.memory.ledger``.
        libcontinual: LibContinual's charge, in the same way; see ``cil.memory.libcontinual``.
    """

    tensors: Mapping[str, Tensor]
    kinds: Mapping[str, str]
    meta: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[Reference, ...] = ()
    survey: Mapping[str, int] = field(default_factory=dict)
    libcontinual: Mapping[str, int] = field(default_factory=dict)

    def encoded_meta(self) -> bytes:
        """The metadata as saved and charged; empty where there are none."""
        return encode_meta(self.meta)

    @property
    def bytes(self) -> int:
        """Tensors, metadata and references together."""
        tensors = sum(tensor_bytes(tensor) for tensor in self.tensors.values())
        return tensors + len(self.encoded_meta()) + sum(reference.bytes for reference in self.references)


def encode_meta(meta: Mapping[str, Any]) -> bytes:
    """Compact JSON, UTF-8; no bytes for no metadata."""
    return json.dumps(meta, separators=(",", ":"), sort_keys=True).encode() if meta else b""


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's values, whatever storage it is a view of."""
    return tensor.numel() * tensor.element_size()
