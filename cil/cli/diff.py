"""``cil diff``: which settings of two runs differ, and where each came from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cil.cli.arguments import config_dirs, split_options
from cil.cli.formats import in_columns
from cil.cli.names import key_of, own_conf_dirs
from cil.errors import CilError, ConfigError

if TYPE_CHECKING:
    from cil.tracking import Record

HELP = """
usage: cil diff RUN_DIR RUN_DIR [--json]

Which settings of two runs differ, and where each came from: the command line, a file of the configuration, or a run in
Python. What is no setting is compared too: versions, code, data, device; and results, where both finished.

  cil diff runs/a/icarl-200exemplars-s0-0a1b2c3d4e5f runs/b/icarl-200exemplars-s0-5f4e3d2c1b0a

It ends with 0 whether they differ or not.
"""
FACTS = (
    *("seed", "class_order", "networks", "device", "threads", "precision", "versions", "code", "source"),
    "batch_size",
)
NOTHING = "-"


def main(arguments: Sequence[str]) -> int:
    paths, _, flags = split_options(arguments, {}, ["--json"])
    if len(paths) != 2:
        raise ConfigError("cil diff needs two run directories")
    from cil.tracking import Record

    first, second = map(Record.load, paths)
    rows = differences(first, second)
    if "--json" in flags:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        print("no setting differs: the same identity")
    else:
        lines = [(row["key"], *(_cell(row[side], row[f"{side} from"]) for side in ("first", "second"))) for row in rows]
        print("\n".join(in_columns([("", *paths), *lines], set())))
    for name in ("average_incremental_accuracy", "last_accuracy"):
        one, other = (record.results.get(name) for record in (first, second))
        if one is not None and other is not None:
            print(f"{name}: {one:.2f} and {other:.2f}, {other - one:+.2f}")
    return 0


def _cell(value: Any, source: str) -> str:
    text = json.dumps(value) if value is not None else NOTHING
    text = text if len(text) <= 40 else f"{text[:37]}..."
    return f"{text} ({source})" if source else text


def differences(first: Record, second: Record) -> list[dict[str, Any]]:
    """A row for each setting that differs: ``key``; ``first`` and ``second``, the values; ``first from``, ``second
    from``, the file or the command line that set them, empty where that is not known or not asked."""
    from cil.report.runs import flat

    configs = [flat(record.identity.get("config") or {}) for record in (first, second)]
    sources = [origins(record) for record in (first, second)]
    rows = []
    for key in dict.fromkeys((*configs[0], *configs[1])):
        values = [config.get(key) for config in configs]
        if values[0] != values[1] or (key in configs[0]) != (key in configs[1]):
            rows.append(_row(key, values, [source.get(key, "") for source in sources]))
    facts = [flat({name: record.identity.get(name) for name in FACTS} | _data(record)) for record in (first, second)]
    for key in dict.fromkeys((*facts[0], *facts[1])):
        values = [fact.get(key) for fact in facts]
        if values[0] != values[1] and key not in configs[0]:
            rows.append(_row(key, values, ["", ""]))
    return rows


def _data(record: Record) -> dict[str, Any]:
    stream = record.identity.get("stream") or {}
    return {"kind": record.kind, "stream.fingerprint": stream.get("fingerprint")}


def _row(key: str, values: Sequence[Any], sources: Sequence[str]) -> dict[str, Any]:
    return {"key": key, "first": values[0], "second": values[1], "first from": sources[0], "second from": sources[1]}


def origins(record: Record) -> Mapping[str, str]:
    """Dotted keys to what set them, as the command of a record is composed here and now; empty for runs of Python."""
    command = shlex.split(str(record.environment.get("command") or ""))
    if command[:2] != ["cil", "run"]:
        return {}
    overrides, own = config_dirs(command[2:])
    if own and not own_conf_dirs():
        return {}
    from cil.cli.compose import files_of

    try:
        found = files_of([item for item in overrides if "${" not in item])
    except CilError:  # a file or a plugin that is not here
        return {}
    return found | {key_of(item): "command line" for item in overrides if not item.startswith("-")}
