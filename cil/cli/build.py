"""From a composed configuration to a run: the last place that sees a configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cil.api import MakeStrategy, networks, with_limits
from cil.cli.cases import EVERY
from cil.cli.compose import CLASS, compose, import_from_here
from cil.cli.composition import own_data
from cil.cli.environment import threads_of
from cil.cli.job import Job
from cil.cli.names import key_of
from cil.data import Dataset, data_root, dataset_names, dataset_options, load_dataset
from cil.engine.driver import Run
from cil.engine.options import RunOptions
from cil.engine.recipe import Recipe
from cil.errors import ConfigError
from cil.kinds.command_line import commands_for
from cil.memory import Budget
from cil.streams import Stream, stream_builder
from cil.streams.shifts import ShiftStream
from cil.targets import PARTIAL, TARGET, check_arguments, made, resolve
from cil.tracking import Record
from cil.values import check_value

# of any budget
TERMS = (
    "convention", "reserve", "scope", "enforce", "side_bytes", "training_bytes", "flops", "updates", "caps", "fit",
)  # fmt: skip
_streams: dict[str, Any] = {}  # of data that do not change
_data: dict[tuple[str, Path], Dataset] = {}  # what these streams share
_limits: dict[str, Sequence[int] | None] = {}
OF_A_DATA_SET = ("class_incremental", "blurry")  # builders that take one that is loaded


def run(*overrides: str) -> Record:
    """Run what ``cil run`` would run with these overrides; Ctrl-C and errors are Python's.

    >>> run("stream=split_digits", "trainer.epochs=1").results["last_accuracy"]  # doctest: +SKIP
    61.3
    """
    return build(compose(overrides)).execute()


def build(
    job: Job,
    *,
    jobs: int = 1,
    root: str | Path = "runs",
    stream: Stream | ShiftStream | None = None,
    facts: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Run:
    """Build a run of any kind.

    Args:
        job: The composed configuration.
        jobs: Runs that share the machine; sets the threads of each.
        root: Where the run's folder is made, unless ``run_dir`` says.
        stream: In place of the configured one.
        facts: Further facts of the identity.
        changes: Fields of ``RunOptions``, in place of what is configured.

    Raises:
        CilError: for whatever is wrong with it, in one line that names the key.
    """
    stream = stream or build_stream(job.config)
    threads = job.config["trainer"]["threads"] or max(1, threads_of(jobs) // job.config["trainer"]["devices"])
    given = {"root": root, "threads": threads, "command": job.command, **changes}
    options = RunOptions.from_config(job.config, **given)
    scale = {"scale": job.scale} if job.scale else {}
    return commands_for(job, stream).build(job, stream, options, {**scale, **(facts or {})})


def build_stream(config: Mapping[str, Any]) -> Stream | ShiftStream:
    """The stream; the same configuration is loaded once in a process, and shared with those forked from it.

    Of files that a user names it is loaded once in a command: they may be others in the next.
    """
    given = {key: value for key, value in config["stream"].items() if key not in ("builder", TARGET, PARTIAL)}
    if not (config["stream"].get("builder") or config["stream"].get(TARGET)):
        raise ConfigError("stream.builder is null; choose a file of the group, as in stream=NAME")
    named = config["stream"].get("builder")
    target = config["stream"].get(TARGET)
    call = stream_builder(named) if named else resolve(target, f"stream.{TARGET}")
    check_arguments(call, given, "stream")
    if "root" in inspect.signature(call).parameters:
        given.setdefault("root", config["data_root"])
    if any(CLASS.search(str(given.get(name) or "")) for name in ("dataset", "benchmark")):  # module:function
        import_from_here()
    key = json.dumps([named or target, given], sort_keys=True)
    texts = [str(given.get(name) or "") for name in ("manifest", "dataset", "benchmark")]
    names_files = bool(given.get("path")) or any(mark in text for text in texts for mark in "/.:")
    known = own_data() if names_files else _streams
    if key not in known:
        stream = call(**made(given, "stream") | (_shared_data(given) if named in OF_A_DATA_SET else {}))
        if not hasattr(stream, "kind"):
            raise ConfigError(f"stream={named or target} made a {type(stream).__name__}, not a Stream")
        known[key] = stream
    built: Stream | ShiftStream = known[key]
    return built


def _shared_data(given: Mapping[str, Any]) -> dict[str, Dataset]:
    """A data set that has no options of its own, loaded once in a process however it is split; empty for others."""
    name = given.get("dataset")
    if not isinstance(name, str) or name not in dataset_names() or dataset_options(name):
        return {}
    key = (name, data_root(given.get("root")))
    if key not in _data:
        _data[key] = load_dataset(name, key[1])
    return {"dataset": _data[key]}


def method_of(config: Mapping[str, Any], group: str) -> Any:
    """The method of a group, ``strategy`` or ``adapter``: a partial of its class with its hyperparameters."""
    return made({**config[group], PARTIAL: True}, group)


def model_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model as ``cil.api.networks`` takes it."""
    given = config["model"]
    if not isinstance(given, Mapping) or "name" not in given:
        raise ConfigError("model.name is missing; choose a file of the group, as in model=resnet32")
    check_arguments(networks, given, "model")
    return dict(given)


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    trainer = config["trainer"]
    for key in ("optimizer.lr", "optimizer.weight_decay"):  # null takes out other keys, see below
        section, _, name = key.partition(".")
        check_value(key, config[section].get(name, 0))
    optimizer = made({**_without_nulls(config["optimizer"]), PARTIAL: True}, "optimizer")
    scheduler = made({**_without_nulls(config["scheduler"]), PARTIAL: True}, "scheduler")
    first = {key: value for key, value in trainer["first"].items() if value is not None}
    names = ("epochs", "batch_size", "max_steps", "clip_norm", "accumulate", "updates_per_batch", "complexity")
    more = ("snapshot_minutes", "snapshot_steps", "log_every", "looks", "schedule_by")
    return Recipe(
        optimizer=optimizer, scheduler=scheduler, first=first, **{name: trainer[name] for name in (*names, *more)}
    )


