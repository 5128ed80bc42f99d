"""Checkpoints: a boundary is there whole or not at all, and only what changed is written."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickletools
import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from toys import Acting, Rehearse, small_run, small_stream

from cil.engine import checkpoint
from cil.engine.checkpoint import Checkpoints, read_tensors
from cil.errors import ConfigError, ResumeError, TrainingError
from cil.kinds.classes.evaluation import evaluate
from cil.memory import Reference, State


def _state(**tensors):
    return State(tensors, dict.fromkeys(tensors, "parameters"), {"count": 3}, survey={"parameters": 8})


def _names(folder: Path, file: str) -> set[str]:
    with safe_open(folder / "checkpoint" / file, framework="pt") as opened:
        return set(opened.keys())


def _files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoint").glob("*.safetensors")}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, "all")


# boundaries ---------------------------------------------------------------------------------------------------------


def test_a_state_comes_back_as_it_was(kept):
    tensors = {
        "net.weight": torch.randn(3, 2),
        "net.empty": torch.empty(0, 4),
        "memory.images": torch.arange(12).byte().reshape(1, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "memory.slots": torch.tensor([1], dtype=torch.uint16),
        "odd": torch.tensor([-0.0, torch.nan, torch.inf], dtype=torch.float64),
        "part": torch.arange(10.0)[2:5],
    }
    reference = Reference("weights", "abc", 40, 10)
    state = State(tensors, dict.fromkeys(tensors, "other"), {"list": [1, 2.5], "text": "é"}, (reference,), {"a": 1})
    kept.commit(0, state, {"steps": 7})
    back = kept.state(0)
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name].nan_to_num(5.0), tensor.nan_to_num(5.0))
    assert back.tensors["odd"].signbit().tolist()[0]
    assert (back.kinds, back.meta, back.references, back.survey) == (
        state.kinds,
        state.meta,
        state.references,
        state.survey,
    )
    assert kept.facts(0) == {"steps": 7}
    assert kept.done() == 1


def test_what_is_read_lies_as_torch_would_lay_it(tmp_path):
    """Sums over numbers of other alignment differ in their last bits, so a resumed run would end in others."""
    many = {f"t{count}": torch.arange(count, dtype=torch.float64) for count in range(5, 60)}
    checkpoint.write_tensors(tmp_path / "many.safetensors", many)
    held = [bytearray(37 + count) for count in range(50)]  # a heap that is in use
    found = read_tensors(tmp_path / "many.safetensors")
    assert held and {tensor.data_ptr() % 64 for tensor in found.values()} == {0}


def test_writing_tensors_of_many_sizes_leaves_nothing_in_memory(tmp_path):
    """A run of many experiences writes tensors that grow; safetensors' own way keeps a type for each size."""
    before = len(ctypes.Array.__subclasses__())
    for count in range(1001, 1061):
        checkpoint.write_tensors(tmp_path / "grows.safetensors", {"labels": torch.arange(count)})
    assert len(ctypes.Array.__subclasses__()) - before < 10


def test_tensors_are_written_alike_by_either_way(tmp_path, monkeypatch):
    tensors = {
        "last": torch.rand(2, 3)[:, ::2],
        "one": torch.tensor(True),
        "none": torch.zeros(0, 4),
        "b": torch.arange(5),
    }
    checkpoint.write_tensors(tmp_path / "some.safetensors", tensors)
    found = (tmp_path / "some.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint, "OF_NUMPY", set())
    checkpoint.write_tensors(tmp_path / "some.safetensors", tensors)
    assert (tmp_path / "some.safetensors").read_bytes() == found


def test_only_what_changed_is_written_and_what_is_frozen_once(kept, tmp_path):
    frozen, zero = torch.ones(3), torch.zeros(2)
    kept.commit(0, _state(frozen=frozen, head=torch.zeros(2), sign=zero), {})
    kept.commit(1, _state(frozen=frozen.clone(), head=torch.ones(2), sign=-zero), {})
    kept.commit(2, _state(frozen=frozen, head=torch.ones(2), new=frozen), {})
    assert _names(tmp_path, "experience-000.safetensors") == {"frozen", "head", "sign"}
    assert _names(tmp_path, "experience-001.safetensors") == {"head", "sign"}  # -0.0 is not 0.0
    assert _names(tmp_path, "experience-002.safetensors") == {"new"}
    assert kept.state(2).tensors["frozen"].tolist() == [1, 1, 1]
    assert kept.state(1).tensors["sign"].signbit().all()
    assert not kept.state(0).tensors["sign"].signbit().any()


def test_a_tensor_of_another_shape_or_type_has_changed(kept, tmp_path):
    kept.commit(0, _state(a=torch.zeros(4), b=torch.zeros(4)), {})
    kept.commit(1, _state(a=torch.zeros(2, 2), b=torch.zeros(4, dtype=torch.int32)), {})
    assert _names(tmp_path, "experience-001.safetensors") == {"a", "b"}


def _fails_at(monkeypatch, name):
    def fail(path, *rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, name, fail)


def test_a_crash_between_tensors_and_json_leaves_the_boundary_before(kept, tmp_path, monkeypatch):
    kept.commit(0, _state(a=torch.zeros(2)), {"steps": 1})
    with monkeypatch.context() as crash:
        _fails_at(crash, "write_json")
        with pytest.raises(KeyboardInterrupt):
            kept.commit(1, _state(a=torch.ones(2)), {"steps": 2})
    assert (tmp_path / "checkpoint" / "experience-001.safetensors").exists()
    again = Checkpoints(tmp_path, "all")
    assert again.done() == 1
    assert again.state(0).tensors["a"].tolist() == [0, 0]
    again.commit(1, _state(a=torch.full((2,), 5.0)), {"steps": 3})
    assert again.done() == 2
    assert again.state(1).tensors["a"].tolist() == [5, 5]
    assert again.facts(1) == {"steps": 3}


@pytest.mark.parametrize("at", ["checkpoint", "json"])
def test_a_crash_before_the_rename_changes_nothing(kept, tmp_path, monkeypatch, at):
    kept.commit(0, _state(a=torch.zeros(2)), {})
    replace = Path.replace

    def crash(self, target):
        if at in str(target):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            kept.commit(1, _state(a=torch.ones(2)), {})
    assert kept.done() == 1
    assert kept.state(0).tensors["a"].tolist() == [0, 0]


def test_a_file_is_on_the_disk_before_it_has_its_name(kept, monkeypatch):
    happened = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: happened.append("fsync"))
    monkeypatch.setattr(Path, "replace", lambda self, to: (happened.append(to.name), replace(self, to))[1])
    kept.commit(0, _state(a=torch.zeros(2)), {})
    name = "experience-000"
    assert happened == ["fsync", f"{name}.safetensors", "fsync", "fsync", f"{name}.json", "fsync"]


