"""What may stand beside what: runs to rows (one setting, several seeds), rows to settings that can be compared."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from cil.report.runs import Outcome, flat, same_everywhere
from cil.tracking import Record

MIB = 2**20
HOW = (  # beginnings of keys that say how it was computed, not what; what was used in fact stands in the identity
    "device",
    "anytime.",
    "boundary",
    "checkpoint.",
    "progress",
    "trainer.threads",
    "trainer.precision",
    "trainer.snapshot_",
    "trainer.log_every",
    "trainer.evaluation_batch",
)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, and in what follows from it: initialisation, order of classes and data.

    Attributes:
        runs: One for each seed, in order of the seeds.
        dropped: Runs of a seed that is there already.
    """

    runs: tuple[Outcome, ...]
    dropped: int = 0

    @property
    def first(self) -> Outcome:
        return self.runs[0]

    @property
    def orders(self) -> dict[int, Any]:
        """What came in which order, for each seed."""
        return {run.seed: run.order for run in self.runs}


@dataclass
class Arena:
    """Groups that met the same streams on the same kind of device, at the same precision."""

    facts: Hashable  # see _facts
    orders: dict[int, Any]
    groups: list[Group] = field(default_factory=list)

    def admits(self, group: Group) -> bool:
        """Whether the group met the same: on each seed that both know; without one, in all."""
        if _facts(group.first) != self.facts:
            return False
        shared = self.orders.keys() & group.orders.keys()
        if shared:
            return all(self.orders[seed] == group.orders[seed] for seed in shared)
        return set(self.orders.values()) == set(group.orders.values())


def grouped(records: Iterable[Record]) -> list[Group]:
    """Runs by everything that makes a setting except the seed, in an order that does not depend on theirs."""
    runs = sorted((Outcome(record) for record in records), key=_rank)
    groups = []
    for alike in _split(
        runs,
        lambda run: _text(
            [_facts(run), run.strategy, run.bound, _given(run.budget), _setting(run), run.identity.get("tuning")]
        ),
    ):
        for same in _split(alike, partial(_other_seeds, _free_seeds(alike))):
            groups += [_group(part) for part in _by_stream(same)]
    return sorted(groups, key=lambda group: (-len(group.runs), *_rank(group.first)))


def arenas(groups: Iterable[Group]) -> list[Arena]:
    """Groups by the streams they met: only inside one arena may accuracies be compared."""
    found: list[Arena] = []
    for group in groups:
        arena = next((arena for arena in found if arena.admits(group)), None)
        if arena is None:
            arena = Arena(_facts(group.first), {})
            found.append(arena)
        arena.groups.append(group)
        arena.orders |= {seed: order for seed, order in group.orders.items() if seed not in arena.orders}
    return found


