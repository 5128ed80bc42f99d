"""The driver: opens a record, goes over the boundaries of a run, trains, commits, evaluates, publishes.

It knows no kind of run. What is learned or adapted, and how it is evaluated, is the run's ``Work``; see ``cil.kinds``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

import torch

from cil.engine.checkpoint import Checkpoints, Snapshots
from cil.engine.following import agree, follow
from cil.engine.known_features import KnownFeatures
from cil.engine.known_modules import ENVIRONMENT
from cil.engine.launched import place_of
from cil.engine.options import RunOptions
from cil.engine.process import in_child
from cil.engine.ranks import check_shared
from cil.engine.recovery import check_owner, recover
from cil.engine.running import Rows
from cil.engine.runtime import Runtime
from cil.engine.status import Stop, status_kept
from cil.engine.torch_settings import torch_as_before
from cil.engine.work import Context, Facts, Work
from cil.errors import BudgetExceeded, CilError, ConfigError
from cil.tracking import FileLogger, Loggers, Record, build_loggers, describe_environment, identity_hash
from cil.tracking.arrays import Part, forget_arrays
from cil.tracking.files import RECORD, RecordError

_say = logging.getLogger("cil.engine")


@dataclass
class Run:
    """One run, ready to be executed.

    Args:
        work: The work at each boundary.
        identity: Settings, data and code that make the run this run.
        run_dir: Folder of the record; the same folder and identity resume.
    """

    work: Work
    options: RunOptions
    identity: Mapping[str, Any]
    run_dir: Path
    runtime: Runtime

    def __post_init__(self) -> None:
        if self.options.boundary == "process" and (self.runtime.device != "cpu" or torch.get_num_threads() > 1):
            raise ConfigError("boundary=process forks, so it needs device=cpu and trainer.threads=1")
        if self.runtime.all_devices > 1:
            check_shared(self.work, self.options, self.runtime.all_devices)
        self.checkpoints = Checkpoints(Path(self.run_dir), self.options.keep, identity_hash(self.identity))
        self._stop = Stop()

    @property
    def name(self) -> str:
        """The method, for messages."""
        return self.work.name

    @torch_as_before()
    def execute(self) -> Record:
        """Run to the end, from wherever a run in this directory stood.

        Raises:
            BudgetExceeded: with status ``over_budget``; ResumeError: where the directory belongs to another run;
            KeyboardInterrupt: after a Ctrl-C, with what was computed saved and status ``interrupted``;
            ConfigError: where several devices share it and another number of processes was started.
        """
        self.work.check()
        if self.runtime.all_devices > 1 and (place_of() if self.finished() else self.runtime.place).rank:
            if not self.finished():
                follow(self.work, self.identity, self.checkpoints, self.runtime, self._stop)
            return Record.load(self.run_dir)
        apart = in_child if self.options.boundary == "process" else call
        with self._record() as record:
            if record.status == "finished":
                return record
            with self.runtime.together():
                uncounted = self._recovered()
                agree(self.checkpoints, self.runtime.ranks, self._stop, self.checkpoints.done())
                with self._context(record) as context, self._settled(context):
                    for index in uncounted:
                        apart(partial(self._evaluate, index, context))
                    self._complete_arrays(record)
                    for index in range(max(0, self.checkpoints.done() - 1), self.work.boundaries):
                        if index >= self.checkpoints.done():
                            apart(partial(self._train, index, context))
                            context.end_where_asked()
                        if self.checkpoints.evaluated(index) is None:
                            apart(partial(self._evaluate, index, context))
                        self._publish(index, context)
                        if index + 1 < self.work.boundaries:
                            context.end_where_asked()
        return record

    def finished(self) -> bool:
        """True where the record in the folder says so.

        Raises:
            RecordError: where there is one that cannot be read.
        """
        return (Path(self.run_dir) / RECORD).exists() and Record.load(self.run_dir).status == "finished"

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

    def _recovered(self) -> list[int]:
        """What is on the disk is whole afterwards: the run goes on from its last whole boundary.

        Returns:
            Boundaries whose answers are to be counted again.
        """
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
        return found.uncounted

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
        context.check_same(boundary, index)
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
