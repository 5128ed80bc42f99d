"""A comparison takes over what has finished in another folder, and says so."""

from __future__ import annotations

from cil.report import find_runs
from cil.tracking import Record

DIGITS = ("stream=split_digits", "trainer.max_steps=2", "trainer.epochs=1", "progress=false")


def test_one_more_seed_trains_one_run_and_says_what_was_taken_over(cil, tmp_path):
    assert cil("compare", *DIGITS, "strategy=finetune", "seed=0", "jobs=1").code == 0
    (first,) = (path.parent for path in tmp_path.glob("runs/*/*/*/record.json"))
    more = cil("compare", *DIGITS[:-1], "strategy=finetune", "seed=0,1", "jobs=1")
    assert more.code == 0
    sentence = f"reused: 1 finished run of runs/{first.relative_to(tmp_path).parts[1]}, of the same identity"
    assert f"cil: note: {sentence}" in more.err and sentence in more.out
    assert more.err.count("finished before, not run again") == 1
    (page,) = (path for path in tmp_path.glob("runs/*/index.html") if sentence in path.read_text())
    copy = page.parent / first.relative_to(first.parents[1])
    assert Record.load(copy) == Record.load(first) or Record.load(copy).results == Record.load(first).results
    assert len(find_runs("runs")) == 2  # the copy is no second run

    elsewhere = cil("compare", *DIGITS[:-1], "strategy=finetune", "seed=0,1", "jobs=1", "out=other")
    assert elsewhere.err.count("finished before, not run again") == 2
    assert len(find_runs("other")) == 2


def test_another_setting_or_an_unfinished_run_is_not_taken_over(cil, tmp_path):
    cil("compare", *DIGITS, "strategy=finetune", "jobs=1", "out=a")
    (path,) = tmp_path.glob("a/*/*/record.json")
    path.write_text(path.read_text().replace('"finished"', '"failed"'))
    said = cil("compare", *DIGITS, "strategy=finetune", "optimizer.lr=0.2", "jobs=1", "out=b")
    again = cil("compare", *DIGITS, "strategy=finetune", "jobs=1", "out=c")
    assert "reused" not in said.err + again.err