@pytest.mark.parametrize("length", [0, 5, 40, -1])
@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_truncated_file_is_named_in_one_line(kept, tmp_path, suffix, length):
    kept.commit(0, _state(a=torch.zeros(20)), {})
    path = tmp_path / "checkpoint" / f"experience-000.{suffix}"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ResumeError) as refused:
        kept.state(0)
    assert str(refused.value).startswith(f"cannot read {path}: ")
    assert str(refused.value).endswith("which goes on from the last whole boundary")
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(kept, tmp_path):
    kept.commit(0, _state(a=torch.zeros(2)), {})
    path = tmp_path / "checkpoint" / "experience-000.safetensors"
    path.unlink()
    with pytest.raises(ResumeError, match=f"cannot read {path}"):
        kept.state(0)


# what stays ---------------------------------------------------------------------------------------------------------


def _commit_all(folder: Path, keep: str, best: list[int]) -> Checkpoints:
    """Four boundaries; each changes ``head``, the third ``body`` too; ``frozen`` never changes."""
    kept = Checkpoints(folder, keep)
    for index in range(4):
        body = torch.full((2,), float(index >= 2))
        kept.commit(index, _state(frozen=torch.ones(2), body=body, head=torch.full((2,), float(index))), {"i": index})
        kept.prune(best[index])
    return kept


@pytest.mark.parametrize(
    ("keep", "best", "states", "files"),
    [
        ("all", [0, 0, 0, 0], [0, 1, 2, 3], [0, 1, 2, 3]),
        ("last", [0, 0, 0, 0], [3], [0, 2, 3]),  # frozen lies in 0, body in 2
        ("best", [0, 1, 1, 1], [1, 3], [0, 1, 2, 3]),
        ("best", [0, 0, 0, 3], [3], [0, 2, 3]),
    ],
)
def test_states_that_are_not_to_be_kept_go_and_facts_stay(tmp_path, keep, best, states, files):
    kept = _commit_all(tmp_path, keep, best)
    for index in range(4):
        assert kept.facts(index) == {"i": index}
        if index in states:
            state = kept.state(index).tensors
            assert state["head"].tolist() == [index, index]
            assert state["body"].tolist() == [index >= 2, index >= 2]
            assert state["frozen"].tolist() == [1, 1]
        else:
            with pytest.raises(
                ResumeError, match=f"the state after experience {index} was not kept; set checkpoint.keep=all"
            ):
                kept.state(index)
    assert _files(tmp_path) == {f"experience-{index:03d}.safetensors" for index in files}


def test_an_unknown_way_to_keep_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint\.keep is 'bests'; did you mean 'best'"):
        Checkpoints(tmp_path, "bests")


# snapshots ----------------------------------------------------------------------------------------------------------


def test_snapshots_alternate_between_two_files(kept, tmp_path):
    for step in range(3):
        kept.write_snapshot("now", {"z": torch.full((2,), float(step)), "a": torch.zeros(1)}, {"step": step})
        content = kept.snapshot_content("now")
        assert content["step"] == step
        assert content["tensors"] == f"now-{'aba'[step]}.safetensors"
        tensors = kept.snapshot_tensors(content)
        assert list(tensors) == ["z", "a"]  # as they were held, not by name
        assert tensors["z"].tolist() == [step, step]


