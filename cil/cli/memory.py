"""``cil memory``: bytes that a step of training or adaptation will hold, by part of the network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.arguments import split_options, whole_number
from cil.cli.formats import in_columns
from cil.cli.grid import Cell, expand

if TYPE_CHECKING:
    from cil.memory.published_bytes import Published
    from cil.memory.training_memory import TrainingMemory

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

COLUMNS = ("parameters", "buffers", "gradients", "optimizer", "activations", "saved", "entries")


def main(arguments: Sequence[str]) -> int:
    overrides, options, flags = split_options(arguments, {"--depth": "4", "--experience": ""}, ["--json"])
    depth = whole_number("--depth", options["--depth"]) or 4
    experience = whole_number("--experience", options["--experience"])
    environment.prepare(overrides)
    found = dict(measure(cell, experience) for cell in expand(overrides))
    if "--json" in flags:
        print(json.dumps({label: _data_of_steps(steps, depth) for label, steps in found.items()}, indent=1))
    else:
        print("\n\n".join(text(label, memory, depth) for label, steps in found.items() for memory in steps))
    return 0


def measure(cell: Cell, experience: int | None = None) -> tuple[str, Sequence[TrainingMemory]]:
    """The largest step of a configured run, and of what comes before it, under a label.

    Args:
        experience: Experience of a strategy, from 1; None: the largest of the first, the second and the last.
    """
    from cil.cli.build import build_stream
    from cil.kinds.command_line import commands_for
    from cil.streams.known_shapes import without_images

    job = cell.job
    stream = without_images(job.config["stream"]) or build_stream(job.config)
    label, steps = commands_for(job, stream).memory(job, stream, experience)
    return ", ".join([label, *cell.settings]), steps


def _data_of_steps(steps: Sequence[TrainingMemory], depth: int) -> dict[str, Any]:
    main, *before = (as_data(memory, depth) for memory in steps)
    return {**main, **({"source_phase": before[0]} if before else {})}


# what is printed ------------------------------------------------------------------------------------------------------


def as_data(memory: TrainingMemory, depth: int) -> dict[str, Any]:
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
    rows: list[tuple[str, ...]] = [("bytes", *COLUMNS)]
    for part in memory.at_depth(depth):
        values = asdict(part)
        values["saved"] = values.pop("logical")
        rows.append((part.name, *(f"{values[column]:,}" for column in COLUMNS)))
    return list(in_columns(rows, right=range(1, len(COLUMNS) + 1)))
