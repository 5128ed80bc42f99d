"""The runs that two processes do together, for ``test_devices``: ``python two_ranks.py FOLDER NAME ...`` as one of them.

Numbers are of float64, so that sums in another order can be told from other sums.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from toys import Hidden, Normed, factory, plain, small_run, small_stream

from cil.data import Batch
from cil.engine.driver import Run
from cil.engine.runtime import Runtime
from cil.errors import CilError
from cil.memory import Budget
from cil.models import NetFactory
from cil.strategies import Strategy, find

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


OWN: dict[str, Any] = {"normed": find("finetune"), "private": Private, "stopped": find("replay")}


def made(name: str, folder: Path, devices: int = 1) -> Run:
    """The run of a case: 3 experiences of 16 images, 6 exemplars, 2 epochs."""
    backbone = Normed if name == "normed" else Hidden
    return small_run(
        OWN.get(name) or find(name), folder, small_stream(), keep="all", threads=1,
        recipe=plain(batch_size=BATCH, epochs=2, snapshot_steps=3),
        make_factory=partial(factory, backbone, mean=[0.25], std=[0.5]),
        runtime=Runtime("cpu", threads=1, devices=devices),
    )  # fmt: skip


def start(folder: Path, names: Sequence[str], script: str = __file__) -> list[str]:
    """Let two processes do all runs; what each of them prints of errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(folder), *names], stderr=subprocess.PIPE, text=True,
            env=given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )  # fmt: skip
        for rank in (0, 1)
    ]
    try:
        return [rank.communicate(timeout=300)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def main(folder: Path, names: Sequence[str]) -> None:
    """Do all cases as one rank; an error is printed with the name of its case."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for number, name in enumerate(names):
        run = made(name, folder / name, devices=2)
        if name == "stopped" and name not in names[:number]:  # one rank alone is asked to, before its first step
            run._stop.asked = os.environ["RANK"] == "1"
        try:
            run.execute()
        except (CilError, KeyboardInterrupt) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
