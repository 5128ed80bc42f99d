"""``cil evaluate``: a finished run evaluated again, on its own test data or on others."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.arguments import split_options, split_own_class, whole_number
from cil.cli.formats import numbers
from cil.cli.names import key_of
from cil.cli.refusals import parse_overrides, unknown_key
from cil.errors import ConfigError
from cil.targets import refuse_targets

if TYPE_CHECKING:
    from cil.tracking import Record

HELP = """
usage: cil evaluate RUN_DIR [stream.key=value ...] [--experience N] [--device cpu] [--json]

Rebuilds what a run learned from its checkpoint and evaluates it on the stream it was trained on, or on that stream
with changes: other data of the same classes and image size, fewer test images...

  cil evaluate runs/mnist5k_b0_inc2/icarl-200exemplars-s0-0a1b2c3d4e5f
  cil evaluate RUN_DIR stream.dataset=mnist --json

Where nothing was changed and the accuracy is not the one in the record, the command says so and ends with 1.

  strategy=module:Class   the class of a run whose strategy is not registered: a record alone never imports code
  --experience N   the state after experience N (from 0); earlier ones need checkpoint.keep=all
"""

ROUNDING = 1e-6  # percent


def main(arguments: Sequence[str]) -> int:
    given, options, flags = split_options(arguments, {"--experience": "", "--device": "cpu"}, ["--json"])
    rest, own = split_own_class(given)
    paths = [item for item in rest if "=" not in item]
    if len(paths) != 1:
        raise ConfigError("cil evaluate needs one run directory, then key=value")
    experience = whole_number("--experience", options["--experience"], 0)
    environment.prepare()
    from cil.cli.build import build_stream
    from cil.cli.compose import own_class
    from cil.tracking import Record
    from cil.trained import evaluate

    record = Record.load(paths[0])
    strategy = own_class(own, "strategy")
    changes = [item for item in rest if item != paths[0]]
    stream: Any = build_stream(change_stream(record, changes))
    found = evaluate(paths[0], stream, strategy=strategy, experience=experience, device=options["--device"])
    same = not any(key_of(item).startswith("stream.") for item in changes)
    curve = record.results.get("accuracy_curve") or ()  # of the run's own stream
    recorded = curve[found["experience"]] if same and found["experience"] < len(curve) else None
    print(json.dumps(found, indent=1) if "--json" in flags else text(record, stream.name, found, recorded))
    if recorded is None or abs(recorded - found["accuracy"]) < ROUNDING:
        return 0
    print(
        f"cil: accuracy is {found['accuracy']:.2f} % and {record.directory}/record.json says {recorded:.2f} %: data, "
        f"code or device are others than when it was trained (its fingerprint of the data is "
        f"{record.identity['stream']['fingerprint'][:12]}, now {stream.fingerprint[:12]})",
        file=sys.stderr,
    )
    return 1


def change_stream(record: Record, overrides: Sequence[str]) -> dict[str, Any]:
    """The stream of a run, with changes; the class order stays, so that slots mean what they meant."""
    if "class_order" not in record.identity:
        raise ConfigError(f"{record.directory} is of the kind {record.kind}; give the run of a strategy")
    given = record.identity["config"].get("stream")
    if not isinstance(given, dict) or "builder" not in given:
        raise ConfigError(f"{record.directory} was made in Python; evaluate it there: cil.evaluate(run_dir, stream)")
    stream = dict(given)
    if isinstance(stream.get("classes"), int):  # the first so many of an order, which is given whole
        stream["classes"] = list(record.identity["class_order"])
    refuse_targets(stream, f"{record.directory}/record.json: config.stream")
    if not isinstance(stream["builder"], str):
        raise ConfigError(f"{record.directory}/record.json: config.stream.builder is no name of a registered stream")
    whole: dict[str, Any] = {"stream": stream, "data_root": None}
    for override in parse_overrides(overrides, whole):
        key, value = override.key_or_group, override.value()
        name = key.removeprefix("stream.")
        if key == "stream":
            raise ConfigError(f"stream={value} cannot be changed here; stream.dataset=... and other stream.KEY can")
        if key == "data_root":
            whole["data_root"] = value
        elif not key.startswith("stream.") or (name not in stream and not override.is_add()):
            raise ConfigError(f"{unknown_key(key, whole)}; cil evaluate changes keys of stream, and data_root")
        else:
            stream[name] = value
    if "order" in stream:
        stream["order"] = list(record.identity["class_order"])
    return whole


def text(record: Record, stream: str, found: Mapping[str, Any], recorded: float | None) -> str:
    """For people."""
    identity = record.identity
    before = "" if recorded is None else f" (its record says {recorded:.2f} %)"
    names, values = zip(*found["accuracy_by_class"].items(), strict=True)
    wide = max(map(len, names))
    lines = [
        f"{identity['strategy']}, seed {identity['seed']}, after experience {found['experience'] + 1}, on {stream}:"
        f" {found['images']:,} test images",
        f"  accuracy {found['accuracy']:.2f} %{before}   mean over classes {found['mean_class_accuracy']:.2f} %",
        f"  by experience (%): {numbers(found['accuracy_by_experience'])}",
        f"  within its experience (%): {numbers(found['accuracy_task_aware_by_experience'])}",
        "  by class (%):",
        *(
            f"    {name.ljust(wide)} {'-' if value != value else f'{value:.1f}'}"
            for name, value in zip(names, values, strict=True)
        ),
    ]
    return "\n".join(lines)
