"""The ledger: the bytes that a learner carries, by kind, under three conventions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import Tensor

from cil.errors import ConfigError, nearest
from cil.memory.state import State, tensor_bytes

KINDS = (
    "parameters",
    "buffers",
    "exemplars",
    "labels",
    "features",
    "prototypes",
    "statistics",
    "replay_logits",
    "optimizer",
    "teacher",
    "temporary",
    "gradients",
    "activations",
    "other",
)
TRAINING_KINDS = ("optimizer", "teacher", "temporary", "gradients", "activations")  # lifetime ``training`` by default
CONVENTIONS = ("exact", "survey", "libcontinual")


class Beside(NamedTuple):
    """Carried bytes beside networks and ordinary exemplars, and how many raw images they would hold."""

    bytes: int = 0
    images: float = 0.0


NOTHING = Beside()


def check_kind(kind: str) -> str:
    """``kind``, if the ledger knows it.

    Raises:
        ConfigError: if it does not.
    """
    if kind not in KINDS:
        raise ConfigError(f"the ledger has no kind '{kind}'; {nearest(kind, KINDS)}")
    return kind


@dataclass(frozen=True)
class Entry:
    """One line of the ledger.

    Attributes:
        lifetime: ``carried`` across the boundary, or there in ``training`` only.
        source: ``tensor``, ``meta`` or ``reference``.
        sha256: Of public weights that are referred to; '' of all else.
    """

    name: str
    kind: str
    lifetime: str
    source: str
    bytes: int
    numel: int
    dtype: str
    sha256: str = ""


def tensor_entry(name: str, kind: str, tensor: Tensor, lifetime: str = "carried") -> Entry:
    """The line of one tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Entry(name, kind, lifetime, "tensor", tensor_bytes(tensor), tensor.numel(), dtype)


class Ledger:
    """The lines of one boundary, and their sums.

    Three conventions. ``exact`` counts every carried byte. ``survey`` counts as Zhou et al. 2024 do: the parameters of
    the backbones needed at inference, four bytes each, and the nominal raw pixels of the exemplars; heads, buffers,
    labels, statistics and teachers are free. ``libcontinual``: see ``cil.memory.libcontinual``.

    Args:
        beside: Carried bytes beside networks and ordinary exemplars (``cil.contract.Frozen``).
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        survey: Mapping[str, int] | None = None,
        beside: Beside = NOTHING,
        libcontinual: Mapping[str, int] | None = None,
    ) -> None:
        self.entries = tuple(entries)
        self._stated = {"survey": dict(survey or {}), "libcontinual": dict(libcontinual or {})}
        self.beside = beside

    @classmethod
    def of(cls, state: State, training: Iterable[Entry] = (), beside: Beside = NOTHING) -> Ledger:
        """Charge a carried state, and list the entries held in training only."""
        entries = [tensor_entry(name, state.kinds[name], tensor) for name, tensor in state.tensors.items()]
        meta = state.encoded_meta()
        if meta:
            entries.append(Entry("meta", "other", "carried", "meta", len(meta), len(meta), "utf-8"))
        entries += [
            Entry(ref.tag, "parameters", "carried", "reference", ref.bytes, ref.numel, "reference", ref.sha256)
            for ref in state.references
        ]
        return cls([*entries, *training], state.survey, beside, state.libcontinual)

    def by_kind(self, convention: str = "exact", lifetime: str = "carried") -> dict[str, int]:
        """Bytes of each kind that is present."""
        if convention not in CONVENTIONS:
            raise ConfigError(f"budget.convention is '{convention}'; {nearest(convention, CONVENTIONS)}")
        if convention in self._stated and lifetime == "carried":
            return {kind: size for kind, size in self._stated[convention].items() if size}
        sums: dict[str, int] = {}
        for entry in self.entries:
            if entry.lifetime == lifetime:
                sums[entry.kind] = sums.get(entry.kind, 0) + entry.bytes
        return {kind: sums[kind] for kind in KINDS if kind in sums}

    def total(self, convention: str = "exact", lifetime: str = "carried") -> int:
        """Bytes in all."""
        return sum(self.by_kind(convention, lifetime).values())

    @property
    def peak_training_bytes(self) -> int:
        """Carried and training bytes together."""
        return self.total() + self.total(lifetime="training")

    @property
    def public_bytes(self) -> int:
        """Bytes of public weights that are referred to, not owned."""
        return sum(entry.bytes for entry in self.entries if entry.source == "reference")

    @property
    def unpaid_bytes(self) -> int:
        """Carried bytes, not public, that LibContinual's convention charges nothing for.

        Kind by kind: a teacher is charged that is gone at the boundary, and pays for nothing else.
        """
        paid, carried = self.by_kind("libcontinual"), self.by_kind()
        carried["parameters"] = carried.get("parameters", 0) - self.public_bytes
        return sum(max(0, size - paid.get(kind, 0)) for kind, size in carried.items())

    def describe(self, convention: str = "exact", lifetime: str = "carried") -> str:
        """The kinds and their bytes, largest first, for messages."""
        sums = sorted(self.by_kind(convention, lifetime).items(), key=lambda item: -item[1])
        return ", ".join(f"{kind} {size:,}" for kind, size in sums) or "nothing"

    def to_json(self) -> dict[str, Any]:
        """The totals under all conventions, and one line for all tensors of a kept thing with the same kind and type.

        Tensor by tensor, a network that grows over a hundred experiences would make a record of a hundred megabytes;
        the names and sizes of all tensors are in the checkpoint.
        """
        totals = {
            convention: {**self.by_kind(convention), "total": self.total(convention)} for convention in CONVENTIONS
        }
        totals["training"] = {**self.by_kind(lifetime="training"), "total": self.total(lifetime="training")}
        lines = map(asdict, self._lines())
        entries = [{key: value for key, value in line.items() if key != "sha256" or value} for line in lines]
        return {"entries": entries, "totals": totals, "public": self.public_bytes, "beside": self.beside._asdict()}

    def _lines(self) -> list[Entry]:
        """Entries of one kept thing with the same kind and type as one, named ``net.*``."""
        groups: dict[tuple[str, ...], list[Entry]] = {}
        for entry in self.entries:
            kept = entry.name.partition(".")[0] if entry.source == "tensor" else entry.name
            groups.setdefault((kept, entry.kind, entry.lifetime, entry.source, entry.dtype), []).append(entry)
        return [
            each[0]
            if len(each) == 1
            else Entry(
                f"{kept}.*", kind, lifetime, source, sum(e.bytes for e in each), sum(e.numel for e in each), dtype
            )
            for (kept, kind, lifetime, source, dtype), each in groups.items()
        ]
