"""Two processes that train one run come to what one process comes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_runs import bare
from torch import Tensor
from toys import Learner, grown, plain, small_run
from two_ranks import BATCH, NORM, TOY, in_float64, made, start

from cil.data import Batch
from cil.engine.checkpoint import Checkpoints
from cil.engine.launched import Place, place_of, started_place
from cil.engine.ranks import Ranks, Together, digests
from cil.engine.runtime import Runtime
from cil.engine.status import Stop
from cil.engine.work import Context
from cil.errors import ConfigError
from cil.strategies import find, names
from cil.tracking import Loggers, Record

SAME = ("finetune", "replay", "icarl", "wa", "der", "lwf", "gem", "si")
CASES = ("stopped", "stopped", *SAME, "normed", "private")
HALF = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture(scope="module")
def double() -> Iterator[None]:
    """Numbers are of float64, as they are in the two processes."""
    before = torch.get_default_dtype(), torch.Tensor.float
    in_float64()
    yield
    torch.set_default_dtype(before[0])
    torch.Tensor.float = before[1]


@pytest.fixture(scope="module")
def together(double: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """Folder of the runs that two processes did, started once; what each said of runs that failed."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, start(folder, CASES)


def states(folder: Path) -> list[dict[str, Tensor]]:
    checkpoints = Checkpoints(folder, "all")
    return [dict(checkpoints.state(index).tensors) for index in range(checkpoints.done())]


def largest_difference(one: Path, other: Path) -> float:
    """Of weights, statistics and the like that are carried across the boundaries of two runs."""
    mine, theirs = states(one), states(other)
    assert len(mine) == len(theirs) > 1 and all(a.keys() == b.keys() for a, b in zip(mine, theirs, strict=True))
    pairs = [
        (a[key].double(), b[key].double())
        for a, b in zip(mine, theirs, strict=True)
        for key in a
        if a[key].is_floating_point()
    ]
    return max(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in pairs if a.numel())


@pytest.mark.parametrize("name", SAME)
def test_two_ranks_carry_what_one_process_carries(name, together, tmp_path):
    alone, shared = made(name, tmp_path).execute(), Record.load(together[0] / name)
    assert shared.status == "finished"
    assert largest_difference(tmp_path, together[0] / name) < 1e-12
    assert alone.results["accuracy_matrix"] == shared.results["accuracy_matrix"]
    assert alone.results["losses"] == pytest.approx(shared.results["losses"], abs=1e-12)
    one, two = (record.results["ledger"][-1]["totals"] for record in (alone, shared))
    assert two.pop("training")["total"] < one.pop("training")["total"] and one == two  # that of one device
    assert alone.results["looks"] == shared.results["looks"]


def test_operations_of_both_ranks_are_billed(together, tmp_path):
    """What each rank does by itself counts twice, evaluation once; a batch too small to share, once a rank."""
    one = made("icarl", tmp_path).execute().results["flops"]
    two = Record.load(together[0] / "icarl").results["flops"]
    assert two["evaluation"] == one["evaluation"]  # by rank 0 alone
    assert two["consolidation"] == [2 * count for count in one["consolidation"]]
    assert [a - b for a, b in zip(two["training"], one["training"], strict=True)] == [336] * 3  # the first one's rest


def test_batch_norm_sees_the_rows_of_one_rank_and_buffers_are_those_of_the_first(together, tmp_path):
    made("normed", tmp_path).execute()
    assert Record.load(together[0] / "normed").status == "finished"  # so both ranks held the same
    one, two = states(tmp_path)[0], states(together[0] / "normed")[0]
    means = [key for key in one if "running_mean" in key]
    assert means and not torch.allclose(one[means[0]], two[means[0]], atol=1e-6)


def test_what_depends_on_the_rows_of_one_rank_is_refused_and_named(together):
    first, second = (next(line for line in said if line.startswith("private")) for said in together[1])
    words = "private: ContractError (what is kept after phase 0 of experience 0 is not the same on rank 1 as on rank 0"
    assert first.startswith(f"{words};") and second.startswith(f"{words}, there in seen;")
    assert Record.load(together[0] / "private").status == "failed"


def test_ranks_stop_together_and_go_on_to_the_same_bits(together):
    for said in together[1]:
        assert [line.partition(" (")[0] for line in said if "stopped" in line] == ["stopped: KeyboardInterrupt"]
    straight, resumed = states(together[0] / "replay"), states(together[0] / "stopped")
    for mine, theirs in zip(straight, resumed, strict=True):
        assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    one, other = (Record.load(together[0] / name).results for name in ("replay", "stopped"))
    assert one["accuracy_matrix"] == other["accuracy_matrix"] and one["losses"] == other["losses"]


def test_nothing_else_failed(together):
    for said in together[1]:
        assert all(line.startswith(("stopped", "private", "Exception ignored")) for line in said), said


# all strategies -----------------------------------------------------------------------------------------------------

