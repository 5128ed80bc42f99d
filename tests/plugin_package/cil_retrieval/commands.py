"""The command line, where it differs from that of class-incremental runs."""

from __future__ import annotations

from collections.abc import Iterator

from cil.cli.formats import bar, numbers, percent
from cil.kinds.classes.commands import StrategyCommands
from cil.tracking import Record

NAMES = {"recall@1": "recall_at_1", "mAP": "mean_average_precision"}


class RetrievalCommands(StrategyCommands):
    """Commands of a strategy that is searched with."""

    def result_lines(self, record: Record) -> Iterator[str]:
        for name, key in NAMES.items():
            mean = percent(record.results[f"average_{key}"])
            yield f"  {name} after each experience (%): {numbers(record.results[key])}   average {mean}"

    def curve(self, record: Record) -> str:
        lines = [f"{record.identity['strategy']} on {record.identity['stream']['name']}: {record.status}"]
        for name, key in NAMES.items():
            lines += ["", name, *(bar("", value) for value in record.results.get(key, []))]
        return "\n".join(lines)


COMMANDS = RetrievalCommands()
