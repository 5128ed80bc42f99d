"""Run directories to records, and what tables and plots read of one record."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil import plugins
from cil.errors import ConfigError
from cil.report.section import ReportedKind
from cil.tracking import Record, RecordError, identity_hash
from cil.tracking.audits import Audit, read_audits
from cil.tracking.files import INDEX_OF_ARRAYS, METRICS, RECORD
from cil.tracking.housekeeping import CHECKPOINT, status_of
from cil.tracking.storage import PARTIAL

if TYPE_CHECKING:
    import numpy as np

CONVENTIONS = ("exact", "survey")  # of counting carried bytes, in every table; a record may know more
NETWORKS = ("parameters", "buffers")  # kinds of bytes that a network is made of
HELD = "training"  # among the totals of a ledger: what is held in training, which is no bill
_say = logging.getLogger("cil.report")


def find_runs(paths: str | Path | Iterable[str | Path]) -> list[Record]:
    """Every run at or under the paths, each once, in order of its directory; trials of a tuning only where all are.

    A record that cannot be read, or is not what records of its kind look like, is left out with a warning of one line.

    Raises:
        ConfigError: if a path does not exist, or there is no run at all.
    """
    records, problems = read_runs(paths)
    for problem in problems:
        _say.warning("left out: %s", problem)
    return records


def read_runs(paths: str | Path | Iterable[str | Path], *, trials: bool = False) -> tuple[list[Record], list[str]]:
    """As ``find_runs``, with a line for each record that is left out, in place of a warning.

    Args:
        trials: Trials of a tuning too.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    found: dict[tuple[int, int], Record] = {}  # by the file of the record, which may have several names
    problems: dict[str, None] = {}
    for path in given:
        if not path.exists():
            raise ConfigError(f"'{path}' does not exist; give run directories, or directories above them")
        lost: list[str] = []
        for directory in run_directories(path, lost):
            try:
                file = (directory / RECORD).stat()
                found.setdefault((file.st_dev, file.st_ino), Record.load(directory))
            except (OSError, RecordError) as error:
                problems[str(error)] = None
        problems |= dict.fromkeys(lost)
    if not found:
        why = "; ".join(problems) or "a run has a record.json"
        raise ConfigError(f"no run at or under {', '.join(map(str, given)) or 'no path'}: {why}")
    records = sorted(found.values(), key=lambda record: record.directory.resolve())
    results = [record for record in records if trials or record.identity.get("role") != "trial"]
    return results or records, list(problems)


def run_directories(path: Path, lost: list[str] | None = None) -> Iterable[Path]:
    """Folders at or under a path that have a record.

    Args:
        lost: Takes a line for each that has other files of a run, and no record.
    """
    for directory, below, files in os.walk(path):
        below[:] = [name for name in below if not name.startswith(PARTIAL)]
        if RECORD in files:
            below.clear()  # a run holds no other run, but many files
            yield Path(directory)
        elif lost is not None and (left := _left_of_run(Path(directory), below)):
            below.clear()
            lost.append(f"{directory} has {left} and no {RECORD}; restore it, or give the run's command again")


def _left_of_run(directory: Path, below: Iterable[str]) -> str | None:
    """A file that only runs have, where there is one."""
    states = sorted((directory / CHECKPOINT).glob("experience-*.json")) if CHECKPOINT in below else []
    files = [*states, directory / INDEX_OF_ARRAYS]
    return next((str(path.relative_to(directory)) for path in files if path.is_file()), None)


def dig(value: Any, *path: str | int) -> Any:
    """The value at a path of keys and indices, None where there is nothing.

    >>> dig({"ledger": [{"total": 5}]}, "ledger", -1, "total"), dig({}, "ledger", -1)
    (5, None)
    """
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


@contextmanager
def _without_pictures() -> Iterator[None]:
    """A file of arrays that is damaged or missing ends the block, and is told."""
    try:
        yield
    except RecordError as error:
        _say.warning("without pictures: %s", error)


