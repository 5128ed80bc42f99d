"""Kill commands at file operations, go on, and demand that each ends where one that nobody killed ends.

    python tests/engine/kill_commands.py --kills 100 --out found.json
    python tests/engine/kill_commands.py --kills 20 --only tune

An output that is there is gone on with: its kills count, and others are drawn.
Each kill is a SIGKILL of the process that is about to open a file for writing, rename, link, remove or flush one, or of
all processes of the command at that moment; half of those at a flush cut what was not flushed yet (a power cut).
Compared: exit code, table, choice of a tuning, names of all files, every run's results but for seconds, log, arrays
and states, bit for bit. What had finished, and every boundary that was committed, must stay untouched. On Linux.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import io
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.numpy import load_file

from cil import plugins
from cil.cli.main import main as cil_main
from cil.errors import CilError
from cil.tracking import Record

SECONDS = {"seconds", "reused_seconds", "seconds_per_batch"}  # results and columns that no two runs share
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}  # audit events
HANGING = 900.0  # seconds after which a command is given up; other work may load the machine
SHORT = (
    "trainer.epochs=1", "trainer.max_steps=2", "trainer.batch_size=8", "trainer.log_every=1",
    "trainer.snapshot_steps=1", "checkpoint.keep=all", "model=smallconv", "progress=false",
)  # fmt: skip
DIGITS = ("stream=split_digits", "stream.classes=4", "stream.train_per_class=8", "stream.test_per_class=4",
          "budget.exemplars=12", *SHORT)  # fmt: skip
TASKS = ("stream=embedded_tasks", "stream.first=3", "stream.train_per_class=6", "stream.test_per_class=4",
         "strategy.search.trials=2", "strategy.search.steps=3", "budget.updates=3", "trainer.snapshot_steps=2",
         "checkpoint.keep=all", "progress=false")  # fmt: skip
SHIFTS = (
    "stream=mnist5k_corrupted", "stream.corruptions=[brightness,contrast]", "stream.images=12",
    "adaptation.batch_size=4", "trainer.snapshot_steps=2", "checkpoint.keep=all", "progress=false", "source=source",
)  # fmt: skip
SOURCE = ("run", "stream=split_mnist5k", "strategy=finetune", "stream.increment=5", "stream.train_per_class=5",
          "stream.test_per_class=2", "run_dir=source", *SHORT)  # fmt: skip
TUNE = (
    "tune", *(item.replace("classes=4", "classes=8") for item in DIGITS), "strategy=replay", "tune.seeds=1",
    "tune.space={optimizer.lr:{log:[1e-3,1.0]}}", "out=here",
)  # fmt: skip
GALLERY = (
    "stream=growing_gallery",
    "stream.increment=5",
    "stream.train_per_class=8",
    "stream.test_per_class=4",
    *SHORT,
)


@dataclass(frozen=True)
class Case:
    """A command that is killed, and those that are run before it in the same folder."""

    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()


CASES = {
    "tune, random": Case((*TUNE, "tune.trials=3", "seed=0,1", "jobs=1")),
    "sweep": Case(("sweep", *DIGITS, "strategy=replay", "optimizer.lr=0.03,0.1", "seed=0,1", "jobs=1", "out=here")),
    "compare, classes": Case(("compare", *DIGITS, "strategy=finetune,icarl,der,derpp", "jobs=1", "out=here")),
    "compare, one more seed": Case(
        ("compare", *DIGITS, "strategy=replay", "seed=0,1,2", "jobs=1", "out=here"),
        (("compare", *DIGITS, "strategy=replay", "seed=0,1", "jobs=1", "out=earlier"),),
    ),
    "compare, tasks": Case(("compare", *TASKS, "strategy=previous,dynamic", "jobs=1", "out=here")),
    "compare, adaptation": Case(("compare", *SHIFTS, "adapter=tent,cotta", "jobs=1", "out=here"), (SOURCE,)),
    "compare, retrieval": Case(("compare", *GALLERY, "strategy=finetune,replay", "jobs=1", "out=here")),
    "tune, tpe": Case((*TUNE, "tune.trials=5", "tune.sampler=tpe", "seed=0", "jobs=2")),
    "compare, two at a time": Case(("compare", *DIGITS, "strategy=wa,ewc", "jobs=2", "out=here")),
    "multirun": Case(("run", "--multirun", *DIGITS, "strategy=lwf,er_ace", "seed=0")),
    "compare, processes": Case(("compare", *DIGITS, "strategy=gem,bic", "boundary=process", "jobs=1", "out=here")),
    "run": Case(("run", *DIGITS, "strategy=foster", "run_dir=here")),
}
WARM = "compare, classes"  # done once in the process that all others are forked from


def install_plugins(folder: Path) -> None:
    """Put the package of ``tests/plugin_package`` on the path, with the metadata of an installed one."""
    package = Path(__file__).parents[1] / "plugin_package"
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in points.items())
             for group, points in project["entry-points"].items()]  # fmt: skip
    (info / "entry_points.txt").write_text("".join(lines))
    sys.path[:0] = [str(folder), str(package)]
    plugins.forget()


# killing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """One kill of a command.

    Attributes:
        place: Number of the file operation before which it happens, from 1.
        everyone: All processes of the command, or the one that is about to do it.
        power: If the operation is a flush, a part of what was not flushed is lost, as in a power cut.
    """

    place: int
    everyone: bool
    power: bool


class Operations:
    """Counts file operations under a folder, over a process and all that it forks, and kills at some of them.

    Attributes:
        folder: Where operations count; None: nowhere.
        kills: What is to happen.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.kills: dict[int, Kill] = {}
        self._cells = memoryview(mmap.mmap(-1, 1 << 16)).cast("q")  # operations, kills, processes; their numbers
        self._flushed: dict[str, int] = {}  # bytes of a file that last
        sys.addaudithook(self._hear)
        os.fsync = self._flush

    def prepare(self, kills: Sequence[Kill] = ()) -> None:
        """Before a command is begun."""
        self.kills = {kill.place: kill for kill in kills}
        self._cells[:3] = memoryview(bytes(24)).cast("q")

    @property
    def count(self) -> int:
        """Operations since ``prepare``."""
        return self._cells[0]

    @property
    def killed(self) -> int:
        """Kills since ``prepare``."""
        return self._cells[1]

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, _, flags = given
            if isinstance(path, str) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self._is_here(path):
                known = Path(path).stat().st_size if not flags & os.O_TRUNC and Path(path).exists() else 0
                self._flushed.setdefault(os.path.realpath(path), known)
                self._meet()
        elif event in CHANGES and isinstance(given[0], (str, os.PathLike)) and self._is_here(os.fspath(given[0])):
            self._meet()

    def _flush(self, handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if self.folder is not None and self._is_here(path):
            self._meet(path if Path(path).is_file() else None)
            self._flushed[path] = os.fstat(handle).st_size

    def _is_here(self, path: str) -> bool:
        return str(Path(path).absolute()).startswith(f"{self.folder}/")

    def _meet(self, unflushed: str | None = None) -> None:
        cells, own = self._cells, os.getpid()
        cells[0] += 1
        kill = self.kills.get(cells[0])
        known = cells[3 : 3 + cells[2]].tolist()
        if own not in known:
            cells[3 + cells[2]] = own
            cells[2] += 1
        if kill is None:
            return
        cells[1] += 1
        if unflushed is not None and kill.power:
            size, last = Path(unflushed).stat().st_size, self._flushed.get(unflushed, 0)
            os.truncate(unflushed, last + (size - last) * 2 // 3)
        for other in {*known} - {own} if kill.everyone else ():
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        os.kill(own, signal.SIGKILL)


def attempt(operations: Operations, command: Sequence[str], folder: Path) -> int:
    """Do a command in a process of its own, until it and all of its children have ended; its exit code.

    What it says goes to ``said.txt`` beside the folder.
    """
    child = os.fork()
    if child == 0:
        said = os.open(folder.with_name(f"{folder.name}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(said, 1), os.dup2(said, 2)
        os.chdir(folder)
        operations.folder = str(folder)
        code = 1
        try:
            code = cil_main(list(command))
        finally:
            sys.stdout.flush()
            os._exit(code)
    code, deadline = None, time.monotonic() + HANGING
    while True:
        try:
            done, status = os.waitpid(-1, os.WNOHANG)  # orphans too
        except ChildProcessError:
            assert code is not None
            return code
        if done == child:
            code = os.waitstatus_to_exitcode(status)
        if not done:
            assert time.monotonic() < deadline, f"hangs: {folder}"
            time.sleep(0.005)


# comparing ----------------------------------------------------------------------------------------------------------


def runs_of(folder: Path) -> dict[str, Path]:
    """The runs under a folder by their place in it."""
    paths = sorted(folder.rglob("record.json"))
    return {str(path.parent.relative_to(folder)): path.parent for path in paths if ".cil-partial" not in str(path)}


def is_early(run: Path) -> bool:
    """True for a run that a tuning chose while a trial was cut short twice; its record says how many were."""
    return bool((Record.load(run).identity.get("tuning") or {}).get("unfinished_trials"))


def files_of(folder: Path) -> set[str]:
    """Names of all files but locks and phases, which the first run that comes to them trains."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    mine = (name for name in names if not name.endswith(".lock") and "/phases/" not in name)
    return {*mine, *(name for name in names if ".cil-partial" in name)}


def contents(run: Path) -> dict[str, Any]:
    """What a run left, but for seconds: its status, identity and results, log, arrays and states."""
    record = Record.load(run)
    found: dict[str, Any] = {"status": record.status, "identity": record.identity}
    found |= {f"results.{key}": value for key, value in record.results.items() if key not in SECONDS}
    lines = ({k: v for k, v in line.items() if k != "seconds"} for line in record.lines() if line["kind"] != "table")
    found["log"] = list(lines)
    for name, array in record.arrays().items():
        found[f"arrays.{name}"] = _bits(array)
    for path in sorted(run.glob("checkpoint/*.safetensors")):
        states = {name: _bits(array) for name, array in load_file(path).items() if name not in SECONDS}
        found[f"checkpoint/{path.name}"] = states
    return found


def _bits(array: Any) -> tuple[Any, ...]:
    whole = np.asarray(array[:] if array.ndim else array)
    return whole.shape, str(whole.dtype), whole.tobytes()


def reports_of(folder: Path) -> dict[str, Any]:
    """Tables but for seconds, what a tuning says, and which runs were taken over."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("table.csv")):
        rows = csv.DictReader(io.StringIO(path.read_text()))
        found[str(path)] = [{k: v for k, v in row.items() if k not in SECONDS} for row in rows]
    for name in ("tune.json", "reused.json"):
        found |= {str(path): json.loads(path.read_text()) for path in sorted(folder.rglob(name))}
    return {str(Path(name).relative_to(folder)): value for name, value in found.items()}


def kept_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Files that may not change any more: all of finished runs, and committed boundaries of others."""
    found = {}
    for run in runs_of(folder).values():
        try:
            finished = Record.load(run).status == "finished"
        except CilError:
            finished = False
        for path in run.rglob("*") if finished else run.glob("checkpoint/experience-*.*"):
            committed = path.with_suffix(".json").exists() or finished
            if path.is_file() and path.name != ".lock" and ".cil-partial" not in path.name and committed:
                found[str(path.relative_to(folder))] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return found


def demand_equal(straight: Path, killed: Path) -> None:
    """Demand that two folders hold the same.

    Raises:
        AssertionError: naming what differs.
    """
    early = tuple(f"{name}/" for name, run in runs_of(killed).items() if is_early(run))
    names = {name for name in files_of(straight) ^ files_of(killed) if not name.startswith(early)}
    assert not names, f"only in one of both: {sorted(names)}"
    one, two = reports_of(straight), reports_of(killed)
    for name in one.keys() | two.keys():
        assert one.get(name) == two.get(name), f"{name} differs"
    for name, run in runs_of(straight).items():
        old, new = contents(run), contents(killed / name)
        differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        assert not differing, f"{name}: {', '.join(differing)} differ"


# all together -------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What happened to one case."""

    folders: int = 0
    kills: int = 0
    everyone: int = 0
    power: int = 0
    operations: int = 0  # of a straight run
    cpu: float = 0.0
    different: list[str] = field(default_factory=list)


class Killing:
    """One case: a straight folder, and further ones that are killed on their way."""

    def __init__(self, case: Case, operations: Operations, folder: Path, chance: random.Random, tally: Tally) -> None:
        self.case, self.operations, self.folder, self.chance = case, operations, folder, chance
        self.tally, self.start = tally, folder / "start"
        self.start.mkdir(parents=True)
        operations.prepare()
        for command in case.before:
            assert attempt(operations, command, self.start) == 0, self.said(self.start)
        self.straight = self.copy("straight")
        operations.prepare()
        assert attempt(operations, case.command, self.straight) == 0, self.said(self.straight)
        self.tally.operations = operations.count

    def copy(self, name: str) -> Path:
        shutil.copytree(self.start, self.folder / name)
        return self.folder / name

    def drawn(self, left: int) -> list[Kill]:
        """A few kills among the next operations; where one process alone is killed, the command may go on."""
        chance = self.chance
        places = {chance.randint(1, max(left * 2 // 3, 8)) for _ in range(4)}
        return [Kill(place, chance.random() < 0.25, chance.random() < 0.5) for place in sorted(places)]

    def said(self, folder: Path) -> str:
        return folder.with_name(f"{folder.name}.txt").read_text()[-2000:]

    def kill(self, attempts: int = 3) -> int:
        """Kill the command in a new folder, go on a few times, let it end, and compare; how often it was killed."""
        tally, began = self.tally, os.times()
        folder, kept, left = self.copy(f"killed-{tally.folders}"), dict[str, tuple[int, int]](), tally.operations
        tally.folders += 1
        happened: list[str] = []
        for number in range(attempts + 1):
            kills = self.drawn(left) if number < attempts else []
            self.operations.prepare(kills)
            code = attempt(self.operations, self.case.command, folder)
            now = kept_of(folder)
            lost = [name for name in kept if now.get(name) != kept[name]]
            kept = now
            if lost:
                tally.different.append(f"{happened}: changed after it was committed: {lost}")
            done = sorted(kills, key=lambda kill: kill.place)[: self.operations.killed]
            if not done:
                break
            happened += [f"attempt {number} of {left} operations: {kill}" for kill in done]
            left = max(left - self.operations.count, left // 3)
            tally.kills += len(done)
            tally.everyone += sum(kill.everyone for kill in done)
            tally.power += sum(kill.power for kill in done)
            for partial in folder.rglob(".cil-partial*"):  # as if it went on a day later
                os.utime(partial, (0, 0))
        try:
            assert code == 0, f"exit code {code}: {self.said(folder)}"
            demand_equal(self.straight, folder)
        except (AssertionError, CilError, OSError) as error:
            tally.different.append(f"{happened}: {error} ({folder})")
        else:
            shutil.rmtree(folder)
        spent = os.times()
        tally.cpu += sum(spent[:4]) - sum(began[:4])
        return len(happened)


def warm(case: Case, folder: Path) -> None:
    """Do a command in this process, so that those forked from it have all modules."""
    folder.mkdir()
    with chdir(folder), redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        code = cil_main(list(case.command))
    assert code == 0, said.getvalue()
    gc.freeze()


def options(described: str | None, counted: str, told: str) -> argparse.ArgumentParser:
    """The command line of a script that goes over cases until there are enough of what it counts.

    Args:
        counted: What it counts: ``kills``.
        told: What stays in ``--folder``.
    """
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{counted}", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing further after them")
    parser.add_argument("--out", type=Path, default=None, help="JSON of what came out")
    parser.add_argument("--folder", type=Path, default=None, help=f"what {told} stays there")
    return parser


def main() -> int:
    """Kill all cases in turn until enough were killed, and say what came out; 1 where something differs."""
    given = options(__doc__, "kills", "differs").parse_args()
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: whom a killed process leaves is waited for here
    cases = {name: case for name, case in CASES.items() if name.startswith(given.only)}
    deadline, operations = time.monotonic() + 60 * given.minutes, Operations()
    known = json.loads(given.out.read_text()) if given.out is not None and given.out.exists() else {}
    tallies = {name: Tally(**known.get(name, {})) for name in CASES}
    total = sum(tally.kills for tally in tallies.values())
    chance = random.Random(f"{given.seed}/{total}")
    root = (given.folder or Path(tempfile.mkdtemp(prefix="cil-kills-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    install_plugins(root / "site")
    warm(CASES[WARM], root / "warm")
    killings: dict[str, Killing] = {}
    while total < given.kills and time.monotonic() < deadline:
        for name, case in cases.items():
            if name not in killings:
                folder = root / name.replace(", ", "-").replace(" ", "-")
                killings[name] = Killing(case, operations, folder, chance, tallies[name])
            total += killings[name].kill()
            tally = killings[name].tally
            print(f"{total:4d}  {name:24s} {tally.kills} kills of {tally.folders} folders, "
                  f"{tally.cpu:.1f} CPU s, {len(tally.different)} different", flush=True)  # fmt: skip
            for words in tally.different[-1:]:
                print(f"      {words}", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps({name: asdict(tally) for name, tally in tallies.items()}, indent=1))
            if total >= given.kills or time.monotonic() >= deadline:
                break
    found = {name: asdict(tally) for name, tally in tallies.items()}
    sums = Counter({key: sum(one[key] for one in found.values()) for key in ("kills", "folders")})
    bad = sum(len(one["different"]) for one in found.values())
    print(f"{sums['kills']} kills in {sums['folders']} folders, {bad} different")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
