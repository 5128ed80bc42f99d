"""Contract checks: what every learner must do, whatever its method. Each check is a function of a ``Subject``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.engine.checkpoint import read_tensors
from cil.engine.driver import Run
from cil.engine.lifecycle import Learners
from cil.engine.recipe import Recipe
from cil.errors import BudgetExceeded, CilError, ContractError
from cil.memory import Budget, State, encode_meta, tensor_bytes
from cil.strategies import Strategy, find
from cil.streams import Stream
from cil.testing.toy import EXEMPLARS, toy_pasts, toy_run, toy_stream, toy_tasks, uneven_stream
from cil.testing.watch import inside, watched, watching
from cil.tracking import Record
from cil.tracking.record import METRICS
from cil.tracking.storage import first_difference

_TIMES = ("seconds",)
TOLERANCE = 1e-4  # of scores, relative to their spread: other batch sizes run other kernels


@dataclass
class Subject:
    """A strategy under test.

    Args:
        strategy: Name or class.
        hyperparameters: Of its constructor.
        stream: Met in most checks; three experiences are enough. None: a toy stream that suits the strategy.
    """

    strategy: str | type[Strategy]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    stream: Any = None

    def __post_init__(self) -> None:
        if self.stream is None:
            self.stream = self.toy()

    def toy(self, test_seed: int = 1) -> Stream:
        """A toy stream that suits the strategy; another ``test_seed`` changes nothing but its test images."""
        return toy_tasks(test_seed=test_seed) if self.kind.takes_task else toy_stream(test_seed=test_seed)

    def pasts(self) -> tuple[Stream, Stream]:
        """Two toy streams that differ in all experiences but the last."""
        return (toy_tasks(), toy_tasks(seed=5)) if self.kind.takes_task else toy_pasts()

    def uneven(self) -> Stream:
        """A toy stream with awkward numbers."""
        return toy_tasks(each=3) if self.kind.takes_task else uneven_stream()

    @property
    def kind(self) -> type[Strategy]:
        """The class."""
        return find(self.strategy) if isinstance(self.strategy, str) else self.strategy

    def run(self, folder: str | Path, **options: Any) -> Run:
        """A run of it, not yet executed."""
        given = {"stream": self.stream, "hyperparameters": self.hyperparameters, "keep": "all"}
        return toy_run(self.kind, run_dir=Path(folder), **{**given, **options})

    @contextmanager
    def finished(self, **options: Any) -> Iterator[tuple[Run, Record]]:
        """A run of it, executed, in a folder that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
            run = self.run(folder, **options)
            yield run, run.execute()


Check = Callable[[Subject], None]
ALL: list[Check] = []


def check(function: Check) -> Check:
    """Add to the list of all checks."""
    ALL.append(function)
    return function


def demand(holds: bool, message: str) -> None:
    """Raise what a rule has to say where it does not hold."""
    if not holds:
        raise ContractError(message)


# what is carried ----------------------------------------------------------------------------------------------------


@check
def state_survives_the_round_trip(subject: Subject) -> None:
    """``load_state(state())`` gives a learner with the same state and the same answers."""
    with subject.finished() as (run, _):
        learners, last = run.work.learners, len(run.work.stream)
        state = run.checkpoints.state(last - 1)
        first = learners.rebuilt(last, state)
        again = learners.rebuilt(last, first.state())
        for name, tensor in state.tensors.items():
            for learner in (first, again):
                held = learner.state().tensors.get(name)
                demand(held is not None and equal(held, tensor), f"load_state changed {name}")
        demand(dict(again.state().meta) == dict(state.meta), "load_state changed the metadata")
        images = _test_images(run.work.stream)
        demand(
            equal(answers(run, first, images), answers(run, again, images)),
            "two learners of the same state answer differently",
        )


@check
def what_was_not_kept_cannot_help(subject: Subject) -> None:
    """Each experience and evaluation in a process of its own gives the same numbers and weights."""
    with subject.finished(boundary="process") as (sealed, one), subject.finished() as (inline, other):
        demand_same("with a process for each experience and in one process", sealed, one, inline, other)


