"""From a composed configuration to a run: the last place that sees a configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cil.api import networks, plan
from cil.cli.compose import Job, compose
from cil.cli.environment import threads_of
from cil.cli.names import key_of
from cil.engine.adaptation import AdaptationRun
from cil.engine.anytime import Anytime
from cil.engine.dryrun import Bill, dry_run
from cil.engine.recipe import Recipe
from cil.engine.run import Run
from cil.errors import ConfigError
from cil.memory import Budget
from cil.streams import Stream, stream_builder
from cil.streams.shifts import ShiftStream
from cil.targets import PARTIAL, TARGET, check_arguments, made, resolve

NOT_IDENTITY = ("run_dir", "data_root", "logger", "progress", "tune")
TERMS = ("convention", "reserve", "scope", "enforce", "training_bytes", "flops", "updates")  # of a budget of any kind
_streams: dict[str, Stream | ShiftStream] = {}
_targets: dict[str, list[Bill]] = {}


def build(
    job: Job, *, jobs: int = 1, root: str | Path = "runs", stream: Stream | ShiftStream | None = None, **changes: Any
) -> Run | AdaptationRun:
    """Build a run, of a strategy or of an adapter.

    Args:
        job: The composed configuration.
        jobs: Runs that share the machine; sets the threads of each.
        root: Where the run's folder is made, unless ``run_dir`` says.
        stream: In place of the configured one, for a strategy.
        changes: Of ``cil.api.plan``, or of ``cil.adaptation.plan_adaptation``.

    Raises:
        CilError: for whatever is wrong with it, in one line that names the key.
    """
    config = job.config
    if config.get("adapter"):
        from cil.cli.adaptation import build_adaptation

        return build_adaptation(job, jobs=jobs, root=root, **changes)
    if config["budget"]["points"]:
        raise ConfigError("budget.points is a list of budgets for cil compare; cil run has one, as budget.exemplars")
    strategy = _strategy(config["strategy"])
    stream = stream or build_stream(config)
    if isinstance(stream, ShiftStream):
        raise ConfigError(
            f"stream '{stream.name}' has images that shift and no classes that arrive: choose an adapter for it, as in "
            f"adapter=tent, or a class-incremental stream for strategy={job.choices['strategy']}"
        )
    trainer = config["trainer"]
    options: dict[str, Any] = {
        "name": job.choices["strategy"] if ":" not in job.choices["strategy"] else None,
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
        "evaluation_batch": trainer["evaluation_batch"],
        "anytime": Anytime(**config["anytime"]) if config["anytime"]["every"] is not None else None,
    }
    budget = _budget(job, stream)
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    terms = {key: config["budget"][key] for key in ("kind", "exemplars", *TERMS, "at", "to")}
    if config["budget"]["kind"] == "aligned":
        terms["to_model"] = _target_model(job)["name"]
    facts = {"config": kept, "budget": {**terms, "limits": None if budget.limits is None else list(budget.limits)}}
    facts |= changes.pop("facts", {})
    return plan(strategy, stream, _model(config["model"]), budget, facts=facts, **options | changes)


def build_stream(config: Mapping[str, Any]) -> Stream | ShiftStream:
    """The stream; the same configuration is loaded once in a process, and shared with those forked from it."""
    given = {key: value for key, value in config["stream"].items() if key not in ("builder", TARGET, PARTIAL)}
    named = config["stream"].get("builder")
    target = config["stream"].get(TARGET)
    call = stream_builder(named) if named else resolve(target, f"stream.{TARGET}")
    check_arguments(call, given, "stream")
    if "root" in inspect.signature(call).parameters:
        given.setdefault("root", config["data_root"])
    key = json.dumps([named or target, given], sort_keys=True)
    if key not in _streams:
        stream = call(**made(given, "stream"))
        if not isinstance(stream, Stream | ShiftStream):
            raise ConfigError(f"stream={named or target} made a {type(stream).__name__}, not a Stream")
        _streams[key] = stream
    return _streams[key]


def _strategy(given: Mapping[str, Any]) -> Any:
    """A partial of the class that waits for networks and budget."""
    return made({**given, PARTIAL: True}, "strategy")


def _model(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or "name" not in given:
        raise ConfigError("model.name is missing; choose a file of the group, as in model=resnet32")
    check_arguments(networks, given, "model")
    return dict(given)


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    """Optimizer and schedule are tried once on a parameter of their own, so that they are refused here."""
    trainer = config["trainer"]
    optimizer = made({**_without_nulls(config["optimizer"]), PARTIAL: True}, "optimizer")
    scheduler = made({**_without_nulls(config["scheduler"]), PARTIAL: True}, "scheduler")
    try:
        tried = optimizer([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}; see the keys optimizer.*") from error
    try:
        scheduler(tried, trainer["epochs"])
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"scheduler: {error}; see the keys scheduler.*") from error
    first = {key: value for key, value in trainer["first"].items() if value is not None}
    names = ("epochs", "batch_size", "max_steps", "clip_norm", "accumulate", "updates_per_batch", "complexity")
    more = ("snapshot_minutes", "snapshot_steps", "log_every")
    return Recipe(
        optimizer=optimizer, scheduler=scheduler, first=first, **{name: trainer[name] for name in (*names, *more)}
    )


def _without_nulls(section: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of by_strategy/ changes the target of a section, and takes out keys of the other one by null."""
    return {key: value for key, value in section.items() if value is not None}


