"""What a comparison says before it starts, and what it says of runs that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cil.cli.forecast import Forecast
from cil.cli.reuse import earlier_runs
from cil.models import save_weights, timm_backbone
from cil.report import find_runs, table, to_json

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false", "device=cpu")


def test_a_dry_run_counts_what_exists_wherever_it_lies_and_trains_nothing(cil, tmp_path, monkeypatch):
    monkeypatch.setattr("cil.cli.forecast.LONG", 0.0)
    asked = (*DIGITS, "strategy=replay", "seed=0,1", "jobs=2")
    first = cil("compare", *asked, "--dry-run")
    assert first.code == 0 and not list(tmp_path.rglob("record.json"))
    assert "timing steps of each recipe on this machine, 1 in all; the first took " in first.err
    runs, time, disk = first.out.splitlines()
    assert runs == "runs: 2; finished before: 0; go on: 0; to be trained, 2 at a time: 2"
    assert "2 by steps timed on noise just now and 0.5 s an experience for all else" in time
    assert disk.startswith("disk: about ") and "MiB a run, 2 at a time" in disk

    cil("run", *DIGITS, "strategy=replay", "seed=1", "trainer.threads=1", "run_dir=runs/by/hand/mine")
    (done,) = earlier_runs(Path("runs"))
    again = cil("compare", *asked, "trainer.threads=1", "--dry-run")
    assert "finished before: 1 (0 here, 1 in runs/by); go on: 0; to be trained, 2 at a time: 1" in again.out
    assert "so at most about" in again.out and "1 by the slowest like run that has finished" in again.out
    made = cil("compare", *asked, "trainer.threads=1", "out=here")
    assert made.code == 0 and "reused: 1 finished run of runs/by/hand, of the same identity" in made.out
    assert {record.run for record in find_runs("here")} >= {done.run}


def test_a_like_run_beside_the_folder_of_a_comparison_tells_the_time(cil):
    asked = (*DIGITS, "strategy=replay", "trainer.threads=1", "jobs=1")
    cil("compare", *asked, "seed=0", "out=one")
    said = cil("compare", *asked, "seed=1", "out=two", "--dry-run")
    assert "to be trained, 1 at a time: 1" in said.out and "1 by the slowest like run that has finished" in said.out


def test_who_does_not_fit_at_a_point_is_named_and_left_out_there(cil):
    asked = (*DIGITS, "strategy=der,replay", "budget=bytes", "budget.points=[50_000,200_000]", "jobs=1")
    said = cil("compare", *asked, "--dry-run")
    (line,) = (line for line in said.out.splitlines() if line.startswith("does not fit"))
    assert line.startswith("does not fit: der, budget.limit=50000: der will carry 62,232 bytes (exact)")
    assert "runs: 4; " in said.out and "to be trained, 1 at a time: 3" in said.out
    made = cil("compare", *asked, "out=here")
    assert made.code == 0 and "AUC-A" in made.out
    content = json.loads(to_json(table(find_runs("here"))))
    areas = {row["label"]: row["auc_a"] for row in content["sections"][-1]["rows"]}
    assert areas["der"] is None and areas["replay"] > 0


def test_a_point_that_no_size_of_a_method_fits_stops_no_other(cil):
    asked = (*DIGITS, "strategy=ranpac", "model=smallconv", "budget=bytes", "budget.points=[1_000,30_000]", "jobs=1")
    asked = (*asked, "budget.convention=libcontinual", "budget.fit=true")
    said = cil("compare", *asked, "--dry-run")
    assert said.code == 0 and "to be trained, 1 at a time: 1" in said.out
    assert "does not fit: ranpac, budget.limit=1000: with strategy.size=1, its smallest, ranpac will carry " in said.out
    made = cil("compare", *asked, "out=here")
    sections = json.loads(to_json(table(find_runs("here"))))["sections"]
    assert made.code == 0 and [[row["n"] for row in one["rows"]] for one in sections[:2]] == [[0], [1]]


def test_a_run_that_fails_is_named_at_the_end_with_its_cause_and_its_log(cil, tmp_path):
    (tmp_path / "broken.py").write_text(
        "from cil.strategies.finetune import Finetune\n\n\n"
        "class Broken(Finetune):\n    def loss(self, batch):\n        raise ValueError('a bug of mine')\n"
    )
    said = cil("compare", *DIGITS, "strategy=broken:Broken,finetune", "jobs=1", "out=here")
    assert said.code == 1 and "finetune" in said.out and (tmp_path / "here/index.html").exists()
    failed, summary = said.err.strip().splitlines()[-2:]
    assert failed.startswith("cil: broken:Broken: failed: ValueError: a bug of mine")
    log = Path(failed.rpartition("; log: ")[2])
    assert "Traceback" in log.read_text() and "broken.py" in log.read_text()
    assert summary == "cil: 1 of 2 runs failed; the table is of the others"


def test_seconds_of_runs_one_after_the_other_and_side_by_side():
    one, two = (Forecast(5, 1, {"runs/a": 1}, 0, [600.0], [300.0, 300.0], {}, {}, 0, None, jobs) for jobs in (1, 2))
    assert "time: 20 min of computing, so at most about 20 min (1 by the slowest" in "\n".join(one.lines())
    # half of 1,200 s, and half of the longest one, which may begin when all others have ended
    assert "time: 20 min of computing, so at most about 15 min" in "\n".join(two.lines())


def test_a_time_that_is_not_known_says_why():
    for unknown, why in ({"a": "", "b": ""}, ""), ({"a": "", "b": "no hub"}, ", and steps could not be timed: no hub"):
        lines = list(Forecast(2, 0, {}, 0, [], [], unknown, {}, 0, None, 1).lines())
        assert lines[1] == f"time: not known of 2 runs: none like them has finished{why}"
        lines = list(Forecast(3, 0, {}, 0, [], [9.0], unknown, {}, 0, None, 1).lines())
        assert lines[1].endswith(f"; not known of 2 more: none like them has finished{why}")


@pytest.mark.parametrize("name", ["benchmark", "aligned", "curve"])
def test_each_of_the_surveys_comparisons_runs_on_embedded_data_and_is_marked_as_quick(cil, tmp_path, name):
    short = ("trainer.max_steps=1", "progress=false", "device=cpu", "jobs=1")
    chosen = ("strategy=icarl,memo", "point=1,2") if name == "curve" else ("strategy=podnet,der",)
    said = cil("compare", f"experiment=survey_{name}", "scale=quick", *chosen, *short)
    assert said.code == 0, said.err
    assert "digits_b0_inc2, scale=quick: 10 classes in 5 experiences of 2" in said.out
    (page,) = tmp_path.glob(f"runs/compare-survey_{name}-quick*/index.html")
    text = page.read_text()
    assert f"compare: survey_{name}, scale=quick" in text and "scale=quick: a reduced setting" in text
    assert {record.identity["scale"] for record in find_runs(page.parent)} == {"quick"}
    if name == "curve":
        assert "AUC-A" in said.out and "Average incremental accuracy against the budget" in text
        models = {(r.identity["strategy"], r.identity["networks"]["name"]) for r in find_runs(page.parent)}
        assert models == {("icarl", "resnet14_narrow"), ("memo", "smallconv"), ("memo", "convnet2")}


def test_the_comparison_on_a_pretrained_backbone_runs_on_embedded_data_with_its_variants(cil, tmp_path):
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}  # as scale=quick has it
    save_weights(timm_backbone("vit_tiny_patch16_224", in_channels=1, **size).model, "small.safetensors")
    asked = ("experiment=pretrained_cifar100", "scale=quick", "model.weights=small.safetensors")
    short = ("stream.increment=5", "trainer.max_steps=1", "progress=false", "device=cpu", "jobs=1", "out=here")
    said = cil("compare", *asked, *short)
    assert said.code == 0, said.err
    content = json.loads(to_json(table(find_runs("here"))))
    rows = {row["label"]: row for row in content["sections"][0]["rows"]}
    backbone = 4 * sum(value.numel() for value in load_file("small.safetensors").values())
    assert {row["backbone_bytes"] for row in rows.values()} == {backbone}
    bills = [json.loads(path.read_text())["results"]["bills"][-1] for path in tmp_path.rglob("record.json")]
    assert [bill["public"] for bill in bills] == [backbone] * 4  # no part of what a run stores
    assert rows["simplecil"]["learned_bytes"] == 0 < rows["simplecil"]["stored_bytes"]
    assert rows["coda_prompt"]["learned_bytes"] > 0 == rows["coda_prompt"]["stored_bytes"]
    assert set(rows) == {"simplecil", "coda_prompt", "aper (tuner=adapter)", "aper (tuner=scale_shift)"}
    assert "Last accuracy against learned bytes" in (tmp_path / "here/index.html").read_text()
