"""Rows, sections and their numbers, against sums done by hand."""

from __future__ import annotations

import csv
import io
import json
import random

import pytest
from made_records import byte_budget, exemplar_budget

from cil.errors import ConfigError
from cil.kinds.classes.rows import AVERAGE, FORGETTING, LAST
from cil.report import find_runs, table, to_csv, to_json, to_markdown, to_text

SHOWN = {"running": "stopped"}  # no process holds the lock of these records


def last(value: float) -> dict:
    """A run whose last accuracy is ``value``: 80 after the first experience, so its average is (80 + value) / 2."""
    return {"matrix": ((80.0, None), (value, value))}


def marked(section, standing: str) -> list:
    """The rows of a section that are ranked, bounds or neither."""
    return [row for row in section.rows if row.standing == standing]


def rows(content) -> dict:
    return {row.label: row for section in content.sections for row in section.rows}


def test_a_row_holds_mean_and_sample_deviation_over_seeds(run):
    records = [run(seed=seed, **last(value)) for seed, value in enumerate((60.0, 62.0, 64.0))]
    row = rows(table(records))["icarl"]
    assert row.seeds == (0, 1, 2)
    scores = [row.score(name) for name in (LAST, AVERAGE, FORGETTING)]
    assert [(score.mean, score.std) for score in scores] == [(62.0, 2.0), (71.0, 1.0), (20.0, 0.0)]  # not 1.63, by n


def test_a_single_seed_has_no_deviation(run):
    row = rows(table([run(**last(60.0))]))["icarl"]
    last_accuracy = row.score(LAST)
    assert (last_accuracy.mean, last_accuracy.std, str(last_accuracy)) == (60.0, None, "60.00")


def test_an_undefined_value_of_one_seed_leaves_the_mean_undefined(run):
    records = [run(seed=0, forgetting=None), run(seed=1, forgetting=10.0)]
    row = rows(table(records))["icarl"]
    assert row.score(FORGETTING).mean is None and str(row.score(FORGETTING)) == "–"


def test_rows_whose_seconds_for_an_operation_are_unlike_those_of_the_others_are_marked(run):
    """The operations of all are the same; they train for 5, 30, 40, 40, 50 and 190 seconds: the median is 40."""

    def took(name, seconds, **results):
        each = {"train": [seconds / 2] * 2, "consolidate": [0.0] * 2, "evaluate": [99.0] * 2, "total": 200.0}
        return run(name, results={"seconds": each, **results})

    honest = [took("icarl", 30.0), took("wa", 40.0), took("bic", 50.0)]
    found = rows(
        table(
            [
                *honest,
                took("der", 190.0),
                took("lwf", 5.0, own_updates=[100, 20]),
                took("ewc", 40.0, own_images=[0, 40]),
            ]
        )
    )
    marks = {
        label: [note.mark for note in row.notes if note.mark in ("slow", "own steps", "own images")]
        for label, row in found.items()
    }
    assert marks == {"icarl": [], "wa": [], "bic": [], "der": ["slow"], "lwf": ["own steps"], "ewc": ["own images"]}
    texts = [note.text for note in (*found["der"].notes, *found["lwf"].notes)]
    assert any("4.8 times the median of the table" in text for text in texts)
    assert any(text.startswith("own steps: took 120 optimizer steps beside those of its phases") for text in texts)
    assert all(note.mark != "slow" for row in rows(table(honest[:2])).values() for note in row.notes)


def test_costs_stand_beside_the_accuracy(run):
    content = table([run(parameters=1_000_000, exemplars=100)])
    row = rows(content)["icarl"]
    assert (row.carried("exact"), row.carried("survey")) == (1_000_000 + 19_200 + 100, 999_000 + 19_200)
    assert row.bytes_by_kind("exact") == {"parameters": 1_000_000, "exemplars": 19_200, "labels": 100}
    assert (row.exemplars, row.peak_training_bytes, row.seconds) == (100, 5_000_000, 12.0)
    entry = content.sections[0].entries[0]
    assert (entry["flops"], entry["evaluation_flops"]) == (4e9, 2e9)  # an answer may cost what training did not


