"""Which runs make one row (one setting, several seeds), and which rows may be compared."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cil.report.grids import flops
from cil.report.runs import RunSummary, all_equal, flat
from cil.tracking import Record

MIB = 2**20
HOW = (  # beginnings of keys that say how a run was computed, not what; what was used in fact is in the identity
    *("device", "anytime.", "boundary", "checkpoint.", "progress", "trainer.threads", "trainer.devices"),
    *("trainer.nodes", "trainer.precision", "trainer.snapshot_", "trainer.log_every", "trainer.evaluation_batch"),
    *("trainer.answers", "trainer.open_set", "trainer.pictures"),
)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, and in what follows from it: initialisation, order of classes and data.

    Attributes:
        runs: One for each seed, in order of the seeds.
        dropped: Runs of a seed that is there already.
        older: Runs of an earlier version of the code, where a seed was run with several.
    """

    runs: tuple[RunSummary, ...]
    dropped: int = 0
    older: int = 0

    @property
    def first(self) -> RunSummary:
        return self.runs[0]

    @property
    def finished(self) -> tuple[RunSummary, ...]:
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def orders(self) -> dict[int, Any]:
        """The images and their order, for each seed."""
        return {run.seed: run.order for run in self.runs}


def grouped(records: Iterable[Record]) -> list[Group]:
    """Runs by everything that makes a setting except the seed, in an order that does not depend on theirs."""
    runs = sorted((RunSummary(record) for record in records), key=_rank)
    groups = []

    def setting(run: RunSummary) -> str:
        method, budget, tuning = (run.learner, run.bound), _without_null(run.budget), run.identity.get("tuning")
        return _text([_shared_facts(run), method, budget, _setting(run.config), tuning])

    for alike in _split(runs, setting):
        for same in _split(alike, partial(_other_seeds, _free_seeds(alike))):
            groups += [_group(part) for part in _by_stream(same)]
    return sorted(groups, key=lambda group: (-len(group.runs), *_rank(group.first)))


def comparisons(groups: Iterable[Group]) -> list[list[Group]]:
    """Groups by the streams they met: numbers are compared inside one list only."""
    found: list[tuple[Hashable, dict[int, Any], list[Group]]] = []  # shared facts, orders that were met, the groups
    for group in groups:
        facts, orders = _shared_facts(group.first), group.orders
        same = (one for one in found if one[0] == facts and _same_streams(one[1], orders))
        _, met, alike = next(same, (facts, {}, []))
        if not alike:
            found.append((facts, met, alike))
        alike.append(group)
        met |= {seed: order for seed, order in orders.items() if seed not in met}
    return [alike for _, _, alike in found]


def _same_streams(met: Mapping[int, Any], orders: Mapping[int, Any]) -> bool:
    """True where orders are the same on each seed that both know; without one, on all."""
    if shared := met.keys() & orders.keys():
        return all(met[seed] == orders[seed] for seed in shared)
    return set(met.values()) == set(orders.values())


