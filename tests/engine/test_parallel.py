"""Two processes that train one run come to what one process comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parallel_runs import BATCH, SAME, as_rank, made
from torch import Tensor

from cil.data import Batch
from cil.engine.checkpoint import Checkpoints
from cil.engine.parallel import Ranks, digests, place
from cil.engine.runtime import Runtime
from cil.errors import ConfigError, ResumeError, TrainingError
from cil.memory import State
from cil.tracking import Record


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All cases, done by two ranks that were started once; then numbers are of float64 here too."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(as_rank, (folder,), nprocs=2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield folder
    torch.set_default_dtype(before)


def _states(folder: Path) -> list[dict[str, Tensor]]:
    checkpoints = Checkpoints(folder, "all")
    return [dict(checkpoints.state(index).tensors) for index in range(checkpoints.done())]


@pytest.mark.parametrize("name", SAME)
def test_two_ranks_carry_what_one_process_carries(name, together, tmp_path):
    alone, shared = made(name, tmp_path).execute(), Record.load(together / name)
    assert shared.status == "finished"
    one, two = _states(tmp_path), _states(together / name)
    assert len(one) == len(two) == 3
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert torch.allclose(value.double(), theirs[key].double(), rtol=0, atol=1e-9), key
    assert any(value.dtype == torch.float64 for value in one[0].values())
    assert alone.results["accuracy_matrix"] == shared.results["accuracy_matrix"]
    assert alone.results["losses"] == pytest.approx(shared.results["losses"], abs=1e-6)
    assert alone.results["ledger"][-1]["totals"] == shared.results["ledger"][-1]["totals"]
    assert "devices" not in alone.identity and shared.identity["devices"] == 2


def test_operations_of_all_ranks_are_billed(together, tmp_path):
    """Rows are shared out, so steps cost what they cost; what every rank does by itself costs twice."""
    one, two = made("icarl", tmp_path).execute().results["flops"], Record.load(together / "icarl").results["flops"]
    assert two["evaluation"] == one["evaluation"]  # by rank 0 alone
    assert two["consolidation"] == [2 * count for count in one["consolidation"]]
    assert one["training"][-1] < two["training"][-1] < 1.5 * one["training"][-1]  # batches of two are done by both


def test_batch_norm_sees_the_rows_of_one_rank_and_buffers_are_those_of_the_first(together, tmp_path):
    made("normed", tmp_path).execute()
    assert Record.load(together / "normed").status == "finished"  # so the ranks carried the same
    ones, twos = _states(tmp_path)[0], _states(together / "normed")[0]
    means = [key for key in ones if "running_mean" in key]
    assert means and not torch.allclose(ones[means[0]], twos[means[0]], atol=1e-6)


def test_what_depends_on_the_rows_of_one_rank_is_refused_and_named(together):
    first, second = ((together / f"private-{rank}.error").read_text() for rank in (0, 1))
    assert first.startswith("ContractError: the ranks do not carry the same after experience 0: another rank differs")
    assert "rank 1 differs from rank 0 in seen;" in second
    assert Record.load(together / "private").status == "failed"


def test_ranks_stop_together_and_go_on_to_the_same_bits(together):
    assert (together / "stopped-0").read_text() == "interrupted" and (together / "stopped-1").exists()
    straight, resumed = _states(together / "replay"), _states(together / "stopped")
    for mine, theirs in zip(straight, resumed, strict=True):
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    one, other = (Record.load(together / name).results for name in ("replay", "stopped"))
    assert one["accuracy_matrix"] == other["accuracy_matrix"] and one["losses"] == other["losses"]


def test_another_number_of_devices_is_refused(together):
    with pytest.raises(ResumeError, match="belongs to another run: devices was 2"):
        made("finetune", together / "finetune").execute()


def test_a_rank_that_dies_ends_the_run_and_the_others_with_it(tmp_path):
    """Through processes that the run starts by itself; a run that had finished is not begun again."""
    with pytest.raises(TrainingError, match=r"rank 1 of 2 was ended by signal 9 \(SIGKILL\), and the others with it"):
        made("dying", tmp_path, devices=2).execute()
    record = Record.load(tmp_path)
    assert record.status == "failed" and "another rank ended" in str(record.error)
    assert Checkpoints(tmp_path, "all").done() == 1  # of the first experience, from which it goes on


def _batch(count: int, first: int = 0) -> Batch:
    rows = torch.arange(first, first + count)
    return Batch(rows.view(-1, 1, 1, 1).float(), rows, None, lambda: rows.view(-1, 1, 1, 1).byte(), rows, {"x": rows})


def test_a_batch_is_shared_out_in_rows_whose_shares_add_up():
    batch = _batch(BATCH)
    parts = [Ranks(rank, 2).part(batch) for rank in (0, 1)]
    assert [part.slots.tolist() for part, _ in parts] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [share for _, share in parts] == [3 / 7, 4 / 7]
    second = parts[1][0]
    assert second.pixels.flatten().tolist() == second.extras["x"].tolist() == second.slots.tolist()
    assert Ranks().part(batch) == (batch, 1.0)
    assert Ranks(1, 2).part(_batch(3))[1] == 0.5 and len(Ranks(1, 2).part(_batch(3))[0]) == 3
    streams = Batch(batch.images, batch.slots, streams={"new": batch, "memory": _batch(4, first=10)})
    mine, share = Ranks(1, 2).part(streams)
    assert share == 4 / 7 and mine.memory.slots.tolist() == [12, 13] and mine.new.slots.tolist() == [3, 4, 5, 6]


def test_digests_tell_bits_types_and_shapes_apart():
    def of(value: Tensor) -> str:
        return digests(State({"a": value}, {"a": "parameters"}))["a"]

    zeros = torch.zeros(2)
    found = {of(zeros), of(-zeros), of(zeros.double()), of(zeros.view(1, 2)), of(torch.zeros(0)), of(torch.zeros(0, 3))}
    assert len(found) == 6 and of(zeros) == of(zeros.clone())


def test_torchrun_and_slurm_give_a_process_its_place(monkeypatch):
    assert place(1, 1) == place(2, 1) == Ranks()  # nobody started it: it starts the others
    with pytest.raises(ConfigError, match=r"trainer.nodes is 2, but one process was started; start it by torchrun"):
        place(2, 2)
    slurm = {"NTASKS": "4", "NTASKS_PER_NODE": "2", "PROCID": "3", "LOCALID": "1", "JOB_NAME": "job", "JOB_ID": "71234",
             "NODELIST": "gpu[07-08]"}  # fmt: skip
    for key, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    for key in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "restored afterwards, as the environment is written to")
        monkeypatch.delenv(key)
    assert place(2, 2) == Ranks(3, 4, 1, "tcp://gpu07:16234")
    with pytest.raises(ConfigError, match=r"4 processes were started, but trainer.devices x trainer.nodes is 3 x 1"):
        place(3, 1)
    for key, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    assert place(2, 1) == Ranks(1, 2, 1, "env://")
    with pytest.raises(ConfigError, match="torchrun started 2 processes"):
        place(1, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boundary": "process"}, "boundary=process forks"),
        ({"features": "fp32"}, "known features are of one process"),
        ({"devices": 4}, "trainer.batch_size is 7: give each device 2 images at least"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_before_training(changes, words, tmp_path):
    from toys import Learner, plain, small_run

    devices = changes.pop("devices", 2)
    with pytest.raises(ConfigError, match=words):
        small_run(Learner, tmp_path, recipe=plain(batch_size=BATCH), runtime=Runtime("cpu", threads=1, devices=devices),
                  **changes)  # fmt: skip


def test_a_method_that_needs_whole_batches_says_so(tmp_path):
    from toys import plain, small_run

    from cil.strategies import find

    with pytest.raises(ConfigError, match=r"DERpp needs whole batches: set both to 1"):
        small_run(find("derpp"), tmp_path, recipe=plain(), runtime=Runtime("cpu", threads=1, devices=2))


def test_devices_are_of_the_machine(monkeypatch):
    with pytest.raises(ConfigError, match=r"trainer.devices is 0; it must be a whole number of 1 or more"):
        Runtime("cpu", devices=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"device is 'cuda:1' and trainer.devices is 2; set device=cpu or cuda"):
        Runtime("cuda:1", devices=2)
    with pytest.raises(ConfigError, match=r"trainer.devices is 4 but there are 2 GPUs here"):
        Runtime("cuda", devices=4)


def test_the_log_of_two_ranks_is_written_once(together):
    lines = [json.loads(line) for line in (together / "replay" / "metrics.jsonl").read_text().splitlines()]
    boundaries = [line for line in lines if line["kind"] == "boundary"]
    assert len(boundaries) == 3
