"""The command line of runs that train a strategy: on streams of classes, and what other streams share with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from cil.cli.formats import bar, data_of, numbers, percent
from cil.cli.names import IN_OTHER_WORDS, NOT_THE_RUN, key_of
from cil.errors import ConfigError
from cil.kinds.command_line import find_kind

if TYPE_CHECKING:
    from cil.cli.job import Job
    from cil.engine.driver import Run
    from cil.engine.options import RunOptions
    from cil.memory.training_memory import TrainingMemory
    from cil.streams import Stream
    from cil.tracking import Record

_say = logging.getLogger("cil")
SHOWN = 20  # classes of a class order


class StrategyCommands:
    """Commands of a strategy; see ``cil.kinds.command_line``."""

    curve_title = "accuracy so far"
    matrix_title = "accuracy on experience (column) after learning (row), percent"

    def build(self, job: Job, stream: Any, options: RunOptions, facts: Mapping[str, Any]) -> Run:
        from cil.api import plan
        from cil.cli.build import budget_of, method_of, model_of, recipe_of
        from cil.engine.anytime import Anytime

        config = job.config
        if config["source"] is not None:
            raise ConfigError(f"source={config['source']} is for adapters; choose one, as in adapter=tent")
        if config["adaptation"]["clean"]:
            raise ConfigError("adaptation.clean is for adapters; choose one, as in adapter=tent")
        strategy = method_of(config, "strategy")
        if find_kind(stream.kind).learner != job.learner:
            raise ConfigError(
                f"stream '{stream.name}' has images that shift and no classes that arrive: choose an adapter for it, "
                f"as in adapter=tent, or a class-incremental stream for strategy={job.method}"
            )
        method: Any = strategy.func
        ignored = method.ignored_keys(config["strategy"]) if hasattr(method, "ignored_keys") else {}
        for key in map(key_of, job.overrides):
            if key in ignored:
                _say.warning(f"{key} does nothing with strategy={job.method}, which has {ignored[key]} in its place")
        kept = {key: value for key, value in config.items() if key not in (*NOT_THE_RUN, *IN_OTHER_WORDS)}
        return plan(
            _open_to_fit(strategy, job), stream, model_of(config), budget_of(job, stream), recipe=recipe_of(config),
            anytime=None if config["anytime"]["every"] is None else Anytime(**config["anytime"]),
            name=job.name, facts={"config": kept, **facts}, options=options,
        )  # fmt: skip

    def bill(self, run: Run) -> str:
        from cil.cli.budget import Bills, bills_text

        return bills_text([Bills.of(run)])

    def memory(self, job: Job, stream: Any, experience: int | None) -> tuple[str, Sequence[TrainingMemory]]:
        from cil.cli.build import build
        from cil.engine.learning import StrategyWork

        work = build(job, stream=stream, progress=False, loggers=()).work
        assert isinstance(work, StrategyWork)
        steps, many = work.steps(), work.length
        if experience is not None and experience > many:
            raise ConfigError(f"--experience is {experience}; the stream has {many} experiences")
        memory = steps.largest() if experience is None else steps.at(experience - 1)
        return f"{job.method} on {job.config['model']['name']}", [memory]

    # texts ----------------------------------------------------------------------------------------------------------

    def summary(self, record: Record, note: str = "") -> str:
        identity, results = record.identity, record.results
        scale = f", scale={identity['scale']}" if "scale" in identity else ""
        where = f"{identity['stream']['name']}{scale}"
        head = f"{identity['strategy']} on {where}, seed {identity['seed']}: {record.status}{note}"
        lines = [head, *self.result_lines(record), self.cost_line(results), *_effort_lines(results)]
        return "\n".join([*lines, f"  record: {record.directory}"])

    def result_lines(self, record: Record) -> Iterator[str]:
        results, many = record.results, record.identity["stream"]["experiences"]
        curve = numbers(results["accuracy_curve"])
        yield f"  accuracy on all classes seen, after each of {many} experiences (%): {curve}"
        names = {"last": "last_accuracy", "average incremental": "average_incremental_accuracy"}
        names |= {"forgetting": "forgetting"}
        yield "  " + "   ".join(f"{name} {percent(results[key])}" for name, key in names.items())
        yield from _parts_lines(results)

    def cost_line(self, results: Mapping[str, Any]) -> str:
        totals = results["ledger"][-1]["totals"]
        return (
            f"  carries {totals['exact']['total']:,} bytes, {totals['survey']['total']:,} as the survey counts;"
            f" {results['exemplars'][-1]:,} exemplars; {results['seconds']['total']:.0f} s"
        )

    def curve(self, record: Record) -> str:
        results, identity = record.results, record.identity
        if not results.get("accuracy_curve"):
            why = f": {record.error}" if record.error else ""
            return f"{record.directory}: {record.status}, no experience was evaluated{why}"
        lines = [f"{identity['strategy']} on {identity['stream']['name']}: {record.status}", "", self.curve_title]
        lines += [bar(f"{index:>3}", value) for index, value in enumerate(results["accuracy_curve"], start=1)]
        lines += ["", self.matrix_title]
        width = len(results["accuracy_matrix"][0])
        lines.append("    " + "".join(f"{column + 1:>6}" for column in range(width)))
        for index, row in enumerate(results["accuracy_matrix"], start=1):
            lines.append(f"{index:>3} " + "".join(f"{'-' if value is None else f'{value:.1f}':>6}" for value in row))
        return "\n".join(lines)

    def stream_lines(self, stream: Any) -> list[str]:
        many = f"{len(stream)} experiences of {sizes([len(one.new_slots) for one in stream.signatures])} new classes"
        order = ", ".join(stream.classes[:SHOWN]) + (", ..." if len(stream.order) > SHOWN else "")
        return [f"{stream.name}: {many}, {images_of(stream)}", f"{data_of(stream)}; class order {order}"]


def _effort_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """What marks a row in tables and is known of one run: steps and images of its own."""
    from cil.report.rows import effort_notes

    yield from (f"  {note.text}" for note in effort_notes([results]))


def _parts_lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Last accuracy by data set of a pool, and by groups of test images, for the summary."""
    averages = results.get("averages") or {}
    if averages.get("by_set"):
        each = {"image": averages["by_image"], "class": averages["by_class"], "data set": averages["by_set"]}
        yield "  last by " + "   by ".join(f"{name} {percent(curve[-1])}" for name, curve in each.items())
        yield "  " + "   ".join(f"{name} {percent(curve[-1])}" for name, curve in averages["sets"].items())
    for column, found in (results.get("groups") or {}).items():
        worst, lowest, spread = (found[key][-1] for key in ("worst", "worst_accuracy", "disparity"))
        yield f"  by {column}: worst {worst or 'unknown'} {percent(lowest)}   disparity {percent(spread)}"
    if results.get("accepted"):
        yield f"  last with several accepted classes {percent(results['accepted']['last_accuracy'])}"


def _open_to_fit(strategy: partial[Any], job: Job) -> partial[Any]:
    """The strategy without what ``budget.fit`` sets; what the command line says stays, and both are refused."""
    if not job.config["budget"]["fit"]:
        return strategy
    method: Any = strategy.func
    key = method.fitted_key(strategy.keywords)
    if f"strategy.{key}" in map(key_of, job.overrides):
        return strategy
    return partial(strategy.func, **{name: value for name, value in strategy.keywords.items() if name != key})


def images_of(stream: Stream) -> str:
    """Number and shape of the training images."""
    return f"{sum(sum(one.counts.values()) for one in stream.signatures):,} training images {stream.image_shape}"


def sizes(counts: Sequence[int]) -> str:
    """Classes that experiences bring, those of one size together.

    >>> sizes([50, 10, 10, 10]), sizes([10, 10]), sizes([2, 0, 3])
    ('50 + 3 x 10', '10', '2 + no + 3')
    """
    runs = [(value, len(list(same))) for value, same in groupby(counts)]
    named = [(str(value or "no"), many) for value, many in runs]
    if len(named) == 1:
        return named[0][0]
    return " + ".join(value if many == 1 else f"{many} x {value}" for value, many in named)


COMMANDS = StrategyCommands()
