"""The driver: opens a record, goes over the boundaries of a run, trains, commits, evaluates, publishes.

It knows no kind of run. What is learned or adapted, and how it is evaluated, is the run's ``Work``; see ``cil.kinds``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from operator import call
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cil.contract import Frozen
from cil.engine.checkpoint import Checkpoints, Snapshots
from cil.engine.known_features import KnownFeatures
from cil.engine.known_modules import ENVIRONMENT
from cil.engine.launched import place_of
from cil.engine.options import RunOptions
from cil.engine.process import Stopped, in_child
from cil.engine.ranks import Ranks, check_shared
from cil.engine.recovery import Recovery, check_owner, recover
from cil.engine.running import Counts, Rows
from cil.engine.runtime import Runtime
from cil.engine.status import Clock, Stop, status_kept
from cil.errors import BudgetExceeded, CilError, ConfigError
from cil.memory import Allowance, Entry
from cil.tracking import FileLogger, Loggers, Record, build_loggers, describe_environment, identity_hash
from cil.tracking.arrays import Part, forget_arrays
from cil.tracking.files import RECORD, RecordError
from cil.tracking.panels import Panel

Facts = Mapping[str, Any]  # what was committed at a boundary beside the state
_say = logging.getLogger("cil.engine")
BILLS = ("cost", "costs")  # in the content of a snapshot: each rank counts what it computes
ALWAYS_SETTLED = 16  # first boundaries at each of which the whole results are written
SETTLING = 0.02  # the part of the time that writing them may take later


@dataclass
class Boundary:
    """The outcome of training to a boundary.

    Attributes:
        carried: The frozen state: charged, held to the budget and committed as it is.
        facts: Plain data that is kept with the state, with ``flops``, ``seconds`` and ``steps``.
        training: Ledger lines of what was held in training only.
        allowance: The limit on what is carried here; None where nothing is capped.
        counts: Answers counted on the way, by work that predicts while it learns.
    """

    carried: Frozen
    facts: dict[str, Any]
    training: Sequence[Entry] = ()
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
        results: The results of the record from counts and facts of all boundaries.
        shared: Folder of plain phases that runs share; None: everything is trained here.
        ranks: The processes that do the work; the first one writes.
        published: Boundaries of which line and arrays are written.
    """

    record: Record
    checkpoints: Checkpoints
    loggers: Loggers
    within: Loggers
    stop: Stop
    length: int
    snapshots: Snapshots = field(init=False)
    results: Callable[[Rows, Sequence[Facts]], Mapping[str, object]]
    shared: Path | None = None
    clock: Clock = field(default_factory=Clock)
    ranks: Ranks = field(default_factory=Ranks)
    published: int = 0
    _settled: int = 0
    _due: float = 0.0

    def begin(self, index: int) -> None:
        """The stretch that leads to boundary ``index`` begins, or goes on from its snapshots."""
        self.snapshots = Snapshots(self.checkpoints, index)
        self.clock = Clock(max((one["seconds"] for one in self.snapshots.contents().values()), default=0.0))

    def facts(self, count: int) -> list[Facts]:
        """Facts of the first boundaries."""
        return [self.checkpoints.facts(index) for index in range(count)]

    def publish(self, count: int) -> None:
        """Line and arrays of the first boundaries are written; the record follows where that costs little.

        Its results are written whole, so of a stream of many quick experiences not at each boundary.
        """
        self.published = count
        if count <= ALWAYS_SETTLED or time.monotonic() >= self._due:
            self.settle()

    def settle(self) -> None:
        """Bring the results of the record up to the boundaries that were published."""
        if self.published > self._settled:
            began = time.monotonic()
            self.record.update(self.results(Rows(self.checkpoints, self.published), self.facts(self.published)))
            self._settled, now = self.published, time.monotonic()
            self._due = now + (now - began) / SETTLING

    def save(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Write a snapshot, with the place that the log has reached, the seconds worked, and the bills of all ranks."""
        self.ranks.wait()  # nobody reads any more what is replaced
        bills = self.ranks.gathered({key: content[key] for key in BILLS if key in content})
        if self.ranks.rank == 0:
            more = {**self.record.mark(), "seconds": self.clock.seconds}
            self.snapshots.write(name, tensors, {**content, **more, **({"bills": bills} if len(bills) > 1 else {})})
        self.ranks.wait()

    def snapshot(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and content of a snapshot, with the bill of this rank, if there is one."""
        found = self.snapshots.find(name)
        if found is None or "bills" not in found[1]:
            return found
        return found[0], {**found[1], **found[1]["bills"][self.ranks.rank]}

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

    def so_far(self, rows: Rows, facts: Sequence[Facts]) -> Mapping[str, Any]:
        """The part of the results that ``line`` and ``kept`` read; asked for at each boundary, so cheap."""
        ...

    def arrays(self, rows: Rows) -> Mapping[str, Part]:
        """What the last boundary adds to results that are large."""
        ...

    def line(self, index: int, so_far: Facts, facts: Sequence[Facts]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Values and axes of the line that loggers get at boundary ``index``; None for no line."""
        ...

    def panels(self, record: Record) -> Sequence[Panel]:
        """Tables and pictures for dashboards, of the results that are in the record, where any are."""
        ...

    def kept(self, so_far: Facts) -> tuple[int, set[int]]:
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
        if self.runtime.all_devices > 1:
            check_shared(self.work, self.options, self.runtime.all_devices)
        self.checkpoints = Checkpoints(Path(self.run_dir), self.options.keep, identity_hash(self.identity))
        self._stop = Stop()

    @property
    def name(self) -> str:
        """The method, for messages."""
        return self.work.name

    def execute(self) -> Record:
        """Run to the end, from wherever a run in this directory stood.

        Raises:
            BudgetExceeded: with status ``over_budget``; ResumeError: where the directory belongs to another run;
            KeyboardInterrupt: after a Ctrl-C, with what was computed saved and status ``interrupted``;
            ConfigError: where several devices share it and another number of processes was started.
        """
        self.work.check()
        if self.runtime.all_devices > 1 and (place_of() if self._finished() else self.runtime.place).rank:
            return self._follow()
        apart = in_child if self.options.boundary == "process" else call
        with self._record() as record:
            if record.status == "finished":
                return record
            with self.runtime.together(), self._recovered_context(record) as (recovery, context):
                for index in recovery.uncounted:
                    apart(partial(self._evaluate, index, context))
                self._complete_arrays(record)
                for index in range(max(0, self.checkpoints.done() - 1), self.work.boundaries):
                    if index >= self.checkpoints.done():
                        apart(partial(self._train, index, context))
                        self._end_where_asked()
                    if self.checkpoints.evaluated(index) is None:
                        apart(partial(self._evaluate, index, context))
                    self._publish(index, context)
                    if index + 1 < self.work.boundaries:
                        self._end_where_asked()
        return record

    @contextmanager
    def _recovered_context(self, record: Record) -> Iterator[tuple[Recovery, Context]]:
        """Around all work that is left: what was found in the folder, and what the work is given."""
        recovery = self._recovered()
        self._agree(self.checkpoints.done())
        with self._context(record) as context, self._settled(context):
            yield recovery, context

    # on several devices ---------------------------------------------------------------------------------------------

    def _follow(self) -> Record:
        """Train beside rank 0, from what that one writes; write nothing."""
        if self._finished():
            return Record.load(self.run_dir)
        try:
            with self.runtime.together(), self._stop.listening():
                self.runtime.begin()
                context = Context(
                    Record(Path(self.run_dir), dict(self.identity)), self.checkpoints, Loggers([]), Loggers([]),
                    self._stop, self.work.length, self.work.results, ranks=self.runtime.ranks,
                )  # fmt: skip
                done = self._agree(0)
                for index in range(max(0, done - 1), self.work.boundaries):
                    if index >= done:
                        context.begin(index)
                        self._check_same(self.work.train(index, context), index)
                        self._end_where_asked()
                    if index + 1 < self.work.boundaries:
                        self._end_where_asked()
        except Stopped:
            raise KeyboardInterrupt from None
        return Record.load(self.run_dir)

    def _finished(self) -> bool:
        return (Path(self.run_dir) / RECORD).exists() and Record.load(self.run_dir).status == "finished"

    def _agree(self, done: int) -> int:
        """The boundaries that are done, as rank 0 knows them; all ranks do the same run in the same folder.

        Raises:
            ConfigError: where they do not.
        """
        ranks = self.runtime.ranks
        self._stop.jointly = ranks.several
        run, done = ranks.broadcast([self.checkpoints.run, done])
        if run != self.checkpoints.run or done != self.checkpoints.done():
            raise ConfigError(
                f"rank {ranks.rank} has another run than rank 0, or another run_dir={self.run_dir}; give all ranks the "
                f"same command, data and code, and a folder that all machines share"
            )
        return int(done)

    def _end_where_asked(self) -> None:
        """Stop where any rank was asked to; here no rank waits for another."""
        ranks = self.runtime.ranks
        ranks.wait()  # rank 0 may have evaluated
        if any(ranks.any(self._stop())):
            raise Stopped

    def _check_same(self, boundary: Boundary, index: int) -> None:
        """All ranks carry the same across a boundary."""
        state = boundary.carried.state
        self.runtime.ranks.check_same(state.tensors, state.meta, f"after experience {index}")

    # again ----------------------------------------------------------------------------------------------------------

    def redo(self, index: int) -> None:
        """Train to one boundary and evaluate it, from what lies in the folder of what comes before it.

        Nothing is published. A boundary that lies there is evaluated alone.
        """
        self.work.check()
        if self.runtime.all_devices > 1:
            raise ConfigError(
                f"{self.run_dir} was trained on {self.runtime.all_devices} devices; this process cannot redo it alone"
            )
        with self._record() as record, self._context(record) as context, self.runtime.fresh_features():
            if index >= self.checkpoints.done():
                self._train(index, context)
            if self.checkpoints.evaluated(index) is None:
                self._evaluate(index, context)

    def _known_features(self) -> KnownFeatures | None:
        """Features of frozen backbones, where they are kept: beside what runs share, else in the folder of the run."""
        if self.options.features is None:
            return None
        decides = {name: self.identity.get(name) for name in ENVIRONMENT} | {"processor": self.runtime.processor}
        return KnownFeatures((self.options.shared or Path(self.run_dir)) / "features", self.options.features, decides)

    @contextmanager
    def _record(self) -> Iterator[Record]:
        """The record, open for writing unless it has finished; everything is let go of afterwards."""
        build_loggers(self.options.loggers)  # what is refused here leaves no trace
        if not (Path(self.run_dir) / RECORD).exists():  # else the record says whose folder it is
            check_owner(self.checkpoints)
        command = {} if self.options.command is None else {"command": self.options.command}
        facts = describe_environment() | {"processor": self.runtime.processor} | command
        record = Record.open(self.run_dir, self.identity, facts)
        try:
            if record.status != "finished":
                self.runtime.begin()
                self.runtime.known = self._known_features()
            yield record
        finally:
            record.close()
            self.runtime.close()

    def _recovered(self) -> Recovery:
        """What is on the disk is whole afterwards: the run goes on from its last whole boundary."""
        check_owner(self.checkpoints)
        before = self.checkpoints.done()
        found = recover(self.checkpoints)
        for sentence in found.damage:
            _say.warning(sentence)
        done = self.checkpoints.done()
        if done < before or found.uncounted:
            where = f"goes on after {done} of {before} trained boundaries"
            _say.warning(f"{self.run_dir}: {where}; what was lost is made again")
        if done and "run" not in self.checkpoints.content(0):
            _say.warning(f"{self.run_dir} was begun before files had sums, so that damage in it is not noticed")
        return found

    def _complete_arrays(self, record: Record) -> None:
        """The arrays are those of the boundaries behind: made again from the stored answers where not whole."""
        done = self.checkpoints.done()
        names = [_arrays_of(index) for index in range(done)]
        try:
            found = record.arrays().files()
            missing = [index for index in range(done - 1) if names[index] not in found and self._arrays(index)]
            whole = not missing and found == [name for name in names if name in found]
        except RecordError as error:
            _say.warning(str(error).partition("; ")[0])
            whole = False
        if not whole:
            forget_arrays(Path(record.directory))
            for index in range(done - 1):
                record.add_arrays(names[index], self._arrays(index))

    def _arrays(self, index: int) -> Mapping[str, Part]:
        return self.work.arrays(Rows(self.checkpoints, index + 1))

    @contextmanager
    def _context(self, record: Record) -> Iterator[Context]:
        """Status, loggers and signals around the boundaries."""
        loggers = build_loggers(self.options.loggers, record, progress=self.options.progress)
        started: list[Loggers] = []

        def finish(status: str) -> None:
            for one in started:
                one.show(lambda: self.work.panels(record), final=True)
                one.finish(status)

        with status_kept(record, self.runtime.device, self.work.batch_key, finish):
            record.update(self.work.bills())
            record.update(self.work.check_budget())
            record.truncate(*self._log_place())
            if not Snapshots(self.checkpoints, self.checkpoints.done()).contents():
                self.checkpoints.drop_snapshots()  # of a boundary that was committed before they could be dropped
            loggers.start(record.identity, Path(record.directory), self.name, self.options.group)
            started.append(loggers)
            # the other loggers have threads, which a fork loses
            within = loggers if self.options.boundary == "inline" else Loggers([FileLogger(record)])
            with self._stop.listening():
                yield Context(
                    record, self.checkpoints, loggers, within, self._stop, self.work.length, self.work.results,
                    None if self.runtime.ranks.several else self.options.shared, ranks=self.runtime.ranks,
                )  # fmt: skip

    @contextmanager
    def _settled(self, context: Context) -> Iterator[None]:
        """Around the boundaries: however they end, the record has the results of all that were published."""
        try:
            yield
        except BudgetExceeded:
            raise  # the record was brought up to date before it was told of what is over
        except BaseException:
            with suppress(CilError, OSError):  # the first failure is the one to be told of
                context.settle()
            raise
        context.settle()

    def _log_place(self) -> tuple[int, str | None]:
        """Where ``metrics.jsonl`` stood at the point that is resumed from, and the sum of what was in it."""
        done = self.checkpoints.done()
        places = [*Snapshots(self.checkpoints, done).contents().values()]
        if done:
            places.append(self.checkpoints.facts(done - 1))
        furthest: Facts = max(places, key=lambda place: int(place["offset"]), default={"offset": 0})
        return int(furthest["offset"]), furthest.get("log")

    def _train(self, index: int, context: Context) -> None:
        """Train to a boundary; charge, check and commit what is carried across it."""
        context.begin(index)
        boundary = self.work.train(index, context)
        self._check_same(boundary, index)
        carried, allowance = boundary.carried, boundary.allowance
        ledger = carried.ledger(boundary.training)
        over = None if allowance is None else allowance.over(ledger, carried.exemplars)
        facts = {
            "ledger": ledger.to_json(),
            "exemplars": carried.exemplars,
            "over_budget": over,
            "peak_training_bytes": ledger.peak_training_bytes,
            **context.record.mark(),
            **boundary.facts,
        }
        if over and allowance is not None:
            context.settle()
            earlier = [fact["ledger"] for fact in context.facts(index)]
            context.record.update({"ledger": [*earlier, facts["ledger"]]})
            allowance.check(ledger, carried.exemplars, self.name)
        self.checkpoints.commit(index, carried.state, facts, boundary.counts)
        self.runtime.save_features()

    def _evaluate(self, index: int, context: Context) -> None:
        counts = self.work.evaluate(index, context)
        if counts is not None:
            context.record.check_place()
            self.checkpoints.write_evaluation(index, counts)
        self.runtime.save_features()

    def _publish(self, index: int, context: Context) -> None:
        """Write what boundary ``index`` adds to arrays, log and record."""
        facts = context.facts(index + 1)
        context.record.add_arrays(_arrays_of(index), self._arrays(index))
        so_far = self.work.so_far(Rows(self.checkpoints, index + 1), facts)
        line = self.work.line(index, so_far, facts)
        if line is not None and context.record.offset() == facts[-1]["offset"]:  # else written before an interruption
            values = {name: value for name, value in line[0].items() if value is not None}
            context.loggers.log("boundary", values, line[1] | {"experiences": context.length})
        context.publish(index + 1)
        context.loggers.show(lambda: self.work.panels(context.record))
        best, held = self.work.kept(so_far)
        self.checkpoints.prune(best, held)


def _arrays_of(index: int) -> str:
    return f"boundary-{index:03d}"


def check_boundary(boundary: str, runtime: Runtime) -> None:
    """Refuse processes where they cannot be forked.

    Raises:
        ConfigError: naming the key to change.
    """
    if boundary == "process" and (runtime.device != "cpu" or torch.get_num_threads() > 1):
        raise ConfigError("boundary=process forks, so it needs device=cpu and trainer.threads=1")
