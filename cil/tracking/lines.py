"""A run as lines of numbers, one for each experience, for other programs: CSV, parquet, pandas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from cil import plugins
from cil.errors import CilError

if TYPE_CHECKING:
    import pandas

BY_STEP = (  # results of strategies with an entry for each experience
    "accuracy_curve", "accuracy_matrix", "accuracy_matrix_task_aware", "losses", "ledger", "exemplars", "given_up",
    "over_budget", "flops", "seconds", "compute", "own_updates", "own_images", "caps",
)  # fmt: skip
EXTRA = "pip install 'cil[frames]'"


class ReadRecord(Protocol):
    run: str
    identity: dict[str, Any]
    results: dict[str, Any]
    status: str

    @property
    def kind(self) -> str: ...


class MissingPackage(CilError):
    """A package of an extra is not installed."""


def lines(record: ReadRecord) -> list[dict[str, Any]]:
    """A line for each step that was evaluated: what tells the run from others, then numbers of that step.

    Nested results have dotted names: ``ledger.totals.exact.total``, ``flops.training`` (summed up to this step),
    ``accuracy_matrix.0`` (percent on experience 0). Undefined is None. All lines of a record have the same names.

    Raises:
        ConfigError: if no installed package knows the kind of run.
    """
    kind: Any = plugins.find("cil.kinds", record.kind)
    identity, results = record.identity, record.results
    stream, budget = identity.get("stream") or {}, identity.get("budget") or {}
    steps = len(results.get(kind.progress) or ())
    head = {
        "run": record.run,
        "kind": record.kind,
        "stream": stream.get("name"),
        "method": identity.get(kind.learner),
        "seed": identity["seed"],
        "status": record.status,
        "bound": bool(identity.get("bound")),
        "budget": budget.get("kind"),
        "budget_exemplars": budget.get("exemplars"),
        "budget_bytes": (budget.get("limits") or [None])[-1],
        "budget_convention": budget.get("convention"),
        "model": (identity.get("networks") or identity.get("source") or {}).get("name"),
        "config": identity.get("config_hash"),
    }
    names = dict.fromkeys([kind.progress, *getattr(kind, "by_step", BY_STEP)])
    found = [
        {**head, "experience": step}
        | {key: value for name in names for key, value in _leaves(name, results.get(name), step, steps)}
        for step in range(steps)
    ]
    columns = dict.fromkeys(name for line in found for name in line)
    return [{name: line.get(name) for name in columns} for line in found]


def _leaves(name: str, value: Any, step: int, steps: int) -> Iterator[tuple[str, Any]]:
    """Numbers and texts of a step in a result, by dotted name; what has no entry for each step is left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item, step, steps)
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) >= steps:
        yield from _flat(name, value[step])


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What one entry holds: numbers, dictionaries of them, rows of a matrix; lists of things are left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, list):
        if not any(isinstance(item, (Mapping, list)) for item in value):
            yield from ((f"{name}.{place}", item) for place, item in enumerate(value))
    else:
        yield name, value


def frame(found: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Lines as a data frame of pandas.

    Raises:
        MissingPackage: naming the extra that brings pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise MissingPackage(f"a data frame needs pandas: {EXTRA}") from error
    return pandas.DataFrame(list(found))
