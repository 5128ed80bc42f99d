"""Rules that adapters keep, beside those of learners of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cil.adapt import Adapter
from cil.data import Samples
from cil.errors import CilError, ContractError
from cil.kinds.adaptation.subject import AdapterSubject
from cil.memory.tensor_bits import same_bits
from cil.streams.shifts import ShiftStream
from cil.testing import rules
from cil.testing.compare import demand, difference
from cil.testing.shifts import cut_every, with_images
from cil.testing.subject import CheckedRun


def a_reset_leaves_nothing(subject: AdapterSubject) -> None:
    """After it is put back to the deployed state, an adapter answers as if the past had been another one."""
    last = len(subject.stream) - 1
    demand(subject.stream.segments[last].reset, "the last segment of the stream given is none with a reset")
    past = subject.stream
    for number in range(last):  # other images, and fewer: neither what was met nor how much of it may matter
        past = with_images(past, number, lambda samples: _negative(samples[: len(samples) // 2]))
    first = subject.finished()
    with subject.fresh(stream=past) as second:
        one, two = (run.evaluated(last + 1)["predictions"] for run in (first, second))
        demand(same_bits(one, two), "put back to its deployed state, it answers by what it met before")
        named = difference(first.state(last + 1), second.state(last + 1))
        demand(not named, f"put back to its deployed state, {named} depends on what it met before")


def _negative(samples: Samples) -> Samples:
    return Samples.from_arrays(255 - samples.pixels, samples.slots)


def each_class_is_scored(subject: AdapterSubject) -> None:
    """A row for each image, a column for each class, numbers all; for a last batch of one image too."""
    short = with_images(subject.stream, 0, lambda samples: samples[:11])
    try:
        with subject.fresh(stream=short) as run:
            demand(run.record.status == "finished", f"the run is {run.record.status}")
            for index, segment in enumerate(short.segments, 1):
                found = len(run.evaluated(index)["predictions"])
                demand(found == segment.count, f"{segment.count} images were met and {found} predicted")
    except CilError:
        raise
    except Exception as error:
        raise ContractError(
            f"fails on a stream with a last batch of one image: {type(error).__name__}: {error}"
        ) from error


def labels_and_domains_are_not_looked_at(subject: AdapterSubject) -> None:
    """With other labels and other names of domains on the same images, it answers the same; in large batches too."""
    for one in (subject, subject.on_large()):
        first = one.finished()
        with one.fresh(stream=_relabelled(one.stream)) as second:
            for index in first.boundaries[1:]:
                where = f"in segment {index - 1}; allowed are the images alone"
                answers = (run.evaluated(index)["predictions"] for run in (first, second))
                demand(same_bits(*answers), f"its answers follow the labels or the domains of the test images {where}")
                named = difference(first.state(index), second.state(index))
                demand(not named, f"{named} follows the labels or the domains of the test images {where}")


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


def where_a_domain_begins_is_not_known(subject: AdapterSubject) -> None:
    """The same images in the same batches, in segments that begin elsewhere, get the same answers.

    A fresh adapter, with the state that was carried, goes on after each segment: it may not know that it is fresh.
    """
    one, size = subject.on_undivided(), subject.small_batch
    with one.fresh(stream=cut_every(one.stream, 2 * size)) as cut:
        first, second = (_predictions(run) for run in (one.finished(), cut))
        different = (first != second).nonzero()
        if len(different):
            names = ", ".join(subject.unkept())
            raise ContractError(
                f"with a segment for every two batches, and so a fresh adapter that holds the state, batch "
                f"{int(different[0]) // size} is answered otherwise than in one segment: what an update reads of "
                f"earlier batches must be named by self.keep(...), and nothing may depend on where a domain begins"
                + (f"; not kept is {names}" if names else "")
            )


def later_images_are_not_known(subject: AdapterSubject) -> None:
    """With other images later on, earlier images get the same answers."""
    one = subject.on_undivided()
    stream = with_images(one.stream, 0, lambda s: s[: len(s) // 2] + _negative(s[len(s) // 2 :]))
    with one.fresh(stream=stream) as second:
        here = len(one.stream.segments[0].domains) // 2
        answers = (_predictions(run)[:here] for run in (one.finished(), second))
        demand(
            same_bits(*answers), "with other images later on, earlier ones are answered otherwise; allowed: those met"
        )


def _predictions(run: CheckedRun[Adapter]) -> Tensor:
    """Slots predicted for all images, in order of arrival."""
    return torch.cat([run.evaluated(index)["predictions"] for index in run.boundaries[1:]])


def the_images_are_left_as_they_are(subject: AdapterSubject) -> None:
    """What it is handed is not changed, and what it hands back is not changed later."""
    seen = list[tuple[Tensor, Tensor]]()

    def remembering(make: Callable[..., Adapter]) -> Callable[..., Adapter]:
        def made(*args: object) -> Adapter:
            adapter = make(*args)
            object.__setattr__(adapter, "adapt_and_predict", _Remembering(adapter.adapt_and_predict, seen))
            return adapter

        return made

    with subject.fresh(wrap=remembering):
        for scores, then in seen:
            demand(same_bits(scores.detach(), then), "scores that were handed back changed later")


@dataclass
class _Remembering:
    """``adapt_and_predict``, with its scores kept; an object, as a function with tensors in it is refused."""

    work: Callable[[Tensor], Tensor]
    seen: list[tuple[Tensor, Tensor]]

    def __call__(self, images: Tensor) -> Tensor:
        before = images.clone()
        scores = self.work(images)
        demand(same_bits(before, images), "adapt_and_predict changed the images that it was handed")
        self.seen.append((scores, scores.detach().clone()))
        return scores


RULES = (
    rules.state_survives_the_round_trip,
    rules.what_was_not_kept_cannot_help,
    a_reset_leaves_nothing,
    rules.the_ledger_is_the_checkpoint,
    rules.same_seed_same_bits,
    rules.a_resumed_run_ends_where_the_straight_run_ends,
    each_class_is_scored,
    labels_and_domains_are_not_looked_at,
    where_a_domain_begins_is_not_known,
    later_images_are_not_known,
    the_images_are_left_as_they_are,
    rules.hooks_keep_to_themselves,
)
