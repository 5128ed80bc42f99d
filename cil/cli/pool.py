"""Runs side by side: one process each, forked from this one on CPU, so that imports and data are shared."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from cil.cli.board import Board
from cil.engine.adaptation import AdaptationRun
from cil.engine.process import import_before_fork
from cil.engine.run import Run
from cil.errors import BudgetExceeded, CilError
from cil.tracking import Record, RecordError

ABOARD = 1.0  # seconds between two looks at the clock
GRACE = 60.0  # seconds in which a child that was told to stop may save what it computed


@dataclass
class Task:
    """One run to be done in a process of its own.

    Args:
        label: For people.
        run_dir: Where its record will be.
        make: Gives the run; called in the child, where it must be picklable if that is not forked.
    """

    label: str
    run_dir: Path
    make: Callable[[], Run | AdaptationRun]


@dataclass
class Outcome:
    """How a task ended: ``finished`` (perhaps ``found``), ``over_budget``, ``failed``, ``interrupted``, ``killed``."""

    task: Task
    status: str
    error: str | None = None
    found: bool = False
    seconds: float = 0.0


@dataclass
class _Running:
    task: Task
    process: Any
    pipe: Connection
    began: float = field(default_factory=time.monotonic)
    said: tuple[str, str | None] | None = None


def run_all(
    tasks: Sequence[Task], jobs: int, *, fork: bool, board: Board, grace: float = GRACE
) -> list[Outcome]:  # fmt: skip
    """Do all tasks, ``jobs`` at a time. One that fails, is over its budget or is killed does not stop the others.

    Args:
        tasks: In the order in which they are begun. A task whose run has finished before is not run again.
        fork: Whether children are forked; else they start anew.
        board: Shows how far they are.
        grace: Seconds after a Ctrl-C until children that still run are killed.

    Raises:
        KeyboardInterrupt: after a Ctrl-C, when all children have saved what they computed, or were killed.
    """
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    if fork:
        import_before_fork()
    outcomes: dict[int, Outcome] = {}
    waiting = list(enumerate(tasks))
    running: dict[int, _Running] = {}
    deadline = float("inf")
    with board, _one_interrupt() as interrupted:
        while waiting or running:
            while waiting and len(running) < jobs and not interrupted():
                number, task = waiting.pop(0)
                if _finished(task.run_dir):
                    outcomes[number] = Outcome(task, "finished", found=True)
                    board.ended(number, outcomes[number])
                    continue
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(task, writer), daemon=True)
                process.start()
                writer.close()
                running[number] = _Running(task, process, reader)
                board.began(number, task.label)
            if interrupted() and not running:
                break
            _listen(running, board)
            for number, one in list(running.items()):
                if not one.process.is_alive():
                    _drain(number, one, board)
                    one.process.join()
                    outcomes[number] = _outcome(one)
                    board.ended(number, outcomes[number])
                    del running[number]
            if interrupted():
                _forward(running, interrupted)
                deadline = min(deadline, time.monotonic() + grace)
            if time.monotonic() >= deadline:
                _kill(running)
        if interrupted():
            raise KeyboardInterrupt
    return [outcomes[number] for number in range(len(tasks))]


def _finished(run_dir: Path) -> bool:
    try:
        return Record.load(run_dir).status == "finished"
    except RecordError:
        return False


def _listen(running: Mapping[int, _Running], board: Board) -> None:
    """Wait until a child says something, or ends."""
    handles: dict[Any, int] = {one.pipe: number for number, one in running.items()}
    handles |= {one.process.sentinel: number for number, one in running.items()}
    try:
        ready = wait(list(handles), timeout=ABOARD)
    except InterruptedError:
        return
    for handle in ready:
        _drain(handles[handle], running[handles[handle]], board)


def _drain(number: int, one: _Running, board: Board) -> None:
    """Take everything that a child has said so far."""
    try:
        while one.pipe.poll():
            message = one.pipe.recv()
            if message[0] == "end":
                one.said = message[1:]
            else:
                board.moved(number, *message)
    except (EOFError, OSError):  # it has ended, perhaps in the middle of a word
        return


def _outcome(one: _Running) -> Outcome:
    seconds = time.monotonic() - one.began
    if one.said is not None:
        return Outcome(one.task, *one.said, seconds=seconds)
    code = one.process.exitcode
    how = f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit code {code}"
    return Outcome(
        one.task, "killed", f"its process was ended by {how}; the same command goes on with it", seconds=seconds
    )


def _forward(running: Mapping[int, _Running], interrupted: Callable[..., bool]) -> None:
    """Tell children to stop: once to save and stop, a second time to stop at once."""
    for _ in range(interrupted(take=True)):
        for one in running.values():
            if one.process.is_alive():
                os.kill(one.process.pid, signal.SIGINT)


def _kill(running: Mapping[int, _Running]) -> None:
    """End children that did not stop when they were told to."""
    for one in running.values():
        if one.process.is_alive():
            one.process.kill()


@contextmanager
def _one_interrupt() -> Iterator[Callable[..., Any]]:
    """Count the signals that ask to stop, in place of an exception in the middle of anything."""
    count, told = 0, 0

    def handle(number: int, frame: Any) -> None:
        nonlocal count
        count += 1

    def interrupted(take: bool = False) -> int:
        nonlocal told
        if not take:
            return count
        new, told = count - told, count
        return new

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


# in the child -------------------------------------------------------------------------------------------------------


def _child(task: Task, pipe: Connection) -> None:
    """Do one run and say how it ended."""
    os.setpgid(0, 0)  # a Ctrl-C on the terminal reaches the parent alone, which passes it on once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: no child outlives its parent
    try:
        run = task.make()
        run.loggers = [run.loggers, Messenger(pipe)]
        run.progress = False
        run.execute()
        end: tuple[str, str | None] = ("finished", None)
    except BudgetExceeded as error:
        end = ("over_budget", str(error))
    except KeyboardInterrupt:
        end = ("interrupted", None)
    except CilError as error:
        end = ("failed", str(error))
    except BaseException as error:
        if os.environ.get("CIL_TRACEBACK"):
            traceback.print_exc()
        end = ("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
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
