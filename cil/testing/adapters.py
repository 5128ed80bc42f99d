"""Contract checks of adapters: what each must do, whatever its method."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.adapt import Adapter, find
from cil.data import Samples
from cil.engine.checkpoint import read_tensors
from cil.engine.driver import Run
from cil.engine.recipe import Recipe
from cil.errors import CilError, ContractError
from cil.memory import encode_meta, tensor_bytes
from cil.streams.shifts import ShiftStream
from cil.testing.checks import Bomb, demand, difference, equal
from cil.testing.shifts import toy_adaptation, toy_shifts, with_images
from cil.testing.watch import inside, watching
from cil.tracking import Record
from cil.tracking.storage import first_difference

HOOKS = ("deploy", "adapt_and_predict", "adjust_gradients", "after_step", "state", "load_state")


@dataclass
class AdapterSubject:
    """An adapter under test.

    Args:
        adapter: Name or class.
        hyperparameters: Of its constructor.
        stream: Met in most checks; the last of its segments should be one before which the adapter is put back.
    """

    adapter: str | type[Adapter]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    stream: ShiftStream = field(default_factory=toy_shifts)
    _plain: list[Any] = field(default_factory=list, init=False, repr=False)

    @property
    def kind(self) -> type[Adapter]:
        """The class."""
        return find(self.adapter) if isinstance(self.adapter, str) else self.adapter

    def run(self, folder: str | Path, **options: Any) -> Run:
        """A run of it, not yet executed."""
        given = {"stream": self.stream, "hyperparameters": self.hyperparameters, "keep": "all"}
        return toy_adaptation(self.kind, run_dir=Path(folder), **{**given, **options})

    @contextmanager
    def finished(self, **options: Any) -> Iterator[tuple[Run, Record]]:
        """A run of it, executed, in a folder that is gone afterwards; without options, the same one each time."""
        if not options:
            if not self._plain:
                place = tempfile.TemporaryDirectory(prefix="cil-check-")  # gone when the subject is
                run = self.run(place.name)
                self._plain = [place, run, run.execute()]
            yield self._plain[1], self._plain[2]
            return
        with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
            run = self.run(folder, **options)
            yield run, run.execute()


AdapterCheck = Callable[[AdapterSubject], None]
ADAPTER_CHECKS: list[AdapterCheck] = []


def check(function: AdapterCheck) -> AdapterCheck:
    """Add to the list of all checks."""
    ADAPTER_CHECKS.append(function)
    return function


# what is carried ----------------------------------------------------------------------------------------------------


@check
def state_survives_the_round_trip(subject: AdapterSubject) -> None:
    """``load_state(state())`` gives an adapter with the same state and the same next answers."""
    with subject.finished() as (run, _):
        state = run.checkpoints.state(len(run.work.stream))
        first = run.work.rebuilt(state)
        again = run.work.rebuilt(first.state())
        for name, tensor in state.tensors.items():
            for adapter in (first, again):
                held = adapter.state().tensors.get(name)
                demand(held is not None and equal(held, tensor), f"load_state changed {name}")
        demand(dict(again.state().meta) == dict(state.meta), "load_state changed the metadata")
        images = run.work.stream.segments[0].samples().images[: run.work.batch_size]
        with torch.enable_grad():
            one, other = first.adapt_and_predict(images.clone()), again.adapt_and_predict(images.clone())
        demand(equal(one, other), "two adapters of the same state answer differently")


@check
def what_was_not_kept_cannot_help(subject: AdapterSubject) -> None:
    """Each segment in a process of its own gives the same predictions and state."""
    with subject.finished(boundary="process") as (sealed, one), subject.finished() as (inline, other):
        same("with a process for each segment and in one process", sealed, one, inline, other)


@check
def a_reset_leaves_nothing(subject: AdapterSubject) -> None:
    """After it is put back to the deployed state, an adapter answers as if the past had been another one."""
    last = len(subject.stream) - 1
    demand(subject.stream.segments[last].reset, "the last segment of the stream given is none with a reset")
    past = subject.stream
    for number in range(last):  # other images, and fewer: neither what was met nor how much of it may matter
        past = with_images(past, number, lambda samples: _negative(samples[: len(samples) // 2]))
    other = replace(subject, stream=past)
    with subject.finished() as (first, _), other.finished() as (second, _):
        one, two = (_predictions(run, last + 1) for run in (first, second))
        demand(equal(one, two), "put back to its deployed state, it answers by what it met before")
        named = difference(first.checkpoints.state(last + 1), second.checkpoints.state(last + 1))
        demand(not named, f"put back to its deployed state, {named} depends on what it met before")


@check
def the_ledger_is_the_checkpoint(subject: AdapterSubject) -> None:
    """The sum of the ledger is what lies on the disk: tensors, metadata and references."""
    with subject.finished() as (run, record):
        for index in range(len(run.work.stream) + 1):
            content = json.loads((run.checkpoints.folder / f"experience-{index:03d}.json").read_text())
            files = {name: read_tensors(run.checkpoints.folder / name) for name in set(content["files"].values())}
            stored = sum(tensor_bytes(files[file][name]) for name, file in content["files"].items())
            stored += len(encode_meta(content["meta"])) + sum(ref["bytes"] for ref in content["references"])
            charged = record.results["ledger"][index]["totals"]["exact"]["total"]
            demand(stored == charged, f"the checkpoint holds {stored:,} bytes, the ledger says {charged:,}")


# determinism --------------------------------------------------------------------------------------------------------


@check
def same_seed_same_bits(subject: AdapterSubject) -> None:
    """Two runs of one seed end in the same numbers and the same state."""
    with subject.finished() as (first, one), subject.finished(keep="all") as (second, other):
        same("twice with the same seed", first, one, second, other)


@check
def a_resumed_run_ends_where_the_straight_run_ends(subject: AdapterSubject) -> None:
    """Stopped at any batch and run again, it ends in the same numbers, state and log."""
    recipe = Recipe(epochs=1, batch_size=16, log_every=1, snapshot_steps=2)
    with subject.finished(recipe=recipe) as (straight, expected):
        lines = sum(1 for line in expected.lines() if line["kind"] == "step")
        for stop in (2, lines - 2):
            with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
                for loggers in ([Bomb(stop)], []):
                    run = subject.run(folder, recipe=recipe, loggers=loggers)
                    try:
                        record = run.execute()
                    except KeyboardInterrupt:
                        continue
                same(f"straight and interrupted at batch {stop}", straight, expected, run, record)
                demand(
                    [line["values"] for line in record.lines()] == [line["values"] for line in expected.lines()],
                    f"interrupted at batch {stop} and resumed, metrics.jsonl differs",
                )


# answers ------------------------------------------------------------------------------------------------------------


@check
def each_class_is_scored(subject: AdapterSubject) -> None:
    """A row for each image, a column for each class, numbers all; for a last batch of one image too."""
    short = replace(subject, stream=with_images(subject.stream, 0, lambda samples: samples[:11]))
    try:
        with short.finished() as (run, record):
            demand(record.status == "finished", f"the run is {record.status}")
            for index, segment in enumerate(run.work.stream.segments, 1):
                found = len(_predictions(run, index))
                demand(found == segment.count, f"{segment.count} images were met and {found} predicted")
    except CilError:
        raise
    except Exception as error:
        raise ContractError(
            f"fails on a stream with a last batch of one image: {type(error).__name__}: {error}"
        ) from error


@check
def labels_and_domains_are_not_looked_at(subject: AdapterSubject) -> None:
    """With other labels and other names of domains on the same images, it answers the same."""
    blind = replace(subject, stream=_relabelled(subject.stream))
    with subject.finished() as (first, _), blind.finished() as (second, _):
        for index in range(1, len(first.work.stream) + 1):
            where = f"in segment {index - 1}"
            same_answers = equal(_predictions(first, index), _predictions(second, index))
            demand(same_answers, f"its answers follow the labels or the domains of the test images {where}")
            named = difference(first.checkpoints.state(index), second.checkpoints.state(index))
            demand(not named, f"{named} follows the labels or the domains of the test images {where}")


@check
def the_images_are_left_as_they_are(subject: AdapterSubject) -> None:
    """What it is handed is not changed, and what it hands back is not changed later."""
    seen: list[tuple[Tensor, Tensor]] = []

    def remember(adapter: Adapter) -> Adapter:
        work = adapter.adapt_and_predict

        def adapt_and_predict(images: Tensor) -> Tensor:
            before = images.clone()
            scores = work(images)
            demand(equal(before, images), "adapt_and_predict changed the images that it was handed")
            seen.append((scores, scores.detach().clone()))
            return scores

        adapter.adapt_and_predict = adapt_and_predict  # type: ignore[method-assign]
        return adapter

    with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
        run = subject.run(folder)
        make = run.work.make_adapter
        run.work.make_adapter = lambda source: remember(make(source))
        run.execute()
    for scores, then in seen:
        demand(equal(scores.detach(), then), "scores that were handed back changed later")


@check
def it_touches_nothing_but_itself(subject: AdapterSubject) -> None:
    """No files, no network, no processes, no search through other people's objects."""
    with watching() as seen, tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
        run = subject.run(folder)
        make = run.work.make_adapter
        run.work.make_adapter = lambda source: _watched(make(source))
        run.execute()
    demand(not seen, f"a hook does what an adapter may not: {seen[0] if seen else ''}")