def test_looks_and_a_fitted_value_have_columns_where_records_have_them(run):
    seen = [{"images": images, "mean": mean, "most": 3, "by_reader": {}} for images, mean in ((30, 2.0), (10, 1.0))]
    fitted = {"key": "size", "value": 656, "bytes": 3_998_976, "limit": 4_000_000, "convention": "libcontinual"}
    content = table([run("ranpac", results={"looks": seen, "fitted": fitted}), run("wa")])
    cells = {line.name: line.cells for line in content.sections[0].grid.lines}
    assert (cells["ranpac"]["looks"], cells["ranpac"]["fitted"]) == ("1.8", "size=656")  # (60 + 10) / 40
    assert not {"looks", "fitted"} & cells["wa"].keys()
    assert [entry["looks"] for entry in content.sections[0].entries] == [1.75, None]
    assert {"looks", "fitted"} <= {term for term, _ in content.readings[0].terms}


def test_public_weights_are_shown_with_and_without(run):
    content = table([run("l2p", public=900_000, exemplars=0)])
    (entry,) = content.sections[0].entries
    assert (entry["own_exact_bytes"], entry["own_survey_bytes"]) == (100_000, 99_000)
    assert "own exact B" in to_text(content, 200)
    assert "own exact B" not in to_text(table([run("wa")]), 200)


def test_rows_are_sorted_by_last_accuracy_whatever_the_order_of_records(run):
    records = [run(name, seed, **last(value)) for name, value in (("a", 50), ("b", 70), ("c", 60)) for seed in (0, 1)]
    expected = to_json(table(records))
    assert [row.label for row in table(records).sections[0].rows] == ["b", "c", "a"]
    for attempt in range(3):
        random.Random(attempt).shuffle(records)
        assert to_json(table(records)) == expected


# who is compared with whom


def test_bounds_stand_apart_and_win_nothing(run):
    records = [run("joint", seed, bound=True, **last(90.0 + seed)) for seed in range(3)]
    records += [run("wa", seed, **last(60.0 + seed)) for seed in range(3)]
    records += [run("lwf", seed, **last(30.0 + seed / 2)) for seed in range(3)]
    [section] = table(records).sections
    assert [row.label for row in marked(section, "ranked")] == ["wa", "lwf"]
    assert [row.label for row in marked(section, "bound")] == ["joint"]
    assert [verdict.winner for verdict in section.verdicts] == ["wa", "wa"]
    assert all("joint" not in verdict.text for verdict in section.verdicts)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"order": (3, 2, 1, 0)}, "class order"),
        ({"stream_changes": {"fingerprint": "other"}}, "fingerprint"),
        ({"stream_changes": {"data": "unofficial"}}, "data"),
        ({"budget": exemplar_budget(100)}, "budget"),
        ({"budget": byte_budget(2_000_000)}, "budget"),
        ({"precision": "bf16"}, "precision"),
        ({"device": "cuda:0"}, "device"),
    ],
)
def test_different_settings_are_never_in_one_ranking(run, change, word):
    records = [run("wa", seed, **last(60.0 + seed)) for seed in range(2)]
    records += [run("icarl", seed, **last(70.0 + seed), **change) for seed in range(2)]
    content = table(records)
    assert len(content.sections) == 2
    assert all(not section.verdicts for section in content.sections)
    assert "not to be compared" in content.warnings[0]
    assert f"differs from table 1 in: {word}." in content.warnings[1]
    assert "[2]" in to_text(content) and "! 2 settings" in to_text(content)


