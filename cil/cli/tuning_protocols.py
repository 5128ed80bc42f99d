"""Tuning protocols: the streams that trials meet, and the one on which the result is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cil import plugins
from cil.cli.build import build, build_stream
from cil.cli.compose import compose
from cil.cli.grid import Cell
from cil.cli.job import Job
from cil.cli.names import key_of
from cil.cli.search_space import seed_for
from cil.engine.driver import Run
from cil.errors import ConfigError
from cil.kinds.command_line import find_kind
from cil.streams import Stream, fingerprint_of
from cil.streams.tuning import for_tuning

UNTUNED = "none"


@dataclass(frozen=True)
class TuningProtocol:
    """Trials and reported runs of one setting.

    Attributes:
        trials: More overrides of a trial, for each of the seeds that trials draw; empty where nothing is tuned.
        report: More overrides of the runs that are reported.
        first: Experiences that a trial meets; None: all of its stream.
        words: What the trials meet, for people.
    """

    trials: tuple[tuple[str, ...], ...]
    report: tuple[str, ...]
    first: int | None
    words: str


def protocol_of(job: Job) -> TuningProtocol:
    """Read ``tune.protocol`` and what belongs to it; refused for a stream with too few classes or experiences."""
    tune = job.config["tune"]
    stream = _stream(job)
    if tune["protocol"] == "none":
        return TuningProtocol((), (), None, "nothing")
    if tune["protocol"] == "per_task":
        raise ConfigError(
            "tune.protocol=per_task is no protocol of cil tune (two_phase, first_k, none): strategies for task streams "
            "search at each task inside the run, as in cil run stream=embedded_tasks strategy=independent "
            "strategy.search.trials=4"
        )
    if stream.task_known_at_test:
        raise ConfigError(
            f"stream '{stream.name}' says the task at test time, and strategies for it search at each task inside the "
            "run (cil run strategy.search.trials=4); cil tune is for streams that do not, as with stream.heads=offset"
        )
    if tune["protocol"] == "first_k":
        return _first_k(job, stream)
    if tune["stream"] in ("half", "order"):
        return _by_order(job, stream, tune["stream"])
    return _other_stream(job, tune["stream"])


def _first_k(job: Job, stream: Stream) -> TuningProtocol:
    tune, budget = job.config["tune"], job.config["budget"]
    k = tune["k"]
    if k >= len(stream):
        raise ConfigError(
            f"tune.k is {k}; stream '{stream.name}' has {len(stream)} experiences, and tuning may see fewer than all"
        )
    more = [*_validation(job)]
    if isinstance(budget["limit"], list):
        more.append(f"budget.limit={budget['limit'][:k]}")
    return TuningProtocol(_seeded(tune, lambda seed: more), (), k, f"the first {k} of {len(stream)} experiences")


def _by_order(job: Job, stream: Stream, on: str) -> TuningProtocol:
    """Other class orders: of half the classes, which are then not reported on, or of all."""
    tune, given = job.config["tune"], job.config["stream"]
    if not {"order", "classes"} <= given.keys():
        raise ConfigError(
            f"tune.stream is {on}, but stream={job.choices['stream']} has no stream.order and stream.classes to say "
            "which classes come; name another stream by tune.stream, or choose tune.protocol=first_k"
        )
    whole: Any = build_stream({**job.config, "stream": {**given, "classes": None}})
    labels = list(whole.order)
    seen, rest = labels[: len(stream.classes)], labels[len(stream.classes) :]
    mine = seen if on == "order" else seen[: len(seen) // 2]
    others = [] if on == "order" else seen[len(mine) :]
    _enough(given, len(seen), [mine] if on == "order" else [mine, others])

    def trial(seed: int) -> list[str]:
        if on == "order" or seed:
            order = np.random.default_rng(seed_for(tune["seed"], "order", seed)).permutation(mine).tolist()
        else:
            order = mine
        return [_listed(order + others + rest), f"stream.classes={len(mine)}", *_validation(job)]

    if on == "order":
        return TuningProtocol(_seeded(tune, trial), (), None, "other class orders of the same classes")
    report = (_listed(others + mine + rest), f"stream.classes={len(others)}")
    return TuningProtocol(
        _seeded(tune, trial), report, None, f"{len(mine)} of {len(seen)} classes, the others are reported"
    )


def _other_stream(job: Job, name: str) -> TuningProtocol:
    tune = job.config["tune"]
    other = with_overrides(job, [f"stream={name}"])
    seeded = "order_seed" in other.config["stream"]

    def trial(seed: int) -> list[str]:
        order = [f"stream.order_seed={other.config['stream']['order_seed'] + seed}"] if seeded else []
        return [f"stream={name}", *order, *_validation(other)]

    return TuningProtocol(_seeded(tune, trial), (), None, f"stream {name}")


def _enough(given: Mapping[str, Any], many: int, parts: Sequence[Sequence[int]]) -> None:
    """Each part of the classes makes two experiences at least: with one there is nothing to forget."""
    base, increment = given.get("base") or given.get("increment") or 1, given.get("increment") or 1
    least = min(map(len, parts))
    if least < base + 1:
        how = f"half of the {many} classes is {least}" if len(parts) > 1 else f"there are {least} classes"
        raise ConfigError(
            f"tune.protocol=two_phase has too few classes: {how}, and stream.base={given.get('base')} "
            f"stream.increment={increment} make one experience of them; two are needed: lower these, name another "
            "stream by tune.stream, or choose tune.protocol=first_k"
        )


def _seeded(tune: Mapping[str, Any], trial: Any) -> tuple[tuple[str, ...], ...]:
    return tuple((*trial(seed), f"seed={seed}") for seed in range(tune["seeds"]))


def _validation(job: Job) -> list[str]:
    """Hold out what judges the trials, where the stream's configuration holds nothing out yet."""
    if job.config["stream"].get("validation", True):
        return []
    return [f"stream.validation={job.config['tune']['validation']}"]