@check
def only_the_state_crosses_a_boundary(subject: Subject) -> None:
    """With a state from one past, amid what another past left behind, the last experience goes as it went before.

    Whatever else an experience leaves (globals, files, shared memory, other people's objects) is then of the other
    past, and shows.
    """
    one, two = (replace(subject, stream=stream) for stream in subject.pasts())
    with (
        one.finished() as (first, expected),
        two.finished(),
        tempfile.TemporaryDirectory(prefix="cil-check-") as folder,
    ):
        last = len(first.work.stream) - 1
        for path in first.checkpoints.folder.iterdir():
            if not path.stem.endswith(f"-{last:03d}"):
                (Path(folder) / "checkpoint").mkdir(exist_ok=True)
                shutil.copy(path, Path(folder) / "checkpoint" / path.name)
        again = two.run(folder)
        (Path(folder) / METRICS).write_bytes(b" " * (again.checkpoints.facts(last - 1)["offset"] - 1) + b"\n")
        record = again.execute()
        demand_same("from the same state after two pasts", first, expected, again, record)


@check
def metadata_is_charged(subject: Subject) -> None:
    """Every byte of metadata that is carried stands in the ledger."""
    with subject.finished() as (run, record):
        for index in range(len(run.work.stream)):
            content = json.loads((run.checkpoints.folder / f"experience-{index:03d}.json").read_text())
            entries = record.results["ledger"][index]["entries"]
            charged = sum(entry["bytes"] for entry in entries if entry["source"] == "meta")
            carried = len(encode_meta(content["meta"]))
            demand(charged == carried, f"{carried} bytes of metadata are carried, {charged} are charged")


@check
def the_ledger_is_the_checkpoint(subject: Subject) -> None:
    """The sum of the ledger is what lies on the disk: tensors, metadata and references."""
    with subject.finished() as (run, record):
        for index in range(len(run.work.stream)):
            content = json.loads((run.checkpoints.folder / f"experience-{index:03d}.json").read_text())
            files = {name: read_tensors(run.checkpoints.folder / name) for name in set(content["files"].values())}
            stored = sum(tensor_bytes(files[file][name]) for name, file in content["files"].items())
            stored += len(encode_meta(content["meta"])) + sum(ref["bytes"] for ref in content["references"])
            charged = record.results["ledger"][index]["totals"]["exact"]["total"]
            demand(stored == charged, f"the checkpoint holds {stored:,} bytes, the ledger says {charged:,}")


@check
def the_budget_is_never_exceeded(subject: Subject) -> None:
    """Under a budget of exemplars, and under one of bytes, no boundary is over it."""
    for budget in _budgets(subject):
        try:
            with subject.finished(budget=budget) as (_, record):
                for index, count in enumerate(record.results["exemplars"]):
                    total = record.results["ledger"][index]["totals"]["exact"]["total"]
                    if not subject.kind.bound:
                        over = total > ((budget.limits or [total])[-1]) or count > (budget.exemplars or count)
                        demand(not over, f"after experience {index}: {total:,} bytes and {count} exemplars are carried")
        except BudgetExceeded as error:
            raise ContractError(str(error)) from error


def _budgets(subject: Subject) -> list[Budget]:
    """So many exemplars, and the bytes that a learner of the same structure needs for half of them."""
    with subject.finished(budget=Budget(exemplars=0, enforce="report")) as (run, record):
        kinds = [ledger["totals"]["exact"] for ledger in record.results["ledger"]]
        shape = run.work.stream.image_shape
    fixed = max(total["total"] - total.get("exemplars", 0) - total.get("labels", 0) for total in kinds)
    room = EXEMPLARS // 2 * (shape[0] * shape[1] * shape[2] + 1)
    return [Budget(exemplars=EXEMPLARS), Budget(limits=[fixed + room])]


# determinism --------------------------------------------------------------------------------------------------------


@check
def same_seed_same_bits(subject: Subject) -> None:
    """Two runs of one seed end in the same numbers and the same weights."""
    with subject.finished(seed=3) as (first, one), subject.finished(seed=3) as (second, other):
        demand_same("twice with the same seed", first, one, second, other)


