"""The command line of runs on a stream of tasks, where it differs from that of streams of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli.formats import data_of, in_columns, numbers, percent
from cil.kinds.classes.commands import StrategyCommands, images_of

if TYPE_CHECKING:
    from cil.tracking import Record


class TaskCommands(StrategyCommands):
    """Commands of a strategy that is given the task."""

    curve_title = "mean score (100 - error) of the tasks so far, each right after its training"
    matrix_title = "score on task (column) after learning (row), percent"

    def result_lines(self, record: Record) -> Iterator[str]:
        results = record.results
        for split, errors in results["errors"].items():
            yield f"  error right after each of {len(errors)} events, {split} (%): {numbers(errors)}"
            yield f"  mean error {percent(results['mean_error'][split])}"
        spent = {name: values[-1] for name, values in results["flops"].items() if name != "total" and values[-1]}
        judged = spent.pop("evaluation", 0)
        parts = ", ".join(f"{name} {count:.2e}" for name, count in spent.items())
        yield f"  operations: {sum(spent.values()):.2e} ({parts}); evaluation on test data {judged:.2e} besides"

    def cost_line(self, results: Mapping[str, Any]) -> str:
        return (
            f"  {results['peak_parameters']:,} parameters at most; carries "
            f"{results['ledger'][-1]['totals']['exact']['total']:,} bytes;"
            f" {results['exemplars'][-1]:,} exemplars; {results['seconds']['total']:.0f} s"
        )

    def stream_lines(self, stream: Any) -> list[str]:
        many = f"{len(stream)} tasks, {len(stream.classes)} classes in all"
        lines = [f"{stream.name}: {many}, {images_of(stream)}", data_of(stream), ""]
        return [*lines, *_task_lines(stream.description()["tasks"])]

    def stream_page(self, stream: Any, path: Path, count: int) -> Path:
        from cil.kinds.tasks.timeline import write_timeline
        from cil.streams.show import strip

        described = stream.description()
        strips = [strip(stream, index, count) for index in range(len(stream))]
        facts = {"fingerprint": described["fingerprint"][:12], "images": " × ".join(map(str, described["image_shape"]))}
        return write_timeline(stream.name, described["tasks"], strips, path, facts)


def _task_lines(tasks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each task: its classes, its images, and whose slots it has where it is a repeat."""
    rows: list[tuple[str, ...]] = [("event", "year", "task", "domain", "kind", "classes", "train", "")]
    seen: set[str] = set()
    for event, task in enumerate(tasks, start=1):
        again = f"repeat of {task['dataset']}" if task["dataset"] in seen else ""
        seen.add(task["dataset"])
        train = f"{(task.get('counts') or {}).get('train', 0):,}"
        own = [str(task[key]) for key in ("year", "id", "domain", "kind", "classes")]
        rows.append((str(event), *own, train, again))
    return in_columns(rows, right={0, 5, 6})


COMMANDS = TaskCommands()
