"""Loggers: sinks for the numbers of a run. Files always; wandb, TensorBoard and others if asked for."""

from __future__ import annotations

import logging
import pkgutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from cil.errors import CilError, ConfigError, nearest
from cil.plugins import load, points
from cil.targets import check_arguments
from cil.tracking.record import Record

if TYPE_CHECKING:
    from cil.tracking.panels import Panel

LogKind = Literal["step", "epoch", "boundary"]
LogValues = Mapping[str, float | int | None]  # None: undefined
ENTRY_POINTS = "cil.loggers"
TOTALS = ("experiences", "epochs", "share")  # axes that only progress bars need
SHOWING = 0.005  # the part of the time that showing panels may take before the run ends
PREFIX: dict[str, str] = {"step": "train", "epoch": "epoch", "boundary": "eval"}  # of names on dashboards
_KNOWN = {
    "wandb": "cil.tracking.wandb_sink.WandbLogger",
    "tensorboard": "cil.tracking.tensorboard_sink.TensorBoardLogger",
    "progress": "cil.tracking.progress.ProgressLogger",
}
_log = logging.getLogger("cil.tracking")


@runtime_checkable
class Logger(Protocol):
    """A sink for numbers.

    ``start`` may refuse, with an error that names the key to change; later errors of a logger never stop a run.

    The ``axes`` give the place of a value in the run:

    * ``experience`` from 0; ``phase`` its name; ``epoch`` from 0 within the phase;
      ``step`` optimiser steps since the start of the run: it never goes back, so it is the axis of curves;
    * ``experiences`` and ``epochs`` the totals, ``share`` of the phase that is done, 0 to 1: for progress only.

    The names of ``values`` are free. Progress shows ``loss``, ``accuracy`` (percent, all classes seen) and
    ``carried_bytes`` where they are given.
    """

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        """Begin, or continue, the run of this identity (without secrets)."""
        ...

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        """Log the values of one step, epoch or boundary."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, such as an accuracy matrix."""
        ...

    def finish(self, status: str) -> None:
        """End, with the status of the record."""
        ...


@runtime_checkable
class Showing(Protocol):
    """A logger that shows tables and pictures too (``cil.tracking.panels``)."""

    def show(self, panels: Sequence[Panel], final: bool) -> None:
        """Show what there is so far: now and then as the run goes on, and once, ``final``, before its end.

        What came before comes again, with what was added; a run that is resumed begins anew.
        """
        ...


class FileLogger:
    """``metrics.jsonl`` of the run directory, which tests and reports read.

    A line is ``{"kind": "step", "experience": 0, "phase": "main", "epoch": 1, "step": 40, "values": {"loss": 2.1}}``.
    """

    def __init__(self, record: Record) -> None:
        self.record = record

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        """The record is open already."""

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        where = {axis: value for axis, value in axes.items() if axis not in TOTALS}
        self.record.append({"kind": kind, **where, "values": values})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self.record.append({"kind": "table", "name": name, "columns": columns, "rows": rows})

    def finish(self, status: str) -> None:
        """The opener of the record closes it."""


