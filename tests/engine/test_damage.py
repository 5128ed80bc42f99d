"""Damaged files of a run: what comes out is what the straight run gives, or an error that names the file."""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from toys import Interrupt, Rehearse, plain, small_run
from unsealed import unsealed

from cil.engine.checkpoint import Checkpoints
from cil.errors import CilError, ResumeError
from cil.testing import toy_adaptation, toy_run, toy_shifts, toy_stream, toy_tasks
from cil.testing.compare import demand_same, different_tensor
from cil.testing.toy import RECIPE as BRIEF
from cil.tracking import Record, RecordError, identity_hash

Damage = Callable[[Path], None]
RECIPE = plain(log_every=1, snapshot_steps=3, epochs=2)


def prepared(folder: Path, keep: str = "all", **options):
    """The run that is damaged: three experiences of four steps an epoch, a snapshot every three steps."""
    return small_run(Rehearse, folder, recipe=RECIPE, keep=keep, **options)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The run without damage, and its record."""
    run = prepared(tmp_path_factory.mktemp("straight") / "run")
    return run, run.execute()


@pytest.fixture(scope="module", params=["all", "last"])
def killed(request, tmp_path_factory):
    """A folder as a run leaves it that is stopped within its third experience; how it keeps states."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, request.param, loggers=[Interrupt(21)]).execute()
    return folder, request.param


