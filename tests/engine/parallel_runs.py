"""Runs that two processes do together, for ``test_parallel``. Networks are in float64, so that sums can be compared."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from toys import Hidden, Normed, factory, plain, small_run, small_stream

from cil.data import Batch
from cil.engine.driver import Run
from cil.engine.parallel import Ranks
from cil.engine.runtime import Runtime
from cil.errors import CilError
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies import Strategy, find
from cil.tracking import Record

SAME = ("finetune", "replay", "icarl", "wa", "der", "lwf")
CASES = (*SAME, "normed", "private")
BATCH = 7  # split into 3 and 4; the last of an epoch is of 2, which both ranks compute whole


class Private(Strategy):
    """Keeps a number that depends on the rows of one rank: what several devices must not do."""

    seen: Tensor

    def __init__(self, make_net: NetFactory, budget: Budget) -> None:
        super().__init__(make_net, budget)
        self.keep("seen", torch.zeros(()), kind="statistics")

    def loss(self, batch: Batch) -> Tensor:
        self.seen = self.seen + batch.images.sum()
        return torch.nn.functional.cross_entropy(self.net(batch.images).logits, batch.slots)


class Dying(Strategy):
    """Rank 1 is killed in the second experience."""

    def loss(self, batch: Batch) -> Tensor:
        if self.old_classes and os.environ.get("CIL_TEST_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.cross_entropy(self.net(batch.images).logits, batch.slots)

    def before_experience(self, experience: object) -> None:
        if torch.distributed.is_initialized():
            os.environ["CIL_TEST_RANK"] = str(torch.distributed.get_rank())


def made(name: str, folder: Path, devices: int = 1) -> Run:
    """The run of a case: 3 experiences of 16 images, 6 exemplars, 2 epochs."""
    kind = {"normed": find("finetune"), "private": Private, "dying": Dying}.get(name) or find(name)
    return small_run(
        kind, folder, small_stream(), recipe=plain(batch_size=BATCH, epochs=2, snapshot_steps=3), keep="all", threads=1,
        make_factory=partial(factory, Normed if name == "normed" else Hidden),
        runtime=Runtime("cpu", threads=1, devices=devices),
    )  # fmt: skip


def as_rank(rank: int, folder: Path) -> None:
    """Do all cases as one of two ranks; what is refused is left in a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for number, name in enumerate(("stopped", "stopped", *CASES)):
        run = made("replay" if name == "stopped" else name, folder / name, devices=2)
        run.runtime.ranks = Ranks(rank, 2, rank, f"file://{folder}/{number}.meeting")
        run._stop.asked = rank == 1 and number == 0  # one rank alone, before the first step
        try:
            run.execute()
        except KeyboardInterrupt:
            (folder / f"stopped-{rank}").write_text(Record.load(folder / name).status)
            torch.distributed.destroy_process_group()
        except CilError as error:
            (folder / f"{name}-{rank}.error").write_text(f"{type(error).__name__}: {error}")
            torch.distributed.destroy_process_group()
