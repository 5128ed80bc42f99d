"""The end of a run: signals that ask it to stop, its clock, and the status that its record is left with."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from cil.engine.process import Stopped, stop_signals
from cil.errors import BudgetExceeded, TrainingError, in_words
from cil.tracking import Record

_say = logging.getLogger("cil.engine")


@contextmanager
def status_kept(record: Record, device: str, batch_key: str, finish: Callable[[str], None]) -> Iterator[None]:
    """Around the work of a run: its record says ``running``, and afterwards how it ended.

    Raises:
        BudgetExceeded: with status ``over_budget``; KeyboardInterrupt: after a Ctrl-C, with status ``interrupted``;
            TrainingError: where no memory is left; whatever else the work raises, with status ``failed``.
    """
    record.set_status("running")
    status = "finished"
    error: BaseException | None = None
    try:
        yield
    except BudgetExceeded as exceeded:
        status, error = "over_budget", exceeded
    except (Stopped, KeyboardInterrupt):
        status, error = "interrupted", KeyboardInterrupt()
    except SystemExit as ended:  # in somebody's hook: no reason for a command to end with 0
        status, error = "failed", TrainingError(in_words(ended))
    except Exception as failed:
        status, error = "failed", failed
        if is_out_of_memory(failed):
            first, advice = (str(failed).splitlines() or [""])[0], f"lower {batch_key} or take a smaller model"
            error = TrainingError(f"no memory left on {device}{f' ({first})' * bool(first)}; {advice}")
    try:
        if status == "over_budget":
            record.refresh()  # the ledger may have been written by a child
        record.set_status(status, None if status in ("finished", "interrupted") or error is None else in_words(error))
        finish(status)
    except Exception as later:
        if error is None:
            raise
        if in_words(later) != in_words(error):
            _say.warning("and its status '%s' could not be written: %s", status, in_words(later))
    if error is not None:
        raise error


def is_out_of_memory(error: Exception) -> bool:
    """True where memory of a device or of the machine is used up; on the CPU torch says so in a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class Clock:
    """Seconds of work, those before an interruption included."""

    def __init__(self, before: float = 0.0) -> None:
        self._before, self._began = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._began

    def set(self, seconds: float) -> None:
        """Go on from so many seconds."""
        self._before, self._began = seconds, time.perf_counter()


class Stop:
    """Says if a run was asked to stop. Ctrl-C finishes the step and saves; a second one stops at once.

    Attributes:
        asked: Whether it was.
        jointly: Whether other ranks do the work too: then it stops where all of them do, and not ``here``.
    """

    def __init__(self) -> None:
        self.asked = self.jointly = False

    def __call__(self) -> bool:
        return self.asked

    def here(self) -> None:
        """Stop if that was asked for, where going on would keep a person waiting and nothing is lost."""
        if self.asked and not self.jointly:
            raise Stopped

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear SIGINT, SIGTERM and SIGHUP, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        old = {number: signal.signal(number, handle) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
