"""Published numbers: beside runs of the same stream, split and budget alone, and never ranked."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_records import byte_budget, exemplar_budget

from cil.cli.report import main
from cil.kinds.classes.published import _content
from cil.report import table, to_csv, to_json, to_text

ORDER = tuple(np.random.RandomState(1993).permutation(100).tolist())
MIB = 2**20


def cifar(run, strategy="icarl", base=10, images=50_000, **given):
    """A run of the survey's benchmark, two of its experiences recorded."""
    sizes = [base] + [10] * ((100 - base) // 10)
    ends = np.cumsum([0, *sizes])
    stream = {
        "name": f"cifar100_b{base}_inc10", "classes": list(map(str, range(100))), "experiences": len(sizes),
        "new_slots": [list(range(a, b)) for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)],
        "train_counts": [images // 100 * size for size in sizes],
    }  # fmt: skip
    setting = {
        "budget": exemplar_budget(2000), "order": ORDER, "config": {"trainer": {"epochs": 170}},
        "networks": {"name": "resnet32", "weights": None},
    }  # fmt: skip
    return run(strategy, stream_changes=stream, **setting | given)


def parts(content):
    return dict(content.with_published().sections[0].grid.parts)


def test_the_online_rows_of_libcontinual_stand_beside_one_epoch_in_batches_of_ten_alone(run):
    online = parts(table([cifar(run, config={"trainer": {"epochs": 1, "batch_size": 10}})]))
    (heading,) = (found for found in online if "LibContinual" in found)
    assert heading.startswith("published: LibContinual, arXiv:2512.22029, online") and "not ranked" in heading
    cells = {line.name: line.cells for line in online[heading]}
    assert cells["icarl (published)"] == {"Avg %": "–", "Last %": "16.16", "forgetting": "–"}
    (survey,) = (found for found in online if "Zhou" in found)
    assert "icarl (published, 170 epochs)" in [line.name for line in online[survey]]
    offline = parts(table([cifar(run, config={"trainer": {"epochs": 1, "batch_size": 128}})]))
    assert not any("LibContinual" in found for found in offline)


def test_where_no_published_numbers_are_known_this_is_said(run):
    (warning,) = table([run("icarl")]).with_published().warnings
    assert warning == "No published numbers of this data set, split and budget are known."
    assert table([cifar(run)]).with_published().warnings == ()


FIVE = ["cifar10", "mnist", "fashion_mnist", "svhn", "notmnist"]


@pytest.mark.parametrize(("origins", "words", "last"), [
    ([name for name in FIVE for _ in range(10)], "five sets, one data set after the other", "69.87"),
    (FIVE * 10, "five sets, classes mixed", "62.51"),
], ids=["by_set", "mixed"])  # fmt: skip
def test_a_pool_of_five_sets_has_the_published_rows_of_its_order_alone(run, origins, words, last):
    stream = {
        "name": f"{'+'.join(FIVE)}_b0_inc10", "classes": list(map(str, range(50))), "experiences": 5,
        "new_slots": [list(range(first, first + 10)) for first in range(0, 50, 10)], "train_counts": [50_000] * 5,
        "pool": "one", "origins": origins,
    }  # fmt: skip
    setting = {
        "budget": exemplar_budget(2000),
        "order": tuple(range(50)),
        "networks": {"name": "alexnet", "weights": None},
    }
    shown = parts(table([run("gpm", stream_changes=stream, **setting)]))
    (heading,) = (found for found in shown if "LibContinual" in found)
    assert words in heading and "mean over experiences" in heading
    assert {line.name: line.cells["Last %"] for line in shown[heading]}["gpm (published)"] == last


def test_the_two_orders_of_the_five_sets_differ_as_published():
    by_set, mixed = {}, {}
    for one in _content()["tables"]:
        if "order" in one:
            {"by_set": by_set, "mixed": mixed}[one["order"]].update({key: row[1] for key, row in one["rows"].items()})
    differences = {key: round(mixed[key] - by_set[key], 2) for key in by_set}
    assert differences == {
        "lwf": 15.07, "ewc": 2.46, "icarl": 0.61, "bic": -4.10, "lucir": -17.18, "wa": -12.05, "gpm": -7.36,
        "trgp": -6.23, "er_ace": -3.16, "l2p": -17.10, "dualprompt": -20.72, "coda_prompt": -16.19, "ranpac": -29.08,
        "inflora": -26.54, "moe_adapters": 23.84, "rapf": -7.48, "sd_lora": 4.36,
    }  # fmt: skip


def test_the_surveys_rows_stand_beside_its_setting_and_are_not_ranked(run):
    content = table([cifar(run), cifar(run, "wa")])
    (heading, lines) = list(parts(content).items())[-1]
    assert heading == (
        "published: Zhou et al. 2024, TPAMI 46(12), arXiv:2302.03648, supplement tables 5 and 27; not ranked"
    )
    cells = {line.name: line.cells for line in lines}
    assert cells["der (published)"] == {"Avg %": "69.74", "Last %": "58.59", "forgetting": "18.40"}
    assert cells["dytox (published, ConViT, 500 epochs)"] == {"Avg %": "71.07", "Last %": "58.72", "forgetting": "–"}
    asked = content.with_published()
    assert asked.sections[0].verdicts == content.sections[0].verdicts
    assert len(asked.sections[0].rows) == 2 and "der (published)" not in to_text(content)
    line = next(
        line for line in to_csv(asked).splitlines() if line.startswith("der (published)") or ",der (published)" in line
    )
    assert "published" in line and "58.59" in line
    assert {"strategy": "l2p", "last_accuracy": 83.39}.items() <= json.loads(to_json(asked))["sections"][0][
        "published"
    ][-1].items()


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": exemplar_budget(1000)},
        {"images": 5000},
        {"base": 30},
        {"networks": {"name": "vit", "weights": "in21k"}},
    ],
    ids=["exemplars", "images", "split", "weights"],
)
def test_another_setting_has_none(run, changes):
    assert len(parts(table([cifar(run, **changes)]))) == 1


