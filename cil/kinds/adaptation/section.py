"""Adaptation runs in a report: online error by domain, bytes and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from cil.report import settings_list
from cil.report.bills import bill_cells, bill_entry
from cil.report.grids import Grid, Titled, byte_bill, decimal, flops, grid, scores_entry, whole
from cil.report.grouping import MIB, Group, comparisons, grouped
from cil.report.labels import labels_of
from cil.report.plots import WIDTH, Picture, Plot, band, dot_style, draw_plots, figure_of, legend, line_style
from cil.report.rows import Row, beside, incomplete, lowest_error, marked, mean, remarks
from cil.report.runs import conventions_of
from cil.report.section import ReadingAid, Section, Sections
from cil.report.setup import paragraph
from cil.tracking import Record

INTRODUCTION = (
    "A trained network meets test images whose look changes without notice, and may change itself batch by batch; it "
    "is told neither labels nor where a domain ends. What it holds at the end of a segment is all that it goes on "
    "with. Rows are compared inside one table only: same images in the same order, same source."
)
TERMS = (
    ("n", "Seeds that finished. Numbers are means over them, ± one sample standard deviation (n − 1)."),
    ("error, mean %", "Online error of every domain, their unweighted mean. Images are predicted once, on arrival."),
    ("exact B", "Every byte that the method holds between two batches: weights, statistics, teachers, moments..."),
    ("survey B", "What Zhou et al. 2024 charge: networks that answer, 4 bytes a parameter."),
    ("peak B", "All that is held, and what an update needs besides: values kept for the backward pass, gradients."),
    ("FLOPs", "Of adapting, and of a warm-up on source data; a multiply-add counts two."),
    ("s / batch", "Seconds of predicting and updating, without reading images; compare only on equal machines."),
    ("clean", "Error on clean images: before, and after the stream, of a copy that meets them as one domain more."),
    ("best", "Called only where two seeds or more support it against every other row: a paired t-test on shared seeds "
             "(5 %), or 95 % intervals that do not overlap."),
)  # fmt: skip


LEGEND = (
    "error, mean: online, mean over domains; B: bytes held between two batches, as exact and survey count; peak B: "
    "with what an update needs; FLOPs: of adapting; columns of domains: error in percent."
)
CLEAN = ("clean_error_before", "clean_error_after")


def sections(records: Sequence[Record]) -> Sections:
    """Sections of adaptation records: rows that met the same images in the same order, from the same network."""
    parts = comparisons(grouped(records))
    found = [_section(groups, number if len(parts) > 1 else 0) for number, groups in enumerate(parts, 1)]
    clean = any(head.startswith("clean") for section in found for head in section.grid.heads)
    terms = tuple((term, text) for term, text in TERMS if clean or term != "clean")
    return Sections(tuple(found), ReadingAid("How to read adaptation runs", INTRODUCTION, terms))


def _section(groups: Sequence[Group], number: int) -> Section:
    first = groups[0].first
    stream, source = first.stream, first.identity["source"] or {}
    rows = marked(
        [
            Row(label, group, notes=(*incomplete(group), *beside(group.finished, len(stream.get("classes") or ()))))
            for group, label in zip(groups, labels_of(groups), strict=True)
        ]
    )
    errors = {row.label: row.score("mean_error") for row in rows}
    rows.sort(key=lambda row: (errors[row.label].mean is None, errors[row.label].mean or 0.0, row.label))
    ranked = {row.label: errors[row.label] for row in rows if row.standing == "ranked"}
    verdicts = lowest_error("Online accuracy (100 − mean error)", ranked)
    title = f"{first.stream_name}: {sum(stream['counts']):,} images in {len(stream['segments'])} segments"
    subtitle = f"source {source.get('name')}"
    bill = [(r.label, r.bytes_by_kind(), {"carried": r.carried(), "with an update": _peak(r)}) for r in rows if r.shown]
    identity = {"table": max(number, 1), "title": f"{title}; {subtitle}"}
    severity = f", severity {stream['severity']}" if stream.get("severity") else ""
    batches = ", ".join(settings_list.values_of((run for group in groups for run in group.runs), "batch_size"))
    data = f"Stream: {title}{severity}; {subtitle}; {batches} images a batch."
    return Section(
        title=title,
        subtitle=subtitle,
        number=number,
        rows=tuple(rows),
        facts=_facts(groups),
        setup=paragraph(data, groups, "", trained=False),
        legend="" if number > 1 else LEGEND,
        grid=_grid(rows, stream["domains"]),
        best=dict.fromkeys(["error, mean %"], winner) if (winner := verdicts and verdicts[0].winner) else {},
        bills=(
            Titled("Bytes after the last segment, and with what an update holds besides", byte_bill("adapter", bill)),
        ),
        verdicts=verdicts,
        remarks=remarks(rows),
        warnings=tuple(_warnings(groups, rows)),
        entries=tuple(identity | _entry(row, stream["domains"]) for row in rows),
        plots=partial(_plots, rows, stream["segments"]),
    )


def _peak(row: Row) -> int | None:
    """Bytes held at once during an update, at most."""
    return (row.peak_training_bytes or 0) if row.runs else None


def _per_batch(row: Row) -> float | None:
    return mean([run.result("seconds", "per_batch") for run in row.runs])


def _grid(rows: Sequence[Row], domains: Sequence[str]) -> Grid:
    clean = any(row.score(name).mean is not None for row in rows for name in CLEAN)
    counted = conventions_of(run for row in rows for run in row.group.runs)
    lines = []
    for row in rows:
        cells = {"n": str(len(row.runs)), "error, mean %": str(row.score("mean_error"))}
        cells |= {
            **bill_cells(row, counted),
            "peak B": whole(_peak(row)),
            "FLOPs": flops(mean([run.flops for run in row.runs])),
            "s / batch": decimal(_per_batch(row), 3),
        }
        cells |= {f"clean {name.rpartition('_')[2]} %": str(row.score(name)) for name in CLEAN if clean}
        # one decimal, without deviation: there are many domains
        cells |= {name: decimal(row.score("domain_errors", place).mean) for place, name in enumerate(domains)}
        lines.append(row.line(cells))
    return grid("adapter", lines)


def _entry(row: Row, domains: Sequence[str]) -> dict[str, Any]:
    return {
        "label": row.label,
        "n": len(row.runs),
        "seeds": " ".join(map(str, row.seeds)),
        **scores_entry({name: row.score(name) for name in ("mean_error", *CLEAN)}),
        "carried_bytes": row.carried(),
        **bill_entry(row, row.group.first.conventions),
        "flops": mean([run.flops for run in row.runs]),
        "images_beside": row.images_beside,
        "peak_training_bytes": _peak(row),
        "seconds_per_batch": _per_batch(row),
        "remark": "; ".join(note.text for note in row.notes),
        **scores_entry({f"error_{name}": row.score("domain_errors", place) for place, name in enumerate(domains)}),
    }


def _facts(groups: Sequence[Group]) -> dict[str, str]:
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
        "batch size": ", ".join(settings_list.values_of(runs, "batch_size")),
        **settings_list.computing(runs),
        "versions": ", ".join(settings_list.versions_of(runs)),
    }
    return settings_list.known(facts)


def _warnings(groups: Sequence[Group], rows: Sequence[Row]) -> Iterable[str]:
    runs = [run for group in groups for run in group.runs]
    if runs[0].stream.get("data") == "unofficial":
        yield "Unofficial data: these are not the published images; they were made here, or come from other files."
    yield from settings_list.one_seed(rows)
    yield from settings_list.unlike_values(runs, "batch_size")
    yield from settings_list.unlike_values(runs, "threads")
    yield from settings_list.unlike_versions(runs)
    yield from settings_list.edited_code(groups, rows)


def _plots(rows: Sequence[Row], segments: Sequence[str], number: int, paint: Mapping[str, str]) -> list[Plot]:
    """Error over time, and mean error against bytes."""
    known = [row for row in rows if row.score("mean_error").mean is not None]
    if not known:
        return []
    over_time = partial(_over_time, known, segments, paint)
    return draw_plots(number, over_time, partial(_against_bytes, known, paint), labels=paint)


def _over_time(rows: Sequence[Row], segments: Sequence[str], paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(4.6, width=1.7 * WIDTH)
    places = list(range(len(segments)))
    for place, row in enumerate(rows):
        columns = [row.score("segment_errors", segment) for segment in places]
        style = line_style(paint[row.label], place)
        centre = [column.mean or 0.0 for column in columns]
        axes.plot(places, centre, **style, label=row.label)
        if len(row.runs) > 1:
            band(axes, places, centre, [column.std or 0.0 for column in columns], style["color"], row.label)
    every = max(1, len(places) // 30)
    axes.set_xticks(places[::every], segments[::every], rotation=55, ha="right", fontsize=8)
    axes.set(ylim=(0, None), ylabel="online error, %")
    legend(axes)
    return "Error over time", "Of each segment, in order of arrival. Mean over seeds; band: one deviation.", figure


def _against_bytes(rows: Sequence[Row], paint: Mapping[str, str]) -> Picture:
    figure, (axes,) = figure_of(3.9)
    for place, row in enumerate(rows):
        held, error = (row.peak_training_bytes or 0) / MIB, row.score("mean_error").mean or 0.0
        axes.plot([held], [error], **dot_style(paint[row.label], place), label=row.label)
    axes.set(xlabel="held at once during an update, MiB", ylabel="mean online error, %", xlim=(0, None))
    axes.margins(x=0.08, y=0.12)
    legend(axes)
    return "Error against memory", "Down and left is better.", figure
