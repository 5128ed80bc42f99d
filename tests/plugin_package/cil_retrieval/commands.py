"""The command line, where it differs from that of class-incremental runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cil.cli.formats import bar, numbers, percent
from cil.kinds.classes.commands import StrategyCommands

if TYPE_CHECKING:
    from cil.tracking import Record

NAMES = {"recall@1": "recall_at_1", "mAP": "mean_average_precision"}


class RetrievalCommands(StrategyCommands):
    """Commands of a strategy that is searched with."""

    def result_lines(self, record: Record) -> Iterator[str]:
        for name, key in NAMES.items():
            yield f"  {name} among all classes seen, after each experience (%): {numbers(record.results[key])}"
        yield "  " + "   ".join(
            f"average {name} {percent(record.results[f'average_{key}'])}" for name, key in NAMES.items()
        )

    def curve(self, record: Record) -> str:
        lines = [f"{record.identity['strategy']} on {record.identity['stream']['name']}: {record.status}"]
        for name, key in NAMES.items():
            values = record.results.get(key, [])
            lines += ["", name, *(bar(f"{index:>3}", value) for index, value in enumerate(values, start=1))]
        return "\n".join(lines)


COMMANDS = RetrievalCommands()