def test_a_class_order_that_follows_the_seed_is_one_row_and_one_ranking(run):
    orders = {0: (0, 1, 2, 3), 1: (3, 2, 1, 0), 2: (2, 0, 3, 1)}
    records = [
        run(
            name, seed, order=orders[seed], config={"stream": {"name": "toy", "order_seed": seed}}, **last(value + seed)
        )
        for name, value, seeds in (("wa", 60.0, (0, 1, 2)), ("icarl", 50.0, (0, 1)), ("lwf", 20.0, (2,)))
        for seed in seeds
    ]
    [section] = table(records).sections
    assert {row.label: row.seeds for row in section.rows} == {"wa": (0, 1, 2), "icarl": (0, 1), "lwf": (2,)}
    assert section.facts["class order"] == "seed 0: 0 1 2 3; seed 1: 3 2 1 0; seed 2: 2 0 3 1"


def test_one_seed_on_two_class_orders_is_two_streams(run):
    for order_seed, order in ((1, (0, 1, 2, 3)), (2, (3, 2, 1, 0))):
        run("wa", 0, order=order, config={"stream": {"name": "toy", "order_seed": order_seed}}, name=str(order_seed))
    records = find_runs(run("icarl", 0, order=(0, 1, 2, 3)).directory.parent)
    content = table(records)
    assert sorted(tuple(row.label for row in section.rows) for section in content.sections) == [
        ("icarl", "wa"),
        ("wa",),
    ]


def test_other_images_under_the_same_config_are_never_pooled(run):
    """Another data root, say: seeds do not explain other images in the same class order."""
    other = {"stream_changes": {"fingerprint": "other"}}
    content = table([run("wa", 0), run("wa", 1, **other)])
    assert [row.seeds for section in content.sections for row in section.rows] == [(0,), (1,)]
    content = table([run("wa", 0), run("wa", 0, **other)])
    assert [len(section.rows) for section in content.sections] == [1, 1]


def test_the_same_limit_asked_for_in_two_ways_is_one_budget(run):
    limit = byte_budget(3_000_000)
    records = [run("der", budget={**limit, "kind": "aligned", "to": "der"}), run("wa", budget=limit)]
    assert len(table(records).sections) == 1


def test_one_strategy_with_two_settings_is_two_rows_named_by_what_differs(run):
    records = [
        run("icarl", seed, config={"strategy": {"name": "icarl", "temperature": value}})
        for value in (2.0, 4.0)
        for seed in (0, 1)
    ]
    assert sorted(rows(table(records))) == ["icarl (temperature=2.0)", "icarl (temperature=4.0)"]


def test_a_learner_that_stands_for_others_says_which(run):
    replay, ewc = (run("avalanche", config={"strategy": {"name": name}}) for name in ("Replay", "EWC"))
    assert sorted(rows(table([replay, run("wa")]))) == ["avalanche (Replay)", "wa"]
    assert sorted(rows(table([replay, ewc]))) == ["avalanche (EWC)", "avalanche (Replay)"]


def test_a_class_order_that_is_given_is_named_and_has_no_seed(run):
    given = {"stream": {"name": "toy", "order": ["d", "c", "b", "a"], "order_seed": 1993}}
    [section] = table([run("wa", order=(3, 2, 1, 0), config=given)]).sections
    names = ", ".join(run("wa").identity["stream"]["classes"])
    assert section.facts["class order"] == f"3 2 1 0 ({names})"
    assert "in one order of the classes for all seeds." in section.setup and "1993" not in section.setup
    assert "(order seed 1993)" in table([run("wa", config={"stream": {"order_seed": 1993}})]).sections[0].setup


def test_a_seed_that_ran_twice_counts_once(run):
    records = [run(seed=0, name="first"), run(seed=0, name="second"), run(seed=1)]
    row = rows(table(records))["icarl"]
    assert row.seeds == (0, 1)
    assert "1 more run of seeds" in row.notes[0].text


def test_a_label_has_no_key_that_another_row_lacks_or_only_leaves_open(run):
    old = {"strategy": {"name": "icarl", "temperature": 2.0}}
    new = {"strategy": {"name": "icarl", "temperature": 4.0, "drop": None}}
    assert sorted(rows(table([run(config=old), run(config=new)]))) == [
        "icarl (temperature=2.0)",
        "icarl (temperature=4.0)",
    ]
    more = {"strategy": {"name": "icarl", "temperature": 2.0, "extra": 1}}
    assert sorted(rows(table([run(config=old), run(config=more)]))) == ["icarl", "icarl (extra=1)"]


