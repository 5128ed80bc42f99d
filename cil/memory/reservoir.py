"""Memories that are filled item by item while the stream passes: reservoirs, and greedily balanced ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.errors import ShapeError, StateError
from cil.memory.exemplars import EncodedStore, ExemplarMemory


@dataclass
class _Unordered:
    """Exemplars without order, with spare places, so that exchanging a few is cheap.

    Attributes:
        pixels: (P, C, H, W) uint8, decoded.
        codes: Bytes of each place under a lossy codec, so that nothing is encoded twice; else None.
        extras: Side data by name, each (P, ...).
        order: (M,) the place of each exemplar.
    """

    pixels: Tensor
    codes: list[Tensor] | None
    extras: dict[str, Tensor]
    order: Tensor

    def enlarge(self, places: int) -> None:
        """Have at least so many places; the number doubles at least."""
        if places <= len(self.pixels):
            return
        more = max(places, 2 * len(self.pixels)) - len(self.pixels)
        self.pixels = torch.cat([self.pixels, self.pixels.new_empty(more, *self.pixels.shape[1:])])
        for name, values in self.extras.items():
            self.extras[name] = torch.cat([values, values.new_empty(more, *values.shape[1:])])
        if self.codes is not None:
            self.codes += [self.pixels.new_empty(0)] * more


class ReservoirMemory(ExemplarMemory):
    """An exemplar memory in which exemplars are exchanged one by one in the course of training.

    Exemplars are class by class, within a class in the order of arrival; that order, and so each draw by row number, is
    the same after saving and loading. ``exchange`` and ``memory[rows]`` cost in proportion to their rows; everything
    else first puts the memory in order, which copies it once.
    """

    def __init__(self, codec: str = "raw", extras: Mapping[str, str] | None = None, extra_bytes: int = 0) -> None:
        super().__init__(codec, "reservoir", extras, extra_bytes)

    def _clear(self) -> None:
        super()._clear()
        self._unordered: _Unordered | None = None

    def __getitem__(self, rows: Tensor) -> Samples:
        """The exemplars of some rows (n,), copied, so that later exchanges do not change them."""
        if self._unordered is None:
            return self.samples()[rows]
        places = self._unordered.order[rows]
        extras = {name: values[places] for name, values in self._unordered.extras.items()}
        return Samples(ArrayStore(self._unordered.pixels[places]), self._slots[rows], extras=extras)

    def exchange(
        self, leaving: Tensor, pixels: Tensor, slots: Tensor, extras: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Drop the exemplars of some rows, and append others, each at the end of its class.

        Args:
            leaving: (k,) row numbers, no two the same.
            pixels: (n, C, H, W) uint8.
            slots: (n,).
            extras: All side data of this memory, each (n, ...).

        Returns:
            (M + n,) the new row of the M exemplars that were held and then of the n new ones; -1: it left.

        Raises:
            ShapeError: where numbers of rows or shapes differ.
            StateError: where side data are missing.
        """
        given, count = dict(extras or {}), len(pixels)
        missing = self.extra_kinds.keys() - given.keys()
        if missing:
            raise StateError(f"exemplars need side data {sorted(missing)}, which were not given")
        if {count} != {len(slots), *(len(given[name]) for name in self.extra_kinds)}:
            raise ShapeError(f"{count} images, but other numbers of slots or side data")
        held = len(self)
        staying = ~_mask(leaving, held)
        if not count:
            self._keep(staying)
            return torch.where(staying, staying.cumsum(0) - 1, -1)
        pixels = pixels.cpu()
        work = self._make_unordered(pixels, given)
        free = work.order[~staying]
        if count > len(free):
            work.enlarge(held - len(free) + count)
            unused = ~_mask(work.order, len(work.pixels))
            free = torch.cat([free, unused.nonzero().flatten()[: count - len(free)]])
        places = free[:count]
        if work.codes is not None:
            data, sizes = self.codec.encode(pixels)
            for place, code in zip(places.tolist(), data.split(sizes.tolist()), strict=True):
                work.codes[place] = code
            pixels = self.codec.decode(data, sizes, _shape(pixels))
        work.pixels[places] = pixels
        for name, column in work.extras.items():
            column[places] = given[name].detach().to("cpu", column.dtype)
        order = torch.cat([work.order[staying], places])
        joined = torch.cat([self._slots[staying], slots.to("cpu", torch.int64)])
        by_class = joined.argsort(stable=True)
        work.order, self._slots = order[by_class], joined[by_class]
        now = torch.full((held + count,), -1)
        now[torch.cat([staying, staying.new_ones(count)])] = by_class.argsort()
        return now

    def rewrite(self, rows: Tensor, extras: Mapping[str, Tensor]) -> None:
        """Replace the side data (n, ...), all of this memory, of some rows (n,)."""
        if not len(rows):
            return
        given = dict(extras)
        work = self._make_unordered(self[rows[:0]].pixels, given)
        for name, values in given.items():
            column = work.extras[name]
            column[work.order[rows]] = values.detach().to("cpu", column.dtype)

    def thin(self, count: int, generator: torch.Generator) -> None:
        """Keep at most ``count`` exemplars, all equally likely: a uniform sample stays one."""
        if len(self) > count:
            self._keep(_mask(torch.randperm(len(self), generator=generator)[:count], len(self)))

    def pad(self, name: str, width: int, value: float) -> None:
        """Widen the side data ``name`` (M, w) to ``width`` columns, the new ones filled with ``value``."""
        self._restore_order()
        if len(self):
            old = self._extras[name]
            self._extras[name] = torch.nn.functional.pad(old, (0, width - old.shape[1]), value=value)
            self._cache = None

    # unordered and in order -----------------------------------------------------------------------------------------

    def _make_unordered(self, pixels: Tensor, extras: Mapping[str, Tensor]) -> _Unordered:
        shape = _shape(pixels)
        if len(self) and shape != self._shape:
            raise ShapeError(f"images of shape {shape} cannot join exemplars of shape {self._shape}")
        for name in self.extra_kinds if len(self) else ():
            own = (self._extras if self._unordered is None else self._unordered.extras)[name]
            if own.shape[1:] != extras[name].shape[1:]:
                raise ShapeError(f"{name} of shape {tuple(extras[name].shape[1:])} beside {tuple(own.shape[1:])}")
        if self._unordered is None:
            self._shape = shape
            store = self._store()
            codes = None if self.codec.lossless else list(store.data.split(store.sizes.tolist())) if len(self) else []
            side = self._extras if len(self) else {name: extras[name][:0].detach().cpu() for name in self.extra_kinds}
            side = {name: values.clone() for name, values in side.items()}
            self._unordered = _Unordered(store.tensor.clone(), codes, side, torch.arange(len(self)))
            self._cache = None
        return self._unordered

    def _restore_order(self) -> None:
        """Restore the order in which ``ExemplarMemory`` holds exemplars."""
        if self._unordered is None:
            return
        work, self._unordered = self._unordered, None
        if work.codes is not None:
            codes = [work.codes[place] for place in work.order.tolist()]
            self._data = torch.cat(codes)
            self._sizes = torch.tensor([len(code) for code in codes], dtype=torch.int32)
        else:
            self._data, self._sizes = self.codec.encode(work.pixels[work.order])
        self._extras = {name: values[work.order] for name, values in work.extras.items()}
        self._cache = None

    def _hold(self, groups: list[Samples]) -> None:
        self._restore_order()
        super()._hold(groups)

    def _store(self) -> EncodedStore:
        self._restore_order()
        return super()._store()

    def _side_kinds(self) -> list[tuple[str, int]]:
        self._restore_order()
        return super()._side_kinds()


