"""Weights & Biases, offline unless asked for. The only file that touches ``wandb``."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cil.errors import ConfigError, nearest
from cil.tracking.files import RECORD
from cil.tracking.labels import labels
from cil.tracking.loggers import PREFIX, LogKind, LogValues
from cil.tracking.panels import Panel, Table, new_points
from cil.tracking.storage import plain, without_secrets
from cil.tracking.wandb_server import has_key, reachable

if TYPE_CHECKING:
    import wandb

Mode = Literal["offline", "online", "disabled"]
MODES = get_args(Mode)
AXIS = {"step": "opt_step", "epoch": "opt_step", "boundary": "experience"}
CURVES = ("ledger", "held_in_training", "spent", "accuracy_matrix", "error", "pictures")  # over experiences
PAGE = "index.html"  # of a report that was written into the folder of the run
_INIT_SECONDS = 30  # limit of an online start; the default of 90 looks like a hang
_FINISH_SECONDS = 60  # limit of waiting for what is not sent yet; it stays on disk
_EVERY = 0.5  # seconds between lines of steps, and of epochs: a line costs up to a millisecond
_LINES, _CELLS = 50, 10_000  # most lines of a chart, and cells of a confusion matrix that is drawn; tables are whole
_log = logging.getLogger("cil.tracking")
NOT_IN_NAMES = "/\\#?%:"  # characters


class WandbLogger:
    """Send a run to wandb.

    Values are named ``train/*``, ``epoch/*`` (over ``opt_step``) and ``eval/*`` (over ``experience``). The axis is
    logged as a value and never as wandb's own step, so lines that come twice or out of order after a resume do no harm.
    Of steps that follow quickly, and of epochs, one line each half second is sent; ``metrics.jsonl`` has all.
    The tables of ``cil.tracking.panels`` become curves over ``experience`` (``ledger/exemplars``), native tables
    (``tables/*``), charts (``charts/*``) and images (``pictures/*``); the record becomes an artifact at the end.

    A run is called ``METHOD STREAM BUDGET seed SEED``. These stand in its configuration (``method``, ``stream_name``,
    ``budget_words``, ``seed``, ``fingerprint``) and in its tags; its job type is the method.

    Args:
        mode: ``offline`` writes to ``run_dir/wandb`` (send it later with ``wandb sync``), ``online``, ``disabled``.
        project, entity: Place on the server.
        group: Runs shown together; by default the group the run is started with, such as a sweep; without one, method,
            stream and budget, so that its seeds are.
        tags: Free words.
        id: Identifier of the run at wandb. By default one is drawn and kept in ``run_dir/wandb_id``, so that the parts
            of a resumed run are one run.

    Raises:
        ConfigError: for an unknown mode and a project that wandb cannot name; at the start for ``online`` without
            an API key. Without a reachable server the run is written offline, and says so.
    """

    def __init__(
        self,
        mode: Mode = "offline",
        project: str = "cil",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        id: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"logger.mode={mode} is unknown; {nearest(mode, MODES)}")
        for key, name in (("project", project), *((("id", id),) if id is not None else ())):
            if not 0 < len(name) <= 128 or set(name) & set(NOT_IN_NAMES):
                odd = " ".join(NOT_IN_NAMES)
                raise ConfigError(f"logger.{key} is '{name}'; wandb takes 1 to 128 characters, and none of {odd}")
        self.mode, self.project, self.entity, self.group = mode, project, entity, group
        self.tags, self.id = list(tags), id
        self._run: wandb.Run | None = None
        self._dir = Path()
        self._last: dict[str, float] = {}  # when a line of each kind was sent
        self._sent: set[tuple[str, int]] = set()  # curve or picture, and experience

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None:
        if self.mode == "disabled":
            return
        if self.mode == "online" and not has_key():
            raise ConfigError(
                "logger.mode=online needs an API key: run 'wandb login', set WANDB_API_KEY, or use logger.mode=offline"
            )
        self._dir, self._sent, self._last = Path(run_dir), set(), {}
        self.id = self.id or _kept_id(run_dir)
        self._run = self._opened(labels(identity, name), identity, group)
        for kind, prefix in PREFIX.items():
            self._run.define_metric(AXIS[kind])
            self._run.define_metric(f"{prefix}/*", step_metric=AXIS[kind])
        for prefix in CURVES:
            self._run.define_metric(f"{prefix}/*", step_metric="experience")

    def _opened(self, named: Mapping[str, Any], identity: Mapping[str, Any], group: str | None) -> wandb.Run:
        import wandb

        mode = self.mode
        if mode == "online" and not reachable():
            _log.warning("wandb cannot be reached, so this run is written offline; wandb sync sends it later")
            mode = "offline"
        words = [str(named[key]) for key in ("method", "stream_name", "budget_words")]
        family, seed = " ".join(words), f"seed {named['seed']}"
        try:
            with quick_start(mode == "offline"):
                return wandb.init(
                    project=self.project,
                    entity=self.entity,
                    group=_short(self.group or group or family),
                    job_type=_short(named["method"]),
                    name=_short(f"{family} {seed}"),
                    tags=[*self.tags, *(text[:64] for text in (*words, seed))],
                    id=self.id,
                    resume="allow",
                    config={**plain(without_secrets(identity)), **plain(named), "sweep": self.group or group},
                    dir=str(self._dir),
                    mode=mode,
                    reinit="create_new",
                    settings=_settings(mode),
                )
        except Exception as error:  # wandb has its own tree of errors, none of which training should know
            other = "disabled" if mode == "offline" else "offline"
            raise ConfigError(f"logger: wandb cannot start ({error}); mend it, or use logger.mode={other}") from error

    def log(self, kind: LogKind, values: LogValues, axes: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if self._run is not None and (kind == "boundary" or now - self._last.get(kind, -_EVERY) >= _EVERY):
            self._last[kind] = now
            named = {f"{PREFIX[kind]}/{name}": value for name, value in values.items() if value is not None}
            where = {"experience": axes.get("experience"), "opt_step": axes.get("step"), "epoch": axes.get("epoch")}
            self._run.log(named | {axis: value for axis, value in where.items() if value is not None})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if self._run is not None:
            self._run.log({name: _table(columns, rows)})

    def show(self, panels: Sequence[Panel], final: bool) -> None:
        if self._run is None:
            return
        import wandb

        for experience, values in new_points(panels, self._sent).items():
            native = {name: wandb.Image(value) if np.ndim(value) else value for name, value in values.items()}
            self._run.log({**native, "experience": experience})
        tables = [panel for panel in panels if final and isinstance(panel, Table)]
        whole = {f"tables/{table.name}": _table(table.columns, table.rows) for table in tables}
        charts = {f"charts/{table.name}": chart for table in tables if (chart := _chart(table)) is not None}
        if whole:
            self._run.log({**whole, **charts})

    def finish(self, status: str) -> None:
        if self._run is not None:
            self._run.summary["status"] = status
            self._keep_record()
            self._run.finish(exit_code=0 if status == "finished" else 1)
            self._run = None

    def _keep_record(self) -> None:
        """The record and, where one was written into the folder, the page of the run, as an artifact."""
        import wandb

        assert self._run is not None
        found = [path for name in (RECORD, PAGE) if (path := self._dir / name).exists()]
        if found:
            artifact = wandb.Artifact(f"record-{self.id}", type="record")
            for path in found:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> wandb.Table:
    import wandb

    return wandb.Table(columns=list(columns), data=plain([list(row) for row in rows]))


def _chart(table: Table) -> Any:
    """The table drawn by wandb; None where its curves say it already, or there is too much to be drawn."""
    import wandb

    if table.chart == "rows":
        lines = {str(name): _known(table.columns[1:], values) for name, *values in table.rows[:_LINES]}
        lines = {name: points for name, points in lines.items() if points}
        xs, ys = ([[point[axis] for point in points] for points in lines.values()] for axis in (0, 1))
        return wandb.plot.line_series(xs, ys, keys=[*lines], title=table.name, xname="experience") if lines else None
    if table.chart == "confusion" and len(table.rows) <= _CELLS:
        columns = ["Actual", "Predicted", "nPredictions"]
        fields = {name: name for name in columns}
        return wandb.plot_table("wandb/confusion_matrix/v1", _table(columns, table.rows), fields, {"title": table.name})
    return None


def _known(names: Sequence[str], values: Sequence[Any]) -> list[tuple[int, Any]]:
    return [(int(name), value) for name, value in zip(names, values, strict=True) if value is not None]


def _settings(mode: str) -> wandb.Settings:
    import wandb

    limits: dict[str, Any] = {"init_timeout": _INIT_SECONDS}
    if "finish_timeout" in wandb.Settings.model_fields:  # newer versions
        limits["finish_timeout"] = _FINISH_SECONDS
    own: dict[str, Any] = {"console": "off", "disable_git": True, "x_disable_stats": True}
    own["x_save_requirements"] = False  # reads every installed package; the versions that matter are in the identity
    return wandb.Settings(silent=mode == "offline", **own, **limits)


def _short(text: str) -> str:
    return text[:128]  # what wandb allows of a name, a group; of a tag 64


def _kept_id(run_dir: Path) -> str:
    path = Path(run_dir) / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


@contextmanager
def quick_start(offline: bool) -> Iterator[None]:
    """Start wandb inside of this. Left out, each where this version of wandb has it:

    * inputs of its job launcher, whose package is imported for every run. A process that uses the launcher has imported
      it already, and keeps it;
    * pandas, imported to ask whether a table is a data frame; wandb then goes by the name of the type;
    * offline: reports of its own use and errors, for which a thread asks the server.
    """
    import wandb

    if hasattr(wandb.util, "pd_available") and "pandas" not in sys.modules:
        wandb.util.pd_available = False
    if offline:
        disable = getattr(sys.modules.get("wandb.analytics.opentelemetry.opentelemetry_proxy"), "disable", None)
        if disable is not None:
            disable()
    inputs = "_detect_and_apply_job_inputs"
    original = getattr(wandb.Run, inputs, None)
    if "wandb.sdk.launch" in sys.modules or original is None:
        yield
        return
    setattr(wandb.Run, inputs, lambda run: None)
    try:
        yield
    finally:
        setattr(wandb.Run, inputs, original)