def _flip(place: float) -> Damage:
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        if content:
            content[int(place * len(content))] ^= 1 + int(place * 1e6) % 255
        path.write_bytes(content)

    return flip


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damages(folder: Path, flips: int = 3) -> Iterator[tuple[Path, Damage]]:
    """Each file of a folder, flipped at places of each, cut to half, and removed."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        name = path.relative_to(folder)
        chance = random.Random(str(name))
        for damage in (*(_flip(chance.random()) for _ in range(flips)), _truncate, Path.unlink):
            yield name, damage


def test_a_killed_run_with_any_file_damaged_ends_as_the_straight_one_or_names_the_file(killed, straight, tmp_path):
    folder, keep = killed
    ends = {"equal": 0, "refused": 0}
    for number, (name, damage) in enumerate(damages(folder)):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        damage(copy / name)
        run = prepared(copy, keep)
        try:
            _demand_equal(straight, run, run.execute(), keep)
            ends["equal"] += 1
        except CilError as error:  # of running, or of reading what it left
            assert str(name) in str(error), f"{name} is damaged, said is: {error}"
            ends["refused"] += 1
    assert ends["equal"] > ends["refused"] > 0


def _demand_equal(straight, run, record: Record, keep: str) -> None:
    if keep == "all":
        demand_same("straight and damaged", *straight, run, record)
    last = run.checkpoints.done() - 1
    assert not different_tensor(run.checkpoints.state(last).tensors, straight[0].checkpoints.state(last).tensors)
    same = ("accuracy_matrix", "forgetting", "flops", "ledger", "exemplars")
    assert all(record.results[key] == straight[1].results[key] for key in same)
    assert list(record.lines()) == list(straight[1].lines())
    confusion = record.arrays()["confusion"]
    assert (confusion[:] == straight[1].arrays()["confusion"][:]).all()


def test_of_a_finished_run_no_damaged_file_is_read(straight, tmp_path):
    for number, (name, damage) in enumerate(damages(straight[0].run_dir)):
        copy = tmp_path / str(number)
        shutil.copytree(straight[0].run_dir, copy)
        damage(copy / name)
        if str(name).startswith("checkpoint/evaluation") and damage is Path.unlink:
            continue  # read by nobody any more
        run = prepared(copy)
        try:
            record = run.execute()
            _demand_equal(straight, run, record, "all")
        except CilError as error:
            assert str(name) in str(error), f"{name} is damaged, said is: {error}"


def test_damage_is_told_and_training_goes_on_from_the_boundary_before(killed, straight, tmp_path, caplog):
    folder, keep = killed
    shutil.copytree(folder, tmp_path / "run")
    _flip(0.9)(tmp_path / "run/checkpoint/experience-001.safetensors")
    with caplog.at_level(logging.WARNING):
        prepared(tmp_path / "run", keep).execute()
    damage, where = caplog.messages
    assert "experience-001.safetensors is damaged" in damage and "\n" not in damage
    back = 1 if keep == "all" else 0
    assert where.endswith(f"goes on after {back} of 2 trained boundaries; what was lost is made again")


KINDS = {
    "classes": partial(toy_run, "icarl", toy_stream()),
    "two networks": partial(toy_run, "der", toy_stream()),
    "tasks": partial(toy_run, "dynamic", toy_tasks()),
    "adaptation": partial(toy_adaptation, "cotta", toy_shifts()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_in_a_killed_run_of_any_kind_is_named_or_mended(kind, tmp_path):
    prepare = partial(KINDS[kind], recipe=replace(BRIEF, snapshot_steps=2, log_every=1), keep="all")
    expected = prepare(tmp_path / "straight")
    record = expected.execute()
    steps = sum(line["kind"] == "step" for line in record.lines())
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "killed", loggers=[Interrupt(round(0.8 * steps))]).execute()
    for number, (name, damage) in enumerate(damages(tmp_path / "killed", flips=6)):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "killed", copy)
        damage(copy / name)
        run = prepare(copy)
        try:
            demand_same("straight and damaged", expected, record, run, run.execute())
            assert list(Record.load(copy).lines()) == list(record.lines())
        except CilError as error:
            assert str(name) in str(error), f"{name} is damaged, said is: {error}"
        shutil.rmtree(copy)


def test_what_a_kind_keeps_in_arrays_is_there_after_a_stop_and_not_written_again(tmp_path):
    prepares = {
        "tasks": partial(toy_run, "previous", toy_tasks()),
        "adaptation": partial(toy_adaptation, "bn_stats", toy_shifts()),
    }
    for kind, prepare in prepares.items():
        straight = prepare(tmp_path / f"{kind} straight").execute().arrays()
        folder = tmp_path / kind
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, loggers=[Interrupt(1, ["boundary"])]).execute()
        behind = {path: path.stat().st_ino for path in sorted((folder / "arrays").glob("*.safetensors"))[:-1]}
        again = prepare(folder).execute().arrays()
        assert behind and all(path.stat().st_ino == number for path, number in behind.items())
        assert list(again) == list(straight) and all((again[name] == straight[name]).all() for name in straight)


def test_boundaries_that_were_swapped_are_named(killed, straight, tmp_path, caplog):
    folder, keep = killed
    shutil.copytree(folder, tmp_path / "run")
    first, second = (tmp_path / f"run/checkpoint/experience-{index:03d}.json" for index in (0, 1))
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0]), first.write_bytes(contents[1])
    run = prepared(tmp_path / "run", keep)
    _demand_equal(straight, run, run.execute(), keep)
    assert "experience-000.json is damaged: it was written as experience-001.json" in caplog.text


@pytest.mark.parametrize("content", ["{}", "[]", '{"files": {}, "facts": {}}'])
def test_a_boundary_without_what_belongs_in_it_is_named(killed, straight, tmp_path, caplog, content):
    folder, keep = killed
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/checkpoint/experience-001.json").write_text(content)
    (tmp_path / "run/snapshot").mkdir(exist_ok=True)
    (tmp_path / "run/snapshot/now.json").write_text(content)
    run = prepared(tmp_path / "run", keep)
    _demand_equal(straight, run, run.execute(), keep)
    assert "experience-001.json is damaged: it has no" in caplog.text
    assert "now.json is damaged: it has no" in caplog.text


def test_files_of_a_user_beside_those_of_a_run_are_not_read_and_stay(killed, straight, tmp_path):
    folder, keep = killed
    shutil.copytree(folder, tmp_path / "run")
    names = (
        "experience-mine.json",
        "experience-001 (copy).json",
        "evaluation-x.safetensors",
        "experience-x.safetensors",
    )
    own = [*(tmp_path / "run/checkpoint" / name for name in names), tmp_path / "run/snapshot/notes.json"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    _flip(0.5)(tmp_path / "run/checkpoint/experience-001.json")  # so that it goes back
    run = prepared(tmp_path / "run", keep)
    _demand_equal(straight, run, run.execute(), keep)
    assert all(path.read_text() == "{}" for path in own)


# of which run -------------------------------------------------------------------------------------------------------


def test_without_its_record_a_run_goes_on_and_another_is_refused_before_anything_is_written(killed, straight, tmp_path):
    folder, keep = killed
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run/record.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ResumeError, match="has checkpoints of another run") as refused:
        prepared(tmp_path / "run", keep, seed=1).execute()
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    run = prepared(tmp_path / "run", keep)
    _demand_equal(straight, run, run.execute(), keep)


def test_checkpoints_of_another_run_beside_a_record_are_refused(killed, tmp_path):
    folder, keep = killed
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "run", keep, seed=1, loggers=[Interrupt(2)]).execute()
    shutil.copytree(folder / "checkpoint", tmp_path / "run/checkpoint")
    with pytest.raises(ResumeError, match="has checkpoints of another run"):
        prepared(tmp_path / "run", keep, seed=1).execute()


def test_arrays_of_another_run_are_made_again(straight, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "run", loggers=[Interrupt(21)]).execute()
    prepared(tmp_path / "other", seed=1).execute()
    shutil.rmtree(tmp_path / "run/arrays")
    shutil.copytree(tmp_path / "other/arrays", tmp_path / "run/arrays")
    run = prepared(tmp_path / "run")
    _demand_equal(straight, run, run.execute(), "all")
    assert "arrays/index.jsonl is of another run" in caplog.text


def test_a_log_that_says_of_no_run_is_not_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("a log of something else\n")
    with pytest.raises(ResumeError, match=r"has metrics\.jsonl and no record\.json that says of which run"):
        prepared(tmp_path).execute()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == "a log of something else\n"


def test_a_file_of_another_run_in_its_place_is_not_used(straight, tmp_path):
    other = prepared(tmp_path / "other", seed=1)
    other.execute()
    shutil.copytree(straight[0].run_dir, tmp_path / "run")
    for name in ("experience-002.safetensors", "evaluation-001.safetensors"):
        shutil.copy(tmp_path / "other/checkpoint" / name, tmp_path / "run/checkpoint" / name)
    kept = Checkpoints(tmp_path / "run", run=identity_hash(straight[0].identity))
    for read in (lambda: kept.state(2), lambda: kept.evaluated(1)):
        with pytest.raises(ResumeError, match="is damaged, or of another run"):
            read()


# earlier versions ---------------------------------------------------------------------------------------------------


def test_folders_without_sums_are_read_as_before(straight, tmp_path):
    shutil.copytree(straight[0].run_dir, tmp_path / "run")
    unsealed(tmp_path / "run")
    run = prepared(tmp_path / "run")
    record = Record.load(tmp_path / "run")
    assert record.results == straight[1].results
    kept = Checkpoints(tmp_path / "run")
    assert not different_tensor(kept.state(2).tensors, straight[0].checkpoints.state(2).tensors)
    (tmp_path / "run/record.json").unlink()
    with pytest.raises(ResumeError, match=r"has checkpoint, .*and no record\.json that says of which run"):
        run.execute()


def test_a_record_that_was_changed_is_refused_by_name(straight, tmp_path):
    shutil.copytree(straight[0].run_dir, tmp_path / "run")
    path = tmp_path / "run/record.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "failed"'))
    with pytest.raises(RecordError, match=f"{path} is damaged"):
        Record.load(tmp_path / "run")