# budgets ------------------------------------------------------------------------------------------------------------


def _budget(job: Job, stream: Stream) -> Budget:
    """The budget that the run is held to, in exemplars or bytes."""
    given = job.config["budget"]
    terms = {key: given[key] for key in TERMS}
    if given["kind"] == "none":
        return Budget(**terms)
    if given["kind"] == "exemplars":
        return Budget(exemplars=given["exemplars"], **terms)
    if given["kind"] == "bytes":
        limits = given["limit"] if isinstance(given["limit"], list) else [given["limit"]]
        if given["at"] == "each" and len(limits) != len(stream):
            raise ConfigError(
                f"budget.limit has {len(limits)} numbers; stream '{stream.name}' has {len(stream)} experiences"
            )
        return Budget(limits=limits, **terms)
    return Budget(limits=_aligned_limits(job, stream), **terms)


def _aligned_limits(job: Job, stream: Stream) -> list[int]:
    """Bytes of the strategy ``budget.to`` with ``budget.exemplars`` exemplars and its own defaults, by a dry run."""
    given, convention = job.config["budget"], job.config["budget"]["convention"]
    found = _target_bills(job, stream)
    totals = [bill.total[convention] for bill in found]
    if convention == "survey":  # the nominal number of exemplars, whole quotas or not
        pixels = stream.image_shape[0] * stream.image_shape[1] * stream.image_shape[2]
        totals = [bill.fixed["survey"] + (given["exemplars"] * pixels if bill.exemplars else 0) for bill in found]
    return totals if given["at"] == "each" else totals[-1:]


def _target_bills(job: Job, stream: Stream) -> list[Bill]:
    name = job.config["budget"]["to"]
    try:
        target = compose([f"strategy={name}"]).config["strategy"]
    except ConfigError as error:
        raise ConfigError(f"budget.to={name}: {error}") from error
    make = _strategy(target)
    if make.func.bound:
        raise ConfigError(f"budget.to={name} is a bound that keeps all data; align to a strategy that competes")
    model, exemplars = _model(_target_model(job)), job.config["budget"]["exemplars"]
    key = json.dumps([target, model, exemplars, stream.fingerprint], sort_keys=True)
    if key not in _targets:
        nets = networks(stream.image_shape, **model)
        _targets[key] = dry_run(make, partial(nets, seed=0, meta=True), stream.signatures, Budget(exemplars=exemplars))
    return _targets[key]


def _target_model(job: Job) -> Mapping[str, Any]:
    """The model that ``budget.to`` has in this setting: the file of the run's own strategy may ask for another one."""
    others = [item for item in job.overrides if key_of(item).partition(".")[0] != "strategy"]
    return compose([*others, f"strategy={job.config['budget']['to']}"]).config["model"]