def test_a_label_is_never_long(run):
    configs = [
        {"strategy": {"name": "icarl", **{f"key_{letter}": [index] * 40 for letter in "abcd"}}} for index in (1, 2)
    ]
    labels = sorted(rows(table([run(config=config) for config in configs])))
    assert len(set(labels)) == 2 and all(len(label) <= 60 and label.endswith("…") for label in labels)


# rows that are not ranked


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_without_any_result_is_a_footnote_and_makes_no_label(run, status):
    nothing = {"accuracy_curve": [], "ledger": []}
    other = {"strategy": {"name": "icarl", "temperature": 9}}
    content = table([run(), *(run(seed=seed, status=status, results=nothing, config=other) for seed in (0, 1))])
    assert list(rows(content)) == ["icarl"] and content.warnings == ()
    assert content.footnotes == (f"No row, because no result yet: icarl {SHOWN.get(status, status)} (2 runs).",)
    assert content.footnotes[0] in to_text(content) and content.footnotes[0] in to_markdown(content)


def test_runs_that_all_lack_results_are_a_table_without_sections(run):
    content = table([run(status="failed", results={"accuracy_curve": []})])
    assert content.sections == () and to_text(content) == "No row, because no result yet: icarl failed.\n"
    assert to_csv(content) == "" and '"sections": []' in to_json(content)


def test_exemplar_free_rows_below_the_limit_are_marked(run):
    budget = byte_budget(1_100_000)
    found = rows(table([run("lwf", exemplars=0, budget=budget), run("wa", exemplars=100, budget=budget)]))
    assert [note.mark for note in found["lwf"].notes] == ["uses less"]
    assert found["lwf"].notes[0].text == "uses less: no exemplars, 100,000 bytes below the limit"
    assert found["wa"].notes == ()


def test_under_a_count_of_exemplars_a_row_uses_less_where_it_carries_less_than_all_that_have_some(run):
    """wa carries 1,019,300 bytes; lwf less, ranpac more, both without exemplars. Alone, lwf is less than nobody."""
    others = [run("ranpac", exemplars=0, parameters=400_000_000), run("wa"), run("icarl", exemplars=200)]
    found = rows(table([run("lwf", exemplars=0), *others]))
    assert [note.text for note in found["lwf"].notes] == ["uses less: no exemplars"]
    assert found["ranpac"].notes == found["wa"].notes == ()
    assert rows(table([run("lwf", exemplars=0)]))["lwf"].notes == ()
    assert rows(table([run("even", exemplars=0, parameters=1_019_300), *others]))["even"].notes == ()


def test_rows_that_hold_more_than_an_image_a_class_beside_their_exemplars_are_marked(run):
    content = table([run("few", beside=4 * 192), run("images", beside=570 * 192)])  # of four classes
    found = rows(content)
    assert found["few"].notes == ()
    assert [note.text for note in found["images"].notes] == [
        "holds 570 images' worth beside its networks and exemplars: 109,440 bytes"
    ]
    assert "holds 570 images' worth beside" in to_text(content)
    assert [entry["images_beside"] for entry in content.sections[0].entries] == [4.0, 570.0]


def test_a_warning_names_a_few_rows_and_how_many_more(run):
    content = table([run(f"method{number}") for number in range(7)])
    warnings = " ".join(content.sections[0].warnings)
    assert "One seed only: method0, method1, method2, method3, method4 and 2 more. A difference" in warnings


def test_an_aligned_budget_says_on_which_model_the_other_was_measured(run):
    budget = byte_budget(1_500_000) | {"kind": "aligned", "to": "der", "to_model": "resnet32", "exemplars": 200}
    assert "aligned to der on resnet32, 1,500,000 bytes" in table([run(budget=budget)]).sections[0].subtitle


