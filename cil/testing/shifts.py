"""A small made-up stream whose images shift, a network that knows its classes, and runs on it that take a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cil.adapt import Adapter, SourceModel, find
from cil.data import Samples
from cil.data.samples import itself
from cil.engine.driver import Run
from cil.engine.recipe import Recipe
from cil.models import evaluating
from cil.streams.shifts import Segment, ShiftStream
from cil.testing.toy import run_of, toy_dataset, toy_factory

RECIPE = Recipe(epochs=1, batch_size=16, log_every=1, optimizer=partial(torch.optim.SGD, lr=0.01))
CLASSES, EACH, BATCH = 4, 6, 10  # of the toy: 24 images a segment, so that a last batch of four is left
MakeAdapter = Callable[[SourceModel], Adapter]
SHIFTS = {
    "dark": lambda pixels: pixels * 0.4,
    "pale": lambda pixels: 150 + pixels * 0.35,
    "grey": lambda pixels: pixels.mean(1, keepdim=True).expand_as(pixels),
}


def toy_shifts(
    order: Sequence[str] = ("dark", "pale", "grey", "dark"), *, resets: Sequence[int] = (3,), mixed: bool = True
) -> ShiftStream:
    """Noisy patterns in other lights: 24 images of four classes in each segment.

    Args:
        order: Domains, one for each segment.
        resets: Segments before which the adapter is put back.
        mixed: Whether the third segment has images of the first domain too.
    """
    data = toy_dataset(train=(12,) * CLASSES, test=(EACH * len(order),) * CLASSES)
    slots, pixels = data.test.slots, data.test.pixels
    domains = tuple(dict.fromkeys(order))
    segments = []
    for number, name in enumerate(order):
        own = slice(number * EACH, (number + 1) * EACH)
        rows = torch.cat([(slots == k).nonzero().flatten()[own] for k in range(CLASSES)])
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(number))]
        of = torch.full((len(rows),), domains.index(name))
        if mixed and number == 2:
            of[::3] = domains.index(order[0])
        shifted = torch.stack([_shifted(pixels[row], domains[int(d)]) for row, d in zip(rows, of, strict=True)])
        samples = Samples.from_arrays(shifted, slots[rows])
        label = name if name not in order[:number] else f"{name} (round 2)"
        segments.append(Segment(label, partial(itself, samples), len(rows), of, reset=number in resets))
    return ShiftStream(
        name="toy_shifts", classes=tuple(data.classes), domains=domains, segments=tuple(segments),
        image_shape=data.test.shape, mean=(0.5,) * 3, std=(0.25,) * 3, fingerprint=f"toy-{'-'.join(order)}",
        source=partial(itself, data.train), clean=partial(itself, data.test[: 2 * EACH]),
    )  # fmt: skip


def long_shifts() -> ShiftStream:
    """Seven segments, the last after a reset: for rules about what lies far back, or ahead."""
    return toy_shifts(("dark", "pale", "grey", "dark", "pale", "grey", "dark"), resets=(6,), mixed=False)


def cut_every(stream: ShiftStream, count: int) -> ShiftStream:
    """The same images in the same order, in segments of ``count`` images, without a reset."""
    pieces = [segment.samples() for segment in stream.segments]
    pixels, slots = (torch.cat(parts) for parts in ([p.pixels for p in pieces], [p.slots for p in pieces]))
    domains = torch.cat([segment.domains for segment in stream.segments])
    segments = []
    for number, start in enumerate(range(0, len(slots), count)):
        rows = slice(start, start + count)
        samples = Samples.from_arrays(pixels[rows], slots[rows])
        segments.append(Segment(f"part {number}", partial(itself, samples), len(samples), domains[rows]))
    return replace(stream, segments=tuple(segments), fingerprint=f"{stream.fingerprint}-every-{count}")


def with_images(stream: ShiftStream, segment: int, change: Any) -> ShiftStream:
    """The stream with ``change`` (Samples to Samples) done to one segment."""
    old = stream.segments[segment]
    new = change(old.samples())
    changed = replace(old, samples=partial(itself, new), count=len(new), domains=old.domains[: len(new)])
    segments = [changed if number == segment else each for number, each in enumerate(stream.segments)]
    return replace(stream, segments=tuple(segments), fingerprint=f"{stream.fingerprint}-changed")


def _shifted(pixels: Tensor, domain: str) -> Tensor:
    shifted: Tensor = SHIFTS[domain](pixels.float()[None])[0]
    return shifted.round().clamp(0, 255).byte()


def toy_source(stream: ShiftStream, device: Any = "cpu", model: Mapping[str, Any] | None = None) -> SourceModel:
    """A network with random features, statistics of the source data and a last layer of class means.

    Args:
        model: ``name`` and ``options`` of a backbone; a small convolutional one by default.
    """
    given = dict(model or {"name": "smallconv"})
    key = repr((stream.name, stream.image_shape, given))
    if key not in _nets:
        _nets[key] = _trained(stream, given)
    net = deepcopy(_nets[key])
    return SourceModel(net.to(device), len(stream.classes), stream.image_shape, "toy")


_nets: dict[str, nn.Module] = {}  # all toys have the same source data


def _trained(stream: ShiftStream, given: Mapping[str, Any]) -> nn.Module:
    net = toy_factory(stream, seed=0, model=given)()
    assert stream.source is not None
    data = stream.source()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        net.grow(len(stream.classes))
        net.train()
        for _ in range(20):
            net(data.images)
        with evaluating(net):
            features = net(data.images).features
        means = torch.stack([features[data.slots == slot].mean(0) for slot in range(len(stream.classes))])
        means = means - means.mean(0)
        head: Any = net.head
        scale = 6 / (features @ means.T).std()  # sure enough for methods that wait for sure answers
        head.weight.copy_(scale * means)
        head.bias.copy_(-scale * (means @ features.mean(0)))
    return net.eval()


def toy_adaptation(
    adapter: str | type[Adapter],
    stream: ShiftStream,
    run_dir: Path,
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    recipe: Recipe = RECIPE,
    batch_size: int = BATCH,
    wrap: Callable[[MakeAdapter], MakeAdapter] | None = None,
    **options: Any,
) -> Run:
    """A short run, ready to be executed; ``options`` are those of ``cil.testing.toy.run_of``.

    Args:
        wrap: Done to the function that makes the adapter.
    """
    kind = find(adapter) if isinstance(adapter, str) else adapter
    given = {**kind.toy, **(hyperparameters or {})}
    make = partial(kind, **given)
    return adaptation_run(
        wrap(make) if wrap else make,
        stream,
        run_dir,
        name=kind.__name__,
        make_source=partial(toy_source, stream, model=kind.toy_model),
        identity={"options": given},
        recipe=recipe,
        batch_size=batch_size,
        **options,
    )


def adaptation_run(
    make_adapter: MakeAdapter,
    stream: ShiftStream,
    run_dir: Path,
    *,
    name: str,
    identity: Mapping[str, Any] | None = None,
    **given: Any,
) -> Run:
    """An adaptation run put together from its parts; ``given`` as for ``run_of``."""
    found = {"adapter": name, "source": {"kind": "weights", "name": "toy"}, **(identity or {})}
    return run_of(stream, run_dir, found, name=name, make_adapter=make_adapter, **given)
