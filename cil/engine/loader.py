"""Batches of a phase: keyed order, keyed augmentation; arrays on the device, files decoded ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from cil.contract.reachable import of_library
from cil.data import Augment, Batch, Samples
from cil.data.looks import CountedStore, uncounted
from cil.data.samples import Store, batch_bounds
from cil.engine.arrival import Pace, among
from cil.errors import ConfigError
from cil.memory.codec_check import is_own
from cil.memory.exemplars import EncodedStore

Keyed = Callable[..., torch.Generator]
LOOKAHEAD = 4  # batches that are decoded ahead of the one in use


class Loader:
    """One stream of a phase.

    Args:
        device: Where batches go; arrays are moved there once.
        keyed: (purpose, epoch, step) to a generator.

    Attributes:
        again: Steps of a single pass that are taken on the batch of the step before.
        of_learner: Whether images are read by code that a learner brought. Then each batch is read when it is asked
            for, in the thread that asks, so that its operations can be billed.
    """

    again: frozenset[int] = frozenset()

    def __init__(self, samples: Samples, augment: Augment, device: torch.device, keyed: Keyed) -> None:
        self.of_learner = any(_is_of_learner(store) for store, _ in samples.parts)
        samples, self._images, self._looks = uncounted(samples)  # what is served is counted, not what is prepared
        self.samples = samples.joined()
        self.augment, self.device, self.keyed = augment, device, keyed
        self.slots = self.samples.slots.to(device)
        self.targets = None if self.samples.targets is None else self.samples.targets.to(device)
        self.extras = {name: values.to(device) for name, values in self.samples.extras.items()}
        self._bound = None
        if self.samples.in_memory:
            self._pixels = self.samples.pixels if len(self.samples.parts) > 1 else self._array()
            self._pixels = self._pixels.to(device)
            self._bound = augment.bind(self._pixels, self.samples.slots)
        elif augment.crop_size is not None:
            raise ConfigError("stream.augment.crop_size is of stored images; those of files have stream.image_size")

    def _array(self) -> Tensor:
        store, rows = self.samples.parts[0]
        everything = len(rows) == len(store) and bool((rows == torch.arange(len(store))).all())
        return store.tensor if everything else store.pixels(rows)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.samples)

    def order(self, epoch: int) -> Tensor:
        return torch.randperm(len(self), generator=self.keyed("order", epoch))

    def batches(self, plan: list[tuple[Tensor, int, int]]) -> Iterator[Batch]:
        if self._bound is not None:
            for rows, epoch, step in plan:
                self._count(rows, step)
                rows = rows.to(self.device)
                images = self._bound(rows, self.keyed("augment", epoch, step))
                yield self._batch(rows, images, partial(self._pixels.__getitem__, rows))
            return
        if self.of_learner:
            for rows, epoch, step in plan:
                keyed, draws = self._draws(rows, epoch, step)
                yield self._decoded(step, rows, keyed, self._decode(rows, draws))
            return

        def first_decoded() -> Batch:
            step, rows, keyed, future = waiting.popleft()
            return self._decoded(step, rows, keyed, future.result())

        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            waiting: deque[tuple[int, Tensor, torch.Generator, Future[Tensor]]] = deque()
            for rows, epoch, step in plan:
                keyed, draws = self._draws(rows, epoch, step)
                waiting.append((step, rows, keyed, pool.submit(self._decode, rows, draws)))
                if len(waiting) > LOOKAHEAD:
                    yield first_decoded()
            while waiting:
                yield first_decoded()

    def _draws(self, rows: Tensor, epoch: int, step: int) -> tuple[torch.Generator, Tensor]:
        """The generator of a batch, and what it draws for random parts."""
        keyed = self.keyed("augment", epoch, step)
        return keyed, self.augment.crop_draws(torch.rand(len(rows), 4, generator=keyed))

    def _decode(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Pixels of the training view: random parts of files, and of images that are stored beside them."""
        picked = self.samples[rows]
        chunks, start = [], 0
        for store, own in picked.parts:
            if self.augment.resized_crop:
                chunks.append(store.training_pixels(own, draws[start : start + len(own)]))
            else:
                chunks.append(store.pixels(own))
            start += len(own)
        return torch.cat(chunks) if len(chunks) > 1 else chunks[0]

    def _count(self, rows: Tensor, step: int) -> None:
        """Each new image of a batch has one look more; exemplars have none, nor has the batch that is in hand."""
        if self._looks is not None and self._images is not None and step not in self.again:
            self._looks.read(self._images[rows.numpy()])

    def _decoded(self, step: int, rows: Tensor, generator: torch.Generator, pixels: Tensor) -> Batch:
        self._count(rows, step)
        pixels = pixels.to(self.device, non_blocking=True)
        images = self.augment.without_crop()(pixels, generator, self.slots[rows.to(self.device)])
        if not self.augment.resized_crop:
            return self._batch(rows.to(self.device), images, lambda: pixels)
        return self._batch(rows.to(self.device), images, lambda: self.samples[rows].pixels.to(self.device))  # the whole

    def _batch(self, rows: Tensor, images: Tensor, fetch: Callable[[], Tensor]) -> Batch:
        return Batch(
            images,
            self.slots[rows],
            None if self.targets is None else self.targets[rows],
            fetch,
            rows,
            {name: values[rows] for name, values in self.extras.items()},
        )


