"""The runs that two processes do together: ``python two_ranks.py FOLDER NAME ...`` is one of them.

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
from torch import Tensor, distributed, nn
from toys import Hidden, Normed, factory, plain, small_run, small_stream

from cil.data import Batch
from cil.engine.driver import Run
from cil.engine.runtime import Runtime
from cil.errors import in_words
from cil.memory import Budget
from cil.models import NetFactory, build_backbone
from cil.strategies import Strategy, find
from cil.testing.toy import EXEMPLARS, RECIPE, SIDE, strategy_run, toy_stream, toy_tasks

BATCH = 7  # split into 3 and 4; the last of an epoch is of 2, which both ranks compute whole
TOY, NORM = "toy ", " with batch norm"  # around the name of a strategy: its toy run, on networks without or with it


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
    """The run of a case: 3 experiences of 16 images, 6 exemplars, 2 epochs; or a toy run."""
    if name.startswith(TOY):
        return toy_made(name, folder, devices)
    backbone = Normed if name == "normed" else Hidden
    return small_run(
        OWN.get(name) or find(name), folder, small_stream(), keep="all", threads=1,
        recipe=plain(batch_size=BATCH, epochs=2, snapshot_steps=3),
        make_factory=partial(factory, backbone, mean=[0.25], std=[0.5]),
        runtime=Runtime("cpu", threads=1, devices=devices),
    )  # fmt: skip


def toy_made(name: str, folder: Path, devices: int) -> Run:
    """A toy run of the contract checks, batches of 8: on tasks for a strategy that is told them."""
    kind = find(name.removeprefix(TOY).removesuffix(NORM))
    stream = toy_tasks() if kind.takes_task else toy_stream()
    model = dict(kind.toy_model or {"name": "smallconv"})
    build = partial(build_backbone, model["name"], 3, (SIDE, SIDE), **model.get("options", {}))
    backbone = build if name.endswith(NORM) else lambda: without_batch_norm(build())
    return strategy_run(
        partial(kind, **kind.toy), stream, folder, name=kind.__name__, budget=Budget(exemplars=EXEMPLARS),
        recipe=RECIPE, keep="all", threads=1,
        make_factory=partial(NetFactory, backbone, mean=stream.mean, std=stream.std),
        runtime=Runtime("cpu", threads=1, devices=devices), identity={"options": dict(kind.toy), "bound": kind.bound},
    )  # fmt: skip


def without_batch_norm(net: nn.Module) -> nn.Module:
    """Each image is normalised by itself."""
    for name, part in net.named_children():
        if isinstance(part, nn.BatchNorm2d):
            setattr(net, name, nn.GroupNorm(1, part.num_features))
        else:
            without_batch_norm(part)
    return net


def in_float64() -> None:
    """From here on numbers of this process are of float64."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[assignment, method-assign]


def start(folder: Path, names: Sequence[str]) -> list[list[str]]:
    """Let two processes do all runs; of each process, a line for each run that failed."""
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    given = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    given["PORTS"] = " ".join(str(port.getsockname()[1]) for port in ports)
    for port in ports:
        port.close()
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), *names],
            stderr=subprocess.PIPE,
            text=True,
            env=given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        return [rank.communicate()[1].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def main(folder: Path, names: Sequence[str]) -> None:
    """Do all cases as one rank; one that fails is told of. Afterwards the ranks meet anew."""
    in_float64()
    ports = os.environ["PORTS"].split()
    os.environ["MASTER_PORT"] = ports.pop()
    for number, name in enumerate(names):
        try:
            run = made(name, folder / name, devices=2)
            if name == "stopped" and name not in names[:number]:  # one rank alone is asked to, before its first step
                run._stop.asked = os.environ["RANK"] == "1"
            run.execute()
        except (Exception, KeyboardInterrupt) as error:
            print(f"{name}: {type(error).__name__} ({in_words(error)})", file=sys.stderr)
            if not distributed.is_initialized():
                os.environ["MASTER_PORT"] = ports.pop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
