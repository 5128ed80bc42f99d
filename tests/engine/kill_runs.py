"""Kill runs at random instants and demand that each ends, after as many resumes as it takes, where a straight run ends.

    python tests/engine/kill_runs.py --kills 50

Compared bit for bit: results (but for seconds), the weights and exemplars of every boundary, and the log.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cil.engine.driver import Run
from cil.engine.recipe import Recipe
from cil.strategies import built_in, find
from cil.testing import toy_run, toy_stream, toy_tasks
from cil.testing.compare import demand_same
from cil.tracking import Record

Due = Callable[[], bool]
Instants = Callable[[Path, float, int, random.Random], Iterator[Due]]
RECIPE = Recipe(epochs=3, batch_size=4, log_every=2, snapshot_steps=2)


@dataclass(frozen=True)
class Killed:
    """What happened to one run."""

    strategy: str
    kills: int
    places: tuple[str, ...]


def prepare(strategy: str, folder: Path) -> Run:
    """The run that is killed, ready to start or to go on."""
    stream = toy_tasks() if find(strategy).takes_task else toy_stream()
    return toy_run(strategy, stream, folder, recipe=RECIPE, keep="all")


def kill_once(strategy: str, folder: Path, due: Due) -> bool:
    """Start or resume the run in a process of its own, and kill it when it is due; whether it was alive."""
    child = os.fork()
    if child == 0:
        try:
            prepare(strategy, folder).execute()
        except BaseException as error:
            print(f"{strategy}: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    while not due():
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, f"{strategy} failed when it was resumed"
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def at_any_time(folder: Path, seconds: float, lines: int, chance: random.Random) -> Iterator[Due]:
    """Instants within nine tenths of the time that a straight run takes; a run may end before."""
    while True:
        deadline = time.monotonic() + chance.uniform(0.0, 0.9 * seconds)
        yield lambda deadline=deadline: time.monotonic() >= deadline  # type: ignore[misc]


def soon_after_a_line(folder: Path, seconds: float, lines: int, chance: random.Random) -> Iterator[Due]:
    """One instant in each half of the log, however busy the machine is."""
    log = folder / "metrics.jsonl"
    for half in range(2):
        line = round((half + chance.uniform(0.1, 0.8)) * lines / 2)
        pause = chance.uniform(0.0, 0.01)

        def due(line: int = line, pause: float = pause) -> bool:
            if not log.exists() or log.read_bytes().count(b"\n") < line:
                return False
            time.sleep(pause)
            return True

        yield due


def where(folder: Path) -> str:
    """Where a run was killed, as far as the disk tells."""
    count = len(list((folder / "checkpoint").glob("experience-*.json")))
    names = [path.stem for path in (folder / "snapshot").glob("*.json")]
    return f"experience {count}{' after ' + max(names) if names else ''}"


def kill_and_resume(strategy: str, kills: int, chance: random.Random, instants: Instants = at_any_time) -> Killed:
    """Kill one run so many times (fewer, if it ends before), let it finish, and compare it with a straight run."""
    with tempfile.TemporaryDirectory(prefix="cil-kills-") as name:
        straight = prepare(strategy, Path(name) / "straight")
        began = time.monotonic()
        expected = straight.execute()
        length = time.monotonic() - began
        folder, places = Path(name) / "killed", []
        for due in islice(instants(folder, length, len(list(expected.lines())), chance), kills):
            if not kill_once(strategy, folder, due):
                break
            places.append(where(folder))
        run = prepare(strategy, folder)
        record = run.execute()
        demand_same(f"straight and killed {len(places)} times", straight, expected, run, record)
        assert list(_plain(record.lines())) == list(_plain(expected.lines())), f"{strategy}: metrics.jsonl differs"
        assert _arrays(folder) == _arrays(straight.run_dir), f"{strategy}: arrays differ"
    return Killed(strategy, len(places), tuple(places))


def _plain(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (line for line in lines if line["kind"] != "table")


def _arrays(folder: Path) -> dict[str, Any]:
    """What a run keeps beside its record, bit for bit."""
    return {name: (array.shape, array.tobytes()) for name, array in Record.load(folder).arrays().items()}


def main() -> None:
    """Kill runs of all strategies in turn until enough were killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chance, total = random.Random(given.seed), 0
    while total < given.kills:
        for strategy in built_in():
            killed = kill_and_resume(strategy, min(4, given.kills - total), chance)
            total += killed.kills
            print(
                f"{strategy:17s} {killed.kills} kills, equal to the straight run   {'; '.join(killed.places)}",
                flush=True,
            )
            if total >= given.kills:
                break
    print(f"{total} kills, every final record equal to the uninterrupted one")


if __name__ == "__main__":
    main()
