"""Parallel runs: one process each, forked from this one on CPU, so that imports and data are shared."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from cil.cli.progress_screen import ProgressScreen
from cil.engine.driver import Run
from cil.engine.process import import_before_fork, stop_signals
from cil.errors import BudgetExceeded, CilError, in_words
from cil.tracking import Record, RecordError
from cil.tracking.files import METRICS

LISTENING = 1.0  # seconds between two looks at the clock
GRACE = 60.0  # seconds in which a child that was told to stop may save what it computed


@dataclass
class QueuedRun:
    """A run that waits for a process of its own.

    Args:
        make: Gives the run; called in the child, where it must be picklable if that is not forked.
        run: Digest of its identity; a record of another run in its folder is not taken for its own. Empty: any is.
    """

    label: str
    run_dir: Path
    make: Callable[[], Run]
    run: str = ""

    @property
    def failure_log(self) -> Path:
        """Where the traceback of a failure is written, beside the folder of the run."""
        return self.run_dir.with_name(f"{self.run_dir.name}.failure.log")


@dataclass
class RunEnd:
    """How a run ended.

    Attributes:
        status: ``finished``, ``over_budget``, ``failed``, ``interrupted`` or ``killed``.
        found: True for a run that had finished before.
    """

    run: QueuedRun
    status: str
    error: str | None = None
    found: bool = False
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        """True where the command as a whole has failed by it."""
        return self.status not in ("finished", "over_budget")

    @property
    def failure(self) -> str:
        """What failed, why, and where its log lies."""
        logs = (self.run.failure_log, self.run.run_dir / METRICS)
        log = next((f"; log: {path}" for path in logs if path.exists()), "")
        return f"{self.run.label}: {self.status}: {self.error}{log}"

    @property
    def words(self) -> str:
        status = {"over_budget": "over budget", "interrupted": "interrupted, saved"}.get(self.status, self.status)
        time = "before, not run again" if self.found else f"after {self.seconds:.0f} s"
        return f"{status} {time}{f': {self.error}' if self.error else ''}"


@dataclass
class _Child:
    """A process that does a run, and the status and error that it has sent at its end."""

    run: QueuedRun
    process: BaseProcess
    pipe: Connection
    start: float = field(default_factory=time.monotonic)
    end: tuple[str, str | None] | None = None


def run_all(
    runs: Sequence[QueuedRun], jobs: int, *, fork: bool, screen: ProgressScreen, grace: float = GRACE
) -> list[RunEnd]:  # fmt: skip
    """Do all runs, ``jobs`` at a time. One that fails, is over its budget or is killed does not stop the others.

    Args:
        runs: In the order in which they are begun. One that has finished before is not run again.
        fork: True: children are forked; else they start anew.
        grace: Seconds after a Ctrl-C until children that still run are killed.

    Raises:
        KeyboardInterrupt: after a Ctrl-C, when all children have saved what they computed, or were killed.
    """
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    ends: dict[int, RunEnd] = {}
    waiting = list(enumerate(runs))
    children: dict[int, _Child] = {}
    deadline = float("inf")

    def close(number: int, end: RunEnd, record: Record | None) -> None:
        ends[number] = end
        bound = record is not None and bool(record.identity.get("bound"))
        accuracy = None if record is None else record.results.get("last_accuracy")
        screen.end(number, end.run.label, end.words, end.status == "finished", accuracy, bound)

    with screen, _interrupts() as interrupts:
        while waiting or children:
            while waiting and len(children) < jobs and not interrupts.count:
                number, run = waiting.pop(0)
                record = record_of(run.run_dir)
                if record is not None and record.status == "finished" and run.run in ("", record.run):
                    close(number, RunEnd(run, "finished", found=True), record)
                    continue
                if fork:
                    import_before_fork()
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=_execute, args=(run, writer), daemon=True)
                process.start()
                writer.close()
                children[number] = _Child(run, process, reader)
                screen.start(number, run.label)
            if interrupts.count and not children:
                break
            _listen(children, screen)
            for number, child in list(children.items()):
                if not child.process.is_alive():
                    _drain(number, child, screen)
                    child.process.join()
                    end = _end_of(child)
                    close(number, end, record_of(end.run.run_dir) if end.status == "finished" else None)
                    del children[number]
            if interrupts.count:
                _forward(children, interrupts)
                deadline = min(deadline, time.monotonic() + grace)
            if time.monotonic() >= deadline:
                for child in children.values():  # they did not stop when they were told to
                    child.process.kill()
        if interrupts.count:
            raise KeyboardInterrupt
    return [ends[number] for number in range(len(runs))]


def record_of(run_dir: Path) -> Record | None:
    """The record that a run left; None where it left none."""
    try:
        return Record.load(run_dir)
    except RecordError:  # it failed before there was one
        return None


def _listen(children: Mapping[int, _Child], screen: ProgressScreen) -> None:
    handles: dict[Any, int] = {child.pipe: number for number, child in children.items()}
    handles |= {child.process.sentinel: number for number, child in children.items()}
    try:
        ready = wait(list(handles), timeout=LISTENING)
    except InterruptedError:
        return
    for handle in ready:
        _drain(handles[handle], children[handles[handle]], screen)


def _drain(number: int, child: _Child, screen: ProgressScreen) -> None:
    try:
        while child.pipe.poll():
            message = child.pipe.recv()
            if message[0] == "end":
                child.end = message[1:]
            else:
                screen.advance(number, *message)
    except (EOFError, OSError):  # it has ended, perhaps in the middle of a word
        return


def _end_of(child: _Child) -> RunEnd:
    seconds = time.monotonic() - child.start
    if child.end is not None:
        return RunEnd(child.run, *child.end, seconds=seconds)
    code = child.process.exitcode
    cause = f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit code {code}"
    error = f"its process was ended by {cause}; the same command goes on with it"
    return RunEnd(child.run, "killed", error, seconds=seconds)


@dataclass
class _Interrupts:
    """Signals that asked to stop, and how many of them were passed on."""

    count: int = 0
    forwarded: int = 0


def _forward(children: Mapping[int, _Child], interrupts: _Interrupts) -> None:
    """Tell children to stop: once to save and stop, a second time to stop at once."""
    new, interrupts.forwarded = interrupts.count - interrupts.forwarded, interrupts.count
    for _ in range(new):
        for child in children.values():
            if child.process.is_alive() and child.process.pid is not None:
                os.kill(child.process.pid, signal.SIGINT)


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    """Count the signals that ask to stop, in place of an exception in the middle of anything."""
    found = _Interrupts()

    def handle(number: int, frame: FrameType | None) -> None:
        found.count += 1

    old = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield found
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# in the child -------------------------------------------------------------------------------------------------------


def _execute(queued: QueuedRun, pipe: Connection) -> None:
    os.setpgid(0, 0)  # a Ctrl-C on the terminal reaches the parent alone, which passes it on once
    for number in stop_signals():
        signal.signal(number, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no child outlives its parent
    queued.failure_log.unlink(missing_ok=True)
    try:
        run = queued.make()
        run.options = replace(run.options, loggers=[run.options.loggers, Messenger(pipe)], progress=False)
        run.execute()
        end: tuple[str, str | None] = ("finished", None)
    except BudgetExceeded as error:
        end = ("over_budget", str(error))
    except KeyboardInterrupt:
        end = ("interrupted", None)
    except BaseException as error:
        if os.environ.get("CIL_TRACEBACK") and not isinstance(error, CilError):
            traceback.print_exc()
        end = ("failed", in_words(error))
        with suppress(OSError):
            queued.failure_log.parent.mkdir(parents=True, exist_ok=True)
            queued.failure_log.write_text(f"{queued.label}\n\n{traceback.format_exc()}", encoding="utf-8")
    pipe.send(("end", *end))
    pipe.close()


class Messenger:
    """A logger that tells the parent how far a run is, a few times a second at most."""

    def __init__(self, pipe: Connection, seconds: float = 0.3) -> None:
        self._pipe, self._seconds, self._last = pipe, seconds, 0.0
        self._values: dict[str, float] = {}

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        """The parent knows."""

    def log(self, kind: str, values: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
        self._values |= {name: values[name] for name in ("loss", "accuracy", "carried_bytes") if name in values}
        if kind != "boundary" and time.monotonic() - self._last < self._seconds:
            return
        self._last = time.monotonic()
        within = 1.0 if kind == "boundary" else float(axes.get("share") or 0.0)
        experience, experiences = int(axes.get("experience") or 0), int(axes.get("experiences") or 1)
        ended = {"ended_early": 1.0} if values.get("ended_early") else {}
        self._pipe.send((kind, experience, experiences, within, self._values | ended))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Tables are for reports."""

    def finish(self, status: str) -> None:
        """The parent is told when all is written."""