def test_images_given_up_are_a_note_and_exemplars_for_them_another_table(run):
    wide = exemplar_budget(200) | {"scope": "carried+incoming"}
    given_up = {"given_up": [30, 20]}
    content = table([run("rmm", results=given_up), run("icarl"), run("rmm", budget=wide, results=given_up)])
    assert [sorted(row.label for row in section.rows) for section in content.sections] == [["icarl", "rmm"], ["rmm"]]
    assert content.sections[1].heading.endswith("200 exemplars; as many more as incoming images are given up")
    notes = rows(content)["rmm"].notes
    assert [note.text for note in notes] == ["gave up images: learned without 50 of those that arrived"]
    assert not rows(content)["icarl"].notes


def test_a_run_over_its_budget_is_an_empty_row_with_its_bytes_and_the_reason(run):
    budget = byte_budget(1_500_000)
    reason = "der will carry 2,000,000 bytes, budget.limit is 1,500,000"
    records = [run("der", budget=budget, status="over_budget", error=reason), run("wa", budget=budget)]
    [section] = table(records).sections
    [row] = marked(section, "unranked")
    assert (row.label, row.score(LAST).mean, row.seconds) == ("der", None, None)
    assert (row.carried("exact"), row.carried("survey")) == (2_000_000, 1_999_000)
    assert row.bytes_by_kind("exact") == {"parameters": 2_000_000}
    assert row.bytes_by_kind("survey") == {"parameters": 1_999_000}
    assert "2,000,000" in to_text(table(records)) and reason in to_text(table(records), 400)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_an_unfinished_run_is_shown_with_its_status_and_not_ranked(run, status):
    records = [run("wa", status=status, matrix=((99.0, None),), error="the loss is not finite"), run("icarl")]
    [section] = table(records).sections
    assert [row.label for row in marked(section, "ranked")] == ["icarl"]
    [row] = marked(section, "unranked")
    assert row.score(LAST).mean is None, "half a stream is no last accuracy"
    assert row.notes[0].mark == f"{SHOWN.get(status, status)} 1/2"
    assert "after 1 of 2 experiences: the loss is not finite" in row.notes[0].text


def test_unfinished_seeds_are_left_out_of_the_mean(run):
    records = [run(seed=0, **last(60.0)), run(seed=1, **last(62.0)), run(seed=2, status="interrupted", **last(0.0))]
    row = rows(table(records))["icarl"]
    assert (row.seeds, row.score(LAST).mean) == ((0, 1), 61.0)
    assert [note.mark for note in row.notes] == ["1 of 3 interrupted"]


def test_a_run_that_was_let_over_its_budget_is_not_ranked(run):
    over = {"over_budget": ["carries 300 exemplars, budget.exemplars is 200", None]}
    content = table([run("wa", results=over), run("icarl")])
    [row] = marked(content.sections[0], "unranked")
    assert (row.label, row.score(LAST).mean) == ("wa", 65.0)
    assert row.notes[0].text.endswith("carries 300 exemplars, budget.exemplars is 200, after experience 0")


def test_a_bound_over_the_budget_is_still_a_bound(run):
    over = {"over_budget": [None, "carries 300 exemplars, budget.exemplars is 200"]}
    [row] = table([run("joint", bound=True, results=over)]).sections[0].rows
    assert (row.standing, row.notes) == ("bound", ())


def test_a_further_budget_is_a_column_and_a_row_over_it_says_so(run):
    carbon = {"caps": {"carbon": {"limit": 5, "unit": "g", "measured": [2.5, 6.25]}}}
    over = {"caps": {"carbon": {"limit": 5, "unit": "g", "measured": [2, 4]}}}
    content = table([run("wa", 0, results=over), run("wa", 1, results=carbon), run("icarl")])
    (section,) = content.sections
    assert {line.name: line.cells.get("carbon (g)") for line in section.grid.lines} == {"wa": "6.25", "icarl": None}
    assert "wa: over carbon: 6.25 g, limit 5" in section.remarks
    assert {entry["label"]: entry.get("cap_carbon") for entry in section.entries} == {"wa": 6.25, "icarl": None}
    assert "6.25" in to_csv(content) and "over carbon" in to_markdown(content)


