"""Exemplar memory: the stored samples that a learner rehearses, and pays for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cil.data import Samples
from cil.data.crops import crop_resized
from cil.data.looks import CountedStore, Images, Looks, uncounted
from cil.data.samples import Store
from cil.errors import ShapeError, StateError
from cil.memory.codecs import Codec
from cil.memory.codecs import codec as find_codec
from cil.memory.libcontinual import item
from cil.memory.selections import RuleInput
from cil.memory.selections import selection as find_selection

Observe = Callable[[Samples], RuleInput]
BESIDE = 8  # bytes of label and size beside an exemplar, at most


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest unsigned type that holds the slots of so many classes."""
    return torch.uint8 if num_classes <= 256 else torch.uint16 if num_classes <= 65536 else torch.int32


class EncodedStore:
    """Images in the bytes of a codec, decoded when first asked for and never encoded a second time.

    Args:
        data, sizes: Result of ``codec.encode``.
        shape: (C, H, W) of a decoded image.
    """

    in_memory = True

    def __init__(self, codec: Codec, data: Tensor, sizes: Tensor, shape: tuple[int, int, int]) -> None:
        self.codec, self.data, self.sizes, self.shape = codec, data, sizes, shape

    @cached_property
    def tensor(self) -> Tensor:
        """All images decoded, (n, C, H, W) uint8."""
        if not len(self):
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        return self.codec.decode(self.data, self.sizes, self.shape)

    def __len__(self) -> int:
        return len(self.sizes)

    def stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The stored bytes of ``rows``, and the size of each."""
        if self.codec.fixed:
            each = int(self.sizes[0]) if len(self) else 0
            return self.data.reshape(len(self), each)[rows].flatten(), self.sizes[rows]
        chunks = self.data.split(self.sizes.tolist())
        return torch.cat([self.data[:0], *(chunks[row] for row in rows.tolist())]), self.sizes[rows]

    def pixels(self, rows: Tensor) -> Tensor:
        return self.tensor[rows]

    def training_pixels(self, rows: Tensor, draws: Tensor) -> Tensor:
        return crop_resized(self.pixels(rows), draws)

    def take(self, rows: Tensor) -> EncodedStore:
        return EncodedStore(self.codec, *self.stored(rows), self.shape)

    def digest(self, rows: Tensor) -> bytes:
        return hashlib.sha256(self.pixels(rows).contiguous().numpy().data).digest()


class ExemplarMemory:
    """Copies of training images, kept class by class in the order of choice (the first are the best).

    Its bytes are pixels as the codec stores them, labels in the smallest unsigned type, and side data beside an image.
    The decoded copy is a cache: never saved, never charged. An image is encoded once, when it arrives, and a rule that
    looks at images gets them as they will be stored.

    Args:
        codec: ``raw``, ``jpeg:QUALITY``, ``downsample:SIDE`` or one of a plugin; or a codec.
        selection: Rule that orders the samples of a class, ``NAME`` or ``NAME:OPTION``; see
            ``cil.memory.selections``.
        extras: Ledger kind of each named side datum (for example ``{"logits": "replay_logits"}``).
        extra_bytes: Bytes of side data beside one exemplar, so that they can be billed before any is stored; stored
            ones are measured. A public attribute too, for sizes known in ``grow`` only.

    Attributes:
        passing: Set on a memory that is carried nowhere: new images in it are then read as those of the experience are
            (``cil.data.looks``).
    """

    passing = False

    def __init__(
        self,
        codec: str | Codec = "raw",
        selection: str = "herding",
        extras: Mapping[str, str] | None = None,
        extra_bytes: int = 0,
    ) -> None:
        self.codec: Codec = find_codec(codec) if isinstance(codec, str) else codec
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
        self._origin: tuple[Images, Looks] | None = None

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
            store = self._store()
            source: Store = store if self._origin is None else CountedStore(store, *self._origin)
            self._cache = Samples(source, self._slots, extras=self._extras)
        return self._cache

    def _store(self) -> EncodedStore:
        """The images, for whatever reads them: a memory that is out of order is in order again when it is asked."""
        return EncodedStore(self.codec, self._data, self._sizes, self._shape or (1, 1, 1))

    def of_class(self, slot: int) -> Samples:
        """The exemplars of one slot, best first."""
        return self.samples().of_class(slot)

    def as_trained(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some exemplars decoded, with all others at once as in training, (n, C, H, W) uint8; and the bytes of each."""
        store = self._store()
        return store.pixels(rows), store.sizes[rows]

    def counts(self) -> dict[int, int]:
        """Exemplars of each slot present."""
        return self.samples().counts() if len(self) else {}

    def item_bytes(self, shape: tuple[int, int, int], num_classes: int, convention: str = "exact") -> int:
        """Bytes of one exemplar: pixels, label and side data; raw pixels alone under ``survey``.

        Its label is free under ``libcontinual``. An image of variable size counts as if it were raw.
        """
        if convention == "survey":
            return math.prod(shape)
        kinds = self.item_kinds(shape, num_classes)
        return item(kinds) if convention == "libcontinual" else sum(kinds.values())

    def item_kinds(self, shape: tuple[int, int, int], num_classes: int) -> dict[str, int]:
        """Bytes of one exemplar by kind."""
        kinds = {"exemplars": math.prod(self.codec.stored_shape(shape)), "labels": label_dtype(num_classes).itemsize}
        for kind, size in self._side_kinds():
            kinds[kind] = kinds.get(kind, 0) + size
        return kinds

    def _side_kinds(self) -> list[tuple[str, int]]:
        """Kind and bytes of the side data beside one exemplar; all as the first kind while the memory is empty."""
        if not len(self):
            return [(next(iter(self.extra_kinds.values()), "other"), self.extra_bytes)] if self.extra_bytes else []
        sizes = {name: values[0].numel() * values.element_size() for name, values in self._extras.items()}
        return [(self.extra_kinds[name], size) for name, size in sizes.items()]

    def add(self, slot: int, samples: Samples) -> None:
        """Append samples of one slot, in the order given."""
        if set(samples.slots.tolist()) - {slot}:
            raise ShapeError(f"samples of slots {sorted(set(samples.slots.tolist()))} given as slot {slot}")
        if len(samples):
            self.replace([self.samples(), samples])

    def shrink(self, quota: int) -> None:
        """Keep the first ``quota`` exemplars of each class."""
        self._keep(self._rank() < quota)

    def _keep(self, which: Tensor) -> None:
        """Drop the exemplars that ``which`` (M,) bool does not mark, without decoding or encoding again."""
        rows = which.nonzero().flatten()
        if len(rows) == len(self):
            return
        self._data, self._sizes = self._store().stored(rows)
        self._slots = self._slots[rows]
        self._origin = None if self._origin is None else (self._origin[0][rows.numpy()], self._origin[1])
        self._extras = {name: values[rows] for name, values in self._extras.items()}
        self._cache = None

    def replace(self, groups: list[Samples]) -> None:
        """Hold exactly these samples, sorted by slot, each class in the order given.

        Raises:
            StateError: where side data that this memory stores are missing.
        """
        self._hold(groups)
        self._count_copies()

    def _count_copies(self) -> None:
        """Tell who counts looks which new images are held; encoded ones count by their bytes."""
        if self._origin is None or self.passing:
            return
        (images, looks), self._origin, self._cache = self._origin, None, None
        raw = math.prod(self._shape or (1, 1, 1)) + BESIDE
        looks.copy(images, None if self.codec.fixed else np.minimum(self._sizes.numpy() / raw, 1.0))

    def _hold(self, groups: list[Samples]) -> None:
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
        plain, images, looks = uncounted(joined)
        self._origin = None if looks is None or images is None else (images, looks)
        self._data, self._sizes = self._encoded(plain)
        self._shape = joined.shape
        self._slots = joined.slots.cpu()
        self._extras = {name: joined.extras[name].cpu() for name in self.extra_kinds}
        self._cache = None

    def _encoded(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Bytes and sizes of samples. Images encoded here before keep their bytes: no loss on top of a loss."""
        parts = []
        for store, rows in samples.parts:
            if isinstance(store, EncodedStore) and store.codec is self.codec:
                parts.append(store.stored(rows))
            else:  # some at a time: files are decoded for it
                parts += [self.codec.encode(store.pixels(some).cpu()) for some in rows.split(256)]
        return torch.cat([data for data, _ in parts]), torch.cat([sizes for _, sizes in parts])

    def as_stored(self, samples: Samples) -> Samples:
        """The samples as they are after storing and decoding; encoded here, for good."""
        if self.codec.lossless or not len(samples):
            return samples
        store = EncodedStore(self.codec, *self._encoded(samples), samples.shape)
        return Samples(store, samples.slots, targets=samples.targets, extras=samples.extras)

    def rebuild(
        self,
        new: Samples,
        quota: int,
        observe: Observe,
        generator: torch.Generator,
        capacity: int | None = None,
        own: Mapping[int, int] | None = None,
    ) -> None:
        """Update after an experience: old classes keep their first ``quota``, new ones are chosen by the rule.

        Args:
            new: Training data of the experience. The pool of a class that is also in memory has both.
            quota: Exemplars a class, floor(M / C). A smaller class is stored whole.
            observe: Samples of one class, as they will be stored, to the input of the rule (``self.select.needs``),
                with the network as it is now.
            capacity: With a codec of variable size: bytes for all; the largest equal quota that fits is taken,
                and ``quota`` is its upper bound.
            own: Exemplars of single classes that arrive, in place of the quota.

        Source: Rebuffi et al. 2017, Algorithms 4 and 5.
        """
        self.shrink(quota)
        old, chosen = self.samples(), []
        arriving = sorted(set(new.slots.tolist()))
        for slot in arriving:
            count = (own or {}).get(slot, quota)
            if count > 0:
                chosen.append(self._choose(old.of_class(slot), new.of_class(slot), count, observe, generator))
        staying = old[~torch.isin(old.slots, torch.tensor(arriving))] if len(old) else old
        self._hold([staying, *chosen])
        if capacity is not None:
            self.fit(capacity)
        self._count_copies()

    def _choose(self, old: Samples, new: Samples, count: int, observe: Observe, generator: torch.Generator) -> Samples:
        """Samples of one class that the rule chooses, best first."""
        if self.select.needs == "nothing":
            pool = old + new
            return pool[self.select(torch.empty(len(pool), 0), count, generator)]
        pool = old + self.as_stored(new)
        chosen = pool[self.select(observe(pool), count, generator)]
        return chosen if self.codec.lossless else chosen.sealed()  # frees the others

    def fit(self, capacity: int) -> None:
        """Keep as many as fit by encoded bytes: the best of every class, then the second best, and so on."""
        rank, sizes = self._rank(), self._store().sizes
        label = label_dtype(int(self._slots.max()) + 1 if len(self) else 1).itemsize
        cost = sizes.long() + label + sum(size for _, size in self._side_kinds())
        if not self.codec.fixed:
            cost = cost + sizes.element_size()
        order = rank.argsort(stable=True)
        keep = torch.zeros(len(self), dtype=torch.bool)
        keep[order[cost[order].cumsum(0) <= capacity]] = True
        self._keep(keep)

    def _rank(self) -> Tensor:
        """Place of each exemplar within its class."""
        starts = torch.searchsorted(self._slots, self._slots)
        return torch.arange(len(self)) - starts

    # carried, charged and saved -------------------------------------------------------------------------------------

    @property
    def tensor_names(self) -> set[str]:
        """Names in ``tensors`` while the memory is not empty."""
        return {"images", "slots", *self.extra_kinds} | (set() if self.codec.fixed else {"sizes"})

    def tensors(self, num_classes: int) -> dict[str, tuple[Tensor, str]]:
        """Each tensor and the kind it is charged as. Empty where the memory is empty."""
        if not len(self):
            return {}
        store = self._store()
        held = {"images": (store.data, "exemplars")}
        if self.codec.fixed:
            held["images"] = (store.data.reshape(len(self), *self.codec.stored_shape(store.shape)), "exemplars")
        else:
            held["sizes"] = (store.sizes, "exemplars")
        held["slots"] = (self._slots.to(label_dtype(num_classes)), "labels")
        held.update({name: (values, self.extra_kinds[name]) for name, values in self._extras.items()})
        return held

    def load(self, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> None:
        """Restore the result of ``tensors``; ``shape`` is that of the stream's images.

        Raises:
            StateError: where names, types or sizes do not belong together.
        """
        self._clear()
        if not tensors:
            return
        if set(tensors) != self.tensor_names:
            raise StateError(f"exemplar memory holds {sorted(self.tensor_names)}, the state has {sorted(tensors)}")
        held = {name: values.cpu() for name, values in tensors.items()}
        data = held.get("images", torch.empty(0, dtype=torch.uint8)).reshape(-1)
        slots, count = held["slots"].to(torch.int64), len(held["slots"])
        stored = self.codec.stored_shape(shape)
        sizes = torch.full((count,), math.prod(stored), dtype=torch.int32)
        sizes = sizes if self.codec.fixed else held["sizes"]
        rows = {name: len(held[name]) for name in ("slots", *self.extra_kinds)} | {"sizes": len(sizes)}
        if data.dtype != torch.uint8:
            raise StateError(f"exemplar memory: images are {data.dtype}, not uint8")
        if set(rows.values()) != {count} or count == 0:
            raise StateError(f"exemplar memory: the rows of {', '.join(f'{n} are {r}' for n, r in rows.items())}")
        if not self.codec.fixed and int(sizes.min()) < 1:
            raise StateError("exemplar memory: an image of no bytes")
        total = int(sizes.sum())
        if total != data.numel():
            raise StateError(
                f"exemplar memory: {count} images of {stored} are {total} bytes, the state has {data.numel()}"
            )
        if not bool((slots.diff() >= 0).all()):
            raise StateError("exemplar memory: slots are not sorted")
        self._shape, self._data, self._sizes, self._slots = shape, data, sizes, slots
        self._extras = {name: held[name] for name in self.extra_kinds}

    def survey_bytes(self) -> int:
        """Nominal raw pixels of all exemplars, C * H * W bytes each (the survey's charge)."""
        return len(self) * math.prod(self._shape or (0, 0, 0))