DIFFER = {  # why two devices train something else than one; all others train the same but for the order of sums
    "aanets": "streams of unlike sizes in a batch",
    "aper": "dropout",
    "bn_tuning": "batch norm",
    "cumulative": "draws tasks and images in the loss",
    "ease": "dropout",
    "ecotta_cil": "batch norm",
    "er_ace": "draws images of the memory in the loss",
    "lucir": "margins of the old images of a batch alone",
    "moe_adapters": "dropout, noise of routers",
    "mos": "dropout, pairs of features of a batch",
    "pass": "draws features in the loss",
    "rapf": "draws features in the loss",
    "ssre": "draws features in the loss",
    "task_replay": "draws tasks and images in the loss",
}
NORMED = ("finetune", "icarl", "wa", "der", "foster")  # on networks with batch norm, which see rows of one rank


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_all_strategies_on_two_devices(double, tmp_path):
    """One pair for all. ``-s`` prints the table of experiments/two_processes.md."""
    shared = [name for name in names() if find(name).whole_batches is None]
    cases = {name: f"{TOY}{name}" for name in shared} | {
        name: f"{TOY}{name}{NORM}" for name in ("bn_tuning", "ecotta_cil")
    }
    cases |= {f"{name}{NORM}": f"{TOY}{name}{NORM}" for name in NORMED}
    assert start(tmp_path, list(cases.values())) == [[], []]
    for name, case in cases.items():
        alone, together = made(case, tmp_path / "alone" / name).execute(), Record.load(tmp_path / case)
        ledgers = [[entry["totals"]["exact"] for entry in record.results["ledger"]] for record in (alone, together)]
        assert together.status == "finished" and ledgers[0] == ledgers[1], name
        differ = name in DIFFER or name.endswith(NORM)
        difference = largest_difference(tmp_path / "alone" / name, tmp_path / case)
        assert (difference > 1e-6) == differ, name
        print(f"| {name} | {difference:.0e} | {DIFFER.get(name, 'batch norm' if differ else '')} |")


# parts --------------------------------------------------------------------------------------------------------------


def batch_of(count: int, first: int = 0) -> Batch:
    rows = torch.arange(first, first + count)
    return Batch(rows.view(-1, 1, 1, 1).float(), rows, None, lambda: rows.view(-1, 1, 1, 1).byte(), rows, {"x": rows})


def rank(number: int, count: int) -> Together:
    """One that has met nobody."""
    made = Together.__new__(Together)
    made.rank, made.count = number, count
    return made


def test_a_batch_is_shared_out_in_rows_whose_shares_add_up():
    batch = batch_of(BATCH)
    parts = [rank(number, 2).part(batch) for number in (0, 1)]
    assert [part.slots.tolist() for part, _ in parts] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [share for _, share in parts] == [3 / 7, 4 / 7]
    second = parts[1][0]
    assert second.pixels.flatten().tolist() == second.extras["x"].tolist() == second.slots.tolist()
    assert Ranks().part(batch) == (batch, 1.0)
    whole, share = rank(1, 2).part(batch_of(3))  # less than two a rank
    assert share == 0.5 and len(whole) == 3
    streams = Batch(batch.images, batch.slots, streams={"new": batch, "memory": batch_of(4, first=10)})
    mine, share = rank(1, 2).part(streams)
    assert share == 4 / 7 and mine.memory.slots.tolist() == [12, 13] and mine.new.slots.tolist() == [3, 4, 5, 6]


def test_a_snapshot_holds_the_bill_of_each_rank(monkeypatch, tmp_path):
    one, other, record = rank(0, 2), rank(1, 2), Record.open(tmp_path, {"kind": "classes"}, {"cores": 2})
    monkeypatch.setattr(Together, "wait", lambda self: None)
    monkeypatch.setattr(Together, "gathered", lambda self, own: [own, {"costs": [8]}])  # rank 1 computed other rows

    def context(ranks: Ranks) -> Context:
        made = Context(record, Checkpoints(tmp_path), Loggers([]), Loggers([]), Stop(), 1, dict, ranks=ranks)
        made.begin(0)
        return made

    for mine in (one, other):
        context(mine).save("phase-1", {"a": torch.ones(1)}, {"costs": [6], "meta": {}})
    for mine, costs in ((one, [6]), (other, [8])):
        tensors, content = context(mine).snapshot("phase-1")
        assert content["costs"] == costs and content["meta"] == {} and tensors["a"].tolist() == [1]
    context(Ranks()).save("now", {"a": torch.ones(1)}, {"costs": [3]})
    assert "bills" not in context(Ranks()).snapshot("now")[1]
    record.close()


@pytest.mark.parametrize("name", ["slca", "mos"])
def test_samples_of_an_alignment_are_the_same_for_all_ranks(name):
    learner = bare(name, classes=[1, 1], align_samples=2)
    learner.gaussians.update(torch.rand(6, learner.gaussians.dim), torch.tensor([0, 0, 0, 1, 1, 1]))
    learner.context.generator = lambda purpose: torch.Generator().manual_seed(ord(purpose[-1]))
    found = []
    for number in range(2):
        with rank(number, 2).drawing(learner):
            found.append(learner.draw_samples(0))
    assert torch.equal(*found) and found[0].any()