def by_budget(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that may carry the same, smallest budget first and no budget last."""

    def limits(group: Group) -> str:
        run, budget = group.first, group.first.budget
        work = (budget.get("flops"), budget.get("updates"))
        return _text([allowance(run), work, budget.get("scope", "carried"), budget.get("caps") or {}])

    return sorted(_split(groups, limits), key=lambda part: _size(part[0].first))


def allowance(run: RunSummary) -> tuple[Any, ...]:
    """Exemplars, bytes at each boundary and convention that a run may carry, in whatever words it was asked for.

    Exemplars are their number, and that for each class.
    """
    limits, counted = run.budget.get("limits"), (run.budget.get("exemplars"), run.budget.get("per_class"))
    if limits is None:
        return counted, None, None
    limits = limits[-1:] if all_equal(limits) else limits
    return counted, tuple(limits), run.convention


def budget_words(budget: dict[str, Any]) -> str:
    """The budget in words.

    >>> budget_words({"kind": "bytes", "limits": [7998016], "convention": "survey"})
    '7,998,016 bytes (7.63 MiB, survey)'
    >>> budget_words({"kind": "exemplars", "exemplars": 200, "caps": {"energy": 5000}}), budget_words({"kind": "none"})
    ('200 exemplars, energy up to 5,000', 'no budget')
    """
    exemplars, limits = budget.get("exemplars"), budget.get("limits")
    parts = []
    if limits:
        convention = budget.get("convention") or "exact"
        words = f"{limits[-1]:,} bytes ({limits[-1] / MIB:.2f} MiB, {convention})"
        if not all_equal(limits):
            words = f"after each experience its own limit, at the end {words}"
        to = budget.get("to") if budget.get("kind") == "aligned" else None
        on = f" on {budget['to_model']}" if budget.get("to_model") else ""
        parts.append(f"aligned to {to}{on}, {words}" if to else words)
        if to and exemplars is not None:
            parts, exemplars = [f"{parts[0]}, what it has with {exemplars:,} exemplars"], None
    if exemplars is not None:
        parts.append(f"{exemplars:,} exemplars")
    if budget.get("per_class") is not None:
        parts.append(f"{budget['per_class']:,} exemplars a class")
    if budget.get("flops") is not None:
        parts.append(f"{flops(budget['flops'])} FLOPs an experience")
    if budget.get("updates") is not None:
        parts.append(f"{budget['updates']:,} updates an experience")
    parts += [f"{name} up to {limit:,}" for name, limit in (budget.get("caps") or {}).items()]
    more = "; as many more as incoming images are given up" if budget.get("scope") == "carried+incoming" else ""
    return (", ".join(parts) or "no budget") + more


def differing(
    runs: Sequence[RunSummary], config_of: Callable[[RunSummary], Mapping[str, Any]] | None = None
) -> list[str]:
    """Keys of the configs, or of what else ``config_of`` gives, that differ between runs; seeds and budgets aside."""
    leaves = [_setting(run.config if config_of is None else config_of(run)) for run in runs]
    keys = dict.fromkeys(key for leaf in leaves for key in leaf if not key.startswith("budget."))
    return [key for key in keys if not all_equal(leaf.get(key, ...) for leaf in leaves)]


def config_text(run: RunSummary, without: tuple[str, ...]) -> str:
    """The config as one text, without seeds and the named parts or keys."""
    return _text(
        {key: value for key, value in _setting(run.config).items() if not {key, key.split(".")[0]} & {*without}}
    )


def _setting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of the config that make a setting, so neither seeds nor where and how it was computed.

    Null is as good as absent: a key of a later version, which earlier records lack, begins as null.
    """
    leaves = _without_null(flat(config))
    return {key: value for key, value in leaves.items() if not (_is_seed(key) or key.startswith(HOW))}


def _without_null(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _shared_facts(run: RunSummary) -> Hashable:
    """Facts that compared runs share. Orders may follow from the seed, so they are compared apart."""
    stream = run.stream
    counts = (len(stream.get("classes") or ()), run.steps, tuple(stream.get("image_shape") or ()))
    sizes = tuple(len(slots) for slots in stream.get("new_slots") or ())
    task_aware = bool(stream.get("task_known_at_test"))
    source = _text(run.identity.get("source"))  # of an adaptation run: the trained network
    return stream.get("name"), *counts, sizes, stream.get("data"), task_aware, source, run.precision, run.device


def _free_seeds(runs: Sequence[RunSummary]) -> list[str]:
    """Keys of seeds that do not follow the run's own seed: they make another setting."""
    seeds = [key for key in flat(runs[0].config) if _is_seed(key)]
    return [key for key in seeds if any(flat(run.config).get(key) not in (run.seed, None) for run in runs)]


def _other_seeds(keys: Sequence[str], run: RunSummary) -> str:
    return _text([flat(run.config).get(key) for key in keys])


def _is_seed(key: str) -> bool:
    name = key.rsplit(".", 1)[-1]
    return name == "seed" or name.endswith("_seed")


def _by_stream(runs: list[RunSummary]) -> list[list[RunSummary]]:
    """Apart where seeds do not explain it: one seed with two streams, or one class order of two sets of images."""
    seeds: dict[Any, set[Any]] = defaultdict(set)
    orders: dict[Any, set[Any]] = defaultdict(set)
    for run in runs:
        seeds[run.seed].add(run.order)
        orders[run.order[1]].add(run.order[0])
    explained = all(len(met) == 1 for met in [*seeds.values(), *orders.values()])
    return [runs] if explained else _split(runs, lambda run: run.order)


def _group(runs: list[RunSummary]) -> Group:
    """One run for each seed, a finished one where there is one; after an edit, those of the newest code alone."""
    codes = [(run.seed, run.identity.get("code")) for run in runs]
    newest = max(runs, key=lambda run: (run.status == "finished", run.started))
    repeated = len(set(codes)) > len({seed for seed, _ in codes})
    same = [run for run in runs if not repeated or run.identity.get("code") == newest.identity.get("code")]
    chosen: dict[int, RunSummary] = {}
    for run in sorted(same, key=lambda run: run.status != "finished"):  # stable: else the first stays
        chosen.setdefault(run.seed, run)
    ordered = tuple(chosen[seed] for seed in sorted(chosen))
    return Group(ordered, len(same) - len(chosen), len(runs) - len(same))


def _split(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    parts: dict[Hashable, list[Item]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())


def _rank(run: RunSummary) -> tuple[Any, ...]:
    return run.learner, run.seed, _text(run.identity), run.record.directory.name


def _size(run: RunSummary) -> tuple[Any, ...]:
    (exemplars, each), limits, convention = allowance(run)
    return (
        not run.counts_exemplars and limits is None,
        (limits or (0,))[-1],
        limits or (),
        exemplars or 0,
        each or 0,
        convention or "",
    )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