def _is_of_learner(store: Store) -> bool:
    """True for a source of pixels that is neither the stream's nor of this package: a learner made it."""
    if isinstance(store, EncodedStore):
        return not is_own(store.codec)
    return not (isinstance(store, CountedStore) or of_library(type(store)))


class PhaseLoader:
    """All streams of a phase: the first sets the number of steps, the others are cycled beside it.

    Args:
        data, augment, device, keyed: As for ``Loader``; one set of samples or several.
        size: Images a batch.
        pace: Pace of a single pass in the order of the data, in which batches come as often as steps are taken on them;
            None: each epoch in an order of its own.
        arriving: Rows at the front that arrive; what is behind them is spread among them. By default all arrive.

    Attributes:
        of_learner: Whether code that a learner brought reads images, as of ``Loader``.
    """

    of_learner: bool = False

    def __init__(
        self, data: Samples | Mapping[str, Samples], augment: Augment, device: torch.device, keyed: Keyed, size: int,
        pace: Pace | None = None, arriving: int | None = None,
    ) -> None:  # fmt: skip
        named = {"": data} if isinstance(data, Samples) else dict(data)
        self.loaders = {
            name: Loader(samples, augment, device, lambda *parts, name=name: keyed(name, *parts))
            for name, samples in named.items()
            if len(samples)
        }
        self.main = next(iter(named))
        self.of_learner = any(loader.of_learner for loader in self.loaders.values())
        self.size = size
        self.count = len(self.loaders[self.main]) if self.main in self.loaders else 0
        self.bounds = batch_bounds(self.count, size)
        self._order: Tensor | None = None
        self._before: dict[int, list[Tensor]] = {}
        if pace is not None and self.count:
            first, all_bounds = self.count if arriving is None else arriving, self.bounds
            self._order = among(first, self.count, keyed(self.main, "among"))
            for batch, (start, stop) in enumerate(all_bounds):
                rows = self._order[start:stop]
                self._before.setdefault(pace.finished(batch), []).append(rows[rows < first])
            plan = zip(all_bounds, pace.steps(len(all_bounds)), strict=True)
            self.bounds = [bound for bound, steps in plan for _ in range(steps)]
            pairs = enumerate(pairwise(self.bounds), start=1)
            self.loaders[self.main].again = frozenset(step for step, (before, now) in pairs if before == now)

    def before(self, step: int, last: bool = False) -> Samples | None:
        """In a single pass, the images that arrive after so many steps and before the next one ends.

        Args:
            last: True if there is no next one, though more images arrive.
        """
        found = [
            rows for after, each in self._before.items() if after == step or (last and after > step) for rows in each
        ]
        return self.loaders[self.main].samples[torch.cat(found)] if found else None

    def arrived(self, epoch: int, step: int) -> int:
        """Images that arrived, with those of the batch of a step; those of a batch without one too."""
        return epoch * self.count + self.bounds[step][1]

    def epoch(self, epoch: int, first: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of one epoch, from step ``first`` on, up to ``stop``."""
        order = self.loaders[self.main].order(epoch) if self._order is None else self._order
        steps = range(len(self.bounds))[first:stop]
        rows = {
            name: [order[slice(*self.bounds[step])] for step in steps]
            if name == self.main
            else self._cycled(loader, epoch, steps)
            for name, loader in self.loaders.items()
        }
        iterators = {
            name: loader.batches([(own, epoch, step) for own, step in zip(rows[name], steps, strict=True)])
            for name, loader in self.loaders.items()
        }
        for batch in iterators.pop(self.main):
            if self.main or iterators:
                others = {name: next(iterator) for name, iterator in iterators.items()}
                yield replace(batch, streams={self.main: batch, **others})
            else:
                yield batch

    def _cycled(self, loader: Loader, epoch: int, steps: range) -> Sequence[Tensor]:
        """Rows of a second stream: consecutive draws from its own permutations, started over when used up."""
        if not steps:
            return []
        count = len(loader)
        size = min(self.size, count)
        start, stop = ((epoch * len(self.bounds) + step) * size for step in (steps.start, steps.stop))
        rounds = range(start // count, (stop - 1) // count + 1)
        rows = torch.cat([loader.order(number) for number in rounds])
        offset = rounds.start * count
        parts: Sequence[Tensor] = rows[start - offset : stop - offset].split(size)
        return parts
