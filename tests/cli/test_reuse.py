"""A comparison takes over what has finished in another folder, and says so."""

from __future__ import annotations

import shutil

import pytest

from cil.cli import reuse
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


@pytest.mark.parametrize("copied", [False, True], ids=["before the copy", "after it"])
def test_what_was_taken_over_is_said_also_where_the_command_was_killed(tmp_path, monkeypatch, copied):
    source, out = tmp_path / "earlier/digits/run", tmp_path / "here"
    source.mkdir(parents=True)
    (source / "record.json").write_text("{}")
    path, copy = out / "digits/run", reuse._copy

    def killed(*given):
        if copied:
            copy(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reuse, "_copy", killed)
        reuse.take_over({path: {}}, {path: source}, out)
    reuse.take_over({path: {}}, {} if copied else {path: source}, out)
    assert reuse.remarks(out) == [f"reused: 1 finished run of {tmp_path / 'earlier'}, of the same identity"]
    shutil.rmtree(path)
    reuse.take_over({path: {}}, {}, out)  # trained here after all
    assert reuse.remarks(out) == []


@pytest.mark.parametrize(
    "damage", ["", "[1]", '{"taken_over": {"digits/run": "elsewhere"}, "sha256": "0"}', '{"a": 3}']
)
def test_damaged_words_on_what_was_taken_over_are_named(tmp_path, caplog, damage):
    (tmp_path / "reused.json").write_text(damage)
    assert reuse.remarks(tmp_path) == []
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}/reused.json is damaged: ")


def test_another_setting_or_an_unfinished_run_is_not_taken_over(cil, tmp_path):
    cil("compare", *DIGITS, "strategy=finetune", "jobs=1", "out=a")
    (path,) = tmp_path.glob("a/*/*/record.json")
    path.write_text(path.read_text().replace('"finished"', '"failed"'))
    said = cil("compare", *DIGITS, "strategy=finetune", "optimizer.lr=0.2", "jobs=1", "out=b")
    again = cil("compare", *DIGITS, "strategy=finetune", "jobs=1", "out=c")
    assert "reused" not in said.err + again.err


def test_a_damaged_run_is_not_taken_over_and_a_copy_that_goes_on_leaves_the_other_as_it_was(cil, tmp_path):
    given = (*DIGITS, "strategy=finetune", "jobs=1")
    cil("compare", *given, "out=a")
    (first,) = (path.parent for path in tmp_path.glob("a/*/*/record.json"))
    assert "reused" in cil("compare", *given, "out=b").err
    copy = tmp_path / "b" / first.relative_to(tmp_path / "a")
    (copy / "record.json").unlink()  # is made again from the checkpoints
    assert cil("compare", *given, "out=b").code == 0
    for run in (first, copy):
        assert Record.load(run).arrays()["confusion"].shape == (5, 10, 10)

    for folder in ("b", "runs"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    arrays = first / "arrays/boundary-002.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(b"damaged")
    trained = cil("compare", *given, "out=b")
    assert trained.code == 0 and "note: reused" not in trained.err
    assert "not reused: " in trained.err and "boundary-002.safetensors is damaged" in trained.err

    last = first / "checkpoint/experience-004.json"
    for folder in ("b", "runs"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    last.unlink()
    arrays.write_bytes(whole)
    assert f"{last.name} is missing" in cil("compare", *given, "out=b").err
