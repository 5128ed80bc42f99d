"""Cases of an experiment: what it sets for some of its runs alone; and a split of classes in one word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cil.cli.names import IN_OTHER_WORDS, key_of
from cil.errors import ConfigError
from cil.values import check_value

if TYPE_CHECKING:
    from cil.cli.job import Job

EVERY = "all"  # in place of the number of a point
SPLIT = re.compile(r"b(\d+)_inc(\d+)")  # of base and increment: b50_inc10


def case_overrides(job: Job) -> list[str]:
    """Overrides that the split and the cases of the configuration add to a job.

    A case is ``condition: overrides``. Its condition is ``key=value`` terms apart by blanks, all of which must hold;
    alternatives of a value are apart by commas. Of two cases that set the same key, the later one holds, and what the
    command line says holds before both.

    Raises:
        ConfigError: for a point that no case mentions, and for what is no case or split.
    """
    for key in IN_OTHER_WORDS:
        check_value(key, job.config[key])
    found: dict[str, str] = {}
    point = job.config["point"]
    if point is not None and str(point) not in (known := points_of(job)) and (point != EVERY or not known):
        has = f"here are {', '.join(known)}" if known else "points are of experiment=survey_curve"
        raise ConfigError(f"point is {point}; {has}; budgets of your own are budget.points=[...]")
    for condition, overrides in job.config["cases"].items():
        if _holds(job, condition):
            found |= {key_of(item): item for item in overrides.split()}
    if matched := SPLIT.fullmatch(job.config["split"] or ""):
        found |= {"stream.base": f"stream.base={matched[1]}", "stream.increment": f"stream.increment={matched[2]}"}
    named = {key_of(item) for item in job.overrides}
    replaced = named & found.keys()  # a group too: then what cases say of its keys is of another file of it
    return [item for key, item in found.items() if not {key, key.partition(".")[0]} & replaced]


def points_of(job: Job) -> list[str]:
    """The numbers of the budgets that an experiment has for the stream and scale of a job."""
    cases = [dict(_terms(condition)) for condition in job.config["cases"] if _holds(job, condition, without="point")]
    return sorted({value for terms in cases for value in terms.get("point", [])}, key=int)


def _holds(job: Job, condition: str, without: str | None = None) -> bool:
    """True where all terms hold, but for those of one key."""
    return all(key == without or _value(job, key) in values for key, values in _terms(condition))


def _terms(condition: str) -> Iterator[tuple[str, list[str]]]:
    """The keys of a condition, and the values that each may have.

    >>> dict(_terms("point=2 strategy=der,memo"))
    {'point': ['2'], 'strategy': ['der', 'memo']}
    """
    for term in condition.split():
        key, _, values = term.partition("=")
        yield key, values.split(",")


def _value(job: Job, key: str) -> str:
    if key in job.choices:
        return str(job.choices[key])
    node: Any = job.config
    for step in key.split("."):
        node = node.get(step) if isinstance(node, Mapping) else None
    return str(node)
