"""Adaptation runs on the command line: from a composed configuration to a run, and what came out as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli.names import key_of
from cil.errors import ConfigError
from cil.targets import PARTIAL, made

if TYPE_CHECKING:
    from cil.cli.compose import Job
    from cil.engine.adaptation import AdaptationRun
    from cil.tracking import Record

IDENTITY = ("adapter", "adaptation", "stream", "seed", "device", "boundary", "checkpoint")  # keys that every run has
OF_SOURCE = ("trainer", "optimizer", "scheduler")  # matter where an adapter is trained on source data
WIDTH = 50


def build_adaptation(job: Job, *, jobs: int = 1, root: str | Path = "runs", **changes: Any) -> AdaptationRun:
    """Build a run of ``adapter=NAME``.

    Args:
        job, jobs, root: As of ``cil.cli.build.build``.
        changes: Of ``cil.adaptation.plan_adaptation``.

    Raises:
        CilError: for whatever is wrong with it, in one line that names the key.
    """
    from cil.adaptation import plan_adaptation
    from cil.cli.build import build_stream, recipe_of
    from cil.cli.environment import threads_of
    from cil.engine.adapter_steps import AdapterSteps, admission
    from cil.memory import Budget

    config, trainer = job.config, job.config["trainer"]
    _refuse_strategies(job)
    adapter = made({**config["adapter"], PARTIAL: True}, "adapter")
    refuse_unread(job, adapter.func)
    stream: Any = build_stream(config)
    keys = (*IDENTITY, *(OF_SOURCE if adapter.func.needs_source else ()), *(() if config["source"] else ("model",)))
    options: dict[str, Any] = {
        "name": job.choices["adapter"] if ":" not in job.choices["adapter"] else None,
        "batch_size": config["adaptation"]["batch_size"],
        "clean": config["adaptation"]["clean"],
        "recipe": recipe_of(config),
        "seed": config["seed"],
        "run_dir": config["run_dir"],
        "root": root,
        "device": config["device"],
        "precision": trainer["precision"],
        "threads": trainer["threads"] or threads_of(jobs),
        "loggers": config["logger"],
        "progress": config["progress"] is not False,
        "keep": config["checkpoint"]["keep"],
        "boundary": config["boundary"],
        "command": job.command,
        "facts": {"config": {key: config[key] for key in keys}},
    }
    run = plan_adaptation(stream, adapter, config["source"] or config["model"], **options | changes)
    if config["budget"]["training_bytes"] is not None:
        terms = {key: config["budget"][key] for key in ("training_bytes", "enforce")}
        steps = AdapterSteps(run.make_adapter, run.make_source, run.name, run.recipe, run.runtime.precision, run.seed)
        run.admit = admission(Budget(**terms), steps, source_key=_batch_keys(job)[-1])
    return run


def _batch_keys(job: Job) -> list[str]:
    """Keys of the adapter that say how many images of the source data a batch has; else the trainer's."""
    own = [f"adapter.{key}" for key in job.config["adapter"] if "batch" in key]
    return own or ["trainer.batch_size"]


def refuse_unread(job: Job, kind: Any) -> None:
    """Refuse ``trainer.batch_size`` where no step of the adapter ``kind`` is of so many images."""
    keys = _batch_keys(job)
    if kind.needs_source and keys == ["trainer.batch_size"]:
        return
    for item in job.overrides:
        if key_of(item) in ("trainer.batch_size", "trainer.first.batch_size"):
            more = f", source images in {keys[-1]}" if kind.needs_source else ""
            raise ConfigError(
                f"{item} is read by no step of adapter={job.choices['adapter']}: test images come in "
                f"adaptation.batch_size{more}"
            )


def _refuse_strategies(job: Job) -> None:
    """What is said of a strategy would be read by nobody, but for the class of the run that is adapted."""
    for item in job.overrides:
        key = key_of(item)
        if key.partition(".")[0] == "strategy" and not (key == "strategy" and ":" in item):
            raise ConfigError(
                f"{item} with adapter={job.choices['adapter']}: an adaptation run has no strategy; source=RUN_DIR "
                f"names a finished run of one (strategy=module:Class its class, where that is not registered)"
            )


def bill(run: AdaptationRun) -> str:
    """What a fresh adapter carries, in a few lines; nothing is adapted."""
    ledger = run.carried()
    return "\n".join(
        [
            f"{run.name} on {run.identity['source']['name']}, batches of {run.batch_size} from {run.stream.name}",
            f"  carries {ledger.total():,} bytes: {ledger.describe()}",
        ]
    )


def summary(record: Record, note: str = "") -> str:
    """What came out, in a few lines."""
    identity, results = record.identity, record.results
    kinds = results["ledger"][-1]["totals"]
    clean = [results[f"clean_error_{when}"] for when in ("before", "after")]
    said = f"   clean {percent(clean[0])} before, {percent(clean[1])} after" if None not in clean else ""
    peak, per_batch = results["peak_training_bytes"], results["seconds"]["per_batch"]
    time = "" if per_batch is None else f"; {per_batch:.3f} s a batch"
    return "\n".join(
        [
            f"{identity['adapter']} on {identity['source']['name']}, {identity['stream']['name']}, seed "
            f"{identity['seed']}: {record.status}{note}",
            f"  online error (%): {_by_domain(identity['stream']['domains'], results['domain_errors'])}",
            f"  mean over domains {percent(results['mean_error'])}{said}",
            f"  carries {kinds['exact']['total']:,} bytes; {peak or 0:,} with what an update holds besides{time};"
            f" {results['seconds']['total']:.0f} s",
            f"  record: {record.directory}",
        ]
    )


def curve(record: Record) -> str:
    """Bars of the error over time, a line for each segment of the stream."""
    errors, names = record.results.get("segment_errors"), record.identity["stream"]["segments"]
    if not errors:
        why = f": {record.error}" if record.error else ""
        return f"{record.directory}: {record.status}, no segment was met{why}"
    wide = max(map(len, names))
    lines = [f"{record.identity['adapter']} on {record.identity['stream']['name']}: {record.status}", ""]
    lines += ["online error of each segment, in order of arrival"]
    for name, value in zip(names, errors, strict=False):
        lines.append(f"{name.rjust(wide)} |{('#' * round(WIDTH * value / 100)).ljust(WIDTH)}| {value:.1f} %")
    lines += ["", f"mean over domains {percent(record.results['mean_error'])}"]
    return "\n".join(lines)


def _by_domain(domains: Any, errors: Any) -> str:
    pairs: Mapping[str, Any] = dict(zip(domains, errors, strict=True))
    return "  ".join(f"{name} {'-' if value is None else f'{value:.1f}'}" for name, value in pairs.items())


def percent(value: float | None) -> str:
    """
    >>> percent(12.345), percent(None)
    ('12.35 %', '-')
    """
    return "-" if value is None else f"{value:.2f} %"
