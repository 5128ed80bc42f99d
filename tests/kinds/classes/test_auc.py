"""AUC-A and AUC-L over budgets, against the worked example of the specification."""

from __future__ import annotations

import json

import pytest
from made_records import MIB, byte_budget

from cil.report import table, to_json, to_markdown, to_text

LIMITS = (10 * MIB, 20 * MIB, 40 * MIB)


def curves(records) -> list:
    """Rows of the section of accuracy over budgets, which has no entries of single runs; none without one."""
    return [list(section.rows) for section in table(records).sections if not section.entries]


def point(run, strategy: str, limit: int, average: float, seed: int = 0, **more):
    """A run whose average incremental accuracy is ``average`` and whose last accuracy is 10 less."""
    matrix = ((average + 10, None), (average - 10, average - 10))
    return run(strategy, seed, budget=byte_budget(limit, "survey"), matrix=matrix, **more)


def test_the_area_is_the_trapezoid_of_fractions_over_mebibytes(run):
    records = [point(run, "icarl", limit, y) for limit, y in zip(LIMITS, (50.0, 60.0, 70.0), strict=True)]
    section = table(records).sections[-1]
    [row] = section.rows
    assert "over 3 budgets from 10.00 to 40.00 MiB (survey)" in section.title
    assert row.auc_a.area == pytest.approx(18.5)
    assert row.auc_a.mean == pytest.approx(18.5 / 30)
    assert row.auc_l.area == pytest.approx((0.4 + 0.5) / 2 * 10 + (0.5 + 0.6) / 2 * 20)
    assert row.auc_a.std is None


def test_the_deviation_is_that_of_the_areas_of_single_seeds(run):
    records = [
        point(run, "icarl", limit, y + 2 * seed, seed)
        for limit, y in zip(LIMITS, (50.0, 60.0, 70.0), strict=True)
        for seed in (0, 1)
    ]
    [[row]] = curves(records)
    assert row.auc_a.area == pytest.approx(18.5 + 0.01 * 30)  # 1 % more on average over 30 MiB
    assert row.auc_a.std == pytest.approx(0.02 * 30 / 2**0.5)


def test_a_budget_that_was_not_met_leaves_no_area(run):
    records = [point(run, "wa", limit, 60.0) for limit in LIMITS] + [
        point(run, "der", limit, 70.0) for limit in LIMITS[1:]
    ]
    records.append(run("der", budget=byte_budget(LIMITS[0], "survey"), status="over_budget", error="too large"))
    found = {row.label: row for row in curves(records)[0]}
    assert found["der"].auc_a.area is None and found["der"].average[0].mean is None
    assert found["wa"].auc_a.area == pytest.approx(18.0)
    assert "–" in to_text(table(records), 200).split("AUC-A", 1)[1]


def test_a_smaller_network_for_a_smaller_budget_is_the_same_strategy(run):
    models = ("convnet2", "resnet14", "resnet32")
    records = [
        point(run, "der", limit, 60.0, config={"model": {"name": model}, "budget": {"limit": limit}})
        for limit, model in zip(LIMITS, models, strict=True)
    ]
    [[row]] = curves(records)
    assert (row.label, row.auc_a.mean) == ("der", pytest.approx(0.6))


def test_two_networks_at_every_budget_are_two_rows(run):
    records = [
        point(run, "der", limit, y, config={"model": {"name": model}, "budget": {"limit": limit}})
        for limit in LIMITS
        for model, y in (("resnet14", 50.0), ("resnet32", 60.0))
    ]
    assert [(row.label, row.auc_a.mean) for row in curves(records)[0]] == [
        ("der (model=resnet32)", pytest.approx(0.6)),
        ("der (model=resnet14)", pytest.approx(0.5)),
    ]


def test_areas_are_only_over_one_stream_and_one_convention(run):
    records = [point(run, "wa", LIMITS[0], 60.0), point(run, "wa", LIMITS[1], 60.0, order=(3, 2, 1, 0))]
    assert curves(records) == []
    records = [run("wa", budget=byte_budget(LIMITS[0], "exact")), run("wa", budget=byte_budget(LIMITS[1], "survey"))]
    assert curves(records) == []


def test_bounds_have_no_area(run):
    records = [point(run, "joint", limit, 90.0, bound=True) for limit in LIMITS]
    records += [point(run, "wa", limit, 60.0) for limit in LIMITS]
    assert [row.label for row in curves(records)[0]] == ["wa"]


def test_areas_are_in_every_form(run):
    content = table([point(run, "icarl", limit, y) for limit, y in zip(LIMITS, (50.0, 60.0, 70.0), strict=True)])
    assert "AUC-A" in to_markdown(content) and "18.50" in to_markdown(content)
    assert json.loads(to_json(content))["sections"][-1]["rows"][0]["auc_a"] == pytest.approx(18.5)


def test_a_method_that_is_fitted_to_each_budget_is_one_curve(run):
    def fitted(limit: int, size: int, **said):
        return point(run, "ranpac", limit, 50.0, config={"strategy": {"name": "ranpac", "size": size}}, **said)

    values = {"bytes": 1, "limit": 1, "convention": "survey"}
    records = [
        fitted(limit, size, results={"fitted": {"key": "size", "value": size, **values}})
        for limit, size in zip(LIMITS, (100, 150, 210), strict=True)
    ]
    assert [row.auc_a.area for [row] in curves(records)] == [pytest.approx(15.0)]
    assert [len(rows) for rows in curves([fitted(LIMITS[0], 100), fitted(LIMITS[1], 150)])] == [2]
