"""Exemplar memory: the stored samples that a learner rehearses, and pays for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.errors import ShapeError, StateError
from cil.memory.codecs import codec as find_codec
from cil.memory.selection import selection as find_selection

Features = Callable[[Samples], Tensor]


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest unsigned type that holds the slots of so many classes."""
    return torch.uint8 if num_classes <= 256 else torch.uint16 if num_classes <= 65536 else torch.int32


class ExemplarMemory:
    """Copies of training images, kept class by class in the order of choice (the first are the best).

    Its bytes are pixels as the codec stores them, labels in the smallest unsigned type, and whatever is stored beside
    an image. The decoded copy is a cache: never saved, never charged.

    Args:
        codec: ``raw``, or ``jpeg:QUALITY``.
        selection: Rule that orders the samples of a class: ``herding``, ``random``, ``reservoir``, ``closest_to_mean``.
        extras: Kind of each named side datum (for example ``{"logits": "replay_logits"}``).
    """

    def __init__(
        self, codec: str = "raw", selection: str = "herding", extras: Mapping[str, str] | None = None
    ) -> None:
        self.codec = find_codec(codec)
        self.select = find_selection(selection)
        self.extra_kinds = dict(extras or {})
        self._clear()

    def _clear(self) -> None:
        self._data = torch.empty(0, dtype=torch.uint8)  # the encoded images, one after the other
        self._sizes = torch.empty(0, dtype=torch.int32)
        self._slots = torch.empty(0, dtype=torch.int64)
        self._extras: dict[str, Tensor] = {}
        self._shape: tuple[int, int, int] | None = None
        self._cache: Samples | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return f"ExemplarMemory({len(self)} exemplars of {len(self._slots.unique())} classes)"

    @property
    def slots(self) -> Tensor:
        """(M,) int64, class by class."""
        return self._slots

    def samples(self) -> Samples:
        """All exemplars, class by class, best first; side data as ``extras``."""
        if self._cache is None:
            shape = self._shape or (1, 1, 1)
            pixels = self.codec.decode(self._data, self._sizes, shape) if len(self) else torch.empty(0, *shape).byte()
            self._cache = Samples(ArrayStore(pixels), self._slots, extras=self._extras)
        return self._cache

    def of_class(self, slot: int) -> Samples:
        """The exemplars of one slot, best first."""
        return self.samples().of_class(slot)

    def counts(self) -> dict[int, int]:
        """Exemplars of each slot present."""
        return self.samples().counts() if len(self) else {}

    def item_bytes(self, shape: tuple[int, int, int], num_classes: int, convention: str = "exact") -> int:
        """Bytes of one exemplar of fixed size: pixels, label and side data; the pixels alone under ``survey``."""
        pixels = shape[0] * shape[1] * shape[2]
        if convention == "survey":
            return pixels
        extras = sum(values[0].numel() * values.element_size() for values in self._extras.values() if len(values))
        return pixels + label_dtype(num_classes).itemsize + extras

    def add(self, slot: int, samples: Samples) -> None:
        """Append samples of one slot, in the order given."""
        if set(samples.slots.tolist()) - {slot}:
            raise ShapeError(f"samples of slots {sorted(set(samples.slots.tolist()))} given as slot {slot}")
        if len(samples):
            self.replace([self.samples(), samples])

    def shrink(self, quota: int) -> None:
        """Keep the first ``quota`` exemplars of each class: a prefix of the order they were chosen in."""
        keep = self._rank() < quota
        if not bool(keep.all()):
            self.replace([self.samples()[keep]])

    def replace(self, groups: list[Samples]) -> None:
        """Hold exactly these samples, sorted by slot, each class in the order given."""
        groups = [group for group in groups if len(group)]
        self._clear()
        if not groups:
            return
        joined = groups[0]
        for group in groups[1:]:
            joined = joined + group
        joined = joined[joined.slots.argsort(stable=True)]
        self._shape = joined.shape
        self._data, self._sizes = self.codec.encode(joined.pixels.cpu())
        self._slots = joined.slots.cpu()
        missing = self.extra_kinds.keys() - joined.extras.keys()
        if missing:
            raise StateError(f"exemplars need side data {sorted(missing)}, which the samples do not have")
        self._extras = {name: joined.extras[name].cpu() for name in self.extra_kinds}

    def rebuild(
        self, new: Samples, quota: int, features: Features, generator: torch.Generator, capacity: int | None = None
    ) -> None:
        """The update after an experience: old classes keep their first ``quota``, new ones are chosen by the rule.

        Args:
            new: Training data of the experience. Of a class that is also in memory, both are the pool.
            quota: Exemplars a class, floor(M / C). A smaller class is stored whole.
            features: Samples to (N, D), with the network as it is now.
            generator: For rules that draw.
            capacity: With a codec of variable size: bytes for all; the largest equal quota that fits is taken,
                and ``quota`` is its upper bound.

        Source: Rebuffi et al. 2017, Algorithms 4 and 5.
        """
        self.shrink(quota)
        old, chosen = self.samples(), []
        arriving = sorted(set(new.slots.tolist()))
        for slot in arriving:
            pool = old.of_class(slot) + new.of_class(slot) if len(old) else new.of_class(slot)
            if quota > 0:
                chosen.append(pool[self.select(features(pool), quota, generator)])
        staying = old[~torch.isin(old.slots, torch.tensor(arriving))] if len(old) else old
        self.replace([staying, *chosen])
        if capacity is not None:
            self._fit(capacity)

    def _fit(self, capacity: int) -> None:
        """Shrink to the largest equal quota whose encoded bytes fit."""
        rank = self._rank()
        label = label_dtype(int(self._slots.max()) + 1 if len(self) else 1).itemsize
        cost = self._sizes.long() + label + (0 if self.codec.fixed else self._sizes.element_size())
        for values in self._extras.values():
            cost = cost + values[0].numel() * values.element_size()
        order = rank.argsort(stable=True)
        total = torch.cat([torch.zeros(1, dtype=torch.int64), cost[order].cumsum(0)])
        ends = torch.bincount(rank).cumsum(0) if len(self) else torch.zeros(0, dtype=torch.int64)
        quota = int((total[ends] <= capacity).sum())
        self.shrink(quota)

    def _rank(self) -> Tensor:
        """Place of each exemplar within its class."""
        starts = torch.searchsorted(self._slots, self._slots)
        return torch.arange(len(self)) - starts

    # what is carried, charged and saved -----------------------------------------------------------------------------

    def tensors(self, num_classes: int) -> dict[str, tuple[Tensor, str]]:
        """Each tensor and the kind it is charged as. None where the memory is empty."""
        if not len(self):
            return {}
        shape = self._shape or (1, 1, 1)
        held = {"images": (self._data.reshape(-1, *shape) if self.codec.fixed else self._data, "exemplars")}
        if not self.codec.fixed:
            held["sizes"] = (self._sizes, "exemplars")
        held["slots"] = (self._slots.to(label_dtype(num_classes)), "labels")
        held.update({name: (values, self.extra_kinds[name]) for name, values in self._extras.items()})
        return held

    def load(self, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> None:
        """Take over what ``tensors`` gave; ``shape`` is that of the stream's images."""
        self._clear()
        if not tensors:
            return
        expected = {"images", "slots", *self.extra_kinds} | (set() if self.codec.fixed else {"sizes"})
        if set(tensors) != expected:
            raise StateError(f"exemplar memory holds {sorted(expected)}, the state has {sorted(tensors)}")
        self._shape = shape
        self._slots = tensors["slots"].cpu().to(torch.int64)
        self._data = tensors["images"].cpu().reshape(-1)
        each = torch.full((len(self._slots),), self._data.numel() // len(self._slots), dtype=torch.int32)
        self._sizes = each if self.codec.fixed else tensors["sizes"].cpu()
        self._extras = {name: tensors[name].cpu() for name in self.extra_kinds}
        if int(self._sizes.sum()) != self._data.numel():
            raise StateError(f"exemplar memory: sizes sum to {int(self._sizes.sum())}, data are {self._data.numel()}")
        if not bool((self._slots.diff() >= 0).all()):
            raise StateError("exemplar memory: slots are not sorted")

    def survey_bytes(self) -> int:
        """Nominal raw pixels of all exemplars, C * H * W bytes each (the survey's charge)."""
        shape = self._shape or (0, 0, 0)
        return len(self) * shape[0] * shape[1] * shape[2]