def test_a_crash_while_a_snapshot_is_written_leaves_the_one_before(kept, monkeypatch):
    kept.write_snapshot("now", {"a": torch.zeros(2)}, {"step": 1})
    kept.write_snapshot("now", {"a": torch.ones(2)}, {"step": 2})
    with monkeypatch.context() as crash:
        _fails_at(crash, "write_json")
        with pytest.raises(KeyboardInterrupt):
            kept.write_snapshot("now", {"a": torch.full((2,), 9.0)}, {"step": 3})
    content = kept.snapshot_content("now")
    assert content["step"] == 2
    assert kept.snapshot_tensors(content)["a"].tolist() == [1, 1]


def test_a_damaged_snapshot_of_several_ranks_is_named_or_reads_as_it_was(kept):
    bills = [{"cost": {"steps": 3, "flops": rank}} for rank in range(2)]
    kept.write_snapshot("now", {"a": torch.arange(6.0), "b": torch.ones(2)}, {"step": 3, "bills": bills})
    content = kept.snapshot_content("now")
    tensors = {name: tensor.tolist() for name, tensor in kept.snapshot_tensors(content).items()}
    chance, refused = random.Random(0), 0
    for path in sorted(kept.snapshots.iterdir()) * 60:
        whole, number = path.read_bytes(), chance.randrange(6)
        place = chance.randrange(len(whole))
        damaged = bytearray(whole if number else whole[:place])
        if number:
            damaged[place] ^= chance.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            found = kept.snapshot_content("now")
            read = kept.snapshot_tensors(found)
        except ResumeError as error:
            refused += 1
            assert path.name in str(error)
        else:
            assert {**found, **content} == found and {name: t.tolist() for name, t in read.items()} == tensors
        path.write_bytes(whole)
    assert refused > 110


def test_a_commit_ends_the_snapshots_of_its_experience(kept):
    kept.write_snapshot("now", {"a": torch.zeros(2)}, {"step": 1})
    assert kept.snapshot_names() == ["now"]
    kept.commit(0, _state(a=torch.zeros(2)), {})
    assert kept.snapshot_names() == []
    assert kept.snapshot_content("now") is None


# the run ------------------------------------------------------------------------------------------------------------


def test_nothing_in_a_run_directory_is_a_pickle(tmp_path):
    small_run(Rehearse, tmp_path, keep="all").execute()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            assert read_tensors(path)
        else:
            for line in content.splitlines() if path.suffix == ".jsonl" else [content]:
                json.loads(line)
        with pytest.raises(ValueError, match=r"."):
            list(pickletools.genops(content))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    save = checkpoint.save_arrays
    room = 4  # files that still find room: one experience writes a snapshot, the boundary and the evaluation

    def full(tensors, path, *rest):
        nonlocal room
        room -= 1
        if room < 0:
            Path(path).write_bytes(b"the first part")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, *rest)

    with monkeypatch.context() as disk:
        disk.setattr(checkpoint, "save_arrays", full)
        with pytest.raises(TrainingError) as stopped:
            small_run(Rehearse, tmp_path, keep="all").execute()
    told = str(stopped.value)
    assert told.endswith(
        "experience-001.safetensors: No space left on device; make room (what was committed before is safe)"
    )
    assert "\n" not in told
    found = json.loads((tmp_path / "record.json").read_text())
    assert (found["status"], found["error"]) == ("failed", told)
    assert len(found["results"]["accuracy_curve"]) == 1
    assert Checkpoints(tmp_path).state(0).tensors
    assert not list(tmp_path.rglob(".*.tmp"))  # what was begun takes no room
    record = small_run(Rehearse, tmp_path, keep="all").execute()  # once there is room again
    assert (record.status, record.error) == ("finished", None)
    straight = small_run(Rehearse, tmp_path / "straight").execute()
    assert record.results["accuracy_matrix"] == straight.results["accuracy_matrix"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match=f"cannot write {tmp_path}/checkpoint/experience-000.safetensors: "):
        Checkpoints(tmp_path).commit(0, _state(a=torch.zeros(1)), {})


def test_the_best_boundary_is_still_there_after_an_interruption(tmp_path, monkeypatch):
    """Accuracies of 0, 100, 0 and 0 percent; the run is interrupted in the fourth experience."""

    def judged(predict, stream, num_classes, **options):
        counts = evaluate(predict, stream, num_classes, **options)
        return counts | {"correct": counts["count"] * (num_classes == 4)}

    def stop(experience, step):
        if experience == 3:
            raise KeyboardInterrupt

    stream = small_stream(4)
    monkeypatch.setattr("cil.kinds.classes.work.evaluate", judged)
    with monkeypatch.context() as patch:
        patch.setattr(Acting, "act", staticmethod(stop))
        with pytest.raises(KeyboardInterrupt):
            small_run(Acting, tmp_path, stream, keep="best").execute()
    run = small_run(Acting, tmp_path, stream, keep="best")
    assert run.execute().results["accuracy_curve"] == [0, 100, 0, 0]
    assert run.checkpoints.state(1).tensors
    assert run.checkpoints.state(3).tensors
    with pytest.raises(ResumeError):
        run.checkpoints.state(0)
