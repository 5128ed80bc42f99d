"""The other processes of a run on several devices of this machine: started by ``cil run`` with its own command."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cil.cli.environment import in_environment
from cil.engine.launched import place_of
from cil.errors import RankEnded, TrainingError

if TYPE_CHECKING:
    from cil.engine.runtime import Runtime

GRACE = 60.0  # seconds in which each of the others may end by itself, and say why


@contextmanager
def other_ranks(runtime: Runtime, arguments: Sequence[str]) -> Iterator[None]:
    """Around a run on several devices: this process is rank 0, and those beside it do the same command.

    Where torchrun or SLURM started this process, or several machines are asked for, nothing is started.

    Raises:
        TrainingError: where one of them ended, with its reason.
    """
    devices = runtime.devices
    if runtime.nodes > 1 or place_of().count > 1:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices)}
    meeting |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    meeting |= {"RANK": "0", "LOCAL_RANK": "0"}
    with tempfile.TemporaryDirectory() as folder, in_environment(**meeting):
        others = [Other(rank, Path(folder, str(rank)), arguments) for rank in range(1, devices)]
        try:
            yield
            for other in others:
                other.reason(GRACE)
        except RankEnded as error:
            reasons = ((other.rank, other.reason(GRACE)) for other in others)
            why = next((f"rank {rank} {reason}; the same command goes on" for rank, reason in reasons if reason), "")
            raise TrainingError(why or str(error)) from error
        finally:
            for other in others:
                other.end()


class Other:
    """One of the other processes; its words are read where the run fails, as it is silent about what rank 0 says."""

    def __init__(self, rank: int, words: Path, arguments: Sequence[str]) -> None:
        self.rank, self._words = rank, words
        with words.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cil.cli.main", "run", *arguments],
                env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                process_group=0,  # a Ctrl-C of the terminal is for rank 0, which tells it
            )

    def reason(self, seconds: float) -> str:
        """Wait so long for its end; why it ended, empty where it did not, or for the sake of another one."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return ""
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        lines = self._words.read_text(errors="replace").strip().splitlines()
        return f"ended: {lines[-1].removeprefix('cil: ')}" if code and lines else ""

    def end(self) -> None:
        """End it, if it has not ended: it writes nothing that could be lost."""
        self._process.kill()
        self._process.wait()