# parts --------------------------------------------------------------------------------------------------------------


def same(how: str, one: Run, first: Record, two: Run, second: Record) -> None:
    """Demand that two executed runs ended in the same bits: every state, all predictions, all results but seconds.

    Raises:
        ContractError: naming the first part that differs.
    """
    for index in range(len(one.work.stream) + 1):
        named = difference(one.checkpoints.state(index), two.checkpoints.state(index))
        demand(not named, f"run {how}, {named} differs at boundary {index}")
        if index:
            alike = equal(_predictions(one, index), _predictions(two, index))
            demand(alike, f"run {how}, predictions differ in segment {index - 1}")
    old, new = ({k: v for k, v in record.results.items() if k != "seconds"} for record in (first, second))
    different = first_difference(old, new)
    demand(different is None, f"run {how}, {different[0] if different else ''} differs")


def _predictions(run: Run, index: int) -> Tensor:
    found = run.checkpoints.evaluated(index)
    assert found is not None
    return found["predictions"]


def _negative(samples: Samples) -> Samples:
    return Samples.from_arrays(255 - samples.pixels, samples.slots)


def _relabelled(stream: ShiftStream) -> ShiftStream:
    """The same images in the same order, under other labels and as other domains."""
    classes, domains = len(stream.classes), len(stream.domains)
    segments = tuple(
        replace(
            with_images(stream, number, lambda s: s.with_slots((s.slots + 1) % classes)).segments[number],
            domains=(segment.domains + 1) % domains,
            name=f"part {number}",
        )
        for number, segment in enumerate(stream.segments)
    )
    names = tuple(f"domain {number}" for number in range(domains))
    return replace(stream, segments=segments, domains=names, fingerprint=f"{stream.fingerprint}-relabelled")


def _watched(adapter: Adapter) -> Adapter:
    """``adapter``, with every hook watched."""
    for name in HOOKS:
        setattr(adapter, name, inside(getattr(adapter, name)))
    phases = adapter.phases

    def watched_phases(source: Samples) -> Iterator[Any]:
        body = phases(source)
        while (phase := inside(next)(body, None)) is not None:
            yield replace(phase, loss=inside(phase.loss))

    setattr(adapter, "phases", watched_phases)  # noqa: B010
    return adapter
