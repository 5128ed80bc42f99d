"""Progress for people: bars on a terminal, a line now and then anywhere else. Writes to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cil.tracking.housekeeping import CHECKPOINT, SNAPSHOT
from cil.tracking.loggers import LogKind, LogValues

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOWN = ("loss", "accuracy", "carried_bytes")


class ProgressLogger:
    """Bars for experience, phase and epoch with loss, accuracy, carried bytes and the time left.

    Without a terminal: one line for a boundary, and one for an epoch if the last line is old enough.

    Args:
        stream: Standard error by default.
        seconds: Least time between two lines, other than boundaries.
        clock: Returns seconds, from any start.
    """

    def __init__(
        self, stream: TextIO | None = None, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._seconds, self._clock = seconds, clock
        self._latest: dict[str, float] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        self._name, self._began = name, self._clock()
        self._last_line = self._began
        budget = (identity.get("config") or {}).get("budget") or {}
        caps = [f"budget.{key}" for key in ("flops", "updates") if budget.get(key) is not None]
        self._caps = " or ".join(caps) or "the budget of compute"
        self._first: float | None = None  # share of the stream that was done when this process began
        if self._stream.isatty():
            self._bars = _bars(self._stream)
            self._tasks = {
                bar: self._bars.add_task(title, total=1.0, state="", left="")
                for bar, title in (("experience", name), ("phase", "phase"), ("epoch", "epoch"))
            }
            self._bars.start()
        else:
            saved = any(any(run_dir.glob(f"{folder}/*.json")) for folder in (CHECKPOINT, SNAPSHOT))
            self._line(f"{name}: {'goes on from what was saved' if saved else 'started'}")

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        self._latest |= {name: value for name in SHOWN if (value := values.get(name)) is not None}
        done = _done(kind, axes)
        if self._first is None:
            self._first = done["experience"]
        left = self._left(done["experience"])
        ended = f"{self._caps} ended training early" if values.get("ended_early") else ""
        if self._bars is not None:
            self._draw(done, axes, left)
            if ended:
                line = f"{self._name}: {_place(axes, full=False)}, {ended}"
                self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)
        elif kind == "boundary" or (kind == "epoch" and self._clock() - self._last_line >= self._seconds):
            place = _place(axes, full=kind != "boundary")
            self._line(", ".join(part for part in (f"{self._name}: {place}", ended, self._state(), left) if part))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Progress shows no tables."""

    def finish(self, status: str) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        took = _duration(self._clock() - self._began)
        self._line(", ".join(part for part in (f"{self._name}: {status} after {took}", self._state()) if part))

    def _draw(self, done: Mapping[str, float], axes: Mapping[str, Any], left: str) -> None:
        assert self._bars is not None
        titles = {
            "experience": _count("experience", axes, "experience", "experiences"),
            "phase": f"phase {axes.get('phase', '')}".strip(),
            "epoch": _count("epoch", axes, "epoch", "epochs"),
        }
        for bar, task in self._tasks.items():
            self._bars.update(task, completed=done[bar], description=titles[bar])
        self._bars.update(self._tasks["experience"], state=self._state(), left=left)

    def _state(self) -> str:
        texts = {"loss": "loss {:.3f}", "accuracy": "accuracy {:.2f} %", "carried_bytes": "carries {:,} B"}
        return ", ".join(texts[name].format(self._latest[name]) for name in SHOWN if name in self._latest)

    def _left(self, done: float) -> str:
        """The time left, from the share of the stream that this process did itself."""
        own = done - (self._first or 0.0)
        if own <= 0 or done >= 1:
            return ""
        return f"ETA {_duration((self._clock() - self._began) / own * (1 - done))}"

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
        self._last_line = self._clock()


def _bars(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}  {task.fields[left]}"))
    return Progress(*columns, console=Console(file=stream), transient=True)


def _done(kind: LogKind, axes: Mapping[str, Any]) -> dict[str, float]:
    """Shares done, 0 to 1, of the stream, the phase and the epoch."""
    phase = 1.0 if kind == "boundary" else float(axes.get("share") or 0.0)
    epochs = phase * (axes.get("epochs") or 1)
    epoch = 1.0 if kind != "step" else min(1.0, max(0.0, epochs - (axes.get("epoch") or 0)))
    experience = (axes.get("experience") or 0) + phase
    return {"experience": experience / (axes.get("experiences") or 1), "phase": phase, "epoch": epoch}


def _place(axes: Mapping[str, Any], full: bool) -> str:
    parts = [_count("experience", axes, "experience", "experiences")]
    if full:
        parts += [f"phase {axes['phase']}"] if axes.get("phase") else []
        parts.append(_count("epoch", axes, "epoch", "epochs"))
    return ", ".join(parts)


def _count(word: str, axes: Mapping[str, Any], axis: str, total: str) -> str:
    """A count from 1, as people count.

    >>> _count("epoch", {"epoch": 0, "epochs": 70}, "epoch", "epochs")
    'epoch 1/70'
    """
    of = f"/{axes[total]}" if axes.get(total) else ""
    return f"{word} {int(axes.get(axis) or 0) + 1}{of}"


def _duration(seconds: float) -> str:
    """Seconds in words.

    >>> _duration(3723), _duration(65), _duration(4.2)
    ('1h 02m', '1m 05s', '4s')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
