"""What the command line says of results of another toolbox; it cannot run them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from cil.cli.formats import bar, numbers, percent
from cil.errors import ConfigError

if TYPE_CHECKING:
    from cil.tracking import Record


class ForeignCommands:
    """Commands of a foreign record; see ``cil.kinds.command_line``."""

    def build(self, *given: Any) -> NoReturn:
        raise ConfigError("a foreign record is of another toolbox, which alone can run it again")

    bill = stream_lines = memory = build

    def summary(self, record: Record, note: str = "") -> str:
        identity, results = record.identity, record.results
        lines = [
            f"{_name(identity)}, seed {identity['seed']}: {record.status}{note}",
            f"  foreign, so neither billed nor ranked; accuracy (%): {numbers(results['accuracy_curve'])}",
        ]
        lines += [f"  {name}: last {percent(one['last_accuracy'])}" for name, one in results["answers"].items()]
        return "\n".join([*lines, f"  record: {record.directory}"])

    def curve(self, record: Record) -> str:
        bars = [bar(f"{index:>3}", value) for index, value in enumerate(record.results["accuracy_curve"], start=1)]
        return "\n".join([f"{_name(record.identity)}: {record.status}, foreign", "", *bars])


def _name(identity: Mapping[str, Any]) -> str:
    return f"{identity['strategy']} of {identity['toolbox']} on {identity['stream']['name']}"


COMMANDS = ForeignCommands()