class Loggers:
    """Several loggers as one. One that fails after its start is reported once and dropped: training goes on.

    Except the files: where the log cannot be written, the run stops, and can be resumed.
    """

    def __init__(self, sinks: Iterable[Logger]) -> None:
        self.sinks = list(sinks)
        self._began, self._showed = time.monotonic(), 0.0

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        """Start all.

        Raises:
            ConfigError: if one of them cannot start; those that had started are finished first.
        """
        started: list[Logger] = []
        for sink in self.sinks:
            try:
                sink.start(deepcopy(dict(identity)), run_dir, name, group)  # the record's own is no logger's
            except Exception as error:
                Loggers(started).finish("failed")
                if isinstance(error, CilError):
                    raise
                raise ConfigError(f"logger: {type(sink).__name__} cannot start: {error}; leave it out") from error
            started.append(sink)

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        self._each(lambda sink: sink.log(kind, dict(values), dict(axes)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._each(lambda sink: sink.table(name, columns, rows))

    def show(self, panels: Callable[[], Sequence[Panel]], *, final: bool = False) -> None:
        """Show panels, where a logger shows some; before the end only as often as that costs next to nothing.

        Args:
            panels: Makes them. What fails in it, or in a logger, is reported; the logger goes on with other things.
        """
        showing = [sink for sink in self.sinks if isinstance(sink, Showing)]
        now = time.monotonic()
        if not showing or not (final or self._showed <= SHOWING * (now - self._began)):
            return
        try:
            made = panels()
            for sink in showing:
                sink.show(made, final)
        except Exception as error:
            _log.warning("tables and pictures of this run could not be shown, the run goes on: %s", error)
        self._showed += time.monotonic() - now

    def finish(self, status: str) -> None:
        self._each(lambda sink: sink.finish(status))

    def _each(self, action: Callable[[Logger], None]) -> None:
        for sink in list(self.sinks):
            try:
                action(sink)
            except Exception as error:
                if isinstance(sink, FileLogger):  # a run does not go on without it
                    raise
                self.sinks.remove(sink)
                _log.warning("%s failed and is dropped, the run goes on: %s", type(sink).__name__, error)


def names() -> list[str]:
    """Names of loggers, here and in other packages."""
    return sorted({"files", *_KNOWN, *(point.name for point in points(ENTRY_POINTS))})


def build_loggers(sinks: Any = (), record: Record | None = None, *, progress: bool = False) -> Loggers:
    """Build the loggers of a run.

    Args:
        sinks: Value of the ``logger`` configuration group: nothing, a name, a mapping with ``_target_`` and its
            options, a logger; or several of these, as a list or as a mapping of free names.
        record: Gets a ``FileLogger``.
        progress: Show progress.

    Raises:
        ConfigError: for an unknown name, target or option.

    >>> build_loggers("files").sinks
    []
    """
    chosen: list[Logger] = [] if record is None else [FileLogger(record)]
    if progress:
        chosen.append(_by_target(_KNOWN["progress"], {}))
    return Loggers([*chosen, *_resolve(sinks)])


def _resolve(sinks: Any) -> list[Logger]:
    if not sinks or sinks == "files":
        return []
    if isinstance(sinks, str):
        return [_by_name(sinks)]
    if isinstance(sinks, Mapping):
        if "_target_" in sinks:
            return [_by_target(sinks["_target_"], {key: sinks[key] for key in sinks if key != "_target_"})]
        return [logger for item in sinks.values() for logger in _resolve(item)]
    if isinstance(sinks, Logger):
        return [sinks]
    if isinstance(sinks, Iterable):
        return [logger for item in sinks for logger in _resolve(item)]
    raise ConfigError(f"logger={sinks!r} is no logger: give a name, a mapping with _target_, or a list of these")


def _by_name(name: str) -> Logger:
    if name in _KNOWN:
        return _by_target(_KNOWN[name], {})
    for point in points(ENTRY_POINTS):
        if point.name == name:
            return _construct(load(point), {}, name)
    raise ConfigError(f"logger={name} is unknown; {nearest(name, names())}")


def _by_target(target: str, options: Mapping[str, Any]) -> Logger:
    try:
        maker = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"logger._target_={target} cannot be imported: {error}") from error
    return _construct(maker, options, target)


def _construct(maker: Any, options: Mapping[str, Any], name: str) -> Logger:
    check_arguments(maker, options, "logger")
    try:
        logger = maker(**options)
    except TypeError as error:
        raise ConfigError(f"logger {name} does not take these options: {error}") from error
    if not isinstance(logger, Logger):
        raise ConfigError(f"logger {name} is no logger: it needs start, log, table and finish")
    return logger
