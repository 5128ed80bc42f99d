"""Work in a forked process: what it does to this process's memory is gone afterwards, module globals included."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial

from cil import errors


class Stopped(Exception):
    """The run was asked to stop, and what was computed is saved."""


def in_child(work: Callable[[], None]) -> None:
    """Do ``work`` in a child process; its error is raised here, by type and text.

    A signal that this process is sent meanwhile reaches the child too.

    Raises:
        Stopped: if the child was stopped; CilError: as raised there.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 0
        try:
            work()
        except BaseException as error:
            code = 1
            os.write(writer, json.dumps([type(error).__name__, str(error)]).encode()[:60_000])
        finally:
            os._exit(code)
    os.close(writer)
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with os.fdopen(reader, "rb") as pipe:
        try:
            for number, handler in old.items():
                signal.signal(number, partial(_forward, child, handler))
            said = pipe.read()
            _, status = os.waitpid(child, 0)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
    if os.waitstatus_to_exitcode(status) == 0:
        return
    if not said:
        raise errors.TrainingError(f"the process of an experience ended with {os.waitstatus_to_exitcode(status)}")
    name, text = json.loads(said)
    if name == "Stopped":
        raise Stopped
    kind = getattr(errors, name, None)
    raise kind(text) if isinstance(kind, type) else errors.TrainingError(f"{name}: {text}")


def _forward(child: int, handler: object, number: int, frame: object) -> None:
    os.kill(child, number)
    if callable(handler):
        handler(number, frame)