# what is said


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"stream_changes": {"data": "unofficial"}}, "Unofficial data"),
        ({"stream_changes": {"task_known_at_test": True}}, "given at test time"),
        ({"uses_horizon": True}, "known in advance to all rows"),
        ({}, "One seed only: icarl"),
        ({}, "carried bytes are reported and not equal"),
    ],
)
def test_what_a_reader_must_know_is_a_warning(run, change, warning):
    assert any(warning in text for text in table([run(**change)]).sections[0].warnings)


def test_recipes_and_versions_that_differ_are_named(run):
    records = [run("wa"), run("icarl", config={"trainer": {"epochs": 99}}, versions={"cil": "0.1.0", "torch": "2.8.0"})]
    warnings = "\n".join(table(records).sections[0].warnings)
    assert "Rows differ in their recipe: trainer.epochs." in warnings
    assert "Runs differ in versions: torch 2.8.0 and 2.9.0." in warnings


def test_only_a_row_that_knows_more_than_others_is_marked_for_the_horizon(run):
    content = table([run("wa", uses_horizon=True), run("icarl")])
    assert [note.mark for note in rows(content)["wa"].notes] == ["uses horizon"]
    assert any("no other row knows: wa" in text for text in content.sections[0].warnings)
    both = table([run("wa", uses_horizon=True), run("icarl", uses_horizon=True)])
    assert rows(both)["wa"].notes == ()


def test_a_key_of_a_later_version_that_is_null_makes_no_other_row(run):
    later = {"trainer": {"epochs": 10, "later": None}, "anytime": {"every": None, "unit": "steps"}}
    old, new = run("wa", 0), run("wa", 1, config=later, budget={**exemplar_budget(200), "later": None})
    (section,) = table([old, new]).sections
    assert [row.label for row in section.rows] == ["wa"] and section.rows[0].seeds == (0, 1)
    (section,) = table([old, run("wa", 1, config={"trainer": {"epochs": 10, "later": 3}})]).sections
    assert len(section.rows) == 2


def test_where_and_how_a_seed_was_computed_makes_no_other_row(run):
    records = [
        run(
            seed=0,
            config={"device": "auto", "checkpoint": {"keep": "last"}, "trainer": {"epochs": 10, "threads": None}},
        ),
        run(seed=1, config={"device": "cpu", "checkpoint": {"keep": "all"}, "trainer": {"epochs": 10, "threads": 1}}),
    ]
    assert rows(table(records))["icarl"].seeds == (0, 1)


def test_code_that_was_edited_between_seeds_is_a_warning(run):
    records = [run(seed=0, code="a"), run(seed=1, code="b"), run("wa", code="c")]
    assert any("edited between the seeds of one row: icarl." in text for text in table(records).sections[0].warnings)


def test_no_records_are_no_table():
    with pytest.raises(ConfigError, match="at least one run"):
        table([])


# forms


def test_text_fits_the_terminal_and_loses_no_column(run):
    records = [run("a_strategy_with_a_long_name", seed, **last(60.0 + seed)) for seed in (0, 1)] + [run("lwf")]
    for width in (120, 80):
        text = to_text(table(records), width)
        assert max(map(len, text.splitlines())) <= width
        for head in ("Avg %", "Last %", "forgetting", "exact B", "survey B", "FLOPs", "peak B", "seconds"):
            assert head in text
    assert "60.50 ± 0.71" in text


def test_csv_and_json_hold_unrounded_numbers(run):
    records = [run(seed=seed, **last(value)) for seed, value in enumerate((60.0, 60.1, 60.25))] + [run("lwf")]
    content = table(records)
    lines = {line["label"]: line for line in csv.DictReader(io.StringIO(to_csv(content)))}
    assert float(lines["icarl"]["last_accuracy"]) == pytest.approx(60.35 / 3 + 40, abs=1e-9)
    assert lines["lwf"]["last_accuracy_std"] == ""
    [first] = [row for row in json.loads(to_json(content))["sections"][0]["rows"] if row["label"] == "icarl"]
    assert first["values"]["last_accuracy"] == {"0": 60.0, "1": 60.1, "2": 60.25}
    assert first["bytes_by_kind"]["exact"]["labels"] == 100


