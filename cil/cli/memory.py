"""``cil memory``: what a step of training or adaptation will hold, by part of the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.show import split_options
from cil.errors import ConfigError

if TYPE_CHECKING:
    from cil.cli.compose import Job
    from cil.cli.grid import Cell
    from cil.engine.adapter_steps import AdapterSteps
    from cil.engine.strategy_steps import StrategySteps
    from cil.memory.published_bytes import Published
    from cil.memory.training_memory import TrainingMemory
    from cil.streams import Stream

HELP = """
usage: cil memory [key=value ...] [--depth N] [--experience N] [--json]

The bytes of one step: parameters, gradients, optimizer state and what autograd keeps for backward, by part of the
network, and in all. Exact, and by the published accounting of EcoTTA. Nothing is trained: the step is made without
values (on meta) where shapes are all it takes, else once on the CPU, on noise; the answer says which. Of an adapter
that is trained on source data before it is deployed (ecotta's warm-up) the largest step of that comes second.

  cil memory strategy=der stream=split_cifar100 model=resnet32 trainer.batch_size=128
  cil memory strategy=finetune,replay,lwf stream=split_cifar100 model=resnet32
  cil memory adapter=ecotta model=wrn_40_2 adaptation.batch_size=64
  cil memory adapter=tent,cotta,ecotta stream=imagenet_corrupted model=resnet50 adaptation.batch_size=32

  --depth N        names of a module's path that make a part; 4 by default
  --experience N   of a strategy, from 1; by default the largest of the first, the second and the last
"""

# (C, H, W), classes, training images of each: enough for sets whose images need not be read
KNOWN: dict[str, tuple[tuple[int, int, int], int, int]] = {
    "cifar10": ((3, 32, 32), 10, 5000),
    "cifar100": ((3, 32, 32), 100, 500),
    "tiny_imagenet": ((3, 64, 64), 200, 500),
    "imagenet100": ((3, 224, 224), 100, 1300),
    "imagenet1000": ((3, 224, 224), 1000, 1300),
}
COLUMNS = ("parameters", "buffers", "gradients", "optimizer", "activations", "saved", "entries")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    as_json = "--json" in arguments
    rest = [item for item in arguments if item != "--json"]
    overrides, options = split_options(rest, {"--depth": "4", "--experience": ""})
    depth, experience = _number("--depth", options["--depth"]), _number("--experience", options["--experience"])
    environment.prepare(overrides)
    from cil.cli.grid import expand

    found = {_label(cell): measured(cell.job, experience) for cell in expand(overrides)}
    if as_json:
        data = {label: [as_data(memory, depth or 4) for memory in steps] for label, steps in found.items()}
        more = {label: {"source_phase": one[1]} if one[1:] else {} for label, one in data.items()}
        print(json.dumps({label: one[0] | more[label] for label, one in data.items()}, indent=1))
    else:
        print("\n\n".join(text(label, memory, depth or 4) for label, steps in found.items() for memory in steps))
    return 0


def _label(cell: Cell) -> str:
    config = cell.job.config
    varied = [f"{key}={value}" for key, value in cell.varied.items() if key not in ("strategy", "adapter")]
    if not config.get("adapter"):
        return ", ".join([f"{cell.job.choices['strategy']} on {config['model']['name']}", *varied])
    name = config["source"] or config["model"]["name"]
    shape, classes = _shape_of(cell.job)
    return ", ".join([f"{cell.job.choices['adapter']} on {name}, images {shape} of {classes} classes", *varied])


def _number(option: str, given: str) -> int | None:
    if given and not (given.isdigit() and int(given) > 0):
        raise ConfigError(f"{option} is {given}; it must be a whole number of 1 or more")
    return int(given) if given else None


def measured(job: Job, experience: int | None = None) -> list[TrainingMemory]:
    """What the largest step of a configured run holds; of an adapter that is trained on source data before it is
    deployed, also the largest step there.

    Args:
        experience: Of a strategy, from 1; None: the largest of the first, the second and the last.
    """
    if job.config.get("adapter"):
        if experience is not None:
            raise ConfigError("--experience is for strategies; an adapter's update is the same everywhere")
        own = adapter_steps(job)
        before = own.source_phases()
        return [own.at(job.config["adaptation"]["batch_size"]), *([] if before is None else [before])]
    steps = strategy_steps(job)
    if experience is None:
        return [steps.largest()]
    if experience > len(steps.signatures):
        raise ConfigError(f"--experience is {experience}; the stream has {len(steps.signatures)} experiences")
    return [steps.at(experience - 1)]


def strategy_steps(job: Job) -> StrategySteps:
    """The steps of ``strategy=NAME``; of well-known sets no image is read."""
    from cil.cli.build import build

    config = job.config
    if config["budget"]["points"]:
        raise ConfigError("budget.points is a list of budgets; cil memory measures under one, as budget.exemplars")
    run: Any = build(job, stream=signatures_alone(config), progress=False, loggers=())
    return run.steps(run.bills())


def adapter_steps(job: Job) -> AdapterSteps:
    """The steps of ``adapter=NAME`` on an untrained network of the model; ``source=RUN_DIR`` on that run's."""
    from functools import partial

    from cil.adapt import SourceModel
    from cil.api import networks
    from cil.cli.adaptation import refuse_unread
    from cil.cli.build import build, recipe_of
    from cil.engine.adapter_steps import AdapterSteps
    from cil.engine.runtime import Runtime
    from cil.targets import PARTIAL, check_arguments, made

    config = job.config
    precision = Runtime(config["device"], config["trainer"]["precision"]).precision
    terms: dict[str, Any] = {"precision": precision, "seed": config["seed"], "recipe": recipe_of(config)}
    if config["source"]:
        run: Any = build(job, progress=False, loggers=())
        return AdapterSteps(run.make_adapter, run.make_source, run.name, **terms)
    model = config["model"]
    check_arguments(networks, model, "model")
    shape, classes = _shape_of(job)
    nets = networks(shape, **{**model, "weights": None, **_normalised(model, shape)})
    make: Any = made({**config["adapter"], PARTIAL: True}, "adapter")
    refuse_unread(job, make.func)

    def make_source(device: Any) -> SourceModel:
        net = nets(seed=0, meta=device.type == "meta", device=device)()
        net.grow(classes)
        return SourceModel(net.eval(), classes, shape, str(model["name"]))

    return AdapterSteps(partial(make), make_source, job.choices["adapter"], **terms)


def _normalised(model: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Any normalisation will do where none is said: it is there in a run, and its values change no byte."""
    given = model.get("mean") is not None
    return {} if given else {"mean": [0.5] * shape[0], "std": [0.25] * shape[0]}


def _shape_of(job: Job) -> tuple[tuple[int, int, int], int]:
    """Images and classes of the stream, CIFAR-10's where none is named; made where they are not known by name."""
    from cil.cli.build import build_stream

    if not any(item.lstrip("+~").startswith(("stream", "experiment")) for item in job.overrides):
        return KNOWN["cifar10"][:2]
    known = KNOWN.get(str(job.config["stream"].get("dataset")))
    if known is not None:
        return _sized(job.config, known[0]), known[1]
    stream = build_stream(job.config)
    return stream.image_shape, len(stream.classes)


def _sized(config: Mapping[str, Any], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    size = config["stream"].get("size")
    return (shape[0], size, size) if isinstance(size, int) else shape


def signatures_alone(config: Mapping[str, Any]) -> Stream | None:
    """A stream that has signatures and no image; None where the set is not one whose numbers are known."""
    from cil.data import Augment
    from cil.errors import DataError
    from cil.streams import Signature, Stream
    from cil.streams.base import ExperienceData
    from cil.streams.class_incremental import experience_sizes

    given = config["stream"]
    known = KNOWN.get(str(given.get("dataset")))
    if known is None or given.get("builder") != "class_incremental":
        return None
    shape, many, each = _sized(config, known[0]), known[1], known[2]

    def unread() -> Any:
        raise DataError(f"the images of {given['dataset']} were not read")

    classes = given["classes"] or many
    count = min(each, given["train_per_class"] or each)
    count -= max(1, round(given["validation"] * count)) if given["validation"] else 0
    signatures, seen = [], 0
    for index, size in enumerate(experience_sizes(classes, given["base"], given["increment"])):
        slots = tuple(range(seen, seen + size))
        seen += size
        signatures.append(Signature(index, slots, slots, dict.fromkeys(slots, count), shape, seen))
    return Stream(
        name=f"{given['dataset']}_b{given['base']}_inc{given['increment']}",
        classes=[str(slot) for slot in range(classes)], order=range(classes), signatures=signatures,
        parts=[ExperienceData(unread, unread)] * len(signatures), fingerprint="signatures alone", augment=Augment(),
        mean=given["mean"] or [0.5] * shape[0], std=given["std"] or [0.25] * shape[0],
    )  # fmt: skip


# what is printed ------------------------------------------------------------------------------------------------------


def as_data(memory: TrainingMemory, depth: int) -> dict[str, Any]:
    """For ``--json``."""
    rule = memory.published
    return {
        "total": memory.total,
        "kinds": dict(memory.kinds),
        "saved": {
            "storage_bytes": memory.storage_bytes,
            "logical_bytes": memory.logical_bytes,
            "entries": memory.entries,
            "dtypes": dict(memory.dtypes),
        },
        "published": None if rule is None else {"bytes": rule.bytes, **asdict(rule)},
        "parts": [asdict(part) for part in memory.at_depth(depth)],
        "batch_size": memory.batch_size,
        "where": memory.where,
        "device": memory.device,
        "refused": memory.refused,
    }


def text(label: str, memory: TrainingMemory, depth: int) -> str:
    """A line on what was measured, the table by part, the sums, and both accountings."""
    how = "on meta: shapes alone, no data" if memory.device == "meta" else "one step on the CPU, on noise"
    how += f" (meta would not do: {memory.refused})" if memory.refused else ""
    lines = [f"{label}: {memory.where}, {memory.batch_size} images; {how}", "", *_table(memory, depth), ""]
    lines.append(f"held in such a step: {memory.total:,} bytes: {memory.describe()}")
    types = ", ".join(f"{name} {size:,}" for name, size in sorted(memory.dtypes.items(), key=lambda item: -item[1]))
    lines.append(
        f"saved for backward (exact): {memory.storage_bytes:,} bytes of storages, {memory.logical_bytes:,} as often as "
        f"saved, {memory.entries:,} tensors{f'; {types}' if types else ''}"
    )
    if memory.published is not None:
        lines.append(_rule(memory.published))
    return "\n".join(lines)


def _rule(rule: Published) -> str:
    copied = f"; {rule.copied:,} in copies, 4 bytes" if rule.copied else ""
    total, parameters, kept = (value / 1e6 for value in (rule.bytes, rule.parameters, rule.activations))
    return (
        f"by the published accounting (EcoTTA, TinyTL): {total:.1f} MB: parameters {parameters:.1f} "
        f"({rule.trainable:,} trained, 4 bytes; {rule.frozen:,} frozen, 1 byte{copied}), activations {kept:.1f} "
        f"(inputs of trained layers {rule.inputs:,}, 4 bytes; ReLUs {rule.relus:,}, 1 bit)"
    )


def _table(memory: TrainingMemory, depth: int) -> list[str]:
    rows = []
    for part in memory.at_depth(depth):
        values = asdict(part)
        values["saved"] = values.pop("logical")
        rows.append([part.name, *(f"{values[column]:,}" for column in COLUMNS)])
    heads = ["bytes", *COLUMNS]
    widths = [max(len(line[column]) for line in [heads, *rows]) for column in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(line))
        for line in ([*zip(heads, widths, strict=True)], *([*zip(row, widths, strict=True)] for row in rows))
    ]