@check
def a_resumed_run_ends_where_the_straight_run_ends(subject: Subject) -> None:
    """Stopped at any step and run again, it ends in the same numbers, weights and log."""
    recipe = Recipe(epochs=2, batch_size=8, log_every=1, snapshot_steps=2)
    with subject.finished(recipe=recipe) as (straight, expected):
        lines = sum(1 for line in expected.lines() if line["kind"] == "step")
        for stop in sorted({2, lines // 2, lines - 1}):
            with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
                for loggers in ([Bomb(stop)], []):
                    run = subject.run(folder, recipe=recipe, loggers=loggers)
                    try:
                        record = run.execute()
                    except KeyboardInterrupt:
                        continue
                demand_same(f"straight and interrupted at step {stop}", straight, expected, run, record)
                demand(
                    [line["values"] for line in record.lines()] == [line["values"] for line in expected.lines()],
                    f"interrupted at step {stop} and resumed, metrics.jsonl differs",
                )


class Bomb:
    """A logger that interrupts the run at a line, between two snapshots as like as not."""

    def __init__(self, line: int) -> None:
        self.left = line

    def start(self, *args: Any) -> None:
        """Nothing to open."""

    def log(self, kind: str, values: Mapping[str, float], axes: Mapping[str, Any]) -> None:
        self.left -= kind == "step"
        if self.left < 0:
            raise KeyboardInterrupt

    def table(self, *args: Any) -> None:
        """Nothing to keep."""

    def finish(self, status: str) -> None:
        """Nothing to close."""


# answers ------------------------------------------------------------------------------------------------------------


@check
def predict_scores_each_class_seen(subject: Subject) -> None:
    """One column for each class seen, numbers all, after every experience; images alone are given."""
    with subject.finished() as (run, _):
        images = _test_images(run.work.stream)
        for done, learner in _learners(run):
            scores = answers(run, learner, images)
            demand(
                tuple(scores.shape) == (len(images), learner.num_classes),
                f"predict gave {tuple(scores.shape)} for {len(images)} images and {learner.num_classes} classes",
            )
            demand(not bool(scores.isnan().any()), f"predict gave NaN after experience {done - 1}")


@check
def predict_has_no_side_effects(subject: Subject) -> None:
    """Asked again, a learner gives the same answers, and its state has not moved."""
    with subject.finished() as (run, _):
        images = _test_images(run.work.stream)
        for _, learner in _learners(run):
            before = {name: tensor.clone() for name, tensor in learner.state().tensors.items()}
            first = answers(run, learner, images)
            answers(run, learner, images.flip(0)[: len(images) // 2] * 0.5)
            second = answers(run, learner, images)
            demand(equal(first, second), "predict answers differently when asked again")
            after = learner.state().tensors
            moved = [name for name, tensor in before.items() if not equal(tensor, after[name])]
            demand(not moved, f"predict changed {', '.join(moved[:3])}")


@check
def predict_does_not_look_at_the_rest_of_the_batch(subject: Subject) -> None:
    """An image's scores depend neither on the order nor on the company it comes in."""
    with subject.finished() as (run, _):
        images = _test_images(run.work.stream)
        for _, learner in _learners(run):
            whole = answers(run, learner, images)
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            shuffled = torch.empty_like(whole)
            shuffled[order] = answers(run, learner, images[order])
            alone = torch.cat([answers(run, learner, images[i : i + 1]) for i in range(len(images))])
            half = torch.cat([answers(run, learner, part) for part in images.split(5)])
            for name, other in (("order", shuffled), ("company", alone), ("company", half)):
                demand(_close(whole, other), f"predict depends on the {name} of the images in a batch")


# what is handed over ------------------------------------------------------------------------------------------------


@check
def test_data_play_no_part_in_training(subject: Subject) -> None:
    """With other test images of the same names and counts, exactly the same is learned."""
    with (
        replace(subject, stream=subject.toy()).finished() as (one, first),
        replace(subject, stream=subject.toy(test_seed=2)).finished() as (two, second),
    ):
        for index in range(len(one.work.stream)):
            named = difference(one.checkpoints.state(index), two.checkpoints.state(index))
            demand(not named, f"with other test images, {named} differs after experience {index}")
        demand(first.results["exemplars"] == second.results["exemplars"], "the number of exemplars differs")


@check
def hooks_keep_to_themselves(subject: Subject) -> None:
    """No hook writes or reads files, opens sockets, starts processes or searches the interpreter's objects."""
    with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
        run = subject.run(folder)
        make = run.work.make_learner
        run.work.learners.make_learner = lambda net, budget: watched(inside(make)(net, budget))
        run.execute()  # first calls import modules and build kernels, which touches files: only a second one counts
        with watching() as seen, tempfile.TemporaryDirectory(prefix="cil-check-") as again:
            run = subject.run(again)
            run.work.learners.make_learner = lambda net, budget: watched(inside(make)(net, budget))
            run.execute()
    demand(not seen, f"a hook does what a learner may not: {seen[0] if seen else ''}")


# awkward streams ----------------------------------------------------------------------------------------------------


@check
def uneven_streams_are_learned(subject: Subject) -> None:
    """Experiences of one class, classes smaller than their quota, a last batch of one, room for nothing."""
    for budget in (Budget(exemplars=EXEMPLARS), Budget(exemplars=1000), Budget(exemplars=0)):
        awkward = replace(subject, stream=subject.uneven())
        try:
            with awkward.finished(budget=budget) as (_, record):
                demand(record.status == "finished", f"the run is {record.status}")
        except CilError:
            raise
        except Exception as error:
            raise ContractError(
                f"fails on a stream with one class, few images or a last batch of one (budget.exemplars="
                f"{budget.exemplars}): {type(error).__name__}: {error}"
            ) from error


# parts --------------------------------------------------------------------------------------------------------------


def _learners(run: Run) -> Iterator[tuple[int, Strategy]]:
    """The learner of every boundary, rebuilt."""
    learners: Learners = run.work.learners
    for done in range(1, len(run.work.stream) + 1):
        yield done, learners.rebuilt(done, run.checkpoints.state(done - 1))


def answers(run: Run, learner: Strategy, images: Tensor) -> Tensor:
    """Scores of all classes seen, (N, num_classes); where the stream tells the task, the answers for each in a row."""
    told = dict.fromkeys(s.task for s in run.work.stream.signatures if s.num_classes <= learner.num_classes)
    return torch.cat([run.work.learners.scores(learner, images, task) for task in told], dim=1)


def _test_images(stream: Stream) -> Tensor:
    """Some test images of every experience."""
    return torch.cat([stream.test(index)[:6].pixels for index in range(len(stream))]).float() / 255


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape, type and bits."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _close(a: Tensor, b: Tensor) -> bool:
    """Close, infinite at the same places, up to what other kernels change."""
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    spread = float((a[finite].max() - a[finite].min()).clamp(min=1e-3)) if bool(finite.any()) else 1.0
    return bool(((a - b)[finite].abs() <= TOLERANCE * spread + 1e-6).all())


def difference(a: State, b: State) -> str:
    """Name of the first part in which two states differ; empty where they are equal."""
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        if name not in a.tensors or name not in b.tensors or not equal(a.tensors[name], b.tensors[name]):
            return name
    return "" if dict(a.meta) == dict(b.meta) else "meta"


def demand_same(how: str, one: Run, first: Record, two: Run, second: Record) -> None:
    """Demand that two executed runs ended in the same bits: every boundary's state, and all results but seconds.

    Raises:
        ContractError: naming the first part that differs.
    """
    for index in range(len(one.work.stream)):
        named = difference(one.checkpoints.state(index), two.checkpoints.state(index))
        demand(not named, f"run {how}, {named} differs after experience {index}")
    old, new = ({k: v for k, v in record.results.items() if k not in _TIMES} for record in (first, second))
    different = first_difference(old, new)
    demand(different is None, f"run {how}, {different[0] if different else ''} differs")
