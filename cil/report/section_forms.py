"""Sections of strategies and areas over budgets, laid out for every form of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cil.report.anytime import anytime_table
from cil.report.areas import Area, Areas, Under
from cil.report.grids import NOTHING, Grid, Line, Titled, flops, kinds_of_bytes, seconds, whole
from cil.report.verdicts import Score

if TYPE_CHECKING:
    from cil.report.rows import Row
    from cil.report.tables import Section

HEADINGS = {
    "bound": "bounds: may look back at all past data, so not ranked",
    "unranked": "not ranked",
}


def grid(section: Section) -> Grid:
    """The main table of a section."""
    heads = ["strategy", "n", "Avg %", "Last %", "forgetting"]
    heads += ["tuning", "tuning FLOPs"] if section.tuned else []
    heads += ["exemplars", "exact B", "survey B"]
    heads += ["own exact B", "own survey B"] if section.public else []
    heads += ["FLOPs", "peak B", "seconds"]
    parts = []
    for standing in ("ranked", "bound", "unranked"):
        lines = tuple(_line(row, section.public, section.tuned) for row in section.of(standing))
        if lines:
            parts.append((HEADINGS.get(standing, ""), lines))
    return Grid(tuple(heads), tuple(parts))


def _line(row: Row, public: bool, tuned: bool) -> Line:
    cells = [str(len(row.seeds)) if row.finished else "0"]
    cells += [str(row.average), str(row.last), str(row.forgetting)]
    cells += [row.tuning, flops(row.tuning_flops)] if tuned else []
    cells += [whole(row.exemplars), whole(row.carried["exact"]), whole(row.carried["survey"])]
    cells += [whole(row.own["exact"]), whole(row.own["survey"])] if public else []
    cells += [flops(row.flops), whole(row.peak_training_bytes), seconds(row.seconds)]
    return Line(row.label, tuple(cells), tuple(note.mark for note in row.notes))


def more_tables(section: Section) -> list[Titled]:
    """What stands below the main table: metrics inside experiences, where they were evaluated."""
    found = anytime_table(section)
    return [] if found is None else [found]


def bill(section: Section, convention: str) -> Grid:
    """Carried bytes by kind at the end of the stream, and in all."""
    rows = [row for row in section.rows if row.carried[convention] is not None]
    kinds = kinds_of(rows, (convention,))
    heads = ["strategy", *kinds, *(["public"] if section.public else []), "total"]
    lines = []
    for row in rows:
        sizes = [whole(row.kinds[convention].get(kind, 0)) for kind in kinds]
        public = [whole(row.public)] if section.public else []
        lines.append(Line(row.label, (*sizes, *public, whole(row.carried[convention]))))
    return Grid(tuple(heads), (("", tuple(lines)),))


def kinds_of(rows: Iterable[Row], conventions: Iterable[str]) -> list[str]:
    """The kinds of bytes that the rows carry, in the order of ``KINDS``; what that does not know comes last."""
    return kinds_of_bytes(row.kinds[convention] for row in rows for convention in conventions)


def areas_grids(areas: Areas) -> tuple[Grid, Grid]:
    """Average incremental accuracy at each budget and the area under it; the same of last accuracy."""
    at = [f"{size:.2f}" for size in areas.mebibytes]
    average = tuple(_area_line(row, row.average, row.auc_a, areas.decimals) for row in areas.rows)
    last = tuple(_area_line(row, row.last, row.auc_l, areas.decimals) for row in areas.rows)
    return (
        Grid(("strategy", "n", *(f"Avg @{x}" for x in at), "AUC-A", "mean"), (("", average),)),
        Grid(("strategy", "n", *(f"Last @{x}" for x in at), "AUC-L", "mean"), (("", last),)),
    )


def _area_line(row: Area, scores: Sequence[Score | None], under: Under, decimals: int) -> Line:
    cells = [NOTHING if score is None else str(score) for score in scores]
    mean = NOTHING if under.mean is None else f"{under.mean:.3f}"
    return Line(row.label, (str(len(row.seeds)), *cells, _area(under, decimals), mean))


def _area(under: Under, decimals: int) -> str:
    if under.area is None:
        return NOTHING
    spread = "" if under.std is None else f" ± {under.std:.{decimals}f}"
    return f"{under.area:.{decimals}f}{spread}"


def areas_words(areas: Areas) -> str:
    """What the numbers are."""
    x = areas.mebibytes
    return (
        f"{areas.title}: accuracy over {len(x)} budgets from {x[0]:.2f} to {x[-1]:.2f} MiB ({areas.convention}). "
        f"AUC-A and AUC-L: area under Avg and Last as fractions, in MiB, at most {x[-1] - x[0]:.2f}; mean: the area "
        "divided by the range. Areas over other budgets are not to be compared; a missing point leaves none."
    )


def remarks(section: Section) -> list[str]:
    """Sentences on rows; what holds for several is said once."""
    said: dict[str, list[str]] = {}
    for row in section.rows:
        for note in row.notes:
            said.setdefault(note.text, []).append(row.label)
    return [f"{', '.join(labels)}: {text}" for text, labels in said.items()]


def flat_entry(row: Row) -> dict[str, Any]:
    """One row without structure, numbers unrounded."""
    entry: dict[str, Any] = {
        "label": row.label,
        "strategy": row.strategy,
        "standing": row.standing,
        "n": len(row.seeds) if row.finished else 0,
        "seeds": " ".join(map(str, row.seeds)),
    }
    for name, score in scores_of(row):
        entry |= {name: score.mean, f"{name}_std": score.std}
    for convention in ("exact", "survey"):
        entry |= {f"{convention}_bytes": row.carried[convention], f"own_{convention}_bytes": row.own[convention]}
    entry |= {"public_bytes": row.public, "exemplars": row.exemplars, "flops": row.flops}
    entry |= {"tuning": row.tuning, "tuning_flops": row.tuning_flops}
    entry |= {"peak_training_bytes": row.peak_training_bytes, "seconds": row.seconds}
    return entry | {"notes": "; ".join(note.text or note.mark for note in row.notes)}


def scores_of(row: Row) -> Iterable[tuple[str, Score]]:
    """The scores of a row by name."""
    return (
        ("average_incremental_accuracy", row.average),
        ("last_accuracy", row.last),
        ("forgetting", row.forgetting),
    )
