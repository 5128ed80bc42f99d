"""Who started this process, and which of the processes of a run it is: read from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cil.errors import ConfigError

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # ``cil run`` sets the same
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")
FIRST_PORT, PORTS = 15_000, 10_000  # from which a SLURM job takes the one of its number


@dataclass(frozen=True)
class Place:
    """The place of this process among those that train a run together.

    Attributes:
        rank: Its number among all. Rank 0 evaluates and writes.
        local: Its number on its machine, which is that of its GPU.
        address: Where they meet, as ``torch.distributed`` takes it.
    """

    rank: int = 0
    local: int = 0
    count: int = 1
    address: str = ""


def place_of(environment: Mapping[str, str] = os.environ) -> Place:
    """The place that torchrun, ``cil run`` or srun gave this process; that of a single one where nobody did."""
    if all(name in environment for name in TORCHRUN):
        rank, local, count = (int(environment[name]) for name in TORCHRUN[:3])
        return Place(rank, local, count, "env://") if count > 1 else Place()
    if all(name in environment for name in SLURM):
        rank, local, count = (int(environment[name]) for name in SLURM[:3])
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        port = environment.get("MASTER_PORT") or FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS
        return Place(rank, local, count, f"tcp://{host}:{port}") if count > 1 else Place()
    return Place()


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes it.

    >>> first_host("gpu[07-09,12],cpu1"), first_host("node3,node4"), first_host("rack[2]n[01-04]")
    ('gpu07', 'node3', 'rack2n01')
    """
    name = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", name)


def started_place(devices: int, nodes: int) -> Place:
    """The place of this process among ``devices`` on each of ``nodes`` machines.

    Raises:
        ConfigError: where another number of processes was started.
    """
    wanted, place = devices * nodes, place_of()
    if place.count == wanted:
        return place
    asked = f"trainer.devices x trainer.nodes is {devices} x {nodes}"
    if place.count > 1:
        raise ConfigError(f"{place.count} processes were started, but {asked}; both numbers must be the same")
    machines = f" --nnodes={nodes}" if nodes > 1 else ""
    raise ConfigError(
        f"{asked}, but one process was started; start it by torchrun{machines} --nproc-per-node={devices}, by srun, or "
        f"on one machine by cil run"
    )