@dataclass(frozen=True)
class RunSummary:
    """One record as a table reads it. Bytes, percent, seconds; None where the record does not say."""

    record: Record

    @property
    def identity(self) -> dict[str, Any]:
        return self.record.identity

    @property
    def kind(self) -> ReportedKind:
        """The kind of run.

        Raises:
            ConfigError: if no installed package knows it.
        """
        kind: ReportedKind = plugins.find("cil.kinds", self.record.kind)
        return kind

    def arrays(self, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Those of these arrays that the record keeps; none, with a warning, where a file is damaged or missing."""
        if self._published():
            return {}
        with _without_pictures():
            kept = self.record.arrays()
            return {name: kept[name] for name in names if name in kept}
        return {}

    def parts(self, name: str) -> Iterator[np.ndarray[Any, Any]]:
        """The parts of an array, one for each experience; those before one that is damaged, with a warning."""
        if self._published():
            return
        with _without_pictures():
            kept = self.record.arrays()
            yield from kept.parts(name) if name in kept else ()

    def _published(self) -> bool:
        """True for a run that is kept as ``record.json`` alone, as those in ``experiments/`` are: without arrays."""
        directory = self.record.directory
        return self.record.log is not None and not any(
            (directory / name).exists() for name in (METRICS, INDEX_OF_ARRAYS)
        )

    @property
    def learner(self) -> str:
        """Name of the strategy or adapter."""
        return str(self.identity[self.kind.learner])

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    @property
    def stream(self) -> dict[str, Any]:
        return self.identity["stream"] or {}

    @property
    def scale(self) -> str | None:
        """The scale that made it another setting than its experiment says, as small; None: there was none."""
        return self.identity.get("scale")

    @property
    def stream_name(self) -> str:
        """The stream, with the scale where there was one: ``cifar100_b0_inc4, scale=small``."""
        return f"{self.stream.get('name', 'stream')}{f', scale={self.scale}' if self.scale else ''}"

    @property
    def budget(self) -> dict[str, Any]:
        return self.identity.get("budget") or {}

    @property
    def counts_exemplars(self) -> bool:
        """True if their number is capped, in all or for each class."""
        return self.most_exemplars is not None or self.budget.get("per_class") is not None

    @property
    def most_exemplars(self) -> int | None:
        """Cap on their number in all. Where a budget follows another strategy the number is of that one, and no cap."""
        most: int | None = self.budget.get("exemplars")
        return None if self.budget.get("kind") == "aligned" else most

    @property
    def config(self) -> dict[str, Any]:
        return self.identity["config"] or {}

    @property
    def bound(self) -> bool:
        return bool(self.identity.get("bound"))

    @property
    def transductive(self) -> bool:
        """True if an answer may depend on the other test images."""
        return bool(self.identity.get("transductive"))

    @cached_property
    def audits(self) -> list[Audit]:
        """Experiences that were redone from their stored states."""
        return read_audits(self.record.directory, identity_hash(self.identity))

    @cached_property
    def status(self) -> str:
        """See ``cil.tracking.housekeeping.status_of``."""
        return status_of(self.record)

    @property
    def started(self) -> str:
        """When it was begun, so that later ones are greater; empty where the record does not say."""
        return str(self.record.environment.get("started") or "")

    @property
    def steps(self) -> int:
        """Experiences, or segments, of the whole stream."""
        steps = self.stream.get(self.kind.unit) or 0
        return steps if isinstance(steps, int) else len(steps)

    @property
    def done(self) -> int:
        """Steps that were evaluated."""
        return len(self.result(self.kind.progress) or ())

    @property
    def precision(self) -> str:
        return str(self.identity.get("precision", "unknown"))

    @property
    def device(self) -> str:
        """The kind: ``cpu``, ``cuda``."""
        return str(self.identity.get("device", "unknown")).split(":")[0]

    @property
    def order(self) -> tuple[str, tuple[Any, ...]]:
        """Fingerprint and class order: equal if and only if the same images came in the same order."""
        order = self.identity.get("class_order") or self.stream.get("class_order") or ()
        return str(self.stream.get("fingerprint")), tuple(order)

    @property
    def limit(self) -> int | None:
        """Bytes allowed at the end of the stream."""
        limit: int | None = dig(self.budget, "limits", -1)
        return limit

    @property
    def convention(self) -> str:
        return str(self.budget.get("convention") or "exact")

    def result(self, *path: str | int) -> Any:
        return dig(self.record.results, *path)

    def bytes_by_kind(self, convention: str) -> dict[str, int]:
        """Carried bytes by kind at the end of the stream.

        Of a run over its budget, as the dry run knew them, or as they were where it stopped if that is more.
        """
        kept = self.result("ledger", -1, "totals", convention) or {}
        if self.status == "over_budget" and (self.carried(convention) or 0) > (kept.get("total") or 0):
            bill = self.result("bills", -1) or {}
            fixed, total = (dig(bill, key, convention) or 0 for key in ("fixed", "total"))
            # a dry run tells kinds apart under the exact convention alone
            kept = bill.get("by_kind") if convention == "exact" else {"parameters": fixed, "exemplars": total - fixed}
        return {kind: size for kind, size in (kept or {}).items() if kind != "total" and size}

    @property
    def conventions(self) -> list[str]:
        """Ways in which the record counts carried bytes."""
        kept, planned = self.result("ledger", -1, "totals") or {}, self.result("bills", -1, "total") or {}
        return [name for name in {**kept, **planned} if name != HELD]

    def carried(self, convention: str) -> int | None:
        """Carried bytes at the end of the stream; see ``bytes_by_kind``."""
        kept: int | None = self.result("ledger", -1, "totals", convention, "total")
        planned: int | None = self.result("bills", -1, "total", convention) if self.status == "over_budget" else None
        return max((size for size in (kept, planned) if size is not None), default=None)

    @property
    def public(self) -> int:
        """Bytes of public weights among the carried ones."""
        return 0 if self.status == "over_budget" else self.result("ledger", -1, "public") or 0

    def own(self, convention: str) -> int | None:
        """Carried bytes without public weights; under ``survey`` these are part of the backbones' parameters."""
        total = self.carried(convention)
        if total is None or convention == "libcontinual":  # which knows no public weights
            return total
        if convention == "exact":
            return total - self.public
        return total - min(self.public, self.bytes_by_kind(convention).get("parameters", 0))

    @property
    def three_lines(self) -> dict[str, int]:
        """Carried bytes at the end: ``backbone``, public weights that are referred to; ``learned``, all other
        parameters and buffers; ``stored``, the rest. Empty where they are not known, and over budget."""
        sizes = {} if self.status == "over_budget" else self.bytes_by_kind("exact")
        if not sizes:
            return {}
        networks = sum(sizes.get(kind, 0) for kind in NETWORKS)
        stored = sum(sizes.values()) - networks
        return {"backbone": self.public, "learned": networks - self.public, "stored": stored}

    @property
    def images_beside(self) -> float | None:
        """Images of the stream that would fit into what is carried at the end beside networks and exemplars."""
        held: float | None = self.result("ledger", -1, "beside", "images")
        return held

    @property
    def exemplars(self) -> int | None:
        """Stored at the end of the stream."""
        path = ("bills", -1, "exemplars") if self.status == "over_budget" else ("exemplars", -1)
        stored: int | None = self.result(*path)
        return stored

    @property
    def looks(self) -> float | None:
        """How often an image of an experience was read for training, mean over all of them."""
        seen = self.result("looks") or []
        images = sum(one["images"] for one in seen)
        return sum(one["mean"] * one["images"] for one in seen) / images if images else None

    @property
    def fitted(self) -> str:
        """The hyperparameter that the budget has set, ``size=656``; empty where it set none."""
        found = self.result("fitted")
        return f"{found['key']}={found['value']}" if found else ""

    @property
    def flops(self) -> int | None:
        """Of everything but evaluation: training, consolidation, search."""
        parts = self.result("flops") or {}
        counted = [part for name, part in parts.items() if name not in ("evaluation", "total")]
        sums = [part if isinstance(part, int) else dig(part, -1) for part in counted]
        return sum(sums) if sums and None not in sums else None

    @property
    def training_seconds(self) -> float | None:
        """Of everything but evaluation."""
        parts = self.result("seconds") or {}
        counted = [part for name, part in parts.items() if name not in ("evaluate", "per_batch", "total")]
        sums = [sum(part) if isinstance(part, list) else part for part in counted]
        return sum(sums) if sums and None not in sums else None

    @property
    def excess(self) -> str | None:
        """Where a run that was let go on (``enforce=report``) was over its budget, in words."""
        for step, words in enumerate(self.result("over_budget") or ()):
            if words:
                return f"{words}, after experience {step}"
        return None


def conventions_of(runs: Iterable[RunSummary]) -> list[str]:
    """Ways of counting carried bytes that a table shows: those of every table, then further ones of its runs."""
    return list(dict.fromkeys([*CONVENTIONS, *sorted({name for run in runs for name in run.conventions})]))


def all_equal(values: Iterable[Any]) -> bool:
    items = list(values)
    return all(item == items[0] for item in items)


def in_effect(run: RunSummary) -> Mapping[str, Any]:
    """The configuration, with a method's own settings in place of those of the recipe that do nothing with it.

    What has none of the same name in its place, as a schedule where the rate is constant, is null.
    """
    ignored = run.identity.get("ignored")
    if not ignored:
        return run.config
    config = deepcopy(run.config)
    for key, other in ignored.items():
        group, _, name = key.partition(".")
        own = dig(run.config, *other.split(".")) if other.endswith(f".{name or group}") else None
        for part in (config, config.get("trainer") or {}):  # from Python the optimizer stands in the trainer
            if not name and group in part:
                part[group] = own
            elif name and isinstance(part.get(group), dict):
                part[group][name] = own
    return config


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves.

    >>> flat({"a": {"b": 1, "c": [2]}})
    {'a.b': 1, 'a.c': [2]}
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return leaves
