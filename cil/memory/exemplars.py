"""Exemplar memory: the stored samples that a learner rehearses, and pays for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.errors import ShapeError, StateError
from cil.memory.codecs import codec as find_codec
from cil.memory.selections import selection as find_selection
from cil.memory.selections import uses_features

Features = Callable[[Samples], Tensor]


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest unsigned type that holds the slots of so many classes."""
    return torch.uint8 if num_classes <= 256 else torch.uint16 if num_classes <= 65536 else torch.int32


class ExemplarMemory:
    """Copies of training images, kept class by class in the order of choice (the first are the best).

    Its bytes are pixels as the codec stores them, labels in the smallest unsigned type, and whatever is stored beside
    an image. The decoded copy is a cache: never saved, never charged. An image is encoded once, when it arrives.

    Args:
        codec: ``raw``, or ``jpeg:QUALITY``.
        selection: Rule that orders the samples of a class: ``herding``, ``random``, ``reservoir``, ``closest_to_mean``.
        extras: Kind of each named side datum (for example ``{"logits": "replay_logits"}``).
        extra_bytes: Bytes of side data beside one exemplar, so that they can be billed before any is stored; what is
            stored is measured. A public attribute too, for sizes known in ``grow`` only.
    """

    def __init__(
        self,
        codec: str = "raw",
        selection: str = "herding",
        extras: Mapping[str, str] | None = None,
        extra_bytes: int = 0,
    ) -> None:
        self.codec = find_codec(codec)
        self.select = find_selection(selection)
        self.extra_kinds = dict(extras or {})
        self.extra_bytes = extra_bytes
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
        return pixels + label_dtype(num_classes).itemsize + self._side_bytes()

    def _side_bytes(self) -> int:
        """Bytes of side data beside one exemplar."""
        if not len(self):
            return self.extra_bytes
        return sum(values[0].numel() * values.element_size() for values in self._extras.values())

    def add(self, slot: int, samples: Samples) -> None:
        """Append samples of one slot, in the order given."""
        if set(samples.slots.tolist()) - {slot}:
            raise ShapeError(f"samples of slots {sorted(set(samples.slots.tolist()))} given as slot {slot}")
        if len(samples):
            self.replace([self.samples(), samples])

    def shrink(self, quota: int) -> None:
        """Keep the first ``quota`` exemplars of each class: a prefix of the order they were chosen in."""
        self._keep(self._rank() < quota)

    def _keep(self, which: Tensor) -> None:
        """Drop what ``which`` (M,) bool does not name; nothing is decoded or encoded again."""
        rows = which.nonzero().flatten()
        if len(rows) == len(self):
            return
        self._data, self._sizes = self._stored(rows)
        self._slots = self._slots[rows]
        self._extras = {name: values[rows] for name, values in self._extras.items()}
        self._cache = None

    def replace(self, groups: list[Samples]) -> None:
        """Hold exactly these samples, sorted by slot, each class in the order given.

        Raises:
            StateError: where side data that this memory stores are missing.
        """
        groups = [group for group in groups if len(group)]
        if not groups:
            self._clear()
            return
        joined = groups[0]
        for group in groups[1:]:
            joined = joined + group
        missing = self.extra_kinds.keys() - joined.extras.keys()
        if missing:
            raise StateError(f"exemplars need side data {sorted(missing)}, which the samples do not have")
        joined = joined[joined.slots.argsort(stable=True)]
        self._data, self._sizes = self._encoded(joined)
        self._shape = joined.shape
        self._slots = joined.slots.cpu()
        self._extras = {name: joined.extras[name].cpu() for name in self.extra_kinds}
        self._cache = None

    def _encoded(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """The bytes of samples, and their sizes. What is held already keeps its bytes: no loss on top of a loss."""
        own = None if self._cache is None else self._cache.parts[0][0]
        parts = [
            self._stored(rows) if store is own else self.codec.encode(store.pixels(rows).cpu())
            for store, rows in samples.parts
        ]
        return torch.cat([data for data, _ in parts]), torch.cat([sizes for _, sizes in parts])

    def _stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The bytes of some exemplars as they are held, and their sizes."""
        if self.codec.fixed:
            return self._data.reshape(len(self), -1)[rows].flatten(), self._sizes[rows]
        chunks = self._data.split(self._sizes.tolist())
        return torch.cat([self._data[:0], *(chunks[row] for row in rows.tolist())]), self._sizes[rows]

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
                seen = features(pool) if uses_features(self.select) else torch.empty(len(pool), 0)
                chosen.append(pool[self.select(seen, quota, generator)])
        staying = old[~torch.isin(old.slots, torch.tensor(arriving))] if len(old) else old
        self.replace([staying, *chosen])
        if capacity is not None:
            self._fit(capacity)

    def _fit(self, capacity: int) -> None:
        """Keep what fits by encoded bytes: the best of every class, then the second best, until the bytes are used."""
        rank = self._rank()
        label = label_dtype(int(self._slots.max()) + 1 if len(self) else 1).itemsize
        cost = self._sizes.long() + label + self._side_bytes()
        if not self.codec.fixed:
            cost = cost + self._sizes.element_size()
        order = rank.argsort(stable=True)
        keep = torch.zeros(len(self), dtype=torch.bool)
        keep[order[cost[order].cumsum(0) <= capacity]] = True
        self._keep(keep)

    def _rank(self) -> Tensor:
        """Place of each exemplar within its class."""
        starts = torch.searchsorted(self._slots, self._slots)
        return torch.arange(len(self)) - starts

    # what is carried, charged and saved -----------------------------------------------------------------------------

    @property
    def tensor_names(self) -> set[str]:
        """Names of all that ``tensors`` gives while the memory is not empty."""
        return {"images", "slots", *self.extra_kinds} | (set() if self.codec.fixed else {"sizes"})

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
        """Take over what ``tensors`` gave; ``shape`` is that of the stream's images.

        Raises:
            StateError: where names, types or sizes do not belong together.
        """
        self._clear()
        if not tensors:
            return
        if set(tensors) != self.tensor_names:
            raise StateError(f"exemplar memory holds {sorted(self.tensor_names)}, the state has {sorted(tensors)}")
        held = {name: values.cpu() for name, values in tensors.items()}
        data, slots, count = held["images"].reshape(-1), held["slots"].to(torch.int64), len(held["slots"])
        sizes = torch.full((count,), shape[0] * shape[1] * shape[2], dtype=torch.int32)
        sizes = sizes if self.codec.fixed else held["sizes"]
        rows = {name: len(held[name]) for name in ("slots", *self.extra_kinds)} | {"sizes": len(sizes)}
        if data.dtype != torch.uint8:
            raise StateError(f"exemplar memory: images are {data.dtype}, not uint8")
        if set(rows.values()) != {count} or count == 0:
            raise StateError(f"exemplar memory: the rows of {', '.join(f'{n} are {r}' for n, r in rows.items())}")
        if int(sizes.min()) < 1:
            raise StateError("exemplar memory: an image of no bytes")
        if int(sizes.sum()) != data.numel():
            raise StateError(
                f"exemplar memory: {count} images of {shape} are {int(sizes.sum())} bytes, the state has {data.numel()}"
            )
        if not bool((slots.diff() >= 0).all()):
            raise StateError("exemplar memory: slots are not sorted")
        self._shape, self._data, self._sizes, self._slots = shape, data, sizes, slots
        self._extras = {name: held[name] for name in self.extra_kinds}

    def survey_bytes(self) -> int:
        """Nominal raw pixels of all exemplars, C * H * W bytes each (the survey's charge)."""
        shape = self._shape or (0, 0, 0)
        return len(self) * shape[0] * shape[1] * shape[2]
