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


# average incremental and last accuracy at each budget as read off the published curves, and the printed areas
CIFAR_MIB = (7_998_016, 13_018_240, 16_906_760, 20_795_280, 24_684_160)  # bytes of the five budgets
PUBLISHED = [
    ("replay", (58.5, 64.5, 66.9, 69.0, 70.0), 10.49, (41.3, 48.8, 51.4, 54.3, 55.6), 8.02),
    ("icarl", (63.5, 67.2, 68.5, 70.0, 70.9), 10.81, (48.4, 53.1, 54.6, 57.3, 58.5), 8.64),
    ("bic", (62.3, 65.9, 68.4, 70.2, 70.7), 10.73, (40.7, 50.2, 52.5, 57.9, 59.6), 8.30),
    ("foster", (66.5, 68.7, 70.3, 71.9, 72.3), 11.12, (53.2, 56.0, 56.7, 59.0, 59.4), 9.03),
    ("der", (53.8, 68.3, 70.7, 71.0, 70.1), 10.74, (40.8, 57.0, 59.5, 60.2, 59.9), 8.95),
    ("memo", (54.6, 69.0, 70.3, 71.7, 72.4), 10.85, (40.8, 56.8, 59.4, 61.7, 62.0), 9.03),
]
IMAGENET_MB = (329, 493, 755, 872, 1180, 1273)
PUBLISHED_IMAGENET = [
    ("podnet", (71.1, 73.2, 74.9, 74.9, 75.8, 76.1), 701.8, (60.8, 64.3, 66.5, 66.9, 68.8, 69.0), 624.9),
    ("der", (63.6, 74.0, 76.4, 73.8, 76.6, 75.5), 699.0, (56.2, 67.4, 70.2, 67.2, 70.7, 68.6), 639.1),
    ("memo", (64.6, 74.9, 77.3, 75.1, 79.3, 77.3), 713.0, (57.7, 68.4, 71.5, 68.2, 73.7, 71.6), 654.6),
]


def published(run, table_of, limits):
    """Records with the published accuracies: of two experiences, the last one answered so, the first for the mean."""
    return [
        run(name, budget=byte_budget(limit, "survey"), matrix=((2 * average - last, None), (last, last)))
        for name, averages, _, lasts, _ in table_of
        for limit, average, last in zip(limits, averages, lasts, strict=True)
    ]


@pytest.mark.parametrize(
    ("rows", "limits"),
    [(PUBLISHED, CIFAR_MIB), (PUBLISHED_IMAGENET, tuple(size * MIB for size in IMAGENET_MB))],
    ids=["cifar100", "imagenet100"],
)
def test_fed_with_the_published_curves_it_returns_the_published_areas(run, rows, limits):
    [found] = curves(published(run, rows, limits))
    areas = {row.label: (row.auc_a.area, row.auc_l.area) for row in found}
    for name, _, auc_a, _, auc_l in rows:
        assert areas[name] == (pytest.approx(auc_a, rel=0.003), pytest.approx(auc_l, rel=0.003)), name


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