def reservoir_places(held: int, seen: int, count: int, capacity: int, generator: torch.Generator) -> Tensor:
    """Place of each of ``count`` items: (count,), -1 for none.

    While fewer than ``capacity`` are held an item takes the next place. After that item N, counted from 0 over all
    items ever offered, draws r from 0..N and takes place r if r < capacity. After N items in all, each of them is
    held with probability capacity / N.

    Args:
        held: Exemplars held.
        seen: Items offered before these.

    Source:
        Vitter 1985, Algorithm R; Buzzega et al. 2020, appendix.
    """
    filling = min(count, max(0, capacity - held))
    numbers = torch.arange(filling, count) + seen
    drawn = (torch.rand(len(numbers), dtype=torch.float64, generator=generator) * (numbers + 1)).long()
    return torch.cat([torch.arange(filling) + held, torch.where(drawn < capacity, drawn, -1)])


def greedily_balanced(
    held: Sequence[int], arriving: Sequence[int], capacity: int, num_classes: int, generator: torch.Generator
) -> list[int]:
    """Rows of the exemplars held and of the items that arrive, one after the other, that are held at the end.

    An item is taken if its class has fewer than capacity / num_classes exemplars; where the memory is full, one drawn
    from the largest class (of several the first by number) makes room.

    Args:
        held: Slot of each exemplar.
        arriving: Slot of each item, in order of arrival.
        num_classes: Classes seen, those that arrive included.

    Returns:
        Rows of both, one after the other, in ascending order.

    Source:
        Prabhu, Torr, Dokania. "GDumb", ECCV 2020, Algorithm 1. Departure: the classes of the items that arrive count as
        seen from the first of them on.
    """
    rows: dict[int, list[int]] = {slot: [] for slot in sorted({*held, *arriving})}
    for row, slot in enumerate(held):
        rows[slot].append(row)
    total = len(held)
    draws = iter(torch.rand(len(held) + len(arriving), dtype=torch.float64, generator=generator).tolist())

    def make_room() -> None:
        largest = max(rows.values(), key=len)
        largest.pop(int(next(draws) * len(largest)))

    while total > capacity:  # as after a boundary at which there is room for fewer
        make_room()
        total -= 1
    for row, slot in enumerate(arriving, len(held)):
        if len(rows[slot]) * num_classes >= capacity:
            continue
        if total == capacity:
            make_room()
        else:
            total += 1
        rows[slot].append(row)
    return sorted(row for own in rows.values() for row in own)


def _mask(rows: Tensor, length: int) -> Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[rows] = True
    return mask


def _shape(pixels: Tensor) -> tuple[int, int, int]:
    return pixels.shape[1], pixels.shape[2], pixels.shape[3]
