"""Class-incremental runs in a report: a section for each setting that can be compared, then accuracy over budgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from cil.kinds.classes import answer_tables, anytime_tables, learned_bytes, open_set_tables, plasticity, seeds
from cil.kinds.classes.auc import curve_sections
from cil.kinds.classes.exemplar_strips import exemplar_table
from cil.kinds.classes.group_tables import group_tables, groups_entry
from cil.kinds.classes.over_streams import stream_sections
from cil.kinds.classes.plots import plots
from cil.kinds.classes.published import published_beside
from cil.kinds.classes.rows import AVERAGE, FORGETTING, LAST, by_standing, class_rows, ranked
from cil.kinds.classes.sample_table import sample_tables
from cil.kinds.classes.set_order import set_order_sections
from cil.report import settings_list
from cil.report.bills import USE_TERMS, bill_cells, bill_entry, bill_terms, use_cells, use_entry
from cil.report.grids import Grid, Titled, byte_bill, flops, scores_entry, seconds, whole
from cil.report.grouping import Group, budget_words, by_budget, comparisons, differing, grouped
from cil.report.rows import Row, largest, mean, remarks
from cil.report.runs import CONVENTIONS, RunSummary, all_equal, conventions_of, dig, in_effect
from cil.report.section import ReadingAid, Section, Sections
from cil.report.setup import image_facts, paragraph, training_facts
from cil.report.tuning import NONE, tuning_facts, tuning_of, tuning_warnings, tuning_words
from cil.report.verdicts import Score, few, verdict
from cil.tracking import Record

RECIPE = ("model.", "trainer.", "optimizer.", "scheduler.", "stream.augment")  # what rows of one table usually share
NAMED = 20  # classes: up to so many, their names stand beside the order
INTRODUCTION = (
    "A learner meets the classes in portions, one experience after the other, and carries nothing across a boundary "
    "but what is charged in the bill. It is evaluated from exactly that. Rows are compared inside one table only: same "
    "images in the same order, same budget, same precision and kind of device."
)
TERMS = (
    ("n", "Seeds that finished. Numbers are means over them, ± one sample standard deviation (n − 1)."),
    ("Avg %", "Average incremental accuracy: on all classes seen, after each experience; then the mean of these."),
    ("Last %", "Accuracy on all classes after the last experience."),
    ("forgetting", "Highest accuracy an experience once had less its last one, mean over experiences; less is better."),
    ("tuning", "How settings were chosen; tuning FLOPs: of all trials with their validation, beside those of the run."),
    *USE_TERMS,
    *bill_terms(CONVENTIONS),
    ("own", "The same without public weights, which are referred to and not modified."),
    ("looks", "How often an image of an experience was read for training: in batches of phases, for statistics, for a "
              "selection. Exemplars do not count."),
    ("fitted", "The hyperparameter that spends bytes, at the largest value that the budget holds (budget.fit)."),
    ("FLOPs", "Of everything but evaluation, all experiences; a multiply-add counts two."),
    ("peak B", "Most bytes held at once in training: what is carried, optimizer, gradients, activations, teachers."),
    ("seconds", "Wall-clock time of the whole run on the machine it ran on; compare only on equal machines."),
    ("bound", "A learner that may look back at all past data: what could be reached, not a competitor."),
    ("uses less", "Keeps no exemplars, and carries less than the limit; without one, less than all rows with some."),
    ("best", "Called only where two seeds or more support it against every other row: a paired t-test on shared seeds "
             "(5 %), or 95 % intervals that do not overlap."),
)  # fmt: skip


def sections(records: Sequence[Record]) -> Sections:
    """Sections of class-incremental records.

    Runs that differ in their seed alone are one row. Rows are compared, and a best one called, only inside a section:
    same data, class orders, budget, precision and kind of device. Bounds, unfinished runs and runs over their budget
    are shown and never ranked.
    """
    groups = grouped(records)
    empty = [group for group in groups if not _has_results(group)]
    alike = list(map(by_budget, comparisons(group for group in groups if _has_results(group))))
    several = sum(map(len, alike)) > 1
    found: list[Section] = []
    curves: list[Section] = []
    rows: list[Row] = []
    pooled: list[Sequence[Row]] = []
    streams: list[tuple[str, list[Row]]] = []
    for settings in alike:
        made = [class_rows(setting) for setting in settings]
        trained = [group for setting in settings for group in setting if group.finished]
        joints = [group for group in trained if group.first.learner == plasticity.REFERENCE]
        for setting, own in zip(settings, made, strict=True):
            found.append(_section(setting, own, len(found) + 1 if several else 0, joints))
        streams += [(stream_words(settings[0][0].first), own) for own in made]
        curves += curve_sections(stream_words(settings[0][0].first), made)
        rows += [row for own in made for row in own]
        pooled += made
    curves += set_order_sections(pooled)
    return Sections(
        (*found, *curves, *stream_sections(streams)),
        _reading(rows, found),
        tuple(_differences(found)),
        tuple(_without_results(empty)),
    )


def _has_results(group: Group) -> bool:
    """True if a run has anything to show: an experience that was evaluated, or the bills it was refused for."""
    return any(run.done or (run.status == "over_budget" and run.result("bills")) for run in group.runs)


def _without_results(groups: Sequence[Group]) -> Iterable[str]:
    """A footnote on runs that ended, or still are, before the first boundary."""
    met = Counter(f"{run.learner} {run.status.replace('_', ' ')}" for group in groups for run in group.runs)
    if met:
        words = [f"{what} ({count} runs)" if count > 1 else what for what, count in sorted(met.items())]
        yield f"No row, because no result yet: {', '.join(words)}."


def _differences(sections: Sequence[Section]) -> Iterable[str]:
    """Say so where tables must not be compared, and what they differ in."""
    if len(sections) < 2:
        return
    yield f"{len(sections)} settings, each with its own table: numbers of different tables are not to be compared."
    keys = ("stream", "data", "class order", "fingerprint", "images", "budget", "precision", "device")
    numbers: dict[str, list[str]] = {}
    for number, section in enumerate(sections[1:], 2):
        changed = [key for key in keys if section.facts.get(key) != sections[0].facts.get(key)]
        if "class order" in changed and "fingerprint" in changed:
            changed.remove("fingerprint")
        numbers.setdefault(", ".join(changed) or "the way the budget is counted", []).append(str(number))
    for changed_keys, which in numbers.items():
        subject = f"Table {which[0]} differs" if len(which) == 1 else f"Tables {', '.join(which)} differ"
        yield f"{subject} from table 1 in: {changed_keys}."


def _section(groups: Sequence[Group], rows: Sequence[Row], number: int, joints: Sequence[Group]) -> Section:
    first, competitors = groups[0].first, ranked(rows)
    competitor = next((group.first for group in groups if not group.first.bound), first)
    budget = competitor.budget
    title, subtitle = stream_words(first), budget_words(budget)
    facts = _facts(groups, budget)
    verdicts = [
        verdict(name, {row.label: row.score(path) for row in competitors})
        for name, path in (("Avg", AVERAGE), ("Last", LAST))
        if len(competitors) > 1
    ]
    counted = conventions_of(run for group in groups for run in group.runs)
    bills = {convention: _bill(rows, convention) for convention in counted}
    inside, answers = anytime_tables.anytime_table(rows), answer_tables.answers_table(rows)
    unknown = open_set_tables.open_set_table(rows)
    kept, over_seeds = plasticity.plasticity_table(rows, joints), seeds.seeds_table(competitors)
    three_lines = learned_bytes.three_lines_table(rows)
    identity = {"table": max(number, 1), "budget": facts.get("budget"), "title": f"{title}; {subtitle}"}
    entries = [
        identity
        | _entry(row, counted)
        | (answer_tables.answers_entry(row) if answers else {})
        | ({f"{name}_bytes": size for name, size in row.three_lines.items()} if three_lines else {})
        | groups_entry(row)
        | (plasticity.plasticity_entry(row, joints) if kept else {})
        | (open_set_tables.open_set_entry(row) if unknown else {})
        | (anytime_tables.anytime_entry(row) if inside else {})
        for row in rows
    ]
    return Section(
        title=title,
        subtitle=subtitle,
        condition="Budget",
        number=number,
        rows=tuple(rows),
        facts=facts,
        setup=paragraph(_data_words(groups), groups, subtitle),
        grid=_grid(rows, counted),
        legend="" if number > 1 else _legend(rows, counted),
        best={f"{verdict.metric} %": verdict.winner for verdict in verdicts if verdict.winner},
        tables=tuple(filter(None, (three_lines, answers, kept, over_seeds, unknown, inside, *group_tables(rows)))),
        bills=tuple(
            Titled(f"Bytes carried after the last experience, {name}", b) for name, b in bills.items() if b.lines
        ),
        verdicts=tuple(verdicts),
        remarks=remarks(rows),
        warnings=tuple(_warnings(groups, rows)),
        entries=tuple(entries),
        content={
            "rows": [entry | _structure(row, counted) for entry, row in zip(entries, rows, strict=True)],
            **({"paired_tests": seeds.seeds_content(competitors)} if over_seeds else {}),
        },
        plots=partial(plots, rows, first.limit, first.convention),
        published=partial(published_beside, [group.first for group in groups if not group.first.bound] or [first]),
        setting=competitor.record,
        pictures=lambda: "\n".join(filter(None, (sample_tables(rows), exemplar_table(rows)))),
    )


def _grid(rows: Sequence[Row], counted: Sequence[str]) -> Grid:
    """The main table: accuracy, then the bills under each way of counting (``counted``), then compute."""
    tuned, public = any(_tuning(row) != NONE for row in rows), _has_public(rows)
    used = {row.label: cells for row, cells in zip(rows, use_cells(rows), strict=True)}

    def cells(row: Row) -> dict[str, str]:
        scores = {"Avg %": AVERAGE, "Last %": LAST, "forgetting": FORGETTING}
        cells = {"n": str(len(row.runs))} | {head: str(row.score(name)) for head, name in scores.items()}
        if tuned:
            cells |= {"tuning": _tuning(row), "tuning FLOPs": flops(_tuning_flops(row))}
        cells |= {"exemplars": whole(row.exemplars)} | used[row.label] | bill_cells(row, counted)
        if public:
            cells |= {f"own {convention} B": whole(_own(row, convention)) for convention in counted}
        cells |= row.caps_cells | {name: str(score) for name, score in _own_metrics(row).items()}
        if (looks := _looks(row)) is not None:
            cells["looks"] = f"{looks:.1f}"
        if row.shown and (fitted := row.shown[0].fitted):
            cells["fitted"] = fitted
        return cells | {
            "FLOPs": flops(_flops(row)), "peak B": whole(row.peak_training_bytes), "seconds": seconds(row.seconds)
        }  # fmt: skip

    return by_standing(rows, cells)


def _legend(rows: Sequence[Row], counted: Sequence[str]) -> str:
    """Headings of the main table that are short for something."""
    used = any(use_cells(rows))
    words = {
        "n": "seeds that finished",
        "Avg": "mean over experiences of the accuracy on all classes seen",
        "Last": "after the last experience",
        "past": "training images that the budget could hold beside the row's networks" if used else "",
        "unused": "share of the budget that is left" if used else "",
        "B": f"bytes carried at the end, as {', '.join(counted)} count{'s' * (len(counted) == 1)}",
        "own": "without public weights" if _has_public(rows) else "",
        "looks": "how often an image was read for training" if any(_looks(row) is not None for row in rows) else "",
        "FLOPs": "of everything but evaluation",
        "peak B": "most bytes held at once in training",
    }
    return "; ".join(f"{head}: {text}" for head, text in words.items() if text) + "."


def _own_metrics(row: Row) -> dict[str, Score]:
    names = dict.fromkeys(name for run in row.runs for name in run.result("metrics") or ())
    return {name: row.score("metrics", name) for name in names}


def _tuning(row: Row) -> str:
    return tuning_words(row.shown[0]) if row.shown else NONE


def _tuning_flops(row: Row) -> int:
    """Of all trials, validation included; the runs themselves are not."""
    return int(tuning_of(row.shown[0])["tuning_cost"]) if row.shown else 0


def _has_public(rows: Iterable[Row]) -> bool:
    return any(map(_public, rows))


def _public(row: Row) -> int:
    return max((run.public for run in row.shown), default=0)


def _own(row: Row, convention: str) -> int | None:
    return largest(run.own(convention) for run in row.shown)


def _flops(row: Row) -> float | None:
    return mean([run.flops for run in row.runs])


def _evaluation_flops(row: Row) -> float | None:
    """Of answers after all experiences, with what a method makes first when its state is loaded."""
    return mean([run.result("flops", "evaluation", -1) for run in row.runs])


def _looks(row: Row) -> float | None:
    """How often an image of an experience was read for training."""
    return mean([run.looks for run in row.runs]) if row.runs else None


def _bill(rows: Sequence[Row], convention: str) -> Grid:
    """Carried bytes by kind at the end of the stream, and in all."""
    public = _has_public(rows)
    found = []
    for row in rows:
        if (total := row.carried(convention)) is not None:
            more = {**({"public": _public(row)} if public else {}), "total": total}
            found.append((row.label, row.bytes_by_kind(convention), more))
    return byte_bill("strategy", found)


def _entry(row: Row, counted: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "label": row.label, "strategy": row.group.first.learner, "standing": row.standing, "n": len(row.runs),
        "seeds": " ".join(map(str, row.seeds)), **scores_entry(_scores(row)),
    }  # fmt: skip
    entry |= bill_entry(row, counted) | {f"own_{convention}_bytes": _own(row, convention) for convention in counted}
    return entry | use_entry(row) | {
        "public_bytes": _public(row), "exemplars": row.exemplars,
        "images_beside": row.images_beside, "flops": _flops(row), "looks": _looks(row), "tuning": _tuning(row),
        "tuning_flops": _tuning_flops(row), "evaluation_flops": _evaluation_flops(row),
        "peak_training_bytes": row.peak_training_bytes, "seconds": row.seconds,
        **row.caps_entry, **scores_entry(_own_metrics(row)), "notes": "; ".join(note.text for note in row.notes),
    }  # fmt: skip


def _scores(row: Row) -> dict[str, Score]:
    return {name: row.score(name) for name in (AVERAGE, LAST, FORGETTING)}


def _structure(row: Row, counted: Sequence[str]) -> dict[str, Any]:
    values = {name: {str(seed): value for seed, value in score.values.items()} for name, score in _scores(row).items()}
    kinds = {convention: row.bytes_by_kind(convention) for convention in counted}
    return {"seeds": row.seeds, "bytes_by_kind": kinds, "values": values}


def _reading(rows: Sequence[Row], sections: Sequence[Section]) -> ReadingAid:
    used = dict.fromkeys(("past %", "unused %"), any(use_cells(rows))) | {
        "tuning": any(_tuning(row) != NONE for row in rows),
        "own": _has_public(rows),
        "looks": any(_looks(row) is not None for row in rows),
        "fitted": any(run.fitted for row in rows for run in row.shown),
        "bound": any(row.bound for row in rows),
        "uses less": any(note.mark == "uses less" for row in rows for note in row.notes),
    }
    terms = tuple((term, text) for term, text in TERMS if used.get(term, True))
    terms += tuple(
        term for term in bill_terms(conventions_of(run for row in rows for run in row.group.runs)) if term not in TERMS
    )
    several = answer_tables.TERMS if answer_tables.answers_table(rows) else ()
    inside = anytime_tables.TERMS if any(map(anytime_tables.evaluated, rows)) else ()
    shown = {table.heading for section in sections for table in section.tables}
    further = (plasticity, seeds, open_set_tables)
    analysis = tuple(term for tables in further if tables.HEADING in shown for term in tables.TERMS)
    return ReadingAid("How to read this", INTRODUCTION, terms + several + analysis + inside)


def stream_words(run: RunSummary) -> str:
    """The stream in one line.

    For example ``split_digits: 10 classes in 5 experiences of 2``.
    """
    stream = run.stream
    sizes = [len(slots) for slots in stream.get("new_slots") or []]
    if not sizes:
        each = ""
    elif all_equal(sizes):
        each = f" of {sizes[0]}"
    else:
        each = f" ({', '.join(map(str, sizes))})"
    return f"{run.stream_name}: {len(stream.get('classes') or [])} classes in {run.steps} experiences{each}"


def _data_words(groups: Sequence[Group]) -> str:
    """A sentence on the stream: its classes, experiences, and their order."""
    first = groups[0].first
    official = {"official": " (official data)", "unofficial": " (unofficial data)"}.get(
        str(first.stream.get("data")), ""
    )
    orders = {run.order[1] for group in groups for run in group.runs}
    order = "one order of the classes for all seeds" if len(orders) == 1 else "an order of the classes for each seed"
    chosen, drawn = (dig(first.config, "stream", key) for key in ("order", "order_seed"))
    by_seed = drawn is not None and chosen in (None, "seed", "by_set")  # an order that is given has no seed
    name, _, split = stream_words(first).partition(": ")
    return f"Stream: {name}{official}, {split}, in {order}{f' (order seed {drawn})' if by_seed else ''}."


def _facts(groups: Sequence[Group], budget: dict[str, Any]) -> dict[str, str]:
    first, runs = groups[0].first, [run for group in groups for run in group.runs]
    stream = first.stream
    orders = {run.seed: run.order[1] for run in runs}
    if all_equal(orders.values()):
        order = " ".join(map(str, first.order[1])) or "unknown"
        names = [str(name) for name in stream.get("classes") or ()]
        if len(names) <= NAMED and names != order.split():
            order += f" ({', '.join(names)})" if names else ""
    else:
        order = "; ".join(f"seed {seed}: {' '.join(map(str, orders[seed]))}" for seed in sorted(orders))
    prints = {str(run.stream.get("fingerprint"))[:12]: None for run in sorted(runs, key=lambda run: run.seed)}
    facts = {
        "stream": stream_words(first),
        "data": str(stream.get("data", "unknown")),
        "fingerprint": ", ".join(prints),
        "class order": order,
        **image_facts(groups),
        **training_facts(groups),
        "budget": budget_words(budget),
        "counted": f"at {budget['at']}" if budget.get("at") else "",
        "reserve": " or ".join(sorted({str(run.budget["reserve"]) for run in runs if run.budget.get("reserve")})),
        **settings_list.computing(runs),
        "tuning": " | ".join(dict.fromkeys(words for run in runs if (words := tuning_facts(run)))),
        "versions": ", ".join(settings_list.versions_of(runs)),
    }
    return settings_list.known(facts)


def _warnings(groups: Sequence[Group], rows: Sequence[Row]) -> Iterable[str]:
    """Sentences on rows that are unlike, in what they knew, were given or are made of."""
    runs = [run for group in groups for run in group.runs]
    first = runs[0]
    if first.stream.get("data") == "unofficial":
        yield "Unofficial data: the fingerprint is not that of the official set."
    yield from settings_list.one_seed(rows)
    if all(group.first.identity.get("uses_horizon") for group in groups):
        yield "The length of the stream was known in advance to all rows (budget.reserve=final, or by design)."
    planners = [row.label for row in rows if any(note.mark == "uses horizon" for note in row.notes)]
    if planners:
        yield f"Told the length of the stream, which no other row knows: {few(planners)}."
    if first.stream.get("task_known_at_test"):
        yield "The experience of each test image was given at test time: an easier question."
    if first.limit is None:
        counted = "The budget counts exemplars" if first.counts_exemplars else "There is no budget"
        yield f"{counted}: carried bytes are reported and not equal."
    yield from settings_list.unlike_versions(runs)
    yield from settings_list.unlike_values(runs, "threads")
    yield from settings_list.edited_code(groups, rows)
    yield from tuning_warnings([group.first for group in groups if not group.first.bound])
    recipe = [key for key in differing([group.first for group in groups], in_effect) if key.startswith(RECIPE)]
    if recipe:
        yield f"Rows differ in their recipe: {few(recipe)}."
