"""Progress of many runs: a bar each on a terminal, a line now and then elsewhere, and how all of them stand: how many
are done, run and failed, the time left, the best accuracy so far. To standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressScreen:
    """Shows runs by number.

    Args:
        total: How many there are.
        quiet: Show nothing but the end of those that did not finish.
    """

    def __init__(self, total: int, quiet: bool = False) -> None:
        self._total, self._quiet, self._stream = total, quiet, sys.stderr
        self._labels: dict[int, str] = {}
        self._shares: dict[int, float] = {}
        self._tasks: dict[int, TaskID] = {}
        self._done = self._failed = 0
        self._before = 0.0  # runs, and shares of them, that were done when this screen began
        self._accuracies: dict[int, float] = {}
        self._best: tuple[float, str] | None = None  # of the runs that have finished
        self._bars: Progress | None = None
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        if self._stream.isatty() and not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            # no thread that draws: this process forks
            self._bars = Progress(*columns, console=Console(file=self._stream), transient=True, auto_refresh=False)
            self._whole = self._bars.add_task(self._counts(), total=float(self._total), state="")
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, number: int, label: str) -> None:
        self._labels[number], self._shares[number] = label, 0.0
        if self._bars is not None:
            self._bars.update(self._whole, description=self._counts())
            self._tasks[number] = self._bars.add_task(label, total=1.0, state="")
        elif not self._quiet:
            self._line(f"[{number + 1}/{self._total}] {label}: started")

    def advance(
        self, number: int, kind: str, experience: int, experiences: int, within: float, values: Mapping[str, float]
    ) -> None:
        """Show how far a run is, and its latest values."""
        share = (experience + within) / experiences
        if not self._shares.get(number):  # its first message: it goes on here
            self._before += experience / experiences
        self._shares[number] = share
        if kind == "boundary" and values.get("accuracy") is not None:
            self._accuracies[number] = values["accuracy"]
        texts = {"loss": "loss {:.3f}", "accuracy": "accuracy {:.2f} %", "carried_bytes": "carries {:,.0f} B"}
        state = ", ".join(text.format(values[name]) for name, text in texts.items() if values.get(name) is not None)
        state += ", training ended early by the budget" if values.get("ended_early") else ""
        if self._bars is not None:
            self._bars.update(self._tasks[number], completed=share, state=f"{experience + 1}/{experiences} {state}")
            done = self._done + sum(self._shares.values())
            self._bars.update(self._whole, completed=done, state=self._outlook())
            self._bars.refresh()
        elif kind == "boundary" and not self._quiet:
            place = f"experience {experience + 1}/{experiences}"
            self._line(f"[{number + 1}/{self._total}] {self._labels[number]}: {place}, {state}")

    def end(
        self, number: int, label: str, words: str, finished: bool, accuracy: float | None = None, bound: bool = False
    ) -> None:
        """Show in ``words`` how a run ended; where all is quiet, only if it did not finish.

        Args:
            accuracy: The last one, percent, of a run that was not seen running.
            bound: True for a strategy that keeps all data, which is never the best.
        """
        self._done += 1
        self._before += number not in self._labels  # done before, and not seen running
        self._failed += not finished
        self._shares.pop(number, None)
        accuracy = self._accuracies.get(number, accuracy)
        if finished and accuracy is not None and not bound:
            self._best = max(self._best or (accuracy, label), (accuracy, label), key=lambda best: best[0])
        text = f"[{number + 1}/{self._total}] {label}: {words}"
        if self._bars is not None:
            if number in self._tasks:
                self._bars.remove_task(self._tasks.pop(number))
            done = self._done + sum(self._shares.values())
            self._bars.update(self._whole, completed=done, description=self._counts(), state=self._outlook())
            self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)
            self._bars.refresh()
        elif not (self._quiet and finished):
            self._line(text)
            if self._total > 1 and not self._quiet:
                self._line(", ".join(filter(None, (self._counts(), self._outlook()))))

    def _counts(self) -> str:
        running, failed = len(self._shares), self._failed
        more = [f"{running} running"] * bool(running) + [f"{failed} not finished"] * bool(failed)
        return ", ".join([f"{self._done}/{self._total} runs", *more])

    def _outlook(self) -> str:
        """Time left, and the best accuracy so far; bounds are left out."""
        best = "" if self._best is None else f"best so far {self._best[0]:.2f} % ({self._best[1]})"
        left = self._time_left() if self._done < self._total else ""
        return ", ".join(filter(None, (left, best)))

    def _time_left(self) -> str:
        done = self._done + sum(self._shares.values())
        if done <= self._before:
            return ""
        seconds = (time.monotonic() - self._start) * (self._total - done) / (done - self._before)
        return f"ETA {seconds / 60:.0f} min" if seconds >= 90 else f"ETA {seconds:.0f} s"

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
