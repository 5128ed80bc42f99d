"""The command line of adaptation runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cil.cli.formats import bar, data_of, percent
from cil.cli.names import key_of
from cil.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from cil.adapt import SourceModel
    from cil.cli.job import Job
    from cil.engine.driver import Run
    from cil.engine.options import RunOptions
    from cil.kinds.adaptation.steps import AdapterSteps
    from cil.kinds.adaptation.work import AdaptationWork
    from cil.memory.training_memory import TrainingMemory
    from cil.tracking import Record

IDENTITY = ("adapter", "adaptation", "stream", "seed", "device", "boundary", "checkpoint")  # keys that every run has
OF_SOURCE = ("trainer", "optimizer", "scheduler")  # matter where an adapter is trained on source data


class AdaptationCommands:
    """Commands of an adapter; see ``cil.kinds.command_line``."""

    def build(self, job: Job, stream: Any, options: RunOptions, facts: Mapping[str, Any]) -> Run:
        from cil.adaptation import plan_adaptation
        from cil.cli.build import method_of, recipe_of
        from cil.memory import Budget

        config = job.config
        _refuse_strategies(job)
        adapter = method_of(config, "adapter")
        _refuse_unread(job, adapter.func)
        keys = (*IDENTITY, *(OF_SOURCE if adapter.func.needs_source else ()), *(() if config["source"] else ("model",)))
        return plan_adaptation(
            stream, adapter, config["source"] or config["model"], **config["adaptation"], recipe=recipe_of(config),
            budget=Budget(**{key: config["budget"][key] for key in ("training_bytes", "enforce")}), name=job.name,
            facts={"config": {key: config[key] for key in keys}, **facts}, options=options,
        )  # fmt: skip

    def bill(self, run: Run) -> str:
        work = _work(run)
        ledger = work.carried()
        return (
            f"{run.name} on {run.identity['source']['name']}, batches of {work.batch_size} from {work.stream.name}\n"
            f"  carries {ledger.total():,} bytes: {ledger.describe()}"
        )

    def memory(self, job: Job, stream: Any, experience: int | None) -> tuple[str, Sequence[TrainingMemory]]:
        """Of an adapter that is trained on source data before it is deployed, also the largest step there."""
        from cil.streams.known_shapes import without_images

        if experience is not None:
            raise ConfigError("--experience is for strategies; an adapter's update is the same everywhere")
        config = job.config
        if not any(item.lstrip("+~").startswith(("stream", "experiment")) for item in job.overrides):
            stream = without_images({"builder": "corrupted", "dataset": "cifar10"})
        steps, source = _steps(job, stream), config["source"] or config["model"]["name"]
        found = [steps.at(config["adaptation"]["batch_size"]), steps.source_phases()]
        label = f"{job.method} on {source}, images {stream.image_shape} of {len(stream.classes)} classes"
        return label, [memory for memory in found if memory is not None]

    # texts ----------------------------------------------------------------------------------------------------------

    def summary(self, record: Record, note: str = "") -> str:
        identity, results = record.identity, record.results
        source, stream = identity["source"]["name"], identity["stream"]
        kinds = results["ledger"][-1]["totals"]
        errors = zip(stream["domains"], results["domain_errors"], strict=True)
        by_domain = "  ".join(f"{name} {'-' if value is None else f'{value:.1f}'}" for name, value in errors)
        before, after = results["clean_error_before"], results["clean_error_after"]
        clean = "" if None in (before, after) else f"   clean {percent(before)} before, {percent(after)} after"
        peak, per_batch = results["peak_training_bytes"], results["seconds"]["per_batch"]
        time = "" if per_batch is None else f"; {per_batch:.3f} s a batch"
        return "\n".join(
            [
                f"{identity['adapter']} on {source}, {stream['name']}, seed {identity['seed']}: {record.status}{note}",
                f"  online error (%): {by_domain}",
                f"  mean over domains {percent(results['mean_error'])}{clean}",
                f"  carries {kinds['exact']['total']:,} bytes; {peak or 0:,} with what an update holds besides{time};"
                f" {results['seconds']['total']:.0f} s",
                f"  record: {record.directory}",
            ]
        )

    def curve(self, record: Record) -> str:
        errors, names = record.results.get("segment_errors"), record.identity["stream"]["segments"]
        if not errors:
            why = f": {record.error}" if record.error else ""
            return f"{record.directory}: {record.status}, no segment was met{why}"
        wide = max(map(len, names))
        lines = [f"{record.identity['adapter']} on {record.identity['stream']['name']}: {record.status}", ""]
        lines += ["online error of each segment, in order of arrival"]
        lines += [bar(name.rjust(wide), value) for name, value in zip(names, errors, strict=False)]
        return "\n".join([*lines, "", f"mean over domains {percent(record.results['mean_error'])}"])

    def stream_lines(self, stream: Any) -> list[str]:
        counts = [segment.count for segment in stream.segments]
        least, most = min(counts), max(counts)
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return [
            f"{stream.name}: {len(stream)} segments of {each} images, {sum(counts):,} in all, {stream.image_shape}",
            f"{data_of(stream)}; domains {', '.join(stream.domains)}",
        ]


def _work(run: Run) -> AdaptationWork:
    from cil.kinds.adaptation.work import AdaptationWork

    assert isinstance(run.work, AdaptationWork)
    return run.work


def _refuse_unread(job: Job, adapter: Any) -> None:
    """Refuse ``trainer.batch_size`` where no step of the adapter is of so many images."""
    from cil.adaptation import source_batch_keys

    keys = source_batch_keys(adapter)
    if adapter.needs_source and keys == ["trainer.batch_size"]:
        return
    for item in job.overrides:
        if key_of(item) in ("trainer.batch_size", "trainer.first.batch_size"):
            more = f", source images in {keys[-1]}" if adapter.needs_source else ""
            raise ConfigError(
                f"{item} is read by no step of adapter={job.method}: test images come in adaptation.batch_size{more}"
            )


def _refuse_strategies(job: Job) -> None:
    """Refuse what nobody would read: keys of a strategy, but for the class of the run that is adapted."""
    for item in job.overrides:
        key = key_of(item)
        if key.startswith("budget.caps"):
            raise ConfigError(f"{item} with adapter={job.method}: further budgets are measured of strategies alone")
        if key.partition(".")[0] == "strategy" and not (key == "strategy" and ":" in item):
            raise ConfigError(
                f"{item} with adapter={job.method}: an adaptation run has no strategy; source=RUN_DIR names a finished "
                f"run of one (strategy=module:Class its class, where that is not registered)"
            )


def _steps(job: Job, stream: Any) -> AdapterSteps:
    """The steps of an adapter on an untrained network of the model; ``source=RUN_DIR``: on that run's."""
    from cil.adapt import SourceModel
    from cil.api import networks
    from cil.cli.build import build, method_of, model_of, recipe_of
    from cil.engine.runtime import Runtime
    from cil.kinds.adaptation.steps import AdapterSteps

    config = job.config
    if config["source"]:
        work = _work(build(job, progress=False, loggers=()))
        make_adapter, make_source = work.make_adapter, work.make_source
    else:
        adapter, shape, classes = method_of(config, "adapter"), stream.image_shape, len(stream.classes)
        _refuse_unread(job, adapter.func)
        model = model_of(config)
        plain = {} if model.get("mean") is not None else {"mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
        nets = networks(shape, **{**model, "weights": None, **plain})  # the values of mean and std change no byte

        def make_source(device: torch.device) -> SourceModel:
            net = nets(seed=0, meta=device.type == "meta", device=device)()
            net.grow(classes)
            return SourceModel(net.eval(), classes, shape, str(model["name"]))

        make_adapter = partial(adapter)
    precision = Runtime(config["device"], config["trainer"]["precision"]).precision
    return AdapterSteps(make_adapter, make_source, job.method, recipe_of(config), precision, config["seed"])


COMMANDS = AdaptationCommands()