def _listed(order: Sequence[int]) -> str:
    return f"stream.order=[{','.join(map(str, order))}]"


def _stream(job: Job) -> Stream:
    stream: Any = build_stream(job.config)
    metric = job.config["tune"]["metric"]
    if {job.learner, find_kind(stream.kind).learner} != {"strategy"}:
        raise ConfigError(
            "cil tune is for strategies on class-incremental streams, not for adapters: leave adapter out"
        )
    if metric not in plugins.find("cil.kinds", stream.kind).results_type().__annotations__:
        raise ConfigError(f"tune.metric is {metric}, which runs of kind {stream.kind} do not have: they are not tuned")
    found: Stream = stream
    return found


def with_overrides(job: Job, more: Sequence[str]) -> Job:
    """The same job with more overrides, each in place of what was said of its key before."""
    return compose(replace_overrides(job.overrides, more))


def replace_overrides(overrides: Sequence[str], more: Sequence[str]) -> list[str]:
    """
    >>> replace_overrides(["optimizer.lr=0.1", "seed=1"], ["optimizer.lr=0.2"])
    ['seed=1', 'optimizer.lr=0.2']
    """
    keys = {key_of(item) for item in more}
    return [*(item for item in overrides if key_of(item) not in keys), *more]


# runs ---------------------------------------------------------------------------------------------------------------


def plan_trial(first: int | None, cell: Cell, jobs: int, out: Path) -> Run:
    """A trial: the run of the cell, on a stream without test data."""
    stream = for_tuning(_stream(cell.job), first)
    return build(cell.job, jobs=jobs, root=out, group=out.name, stream=stream, facts={"role": "trial"}, command=None)


def plan_report(tuning: Mapping[str, Any] | None, cell: Cell, jobs: int, out: Path) -> Run:
    """A run that is reported; where it was tuned, its identity says how. Untuned, it is what ``cil run`` makes."""
    facts = {"tuning": tuning} if cell.varied["tuning"] != UNTUNED else {}
    return build(cell.job, jobs=jobs, root=out, group=out.name, facts=facts)


def tuning_streams(job: Job, protocol: TuningProtocol) -> tuple[str, bool]:
    """Fingerprint of all streams that trials may meet, and whether none of their classes is reported on, by name.

    Raises:
        ConfigError: where another stream is tuned on that has classes of the one that is reported on.
    """
    reported = set(_stream(with_overrides(job, protocol.report)).classes)
    streams = [for_tuning(_stream(with_overrides(job, more)), protocol.first) for more in protocol.trials]
    shared = sorted({name for stream in streams for name in stream.classes} & reported)
    tune = job.config["tune"]
    if shared and tune["protocol"] == "two_phase" and tune["stream"] != "order":
        few = ", ".join(shared[:3])
        raise ConfigError(
            f"tune.stream={tune['stream']} has {len(shared)} classes of stream={job.choices['stream']} ({few}...): "
            "two_phase reports on classes that were not tuned on; name another stream, or tune.stream=half"
        )
    return fingerprint_of(*(stream.fingerprint for stream in streams)), not shared
