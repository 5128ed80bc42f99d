"""The subject of a check: a learner, runs of it, and all that rules ask of a run. Each kind of run has its own.

What rules need of the engine stands here and in the subject of each kind (``cil/kinds/NAME/subject.py``), nowhere else.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from cil.contract import Holder
from cil.engine.checkpoint import read_tensors
from cil.engine.process import in_child
from cil.engine.recipe import Recipe
from cil.memory import State, encode_meta, tensor_bytes
from cil.testing.compare import EngineRun
from cil.testing.side_effects import watched, watching
from cil.tracking import Record
from cil.tracking.files import METRICS, RECORD

L = TypeVar("L", bound=Holder)


class CheckedRun(ABC, Generic[L]):
    """A run of a learner under test, and what rules ask of it once it is executed.

    Args:
        run: Of the engine; its states are all kept.
    """

    run: EngineRun

    def __init__(self, run: EngineRun) -> None:
        self.run = run

    @property
    def record(self) -> Record:
        """The record, read from the disk."""
        return Record.load(self.run.run_dir)

    @property
    def boundaries(self) -> range:
        """Numbers of the boundaries at which a state was stored."""
        return range(self.run.checkpoints.done())

    def state(self, boundary: int) -> State:
        """The state that was carried across a boundary."""
        return self.run.checkpoints.state(boundary)

    def evaluated(self, boundary: int) -> Mapping[str, Tensor]:
        """Counts and predictions of the evaluation at a boundary."""
        return self.run.checkpoints.evaluated(boundary) or {}

    @abstractmethod
    def rebuilt(self, boundary: int, state: State | None = None) -> L:
        """A fresh learner that holds a state, by default the one stored at this boundary."""

    def learners(self) -> Iterator[tuple[int, L]]:
        """The learner of every boundary, rebuilt from what was stored."""
        return ((boundary, self.rebuilt(boundary)) for boundary in self.boundaries)

    @abstractmethod
    def images(self) -> Tensor:
        """(N, C, H, W) some test images of the stream, in [0, 1]."""

    @abstractmethod
    def answers(self, learner: L, images: Tensor) -> Tensor:
        """(N, C) scores that a learner gives images."""

    def stored(self, boundary: int) -> dict[str, int]:
        """Bytes on the disk that a boundary's state consists of: ``tensors``, ``meta`` and ``references``."""
        folder = self.run.checkpoints.folder
        content = json.loads((folder / f"experience-{boundary:03d}.json").read_text())
        files = {name: read_tensors(folder / name) for name in set(content["files"].values())}
        return {
            "tensors": sum(tensor_bytes(files[file][name]) for name, file in content["files"].items()),
            "meta": len(encode_meta(content["meta"])),
            "references": sum(reference["bytes"] for reference in content["references"]),
        }

    def copy_before(self, boundary: int, other: CheckedRun[L], *, evaluated: bool = True) -> None:
        """Put into the folder of another run what it would have left there, had it stopped just before a boundary.

        Args:
            evaluated: False: it also stopped before the evaluation that comes last.
        """
        own = self.run.checkpoints
        for index in range(boundary):
            counts = own.evaluated(index) if evaluated or index < boundary - 1 else None
            other.run.checkpoints.commit(index, own.state(index), own.facts(index), counts)
        log = (self.run.run_dir / METRICS).read_bytes()
        (other.run.run_dir / METRICS).write_bytes(log[: own.facts(boundary - 1)["offset"]])