def test_gradients_are_summed_and_stay_none_where_no_rank_has_one(monkeypatch):
    first, second, third = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad = torch.tensor([1.0, 2.0])

    def sum_with_other(self: Together, tensor: Tensor, group: object) -> None:
        tensor += torch.tensor([10.0, 20, 30, 40, 0, 0, 1, 1, 0] if tensor.ndim else 4.0)  # as if rank 1 had sent it

    monkeypatch.setattr(Together, "_sum", sum_with_other)
    one = rank(0, 2)
    one._gradients, one._device = None, torch.device("cpu")
    losses = one.add({"loss": torch.tensor(6.0), "term": torch.tensor(5.0)}, 0.5, [first, second, third, first])
    assert first.grad.tolist() == [11, 22] and second.grad.tolist() == [30, 40] and third.grad is None
    assert losses == {"loss": 7.0, "term": 5.0}


def test_a_loss_draws_for_its_rank_and_what_comes_after_it_for_all():
    learner = grown()
    learner.context.generator = lambda purpose: torch.Generator().manual_seed(ord(purpose[-1]))

    def draws(number: int) -> list[float]:
        """Inside and after the loss of a rank: a number for dropout, and one for a purpose."""
        torch.manual_seed(7)
        with rank(number, 2).drawing(learner):
            inside = torch.rand(()).item(), torch.rand((), generator=learner.generator("a")).item()
        return [*inside, torch.rand(()).item(), torch.rand((), generator=learner.generator("a")).item()]

    first, second = draws(0), draws(1)
    assert first[0] != second[0] and first[1] != second[1] and first[2:] == second[2:]
    learner.same_draws = True
    first, second = draws(0), draws(1)
    assert first[0] != second[0] and first[1:] == second[1:]


def test_digests_tell_bits_types_and_shapes_apart():
    zeros = torch.zeros(2, dtype=torch.float32)
    values = (zeros, -zeros, zeros.double(), zeros.int(), zeros.view(1, 2), torch.zeros(0), torch.zeros(0, 3))
    assert len({digests({"a": value}, {})["a"] for value in values}) == 7
    assert digests({"a": zeros}, {}) == digests({"a": zeros.clone()}, {}) != digests({"a": zeros}, {"b": 1})


def test_torchrun_and_slurm_give_a_process_its_place(monkeypatch):
    assert place_of({}) == Place()
    assert place_of(HALF) == Place(1, 1, 2, "env://") and place_of(HALF | {"WORLD_SIZE": "1"}) == Place()
    slurm = {"PROCID": "3", "LOCALID": "1", "STEP_NUM_TASKS": "4", "STEP_NODELIST": "gpu[07-08]", "JOB_ID": "71234"}
    slurm = {f"SLURM_{key}": value for key, value in slurm.items()}
    assert place_of(slurm) == Place(3, 1, 4, "tcp://gpu07:16234")
    assert place_of(slurm | {"MASTER_ADDR": "head", "MASTER_PORT": "5"}).address == "tcp://head:5"
    assert place_of(slurm | {"SLURM_STEP_NUM_TASKS": "1"}) == Place()  # a shell on a node
    for key, value in HALF.items():
        monkeypatch.setenv(key, value)
    assert started_place(1, 2) == Place(1, 1, 2, "env://") and Runtime("cpu").place == Place()
    with pytest.raises(ConfigError, match=r"2 processes were started, but trainer.devices x trainer.nodes is 3 x 1"):
        started_place(3, 1)


@pytest.mark.parametrize(
    ("devices", "changes", "words"),
    [
        (2, {"boundary": "process"}, "boundary=process forks"),
        (2, {"features": "fp32"}, "known features are those of one process"),
        (4, {}, "trainer.batch_size is 7; give each device 2 images at least"),
    ],
)
def test_what_several_devices_cannot_do_is_refused_before_training(devices, changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        small_run(Learner, tmp_path, recipe=plain(batch_size=BATCH), runtime=Runtime("cpu", threads=1, devices=devices),
                  **changes)  # fmt: skip


def test_a_method_that_needs_whole_batches_says_why(tmp_path):
    runtime = Runtime("cpu", threads=1, devices=2)
    with pytest.raises(ConfigError, match=r"DERpp runs on one device \(outputs of a batch are stored after its step\)"):
        small_run(find("derpp"), tmp_path, recipe=plain(), runtime=runtime)


def test_one_process_alone_is_told_how_to_start_the_others(tmp_path):
    with pytest.raises(
        ConfigError, match=r"2 x 1, but one process was started; start it by torchrun --nproc-per-node=2"
    ):
        made("finetune", tmp_path, devices=2).execute()
    assert not (tmp_path / "record.json").exists()


def test_devices_are_of_the_machine(monkeypatch):
    with pytest.raises(ConfigError, match=r"trainer.devices is 0; it must be a whole number of 1 or more"):
        Runtime("cpu", devices=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"device is 'cuda:1' and trainer.devices is 2; set device=cpu or cuda"):
        Runtime("cuda:1", devices=2)
    with pytest.raises(ConfigError, match=r"trainer.devices is 4 but there are 2 GPUs here"):
        Runtime("cuda", devices=4)
