"""The driver: opens a record, goes over the boundaries of a run, trains, commits, evaluates, publishes.

It knows no kind of run. What is learned or adapted, and how it is evaluated, is the run's ``Work``; see ``cil.kinds``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import call
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cil.engine.checkpoint import Checkpoints, Snapshots
from cil.engine.options import RunOptions
from cil.engine.process import Stopped, in_child
from cil.engine.runtime import Runtime
from cil.engine.status import Clock, Stop, status_kept
from cil.errors import ConfigError
from cil.memory import Allowance, Entry, Ledger, State
from cil.tracking import FileLogger, Loggers, Record, build_loggers, describe_environment

Facts = Mapping[str, Any]  # what was committed at a boundary beside the state
Counts = Mapping[str, Tensor]  # what an evaluation counted


@dataclass
class Boundary:
    """The outcome of training to a boundary.

    Attributes:
        state: All that is carried.
        facts: Plain data that is kept with the state, with ``flops``, ``seconds`` and ``steps``.
        training: Ledger lines of what was held in training only.
        exemplars: Number of stored exemplars.
        allowance: The limit on what is carried here; None where nothing is capped.
        counts: Answers counted on the way, by work that predicts while it learns.
    """

    state: State
    facts: dict[str, Any]
    training: Sequence[Entry] = ()
    exemplars: int = 0
    allowance: Allowance | None = None
    counts: Counts | None = None


@dataclass
class Context:
    """The record, files, loggers and signals of a run, lent to its work.

    Attributes:
        record, checkpoints: The run's files.
        loggers: All loggers.
        within: Those that may be used where the work is done, which may be a process of its own.
        stop: Says if the run was asked to stop.
        snapshots: Those inside the stretch that leads to the boundary that is worked on.
        clock: Seconds of work on that stretch.
        length: Experiences or segments of the stream, for progress.
    """

    record: Record
    checkpoints: Checkpoints
    loggers: Loggers
    within: Loggers
    stop: Stop
    length: int
    snapshots: Snapshots = field(init=False)
    clock: Clock = field(default_factory=Clock)

    def begin(self, index: int) -> None:
        """The stretch that leads to boundary ``index`` begins, or goes on from its snapshots."""
        self.snapshots = Snapshots(self.checkpoints, index)
        self.clock = Clock(max((one["seconds"] for one in self.snapshots.contents().values()), default=0.0))

    def facts(self, count: int) -> list[Facts]:
        """Facts of the first boundaries."""
        return [self.checkpoints.facts(index) for index in range(count)]

    def save(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Write a snapshot, with the place that the log has reached and the seconds worked."""
        more = {"offset": self.record.offset(), "seconds": self.clock.seconds}
        self.snapshots.write(name, tensors, {**content, **more})

    def log(self, kind: Any, values: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
        """Send values to the loggers."""
        self.within.log(kind, values, {**axes, "experiences": self.length})


class Work(Protocol):
    """The work of one run: what its kind does at each boundary.

    Attributes:
        name: The method, for messages and dashboards.
        boundaries: How many there are.
        length: Experiences or segments of the stream, for progress.
        batch_key: The configuration key that makes a batch smaller.
    """

    name: str
    batch_key: str

    @property
    def boundaries(self) -> int: ...

    @property
    def length(self) -> int: ...

    def check(self) -> None:
        """Refuse what can be known to fail before anything is done.

        Raises:
            CilError: in one line that names the key to change.
        """
        ...

    def bills(self) -> dict[str, Any]:
        """Results that are known before the first boundary: the bill of each."""
        ...

    def check_budget(self) -> dict[str, Any]:
        """Refuse what cannot fit whatever is trained; further results that are known then.

        Raises:
            BudgetExceeded: naming every kind and its bytes.
        """
        ...

    def warnings(self) -> list[str]:
        """Sentences that a person should hear before the run."""
        ...

    def train(self, index: int, context: Context) -> Boundary:
        """Come to boundary ``index`` from the state that was carried to it, or from a snapshot on the way."""
        ...

    def evaluate(self, index: int, context: Context) -> Counts | None:
        """Count answers of what was carried across boundary ``index``; None where there is nothing to count."""
        ...

    def results(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> Mapping[str, object]:
        """The results of the record, from the counts and facts of all boundaries so far."""
        ...

    def arrays(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> Mapping[str, np.ndarray[Any, Any]]:
        """Results that are large."""
        ...

    def line(self, index: int, results: Facts, facts: Sequence[Facts]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Values and axes of the line that loggers get at boundary ``index``; None for no line."""
        ...

    def kept(self, results: Facts) -> tuple[int, set[int]]:
        """The best boundary so far, and those whose states are needed later."""
        ...


@dataclass
class Run:
    """One run, ready to be executed.

    Args:
        work: The work at each boundary.
        options: Seed, device, loggers and the like.
        identity: Settings, data and code that make the run this run.
        run_dir: Folder of the record; the same folder and identity resume.
        runtime: Device and precision.
    """

    work: Work
    options: RunOptions
    identity: Mapping[str, Any]
    run_dir: Path
    runtime: Runtime

    def __post_init__(self) -> None:
        check_boundary(self.options.boundary, self.runtime)
        self.checkpoints = Checkpoints(Path(self.run_dir), self.options.keep)
        self._stop = Stop()

    @property
    def name(self) -> str:
        """The method, for messages."""
        return self.work.name

    def execute(self) -> Record:
        """Run to the end, from wherever a run in this directory stood.

        Raises:
            BudgetExceeded: with status ``over_budget``; ResumeError: where the directory belongs to another run;
            KeyboardInterrupt: after a Ctrl-C, with what was computed saved and status ``interrupted``.
        """
        self.work.check()
        apart = in_child if self.options.boundary == "process" else call
        with self._record() as record:
            if record.status != "finished":
                with self._context(record) as context:
                    for index in range(max(0, self.checkpoints.done() - 1), self.work.boundaries):
                        if index >= self.checkpoints.done():
                            apart(partial(self._train, index, context))
                            self._stop.here()
                        if self.checkpoints.evaluated(index) is None:
                            apart(partial(self._evaluate, index, context))
                        self._publish(index, context)
                        if self._stop() and index + 1 < self.work.boundaries:
                            raise Stopped
        return record

    @contextmanager
    def _record(self) -> Iterator[Record]:
        """The record, open for writing unless it has finished; everything is let go of afterwards."""
        build_loggers(self.options.loggers)  # what is refused here leaves no trace
        command = {} if self.options.command is None else {"command": self.options.command}
        record = Record.open(self.run_dir, self.identity, describe_environment() | command)
        try:
            if record.status != "finished":
                self.runtime.begin()
            yield record
        finally:
            record.close()
            self.runtime.close()

    @contextmanager
    def _context(self, record: Record) -> Iterator[Context]:
        """Status, loggers and signals around the boundaries."""
        loggers = build_loggers(self.options.loggers, record, progress=self.options.progress)
        started: list[Loggers] = []

        def finish(status: str) -> None:
            for one in started:
                one.finish(status)

        with status_kept(record, self.runtime.device, self.work.batch_key, finish):
            record.update(self.work.bills())
            record.update(self.work.check_budget())
            record.truncate(self._log_offset())
            if not Snapshots(self.checkpoints, self.checkpoints.done()).contents():
                self.checkpoints.drop_snapshots()  # of a boundary that was committed before they could be dropped
            loggers.start(record.identity, Path(record.directory), self.name, self.options.group)
            started.append(loggers)
            # the other loggers have threads, which a fork loses
            within = loggers if self.options.boundary == "inline" else Loggers([FileLogger(record)])
            with self._stop.listening():
                yield Context(record, self.checkpoints, loggers, within, self._stop, self.work.length)

    def _log_offset(self) -> int:
        """Where ``metrics.jsonl`` stood at the point that is resumed from."""
        done = self.checkpoints.done()
        committed = self.checkpoints.facts(done - 1)["offset"] if done else 0
        inside = Snapshots(self.checkpoints, done).contents()
        return int(max([committed, *(content["offset"] for content in inside.values())]))

    def _train(self, index: int, context: Context) -> None:
        """Train to a boundary; charge, check and commit what is carried across it."""
        context.begin(index)
        boundary = self.work.train(index, context)
        ledger, allowance = Ledger.of(boundary.state, boundary.training), boundary.allowance
        over = None if allowance is None else allowance.over(ledger, boundary.exemplars)
        facts = {
            "ledger": ledger.to_json(),
            "exemplars": boundary.exemplars,
            "over_budget": over,
            "peak_training_bytes": ledger.peak_training_bytes,
            "offset": context.record.offset(),
            **boundary.facts,
        }
        if over and allowance is not None:
            earlier = [fact["ledger"] for fact in context.facts(index)]
            context.record.update({"ledger": [*earlier, facts["ledger"]]})
            allowance.check(ledger, boundary.exemplars, self.name)
        if boundary.counts is not None:
            self.checkpoints.write_evaluation(index, boundary.counts)
        self.checkpoints.commit(index, boundary.state, facts)

    def _evaluate(self, index: int, context: Context) -> None:
        counts = self.work.evaluate(index, context)
        if counts is not None:
            self.checkpoints.write_evaluation(index, counts)

    def _publish(self, index: int, context: Context) -> None:
        """Bring the record up to boundary ``index``."""
        facts = context.facts(index + 1)
        rows = [self.checkpoints.evaluated(i) or {} for i in range(index + 1)]
        results, arrays = self.work.results(rows, facts), self.work.arrays(rows, facts)
        if arrays:
            context.record.save_arrays(arrays)
        context.record.update(results)
        line = self.work.line(index, results, facts)
        if line is not None and context.record.offset() == facts[-1]["offset"]:  # else written before an interruption
            values = {name: value for name, value in line[0].items() if value is not None}
            context.loggers.log("boundary", values, line[1] | {"experiences": context.length})
        best, held = self.work.kept(results)
        self.checkpoints.prune(best, held)


def check_boundary(boundary: str, runtime: Runtime) -> None:
    """Refuse processes where they cannot be forked.

    Raises:
        ConfigError: naming the key to change.
    """
    if boundary == "process" and (runtime.device != "cpu" or torch.get_num_threads() > 1):
        raise ConfigError("boundary=process forks, so it needs device=cpu and trainer.threads=1")