class Subject(ABC, Generic[L]):
    """A learner under test on one stream.

    Args:
        target: Class of the learner, or its name.
        stream: Met in most checks; None: the toy stream of the kind.
        options: Of all its runs, as those of ``cil.testing.toy_run``.

    Attributes:
        recipe: By which its runs are trained.
        experience, step: Words of the kind for messages.
        place: Name of a boundary in messages.
        hooks: Methods of the learner that may not have side effects (``side_effects.hooks_of`` its base class).
        toy: Makes the toy stream of the kind.
        last_hook: Method that a learner is asked last before it is frozen.
        long: Makes one of many experiences, with five images where that is enough.
    """

    recipe: ClassVar[Recipe]
    experience: ClassVar[str] = "experience"
    step: ClassVar[str] = "step"
    place: ClassVar[str] = "after experience {}"
    hooks: ClassVar[tuple[str, ...]]
    last_hook: ClassVar[str]
    toy: ClassVar[Callable[..., Any]]
    long: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        target: str | type[L],
        hyperparameters: Mapping[str, Any] | None = None,
        stream: Any = None,
        **options: Any,
    ) -> None:
        self.target: type[L] = self.find(target) if isinstance(target, str) else target
        self.hyperparameters = dict(hyperparameters or {})
        self.options = {"keep": "all", **options}
        self.stream_was_given = stream is not None
        self.stream = self.toy() if stream is None else stream
        self._folder = tempfile.TemporaryDirectory(prefix="cil-check-")  # gone when the subject is
        self._name, self._is_watched = "run", True
        self._finished: CheckedRun[L] | None = None
        self._others: dict[str, Self] = {}

    @staticmethod
    @abstractmethod
    def find(name: str) -> type[L]:
        """The class of that name."""

    @abstractmethod
    def run(self, folder: Path, **options: Any) -> CheckedRun[L]:
        """A run of it in ``folder``, not yet executed; ``wrap`` among the options is done to what makes the learner."""

    @abstractmethod
    def sources(self) -> set[type]:
        """Classes of stores from which the training images of the stream come."""

    def on_toy(self) -> Self:
        """The same learner on the toy stream: itself where it is there already."""
        return self._on("toy", self.toy) if self.stream_was_given else self

    def on_long(self) -> Self:
        """The same learner on the long toy stream, trained for an epoch an experience, gently: images are few."""
        gently = replace(self.recipe, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.02))
        return self._on("long", self.long, recipe=gently)

    def _on(self, name: str, make_stream: Callable[[], Any], **options: Any) -> Self:
        """The same learner on another stream; its finished run is shared as this one's is."""
        if name not in self._others:
            other = self._others[name] = copy(self)
            other.stream, other.stream_was_given = make_stream(), False
            other.options = {**options, **self.options}
            other._name, other._is_watched, other._finished, other._others = name, False, None, {}
        return self._others[name]

    def finished(self) -> CheckedRun[L]:
        """The run without further options, executed once for all rules.

        It is executed in a process of its own, so that nothing but its files is left of it for a rule to meet. That
        process begins with global random numbers of its own: what follows them differs from any other run.
        """
        if self._finished is None:
            folder = Path(self._folder.name) / self._name  # also seen by processes that were forked before it was there
            noted = not self._is_watched or _notes_on(folder).exists()  # else a rule before met an error on the way
            if not noted or not (folder / RECORD).exists() or Record.load(folder).status != "finished":
                shutil.rmtree(folder, ignore_errors=True)
                torch.set_num_threads(1)  # of a process that forks
                watch = partial(_execute_watched, self, folder)
                in_child(watch if self._is_watched else partial(_execute, self.run(folder).run))
            self._finished = self.run(folder)
        return self._finished

    def noted(self) -> dict[str, list[Any]]:
        """What was seen of the finished run: ``side_effects`` of hooks, one line each, and ``otherwise``, boundaries at
        which the learner answered otherwise than the one rebuilt from its state. Of other streams nothing is noted.
        """
        found: dict[str, list[Any]] = json.loads(_notes_on(self.finished().run.run_dir).read_text())
        return found

    def answering_otherwise(self, run: CheckedRun[L], learners: Sequence[L]) -> list[int]:
        """Boundaries at which a learner that is given its own state answers otherwise than the rebuilt one.

        Args:
            learners: As training left them, one after the other.
        """
        return []  # of kinds whose learners answer while they learn

    @contextmanager
    def live(self, **options: Any) -> Iterator[tuple[CheckedRun[L], list[tuple[int, L]]]]:
        """A fresh run, and at each boundary the learner itself as training left it."""
        found: list[L] = []
        with self.fresh(wrap=partial(_remembered, hook=self.last_hook, found=found), **options) as run:
            yield run, list(zip(run.boundaries[-len(found) :], found, strict=True))

    def unkept(self) -> list[str]:
        """Attributes that training gives the learner and that do not survive the boundary, with their types."""
        with self.live() as (run, learners):
            boundary, learner = learners[-1]
            rebuilt = vars(run.rebuilt(boundary))
        return [
            f"{name} ({type(value).__name__})"
            for name, value in vars(learner).items()
            if name not in (*learner.held(), *_LENT) and not _alike(value, rebuilt.get(name, _LENT))
        ]

    @contextmanager
    def fresh(self, *, start: int = 0, until: int | None = None, **options: Any) -> Iterator[CheckedRun[L]]:
        """A run with these options, executed here and now, in a folder that is gone afterwards.

        Args:
            start: How many of the first boundaries it takes over from the finished run.
            until: Boundaries after which it is interrupted; None: it goes on to its end.
        """
        with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
            if until is not None:
                options["loggers"] = [Interruption(until - 1, "boundary")]
            run = self.run(Path(folder), **options)
            if start:
                self.finished().copy_before(start, run)
            with nullcontext() if until is None else suppress(KeyboardInterrupt):
                run.run.execute()
            yield run