def _without_nulls(section: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of by_strategy/ changes the target of a section, and takes out keys of the other one by null."""
    return {key: value for key, value in section.items() if value is not None or key == TARGET}


# budgets ------------------------------------------------------------------------------------------------------------


def budget_of(job: Job, stream: Stream) -> Budget:
    """The budget that a strategy is held to, in exemplars or bytes."""
    given = job.config["budget"]
    if given["points"]:
        raise ConfigError("budget.points is a list of budgets for cil compare; cil run has one, as budget.exemplars")
    if job.config["point"] == EVERY:
        raise ConfigError("point is all: cil compare makes a run for each; here name one, as point=1")
    terms = {key: given[key] for key in TERMS}
    if given["kind"] == "none":
        return Budget(**terms)
    if given["kind"] in ("exemplars", "per_class"):
        return Budget(**{given["kind"]: given[given["kind"]]}, **terms)
    if given["kind"] == "aligned":
        return _aligned_budget(job, stream, terms)
    limits = given["limit"] if isinstance(given["limit"], list) else [given["limit"]]
    if given["at"] == "each" and len(limits) != len(stream):
        raise ConfigError(
            f"budget.limit has {len(limits)} numbers; stream '{stream.name}' has {len(stream)} experiences"
        )
    return Budget(limits=limits, **terms)


def _aligned_budget(job: Job, stream: Stream, terms: Mapping[str, Any]) -> Budget:
    """The bytes of ``budget.to`` with its own defaults; one dry run in a process, as many runs share it.

    Its model is that of this setting: the file of the run's own strategy may ask for another one.
    """
    given = job.config["budget"]
    name = given["to"]
    try:
        to: MakeStrategy = method_of(compose([f"strategy={name}"]).config, "strategy")
    except ConfigError as error:
        raise ConfigError(f"budget.to={name}: {error}") from error
    others = [item for item in job.overrides if key_of(item).partition(".")[0] != "strategy"]
    model = model_of(compose([*others, f"strategy={name}"]).config)
    budget = Budget.aligned(to, given["exemplars"], model=model, each=given["at"] == "each", **terms)
    key = json.dumps([name, budget.description(), model, stream.fingerprint], sort_keys=True)
    if key not in _limits:
        _limits[key] = with_limits(budget, stream, model).limits
    return replace(budget, limits=_limits[key])
