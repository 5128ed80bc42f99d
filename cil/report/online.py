"""Adaptation runs as tables: online error by domain, bytes and seconds, of rows that met the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cil.report.labels import labels_of
from cil.report.runs import Outcome, dig, is_adaptation
from cil.report.settings import Arena, Group, arenas, grouped
from cil.report.verdicts import Score, Verdict, verdict
from cil.tracking import Record

__all__ = ["OnlineRow", "OnlineSection", "is_adaptation", "online_sections"]


@dataclass(frozen=True)
class OnlineRow:
    """One adapter in one setting, over its seeds. Percent, bytes, seconds; None where unknown.

    Attributes:
        label: The adapter, and what tells it from another row of the same one.
        runs: Those that finished, one for each seed.
        domains: Online error on each domain, in the order of the section.
        mean: Unweighted mean over the domains.
        clean: Error on clean images before and after.
        carried: Exact bytes at the end of the stream, ``kinds`` the same by kind.
        peak_training: Bytes held at once during an update, at most.
        remark: Why seeds are missing; empty where none is.
    """

    label: str
    runs: tuple[Outcome, ...]
    domains: tuple[Score, ...]
    mean: Score
    clean: tuple[Score, Score]
    carried: int | None
    kinds: dict[str, int]
    peak_training: int | None
    seconds_per_batch: float | None
    remark: str = ""

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True)
class OnlineSection:
    """Rows that met the same images in the same order, from the same trained network.

    Attributes:
        domains: Their names, in order of first appearance.
        segments: Names of the stretches of the stream, in order of arrival.
        rows: Lowest mean error first.
    """

    title: str
    facts: dict[str, str]
    domains: tuple[str, ...]
    segments: tuple[str, ...]
    rows: tuple[OnlineRow, ...]
    verdict: Verdict | None
    warnings: tuple[str, ...]
    groups: tuple[Group, ...] = field(repr=False, default=())

    @property
    def clean(self) -> bool:
        """Whether a row knows its error on clean images."""
        return any(score.mean is not None for row in self.rows for score in row.clean)


def online_sections(records: Iterable[Record]) -> tuple[OnlineSection, ...]:
    """Adaptation records by what may be compared."""
    groups = grouped(records)
    return tuple(_section(arena, labels_of(arena.groups)) for arena in arenas(groups))


def _section(arena: Arena, labels: Sequence[str]) -> OnlineSection:
    groups = arena.groups
    first = groups[0].first
    stream = first.stream
    rows = [_row(group, label, len(stream["domains"])) for group, label in zip(groups, labels, strict=True)]
    rows.sort(key=lambda row: (row.mean.mean is None, row.mean.mean or 0.0, row.label))
    told = {row.label: _accuracy(row.mean) for row in rows if row.mean.mean is not None}
    source = str(dig(first.identity, "source", "name"))
    met = f"{sum(stream['counts']):,} images in {len(stream['segments'])} segments"
    return OnlineSection(
        title=f"{stream['name']}: {met}; source {source}",
        facts=_facts(groups),
        domains=tuple(stream["domains"]),
        segments=tuple(stream["segments"]),
        rows=tuple(rows),
        verdict=verdict("Online accuracy (100 − mean error)", told) if len(told) > 1 else None,
        warnings=tuple(_warnings(groups, rows)),
        groups=tuple(groups),
    )


def _accuracy(error: Score) -> Score:
    return Score({seed: None if value is None else 100 - value for seed, value in error.values.items()})


def _row(group: Group, label: str, domains: int) -> OnlineRow:
    runs = tuple(run for run in group.runs if run.status == "finished")
    carried = [run.carried("exact") for run in runs]
    largest = max(runs, key=lambda run: run.carried("exact") or 0, default=None)
    stopped = Counter(run.status.replace("_", " ") for run in group.runs if run.status != "finished")
    remark = ", ".join(f"{count} of {len(group.runs)} seeds {status}" for status, count in sorted(stopped.items()))
    errors = [run.record.error for run in group.runs if run.record.error]
    return OnlineRow(
        label=label,
        runs=runs,
        domains=tuple(Score({run.seed: run.result("domain_errors", k) for run in runs}) for k in range(domains)),
        mean=Score({run.seed: run.result("mean_error") for run in runs}),
        clean=(_clean(runs, "before"), _clean(runs, "after")),
        carried=max((size for size in carried if size is not None), default=None),
        kinds=largest.kinds("exact") if largest is not None else {},
        peak_training=max((run.result("peak_training_bytes") or 0 for run in runs), default=None),
        seconds_per_batch=_mean([run.result("seconds", "per_batch") for run in runs]),
        remark=f"{remark}: {errors[0]}" if errors else remark,
    )


def _clean(runs: Iterable[Outcome], when: str) -> Score:
    return Score({run.seed: run.result(f"clean_error_{when}") for run in runs})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _facts(groups: Sequence[Group]) -> dict[str, str]:
    """What was the same for all."""
    runs = [run for group in groups for run in group.runs]
    first = runs[0]
    stream, source = first.stream, first.identity.get("source") or {}
    told = {
        "stream": str(stream["name"]),
        "data": str(stream.get("data", "unknown")),
        "fingerprint": ", ".join(sorted({str(run.stream.get("fingerprint"))[:12] for run in runs})),
        "classes": str(len(stream["classes"])),
        "images": " × ".join(map(str, stream["image_shape"])),
        "order": " → ".join(stream["segments"]),
        "severity": str(stream.get("severity", "")),
        "source": ", ".join(f"{key} {value}" for key, value in source.items() if key != "kind" and value is not None),
        "batch size": ", ".join(sorted({str(run.identity.get("batch_size")) for run in runs})),
        "precision": first.precision,
        "device": first.device,
        "threads": ", ".join(sorted({str(run.identity.get("threads")) for run in runs})),
        "versions": "; ".join(_versions(runs)),
    }
    return {name: text for name, text in told.items() if text}


def _versions(runs: Iterable[Outcome]) -> list[str]:
    met = {", ".join(f"{k} {v}" for k, v in sorted((run.identity.get("versions") or {}).items())) for run in runs}
    return sorted(met)


def _warnings(groups: Sequence[Group], rows: Sequence[OnlineRow]) -> Iterable[str]:
    runs = [run for group in groups for run in group.runs]
    if runs[0].stream.get("data") == "unofficial":
        yield "Unofficial data: these are not the published images; they were made here, or come from other files."
    lone = [row.label for row in rows if len(row.seeds) == 1]
    if lone:
        yield f"One seed only: {', '.join(lone)}. A difference from it may be chance."
    for key, word in (("batch_size", "batch size"), ("threads", "threads")):
        values = sorted({str(run.identity.get(key)) for run in runs})
        if len(values) > 1:
            yield f"Runs differ in {word}: {' and '.join(values)}."
    if len(_versions(runs)) > 1:
        yield "Runs differ in versions of packages."
    if any(len({run.identity.get("code") for run in group.runs}) > 1 for group in groups):
        yield "The code was edited between the seeds of one row."
