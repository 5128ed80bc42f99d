"""A workspace or a report of wandb for a sweep, with ``wandb-workspaces`` (the extra ``cil[dashboards]``).

Both are built without a server and are plain data; only ``saved`` sends them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cil.errors import ConfigError
from cil.report.runs import RunSummary, dig
from cil.tracking import Record
from cil.tracking.labels import labels

GROUPS = ("stream_name", "budget_words", "method")  # runs that differ in their seeds alone are one line
EXTRA = "pip install 'cil[dashboards]'"
ALWAYS = ("accuracy", "average_incremental_accuracy", "forgetting", "carried_bytes")
_IDENTIFIER = "wandb_id"  # file in the folder of a run


@dataclass(frozen=True)
class Sweep:
    """What a dashboard shows of some runs.

    Attributes:
        streams: Identifiers of the runs at wandb, by stream; empty: all runs of the project.
        scores: Names of values at boundaries.
        kinds: Kinds of carried bytes.
    """

    streams: Mapping[str, Sequence[str]] = field(default_factory=dict)
    scores: tuple[str, ...] = ALWAYS
    kinds: tuple[str, ...] = ("total",)

    @property
    def ids(self) -> list[str]:
        return [one for ids in self.streams.values() for one in ids]


def sweep_of(records: Sequence[Record]) -> Sweep:
    """The sweep of these records.

    Raises:
        ConfigError: where none of them was logged to wandb.
    """
    streams, scores, kinds = dict[str, list[str]](), dict[str, None](), dict[str, None]()
    for record in records:
        path = record.directory / _IDENTIFIER
        if path.exists():
            stream = labels(record.identity, RunSummary(record).learner)["stream_name"]
            streams.setdefault(stream, []).append(path.read_text().strip())
            lines = (line["values"] for line in record.lines() if line["kind"] == "boundary")
            scores |= dict.fromkeys(name for values in lines for name in values)
            kinds |= dict.fromkeys(dig(record.results, "ledger", -1, "totals", "exact") or {})
    if not streams:
        raise ConfigError(f"none of these {len(records)} runs was logged to wandb: run them with logger=wandb")
    return Sweep(streams, tuple(scores), tuple(kinds))


def workspace(sweep: Sweep, project: str, entity: str, name: str) -> Any:
    """A workspace: results, memory, tables and training, a line for each stream, budget and method.

    Raises:
        ConfigError: where ``wandb-workspaces`` is missing.
    """
    ws, _ = _packages()
    shown = ws.RunsetSettings(filters=_only(ws, sweep.ids), groupby=[ws.Config(key) for key in GROUPS])
    parts = [ws.Section(name=title, panels=panels, is_open=True) for title, panels in _sections(sweep)]
    return ws.Workspace(entity=entity, project=project, name=name, sections=parts, runset_settings=shown)


def report(sweep: Sweep, project: str, entity: str, name: str) -> Any:
    """A report: the same panels for each stream, with its runs alone; it raises what ``workspace`` does."""
    ws, wr = _packages()
    blocks: list[Any] = [wr.TableOfContents()]
    for stream, ids in (sweep.streams or {project: []}).items():
        blocks.append(wr.H1(text=stream))
        for title, panels in _sections(sweep):
            runs = wr.Runset(filters=_only(ws, ids), groupby=[f"config.{key}" for key in GROUPS])  # of this project
            blocks += [wr.H2(text=title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(project=project, entity=entity, title=name, blocks=blocks, width="fluid")


def as_json(built: Any) -> Any:
    """What would be sent, as plain data."""
    return json.loads(built._to_model().model_dump_json(by_alias=True))


def saved(built: Any) -> str:
    """Send it; its address. The one function that needs a server."""
    sent = built.save()
    return str(getattr(built, "url", None) or getattr(sent, "url", ""))


def _only(ws: Any, ids: Sequence[str]) -> list[Any]:
    return [ws.Metric("ID").isin(list(ids))] if ids else []


def _sections(sweep: Sweep) -> list[tuple[str, list[Any]]]:
    """Titles and fresh panels; each is laid out two or three in a row."""
    _, wr = _packages()
    plot = partial(wr.LinePlot, groupby_aggfunc="mean", groupby_rangefunc="stddev")  # of a group of runs
    over, trained = partial(plot, x="experience"), partial(plot, x="opt_step")
    of_score = [over(title=name.replace("_", " "), y=[f"eval/{name}"]) for name in sweep.scores]
    bytes_of = [over(title=f"bytes of {kind}", y=[f"ledger/{kind}"]) for kind in sweep.kinds]
    tables = ("accuracy_matrix", "class_accuracy", "confusion", "ledger")
    of_tables = [wr.WeavePanelSummaryTable(table_name=f"tables/{name}") for name in tables]
    losses = [trained(title="loss", y=["train/loss"]), trained(title="loss of epochs", y=["epoch/loss"])]
    last = [wr.BarPlot(title=f"last {name.replace('_', ' ')}", metrics=[f"eval/{name}"]) for name in sweep.scores[:1]]
    return [
        ("Results", _laid_out(wr, [*of_score, *last])),
        ("Memory", _laid_out(wr, [*bytes_of, over(title="exemplars", y=["spent/exemplars"])])),
        ("Tables", _laid_out(wr, [*of_tables, wr.MediaBrowser(title="confusion", media_keys=["pictures/confusion"])])),
        ("Training", _laid_out(wr, losses)),
    ]


def _laid_out(wr: Any, panels: list[Any]) -> list[Any]:
    """Three in a row of 24 columns."""
    for number, panel in enumerate(panels):
        panel.layout = wr.Layout(x=8 * (number % 3), y=6 * (number // 3), w=8, h=6)
    return panels


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(f"cil dashboard needs wandb-workspaces: {EXTRA}") from error
    return workspaces, reports