def test_a_row_says_the_network_and_the_epochs_that_the_run_has_not(run):
    small = {"config": {"trainer": {"epochs": 20}}, "networks": {"name": "resnet14", "weights": None}, "scale": "small"}
    (heading, lines) = list(parts(table([cifar(run, **small)])).items())[-1]
    assert "; the runs have scale=small; not ranked" in heading
    names = [line.name for line in lines]
    assert "der (published, resnet32, 170 epochs)" in names and "l2p (published, ViT-B/16, 5 epochs)" in names
    short = {
        "config": {"trainer": {"epochs": 170, "max_steps": 5}},
        "networks": {"name": "resnet32_cosine", "weights": None},
    }
    lines = list(parts(table([cifar(run), cifar(run, "podnet", **short)])).values())[-1]
    names = [line.name for line in lines]
    assert "icarl (published)" in names and "der (published)" in names  # as the first run
    assert "podnet (published, 160 epochs)" in names and "finetune (published, 80 epochs)" in names


def test_another_class_order_is_said(run):
    heading = list(parts(table([cifar(run, order=tuple(range(100)))])))[-1]
    assert heading.endswith("; another class order; not ranked")


def test_aligned_bytes_are_those_of_the_survey(run):
    limit = 10 * 4 * 463_504 + 2000 * 3072  # ten backbones and 2,000 images
    assert limit / MIB == pytest.approx(23.54, abs=0.005)
    (heading, lines) = list(parts(table([cifar(run, budget=byte_budget(limit, "survey"))])).items())[-1]
    assert "memory aligned to DER" in heading
    assert {line.name: line.cells["Last %"] for line in lines}["memo (published)"] == "61.98"
    assert len(parts(table([cifar(run, budget=byte_budget(limit, "exact"))]))) == 1


def test_the_file_says_what_every_table_needs():
    content = _content()
    for one in content["tables"]:
        named = {"source", "where", "dataset", "base", "increment", "rows", *({"exemplars", "mebibytes"} & {*one})}
        assert (
            {*one} - {"pretrained", "training", "order"} == named
            and len(named) == 7
            and one["source"] in content["sources"]
        )
        values = [value for row in one["rows"].values() for value in row if value is not None]
        assert all(-10 < value < 100 for value in values) and all(2 <= len(row) <= 3 for row in one["rows"].values())


def test_the_command_shows_them_where_it_is_asked(run, tmp_path, capsys):
    cifar(run)
    assert main([str(tmp_path / "runs")]) == 0
    assert "(published)" not in capsys.readouterr().out
    assert main([str(tmp_path / "runs"), "--published"]) == 0
    assert "der (published)" in capsys.readouterr().out
    assert main([str(tmp_path / "runs"), "--published", "--html", str(tmp_path / "page.html")]) == 0
    assert "der (published)" in (tmp_path / "page.html").read_text()
