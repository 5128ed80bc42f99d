"""What every kind of run shares: its record from opening to status, the wish to stop, clocks, snapshots."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from cil.engine.checkpoint import Checkpoints
from cil.engine.process import Stopped, in_child
from cil.engine.runtime import Runtime
from cil.errors import BudgetExceeded, CilError, ConfigError, TrainingError
from cil.tracking import FileLogger, Loggers, Record, build_loggers, describe_environment

BOUNDARIES = ("inline", "process")


def check_boundary(boundary: str, runtime: Runtime) -> None:
    """Refuse an unknown kind of boundary, and processes where they cannot be forked.

    Raises:
        ConfigError: naming the key to change.
    """
    if boundary not in BOUNDARIES:
        raise ConfigError(f"boundary is '{boundary}'; allowed: {', '.join(BOUNDARIES)}")
    if boundary == "process" and (runtime.device != "cpu" or torch.get_num_threads() > 1):
        raise ConfigError("boundary=process forks, so it needs device=cpu and trainer.threads=1")


def isolated(boundary: str, work: Callable[[], None]) -> None:
    """Do ``work`` here, or in a process of its own."""
    if boundary == "inline":
        work()
    else:
        in_child(work)


def loggers_within(boundary: str, loggers: Loggers, record: Record) -> Loggers:
    """The loggers of work that is done by ``isolated``: others than files have threads, which a fork loses."""
    return loggers if boundary == "inline" else Loggers([FileLogger(record)])


def recorded(
    run_dir: Path,
    identity: Mapping[str, Any],
    sinks: Any,
    runtime: Runtime,
    work: Callable[[Record], None],
    command: str | None = None,
) -> Record:
    """Open the record of a run, do its work unless it has finished, and let go of everything."""
    build_loggers(sinks)  # what is refused here leaves no trace
    asked = {} if command is None else {"command": command}
    record = Record.open(run_dir, identity, describe_environment() | asked)
    try:
        if record.status != "finished":
            runtime.begin()
            work(record)
    finally:
        record.close()
        runtime.close()
    return record


def attended(
    record: Record,
    loggers: Loggers,
    begin: Callable[[], None],
    work: Callable[[], None],
    *,
    name: str,
    group: str | None,
    device: str,
    batch_key: str = "trainer.batch_size",
) -> None:
    """Do the work of a run, and say in its record how it ended.

    Args:
        begin: What may refuse, before the loggers are started.
        work: Everything after.
        name, group: For the loggers.
        device, batch_key: For messages: where it runs, and the key that makes a batch smaller.

    Raises:
        BudgetExceeded: with status ``over_budget``; KeyboardInterrupt: after a Ctrl-C, with status ``interrupted``;
            TrainingError: where no memory is left; whatever else the work raises, with status ``failed``.
    """
    record.set_status("running")
    status: str = "finished"
    error: BaseException | None = None
    started = False
    try:
        begin()
        loggers.start(record.identity, Path(record.directory), name, group)
        started = True
        work()
    except BudgetExceeded as exceeded:
        status, error = "over_budget", exceeded
        record.results |= Record.load(record.directory).results  # the ledger may have been written by a child
    except (Stopped, KeyboardInterrupt):
        status, error = "interrupted", KeyboardInterrupt()
    except torch.OutOfMemoryError as full:
        status, error = (
            "failed",
            TrainingError(
                f"no memory left on {device} ({str(full).splitlines()[0]}); lower {batch_key} or take a smaller model"
            ),
        )
    except Exception as failed:
        status, error = "failed", failed
    record.set_status(status, None if status in ("finished", "interrupted") else _line(error))
    if started:
        loggers.finish(status)
    if error is not None:
        raise error


def _line(error: BaseException | None) -> str:
    """One line for the record."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CilError) else f"{type(error).__name__}: {text}"


class Clock:
    """Seconds of work, those before an interruption included."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._began = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._began


class Stop:
    """Whether a run was asked to stop. Ctrl-C finishes the step and saves; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear SIGINT and SIGTERM, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


@dataclass
class Snapshots:
    """Snapshots inside the stretch of a run that leads to boundary ``index``; those of another are not seen."""

    checkpoints: Checkpoints
    index: int

    def contents(self) -> dict[str, dict[str, Any]]:
        """What they say, by name."""
        found = {name: self.checkpoints.snapshot_content(name) for name in self.checkpoints.snapshot_names()}
        return {name: content for name, content in found.items() if content and content["experience"] == self.index}

    def find(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and content of one, if there is one."""
        content = self.checkpoints.snapshot_content(name)
        if content is None or content["experience"] != self.index:
            return None
        return self.checkpoints.snapshot_tensors(content), content

    def keep(
        self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any], *, record: Record, clock: Clock
    ) -> None:
        """Write one, with the place that the log has reached and the seconds worked."""
        more = {"experience": self.index, "offset": record.offset(), "seconds": clock.seconds}
        self.checkpoints.write_snapshot(name, tensors, {**content, **more})


def log_offset(checkpoints: Checkpoints) -> int:
    """Where ``metrics.jsonl`` stood at the point that is resumed from."""
    done = checkpoints.done()
    committed = checkpoints.facts(done - 1)["offset"] if done else 0
    inside = Snapshots(checkpoints, done).contents()
    return max([committed, *(content["offset"] for content in inside.values())])