def by_budget(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups that may carry the same, smallest budget first and no budget last."""
    parts = _split(
        groups,
        lambda group: _text([allowance(group.first), _work(group.first), group.first.budget.get("scope", "carried")]),
    )
    return sorted(parts, key=lambda part: _size(part[0].first))


def allowance(run: Outcome) -> tuple[Any, ...]:
    """What a run may carry, whatever words it was asked for in: exemplars, bytes at each boundary, convention."""
    limits = run.budget.get("limits")
    if limits is None:
        return run.budget.get("exemplars"), None, None
    limits = limits[-1:] if same_everywhere(limits) else limits
    return run.budget.get("exemplars"), tuple(limits), run.convention


def _work(run: Outcome) -> tuple[Any, Any]:
    """Operations and updates that an experience may take."""
    return run.budget.get("flops"), run.budget.get("updates")


def stream_words(run: Outcome) -> str:
    """The stream in one line.

    For example ``split_digits: 10 classes in 5 experiences of 2``.
    """
    stream = run.stream
    sizes = [len(slots) for slots in stream.get("new_slots") or []]
    if not sizes:
        each = ""
    elif same_everywhere(sizes):
        each = f" of {sizes[0]}"
    else:
        each = f" ({', '.join(map(str, sizes))})"
    name = stream.get("name", "stream")
    return f"{name}: {len(stream.get('classes') or [])} classes in {run.experiences} experiences{each}"


def budget_words(budget: dict[str, Any]) -> str:
    """The budget in words.

    >>> budget_words({"kind": "bytes", "limits": [7998016], "convention": "survey"})
    '7,998,016 bytes (7.63 MiB, survey)'
    >>> budget_words({"kind": "exemplars", "exemplars": 200}), budget_words({"kind": "none"})
    ('200 exemplars', 'no budget')
    """
    exemplars, limits = budget.get("exemplars"), budget.get("limits")
    parts = []
    if limits:
        convention = budget.get("convention") or "exact"
        words = f"{limits[-1]:,} bytes ({limits[-1] / MIB:.2f} MiB, {convention})"
        if not same_everywhere(limits):
            words = f"after each experience its own limit, at the end {words}"
        to = budget.get("to") if budget.get("kind") == "aligned" else None
        on = f" on {budget['to_model']}" if budget.get("to_model") else ""
        parts.append(f"aligned to {to}{on}, {words}" if to else words)
    if exemplars is not None:
        parts.append(f"{exemplars:,} exemplars")
    if budget.get("flops") is not None:
        mantissa, exponent = f"{budget['flops']:.2e}".split("e")
        parts.append(f"{mantissa}e{int(exponent)} FLOPs an experience")
    if budget.get("updates") is not None:
        parts.append(f"{budget['updates']:,} updates an experience")
    more = "; as many more as incoming images are given up" if budget.get("scope") == "carried+incoming" else ""
    return (", ".join(parts) or "no budget") + more


def differing(runs: Sequence[Outcome]) -> list[str]:
    """Keys of the configs whose values are not the same in all runs; seeds and budgets aside."""
    leaves = [_setting(run) for run in runs]
    keys = dict.fromkeys(key for leaf in leaves for key in leaf if not key.startswith("budget."))
    return [key for key in keys if not same_everywhere(leaf.get(key, ...) for leaf in leaves)]


def config_text(run: Outcome, without: tuple[str, ...]) -> str:
    """The config as one text, without seeds and the named parts."""
    return _text({key: value for key, value in _setting(run).items() if key.split(".")[0] not in without})


def _setting(run: Outcome) -> dict[str, Any]:
    """The leaves of the config that make a setting, so neither seeds nor where and how it was computed.

    Null is as good as absent: a key of a later version, which earlier records lack, begins as null.
    """
    leaves = _given(flat(run.config))
    return {key: value for key, value in leaves.items() if not (_is_seed(key) or key.startswith(HOW))}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _facts(run: Outcome) -> Hashable:
    """What makes an arena and can be seen on one run. Orders may follow from the seed, so they are compared apart."""
    stream = run.stream
    counts = (len(stream.get("classes") or ()), run.experiences, tuple(stream.get("image_shape") or ()))
    sizes = tuple(len(slots) for slots in stream.get("new_slots") or ())
    told = bool(stream.get("task_known_at_test"))
    source = _text(run.identity.get("source"))  # of an adaptation run: the trained network
    return stream.get("name"), *counts, sizes, stream.get("data"), told, source, run.precision, run.device


def _free_seeds(runs: Sequence[Outcome]) -> list[str]:
    """Keys of seeds that do not follow the run's own seed: they make another setting."""
    seeds = [key for key in flat(runs[0].config) if _is_seed(key)]
    return [key for key in seeds if any(flat(run.config).get(key) not in (run.seed, None) for run in runs)]


def _other_seeds(keys: Sequence[str], run: Outcome) -> str:
    return _text([flat(run.config).get(key) for key in keys])


def _is_seed(key: str) -> bool:
    name = key.rsplit(".", 1)[-1]
    return name == "seed" or name.endswith("_seed")


def _by_stream(runs: list[Outcome]) -> list[list[Outcome]]:
    """Apart where seeds do not explain it: one seed with two streams, or one class order of two sets of images."""
    seeds: dict[Any, set[Any]] = defaultdict(set)
    orders: dict[Any, set[Any]] = defaultdict(set)
    for run in runs:
        seeds[run.seed].add(run.order)
        orders[run.order[1]].add(run.order[0])
    explained = all(len(met) == 1 for met in [*seeds.values(), *orders.values()])
    return [runs] if explained else _split(runs, lambda run: run.order)


def _group(runs: list[Outcome]) -> Group:
    chosen: dict[int, Outcome] = {}
    for run in sorted(runs, key=lambda run: run.status != "finished"):  # stable: else the first stays
        chosen.setdefault(run.seed, run)
    return Group(tuple(chosen[seed] for seed in sorted(chosen)), len(runs) - len(chosen))


def _split(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    parts: dict[Hashable, list[Item]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())


def _rank(run: Outcome) -> tuple[Any, ...]:
    return run.strategy, run.seed, _text(run.identity), run.record.directory.name


def _size(run: Outcome) -> tuple[Any, ...]:
    exemplars, limits, convention = allowance(run)
    return (
        exemplars is None and limits is None,
        (limits or (0,))[-1],
        limits or (),
        exemplars or 0,
        convention or "",
    )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
