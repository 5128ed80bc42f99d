"""Adaptation rows that met the same images in the same order, from the same trained network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cil.report.grouping import Group, comparisons, grouped
from cil.report.labels import labels_of
from cil.report.rows import accuracy, largest, mean, missing_seeds, score
from cil.report.runs import RunSummary, dig
from cil.report.settings_list import (
    computing,
    edited_code,
    known,
    one_seed,
    unlike_values,
    unlike_versions,
    values_of,
    versions_of,
)
from cil.report.verdicts import Score, Verdict, verdict
from cil.tracking import Record


@dataclass(frozen=True)
class AdaptationRow:
    """One adapter in one setting, over its seeds. Percent, bytes, seconds; None where unknown.

    Attributes:
        label: The adapter, and what tells it from another row of the same one.
        runs: Those that finished, one for each seed.
        domains: Online error on each domain, in the order of the table.
        mean: Unweighted mean over the domains.
        clean: Error on clean images before and after.
        carried: Exact bytes at the end of the stream, ``kinds`` the same by kind.
        peak_training: Bytes held at once during an update, at most.
        remark: Why seeds are missing; empty where none is.
    """

    label: str
    runs: tuple[RunSummary, ...]
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
class AdaptationTable:
    """Rows that may be compared.

    Attributes:
        title, source: The stream and the trained network, in words.
        domains: Their names, in order of first appearance.
        segments: Names of the stretches of the stream, in order of arrival.
        rows: Lowest mean error first.
    """

    title: str
    source: str
    facts: dict[str, str]
    domains: tuple[str, ...]
    segments: tuple[str, ...]
    rows: tuple[AdaptationRow, ...]
    verdict: Verdict | None
    warnings: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """True if a row knows its error on clean images."""
        return any(score.mean is not None for row in self.rows for score in row.clean)


def adaptation_tables(records: Iterable[Record]) -> list[AdaptationTable]:
    """Adaptation records by what may be compared."""
    return [_table(comparison.groups) for comparison in comparisons(grouped(records))]


def _table(groups: Sequence[Group]) -> AdaptationTable:
    labels = labels_of(groups)
    first = groups[0].first
    stream = first.stream
    rows = [_row(group, label, len(stream["domains"])) for group, label in zip(groups, labels, strict=True)]
    rows.sort(key=lambda row: (row.mean.mean is None, row.mean.mean or 0.0, row.label))
    competitors = {row.label: accuracy(row.mean) for row in rows if row.mean.mean is not None}
    return AdaptationTable(
        title=f"{stream['name']}: {sum(stream['counts']):,} images in {len(stream['segments'])} segments",
        source=str(dig(first.identity, "source", "name")),
        facts=_facts(groups),
        domains=tuple(stream["domains"]),
        segments=tuple(stream["segments"]),
        rows=tuple(rows),
        verdict=verdict("Online accuracy (100 − mean error)", competitors) if len(competitors) > 1 else None,
        warnings=tuple(_warnings(dict(zip(labels, groups, strict=True)), rows)),
    )


def _row(group: Group, label: str, domains: int) -> AdaptationRow:
    runs = tuple(run for run in group.runs if run.status == "finished")
    fullest = max(runs, key=lambda run: run.carried("exact") or 0, default=None)
    return AdaptationRow(
        label=label,
        runs=runs,
        domains=tuple(score(runs, "domain_errors", domain) for domain in range(domains)),
        mean=score(runs, "mean_error"),
        clean=(score(runs, "clean_error_before"), score(runs, "clean_error_after")),
        carried=largest(run.carried("exact") for run in runs),
        kinds={} if fullest is None else fullest.bytes_by_kind("exact"),
        peak_training=max((run.result("peak_training_bytes") or 0 for run in runs), default=None),
        seconds_per_batch=mean([run.result("seconds", "per_batch") for run in runs]),
        remark=missing_seeds(group),
    )


def _facts(groups: Sequence[Group]) -> dict[str, str]:
    """What was the same for all."""
    runs = [run for group in groups for run in group.runs]
    stream, source = runs[0].stream, runs[0].identity.get("source") or {}
    facts = {
        "stream": str(stream["name"]),
        "data": str(stream.get("data", "unknown")),
        "fingerprint": ", ".join(sorted({str(run.stream.get("fingerprint"))[:12] for run in runs})),
        "classes": str(len(stream["classes"])),
        "images": " × ".join(map(str, stream["image_shape"])),
        "order": " → ".join(stream["segments"]),
        "severity": str(stream.get("severity", "")),
        "source": ", ".join(f"{key} {value}" for key, value in source.items() if key != "kind" and value is not None),
        "batch size": ", ".join(values_of(runs, "batch_size")),
        **computing(runs),
        "versions": ", ".join(versions_of(runs)),
    }
    return known(facts)


def _warnings(labelled: Mapping[str, Group], rows: Sequence[AdaptationRow]) -> Iterable[str]:
    runs = [run for group in labelled.values() for run in group.runs]
    if runs[0].stream.get("data") == "unofficial":
        yield "Unofficial data: these are not the published images; they were made here, or come from other files."
    yield from one_seed([row.label for row in rows if len(row.seeds) == 1])
    yield from unlike_values(runs, "batch_size")
    yield from unlike_values(runs, "threads")
    yield from unlike_versions(runs)
    yield from edited_code(labelled)
