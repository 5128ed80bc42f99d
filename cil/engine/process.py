"""Work in a forked process: what it does to this process's memory is gone afterwards, module globals included."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

from cil import errors


class Stopped(Exception):
    """The run was asked to stop, and what was computed is saved."""


_STOPS: dict[str, type[BaseException]] = {"Stopped": Stopped, "KeyboardInterrupt": KeyboardInterrupt}


def stop_signals() -> list[signal.Signals]:
    """Signals that ask a run to stop; SIGHUP of a closed terminal is not among them under ``nohup``."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def import_before_fork() -> None:
    """Import what the first run imports late, for half a second: here once, and not in every child."""
    import torch.fx.experimental.symbolic_shapes  # by operations on ``meta``
    import torch.utils.flop_counter  # noqa: F401


def in_child(work: Callable[[], None]) -> None:
    """Do ``work`` in a child process; its error is raised here, by type and text.

    A signal that this process is sent meanwhile reaches the child too.

    Raises:
        Stopped: if the child was stopped; CilError: as raised there; TrainingError: of any other type, or where the
            child ended without a word.
    """
    import_before_fork()
    sys.stdout.flush()
    sys.stderr.flush()
    said, say = os.pipe()
    lifeline, hold = os.pipe()  # ends when this process does, however that happens
    signals = stop_signals()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until both sides know what to do with them
    child = os.fork()
    if child == 0:
        os.close(said)
        os.close(hold)
        _live(work, say, lifeline, blocked)
    os.close(say)
    os.close(lifeline)
    old = {number: signal.getsignal(number) for number in signals}
    with os.fdopen(said, "rb") as pipe:
        try:
            for number, handler in old.items():
                signal.signal(number, partial(_forward, child, handler))
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            text = pipe.read()
        finally:
            os.close(hold)
            _, status = os.waitpid(child, 0)
            for number, handler in old.items():
                signal.signal(number, handler)
    if os.waitstatus_to_exitcode(status) == 0:
        return
    if not text:
        raise errors.TrainingError(f"the process of an experience ended with {os.waitstatus_to_exitcode(status)}")
    name, message = json.loads(text)
    if name in _STOPS:
        raise _STOPS[name]
    kind = getattr(errors, name, None)
    raise kind(message) if isinstance(kind, type) else errors.TrainingError(message)


def _live(work: Callable[[], None], say: int, lifeline: int, blocked: Iterable[int]) -> NoReturn:
    """All that the child does. It never returns: the parent's code is not its own."""
    code = 0
    try:
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; the parent passes on SIGTERM
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
        work()
    except BaseException as error:
        code, words = 1, str(error) if type(error).__name__ in _STOPS else errors.in_words(error)
        os.write(say, json.dumps([type(error).__name__, words[:5_000]]).encode())  # less than a pipe holds
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _end_with(lifeline: int) -> None:
    """End this process when the parent has ended: an orphan would write beside the run that takes its place."""
    os.read(lifeline, 1)
    os._exit(1)


def _forward(child: int, handler: object, number: int, frame: object) -> None:
    os.kill(child, signal.SIGTERM)
    if callable(handler):
        handler(number, frame)
    elif handler == signal.SIG_DFL:  # this process ends by it, as it would without a child
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