def test_markdown_has_both_bills_and_the_same_number_of_cells_in_each_line(run):
    text = to_markdown(table([run("wa"), run("a|b", exemplars=0)]))
    assert "last experience, exact" in text and "last experience, survey" in text
    assert "| wa | 1,000,000 | 19,200 | 100 | 1,019,300 |" in text
    assert "a\\|b (uses less)" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_a_label_has_the_last_part_of_a_key_and_rounded_numbers(run):
    def setting(lr: float, **more):
        return {"optimizer": {"lr": lr}, **more}

    first = run("icarl", config=setting(0.1, model={"name": "resnet32"}))
    second = run("icarl", config=setting(0.0701331234, model={"name": "resnet14"}))
    assert set(rows(table([first, second]))) == {
        "icarl (model=resnet32, lr=0.1)",
        "icarl (model=resnet14, lr=0.07013)",
    }


def test_keys_that_end_alike_stay_whole(run):
    first = run("icarl", config={"trainer": {"epochs": 1, "first": {"epochs": 3}}})
    second = run("icarl", config={"trainer": {"epochs": 2, "first": {"epochs": 4}}})
    assert "icarl (trainer.epochs=1, trainer.first.epochs=3)" in rows(table([first, second]))


def test_a_table_that_is_too_wide_tells_what_is_alike_in_one_line(run):
    records = [run("icarl", **last(60.0)), run("wa", **last(50.0))]
    wide, narrow = to_text(table(records), 200), to_text(table(records), 60)
    assert "the same in all rows" not in wide and "exact B" in wide
    assert "the same in all rows: n 1, forgetting 20.00, exemplars 100," in narrow
    assert narrow.count("strategy") == 1  # what is left fits


# tuning

TUNING = {
    "protocol": "two_phase", "n_trials": 20, "tuning_cost": 5 * 10**12, "search_space_hash": "ab12",
    "selection_metric": "last_accuracy", "tuned_on": "5 of 10 classes", "classes_disjoint": True,
    "search_space": {"optimizer.lr": {"log": [0.001, 1.0]}},
}  # fmt: skip


def test_a_tuned_row_says_how_and_what_it_cost_beside_the_result(run):
    records = [run("icarl"), run("icarl", config={"trainer": {"epochs": 7}}, tuning=TUNING)]
    found = table(records)
    assert {row.label for row in found.sections[0].rows} == {
        "icarl (tuned: epochs=7)",
        "icarl (epochs=10)",
    }
    said = to_text(found, 250)
    line = next(line for line in said.splitlines() if line.startswith("icarl (tuned"))
    assert "two_phase, 20 trials" in line and "5.00e12" in line
    assert "Some rows were tuned and others were not." in said
    assert "log 0.001, 1.0" in found.sections[0].facts["tuning"]
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(to_csv(found)))}
    assert rows["icarl (epochs=10)"]["tuning"] == "none"


def test_without_tuning_there_is_no_column_for_it(run):
    assert "tuning" not in to_text(table([run("icarl"), run("wa")]))


def test_equal_settings_tuned_and_untuned_are_two_rows(run):
    records = [run("icarl"), run("icarl", tuning=TUNING)]
    assert {row.label for row in table(records).sections[0].rows} == {"icarl", "icarl (tuned)"}


def test_unlike_tuning_is_told(run):
    records = [run("icarl", tuning=TUNING), run("wa", tuning={**TUNING, "n_trials": 5, "classes_disjoint": False})]
    said = to_text(table(records), 200)
    assert "Rows differ in how they were tuned: two_phase, 20 trials and two_phase, 5 trials." in said
    assert "Tuned on the classes that are reported on" in said