_LENT = ("_kept", "context", "budget", "progress", "make_net", "warnings", "diagnostics")  # of every learner


def _alike(one: Any, other: Any) -> bool:
    """False where two plain values differ, and for objects of other packages, whose content is not looked into."""
    if isinstance(one, bool | int | float | str | list | tuple | dict | set | np.ndarray | None):
        return type(one) is type(other) and bool(np.all(one == other))
    return callable(one) or type(one).__module__.startswith("cil.")


def _remembered(make: Callable[..., L], hook: str, found: list[L]) -> Callable[..., L]:
    """``make``, with every learner whose ``hook`` is called put into ``found``."""

    def made(*args: Any) -> L:
        learner = make(*args)
        work = getattr(learner, hook)

        def called(*given: Any) -> Any:
            if not found or found[-1] is not learner:
                found.append(learner)
            return work(*given)

        object.__setattr__(learner, hook, called)
        return learner

    return made


def _execute(run: EngineRun) -> None:
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    run.execute()


def _execute_watched(subject: Subject[L], folder: Path) -> None:
    """Execute a run, and note what is seen of its hooks and learners."""
    found: list[L] = []

    def wrap(make: Callable[..., L]) -> Callable[..., L]:
        return _remembered(watched(make, subject.hooks), subject.last_hook, found)

    run = subject.run(folder, wrap=wrap)
    with watching(subject.sources()) as seen:
        _execute(run.run)
    noted = {"side_effects": seen, "otherwise": subject.answering_otherwise(run, found)}
    _notes_on(folder).write_text(json.dumps(noted))


def _notes_on(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-noted.json")


class Interruption:
    """A logger that interrupts the run when it logs the step after so many, between two snapshots as like as not.

    Args:
        count: Lines that are logged before.
        kind: Of the lines: ``step``, or ``boundary``, which is logged when its state and its answers are stored.
    """

    def __init__(self, count: int, kind: str = "step") -> None:
        self.count, self.kind = count, kind

    def start(self, identity: Mapping[str, Any], directory: Path, *args: Any) -> None:
        """Count the lines that were logged before the run was resumed."""
        self.count -= sum(1 for line in Record.load(directory).lines() if line["kind"] == self.kind)

    def log(self, kind: str, values: Mapping[str, float], axes: Mapping[str, Any]) -> None:
        self.count -= kind == self.kind
        if self.count < 0:
            raise KeyboardInterrupt

    def table(self, *args: Any) -> None:
        """Nothing to keep."""

    def finish(self, status: str) -> None:
        """Nothing to close."""
