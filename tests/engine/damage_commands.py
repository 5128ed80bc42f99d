"""Damage one file of what a command left, give the command again, and demand that nothing goes wrong in silence.

    python tests/engine/damage_commands.py --files 100 --out found.json
    python tests/engine/damage_commands.py --files 20 --only tune

An output that is there is gone on with: its files count, and others are drawn.
The commands are those of ``kill_commands.py``. Each is done once, and killed at a few places once; of the folders that
are left, copies are made, and of each copy one file is damaged, drawn at random: a flipped bit, cut, emptied, removed,
replaced by another file, exchanged with another, a number or key of its JSON changed, a line dropped or doubled.
A finished folder is read first: ``cil report``, ``show``, ``evaluate``, ``audit``, and what Python reads. Then the
command is given again and all is read once more. Demanded of each reading: it names the file, or it is what it is
without the damage, bit for bit but for seconds. On Linux.
"""

from __future__ import annotations

import csv
import ctypes
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from kill_commands import (
    CASES,
    SECONDS,
    WARM,
    Case,
    Kill,
    Operations,
    attempt,
    install_plugins,
    options,
    runs_of,
    warm,
)

import cil
from cil import plugins
from cil.engine.checkpoint import Checkpoints
from cil.engine.recovery import committed, read_counts
from cil.errors import CilError
from cil.report import page
from cil.tracking import Record

EXPERIENCE = ("--experience", "1")  # that is audited
STOPS = (0.35, 0.6, 0.85)  # of the file operations of a command, where it is killed
NAMES = (
    "run", "compare, classes", "compare, tasks", "compare, adaptation", "compare, retrieval", "sweep",
    "compare, one more seed", "tune, random", "compare, processes",
)  # fmt: skip
CHEAP = (
    "run", "compare, classes", "compare, one more seed", "compare, retrieval", "run", "compare, classes",
    "compare, adaptation", "run",
)  # fmt: skip
ROUND = (*CHEAP, *(name for name in NAMES if name not in CHEAP), *CHEAP)  # what takes longer less often
OF_A_PACKAGE = "compare, retrieval"  # the others without a package, as it would let every page be drawn again
AGAIN = "the command again: "
OVERWRITTEN = ("table.csv", "table.md", "index.html", "tune.json")  # reports, which the same command writes again
ALONE = ("audits.json", "reused.json")  # say what no other file says: once removed, it was never said
LOCK = ".lock"
CRASHES = ("Traceback", "CIL_TRACEBACK")  # of an error that nobody foresaw; the second is in its one line
DRAWN = 0.25  # of the commands that are given again draw their page
Damage = Callable[[Path, random.Random], str]


class NotPossibleError(Exception):
    """A damage that does nothing to this file."""


# damaging -----------------------------------------------------------------------------------------------------------


def flipped(path: Path, chance: random.Random) -> str:
    data = bytearray(path.read_bytes())
    if not data:
        raise NotPossibleError
    place, bit = chance.randrange(len(data)), chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} of {len(data)} flipped"


def cut(path: Path, chance: random.Random) -> str:
    data = path.read_bytes()
    if len(data) < 2:
        raise NotPossibleError
    size = len(data) // 2 if chance.random() < 0.5 else chance.randrange(1, len(data))
    path.write_bytes(data[:size])
    return f"cut to {size} of {len(data)} bytes"


def emptied(path: Path, chance: random.Random) -> str:
    if not path.stat().st_size:
        raise NotPossibleError
    path.write_bytes(b"")
    return "emptied"


def removed(path: Path, chance: random.Random) -> str:
    path.unlink()
    return "removed"


def changed(path: Path, chance: random.Random) -> str:
    """A number or a key of a JSON file, or of a line of one, which stays JSON."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    if path.suffix not in (".json", ".jsonl") or not lines:
        raise NotPossibleError
    number = chance.randrange(len(lines))
    content = json.loads(lines[number])
    places = list(_places(content))
    if not places:
        raise NotPossibleError
    holder, key = chance.choice(places)
    old = holder[key]
    if isinstance(holder, dict) and (chance.random() < 0.3 or not isinstance(old, (bool, int, float))):
        holder[f"{key}x"] = holder.pop(key)
        words = f"key {key} renamed"
    elif isinstance(old, bool):
        holder[key] = not old
        words = f"{key}: {old} to {not old}"
    elif isinstance(old, (int, float)):
        holder[key] = old + 1 if isinstance(old, int) or not old else old * 1.25
        words = f"{key}: {old} to {holder[key]}"
    else:
        raise NotPossibleError
    lines[number] = json.dumps(content)
    path.write_text("".join(f"{line}\n" for line in lines))
    return words


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield value, key
        yield from _places(item)


def line_lost(path: Path, chance: random.Random) -> str:
    lines = _lines(path)
    number = chance.randrange(len(lines))
    path.write_text("".join(lines[:number] + lines[number + 1 :]))
    return f"line {number + 1} of {len(lines)} dropped"


def line_doubled(path: Path, chance: random.Random) -> str:
    lines = _lines(path)
    number = chance.randrange(len(lines))
    path.write_text("".join([*lines[: number + 1], *lines[number:]]))
    return f"line {number + 1} of {len(lines)} doubled"


def _lines(path: Path) -> list[str]:
    lines = path.read_text().splitlines(keepends=True) if path.suffix in (".jsonl", ".csv") else []
    if not lines:
        raise NotPossibleError
    return lines


def replaced(path: Path, chance: random.Random) -> str:
    other = _other(path, chance)
    path.write_bytes(other.read_bytes())
    return f"replaced by {_short(other)}"


def exchanged(path: Path, chance: random.Random) -> str:
    other = _other(path, chance)
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two), other.write_bytes(one)
    return f"exchanged with {_short(other)}"


def _other(path: Path, chance: random.Random) -> Path:
    """Another file of the same sort, of this run or another one, with other bytes; half of the time of this name."""
    top = next(above for above in path.parents if above.name.startswith("damaged-"))
    alike = [one for one in sorted(top.rglob(f"*{path.suffix}")) if one.is_file() and one != path]
    alike = [one for one in alike if one.name != LOCK and one.read_bytes() != path.read_bytes()]
    same = [one for one in alike if one.name == path.name]
    alike = same if same and chance.random() < 0.5 else [one for one in alike if sort_of(one) == sort_of(path)] or alike
    if path.name == LOCK or not alike:
        raise NotPossibleError
    return chance.choice(alike)


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])


def sort_of(path: Path) -> str:
    """What of its kind a file is: its name without numbers."""
    return re.sub(r"\d{3,5}(?=[.-])", "N", re.sub(r"[0-9a-f]{64}", "KEY", path.name))


WAYS: dict[str, Damage] = {
    "bit flipped": flipped, "cut": cut, "emptied": emptied, "removed": removed, "JSON changed": changed,
    "line dropped": line_lost, "line doubled": line_doubled, "replaced": replaced, "exchanged": exchanged,
}  # fmt: skip


@dataclass(frozen=True)
class Damaged:
    """What was done to a copy of a folder.

    Attributes:
        path: The file, from the folder.
        way, words: How.
        names: Either of these names a damage: of the file; of the other, where two were exchanged.
    """

    path: str
    way: str
    words: str
    names: tuple[str, ...]


def damage(folder: Path, chance: random.Random) -> Damaged:
    """Damage one file at or below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sorts: dict[str, list[Path]] = {}
    for path in files:
        sorts.setdefault(sort_of(path), []).append(path)
    while True:
        path = chance.choice(sorts[chance.choice(list(sorts))])
        way = chance.choice(list(WAYS))
        before = path.read_bytes()
        try:
            words = WAYS[way](path, chance)
        except (NotPossibleError, ValueError):
            continue
        if path.exists() and path.read_bytes() == before:
            continue
        more = [words.rpartition("/")[2]] if way == "exchanged" else []
        more += ["belongs to another run"] if path.name == "record.json" else []  # said of its folder
        return Damaged(str(path.relative_to(folder)), way, words, (path.name, *more))


# reading ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What one reader gave: its exit code, what it said, and what is compared."""

    code: int
    said: str
    value: Any


def read_in_child(operations: Operations, command: tuple[str, ...], folder: Path) -> Reading:
    """What a command of ``cil`` says of a folder."""
    operations.prepare()
    code = attempt(operations, command, folder)
    said = folder.with_name(f"{folder.name}.txt").read_text()
    lines = [line for line in said.splitlines() if not line.startswith("cil: note")]
    value: Any = lines
    if command[0] == "report":
        table = "\n".join(lines[next((n for n, line in enumerate(lines) if line.startswith("table,")), 0) :])
        value = [{k: v for k, v in row.items() if k not in SECONDS} for row in csv.DictReader(io.StringIO(table))]
    return Reading(code, said, value)


def commands_of(run: Path, folder: Path) -> dict[str, tuple[str, ...]]:
    """Commands that read one run."""
    place = str(run.relative_to(folder))
    return {
        "show": ("show", place),
        "evaluate": ("evaluate", place, "--json"),
    }


def content_of(run: Path) -> dict[str, Any]:
    """What Python reads of a run, part by part: values without seconds, or the error."""
    try:
        record = Record.load(run)
    except CilError as error:
        return {"record": error}
    found: dict[str, Any] = {"record": (record.status, record.error, record.identity, _timeless(record.results))}
    stored = Checkpoints(run, run=record.run)
    found["done"] = _or_error(lambda: committed(stored, record.results))
    found["log"] = _or_error(lambda: [_timeless(line) for line in record.lines() if line["kind"] != "table"])
    found["arrays"] = _or_error(lambda: {name: _bits(array) for name, array in record.arrays().items()})
    for index in range(len(record.results.get("ledger") or ())):
        found[f"state {index}"] = _or_error(lambda index=index: _state(stored, index))
        found[f"counts {index}"] = _or_error(lambda index=index: _counts(stored, index, record))
    if "networks" in record.identity:
        found["load"] = _or_error(lambda: _tensors(cil.load(run).state_dict()))
    return found


def _state(stored: Checkpoints, index: int) -> tuple[Any, ...]:
    state = stored.state(index)
    return _tensors(state.tensors), dict(state.kinds), state.meta, _timeless(stored.content(index)["facts"])


def _counts(stored: Checkpoints, index: int, record: Record) -> dict[str, Any]:
    read_counts(stored, index, stored.done(), last=record.status == "finished")  # as an audit reads them
    return _tensors(stored.evaluated(index) or {})


def _or_error(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (CilError, OSError) as error:
        return error


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(item) for key, item in value.items() if key not in SECONDS}
    return [_timeless(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: _bits(tensor.detach().numpy()) for name, tensor in tensors.items() if name not in SECONDS}


def _bits(array: Any) -> tuple[Any, ...]:
    whole = np.ascontiguousarray(array)
    return array.shape, str(whole.dtype), hashlib.sha256(whole.tobytes()).hexdigest()


def names_of(folder: Path) -> set[str]:
    """Names of all files but locks, phases, pages of readers, and what a run of the command leaves by chance."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.endswith(LOCK) and "/phases/" not in name and "audits.json" not in name}


@contextmanager
def pages(drawn: bool) -> Iterator[None]:
    """Commands draw their page within, or leave one of a line: a page takes longer than all else of a toy."""
    whole = page.html
    page.html = whole if drawn else lambda *_: page.OURS[0]
    try:
        yield
    finally:
        page.html = whole


# all together -------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """One damaged file."""

    case: str
    state: str
    path: str
    way: str
    words: str
    verdict: str  # equal, named, gone, silent
    detail: list[str]
    cpu: float


class Damaging:
    """One case: a straight folder, folders of killed commands, and damaged copies of them."""

    def __init__(self, name: str, case: Case, operations: Operations, folder: Path, chance: random.Random) -> None:
        self.name, self.case, self.operations, self.folder, self.chance = name, case, operations, folder, chance
        self.count, self.straight, self.finished = 0, folder / "straight", folder / "finished"
        self._known: dict[str, Reading] = {}  # of the folders without damage: by command
        self._contents: dict[str, dict[str, Any]] = {}  # by run
        if not folder.exists():
            self._make()
        self.states = {path.name: path for path in sorted(folder.glob("stopped*")) if path.is_dir()}

    def _make(self) -> None:
        """Do the command once, and kill it at a few places once; then an audit, which the reports say."""
        start, operations = self.folder / "start", self.operations
        start.mkdir(parents=True)
        for command in self.case.before:
            self._do(command, start)
        shutil.copytree(start, self.straight)
        operations.prepare()
        self._do(self.case.command, self.straight)
        total = operations.count
        for share in STOPS:
            stopped = self.folder / f"stopped at {share:.0%}"
            shutil.copytree(start, stopped)
            operations.prepare([Kill(max(1, round(share * total)), everyone=True, power=False)])
            attempt(operations, self.case.command, stopped)
        for path in self.folder.rglob(".cil-partial*"):
            os.utime(path, (0, 0))
        shutil.copytree(self.straight, self.finished)
        operations.prepare()
        attempt(operations, ("audit", self.chance.choice(sorted(runs_of(self.straight))), *EXPERIENCE), self.finished)
        self._do(self.case.command, self.finished)

    def _do(self, command: tuple[str, ...], folder: Path) -> None:
        assert attempt(self.operations, command, folder) == 0, folder.with_name(f"{folder.name}.txt").read_text()

    def one(self) -> Outcome:
        """Damage a file of a copy, and look at what comes of it."""
        began = os.times()
        state = "finished" if self.chance.random() < 0.5 else self.chance.choice(list(self.states))
        self.expected = self.finished if state == "finished" else self.straight
        copy = self.folder / f"damaged-{self.count}"
        while copy.exists():
            self.count += 1
            copy = self.folder / f"damaged-{self.count}"
        shutil.copytree(self.folder / state, copy)
        what = damage(copy, self.chance)
        found: list[str] = []
        named: list[str] = []
        if state == "finished":
            self._compare("as it lies: ", copy, what, found, named)
        self.operations.prepare()
        with pages(self.chance.random() < DRAWN):
            code = attempt(self.operations, self.case.command, copy)
        said = copy.with_name(f"{copy.name}.txt").read_text()
        (named if self._names(said, what) else []).append(f"{AGAIN}{_told(said, what)}")
        if any(sign in said for sign in CRASHES):
            found.append(f"{AGAIN}{said[-1500:]}")
        elif code and not self._names(said, what):
            found.append(f"{AGAIN}exit code {code}, unnamed: {said[-600:]}")
        elif not code:
            self._compare("afterwards: ", copy, what, found, named)
        verdict = "silent" if found else "named" if named else "equal"
        if found and what.way == "removed" and Path(what.path).name in ALONE:
            verdict = "gone"
        if not found:
            shutil.rmtree(copy)
            copy.with_name(f"{copy.name}.txt").unlink()
        spent = os.times()
        return Outcome(
            self.name, state, what.path, what.way, what.words, verdict, [*found, *(f"({n})" for n in named)],
            round(sum(spent[:4]) - sum(began[:4]), 2),
        )  # fmt: skip

    def _names(self, said: str, what: Damaged) -> bool:
        lines = [line for line in said.splitlines() if not line.startswith("page: ")]  # a page that was just written
        return any(name in line for name in what.names for line in lines)

    def _compare(self, when: str, copy: Path, what: Damaged, found: list[str], named: list[str]) -> None:
        """Read a folder by all readers; what is neither equal nor named is found."""
        straight = self.expected
        now, then = names_of(copy), names_of(straight)
        written = (
            "here/" if when.startswith("after") else "nowhere/"
        )  # a removed report of the command's is there again
        lost = {name for name in then - now if Path(name).name not in OVERWRITTEN or name.startswith(written)}
        report = "here" if (straight / "here").exists() else "."
        readers = {"report": ("report", report, "--csv")}
        own = [name for name in runs_of(straight) if what.path.startswith(f"{name}/")]
        run = own[0] if own else self.chance.choice(sorted(runs_of(straight)))
        readers |= commands_of(straight / run, straight)
        for name, command in readers.items():
            self._hold(f"{when}{name}", self._straight(command), self._read(command, copy), what, found, named)
        if unlike := self._run_differs(run, copy, what, named):
            found.extend(f"{when}{run}: {words}" for words in unlike)
        if when.startswith("after"):
            for other in sorted(set(runs_of(straight)) - {run}):
                found.extend(f"{when}{other}: {words}" for words in self._run_differs(other, copy, what, named))
            if not any(note.startswith(AGAIN) for note in named):  # who writes the reports has named it
                told = what.names if named else ()
                found.extend(f"{when}{name} differs" for name in self._reports_differ(copy) if name not in told)
            if own and self.chance.random() < 0.5:
                audit = ("audit", str(run), *EXPERIENCE)
                self._hold(f"{when}audit", self._straight(audit), self._read(audit, copy), what, found, named)
        if (lost or (when.startswith("after") and now - then)) and not named:
            found.append(f"{when}only in one of both: {sorted(lost | (now - then))}")

    def _read(self, command: tuple[str, ...], copy: Path) -> Reading:
        return read_in_child(self.operations, command, copy)

    def _straight(self, command: tuple[str, ...]) -> Reading:
        key = f"{self.expected.name} {' '.join(command)}"
        if key not in self._known:
            whole = self.folder / "whole"
            shutil.rmtree(whole, ignore_errors=True)
            shutil.copytree(self.expected, whole)
            self._known[key] = self._read(command, whole)
        return self._known[key]

    def _hold(self, words: str, old: Reading, new: Reading, what: Damaged, found: list[str], named: list[str]) -> None:
        if any(sign in new.said and sign not in old.said for sign in CRASHES):
            found.append(f"{words}: {new.said[-1200:]}")
        elif self._names(new.said, what):
            named.append(f"{words}: {_told(new.said, what)}")
        elif new.code != old.code or new.value != old.value:
            found.append(f"{words}: exit code {old.code} and now {new.code}, said {new.said[-500:]!r}")

    def _run_differs(self, run: str, copy: Path, what: Damaged, named: list[str]) -> list[str]:
        """Parts of a run that Python reads otherwise, and whose error names no file."""
        if run not in self._contents:
            self._contents[run] = content_of(self.straight / run)
        old, new = self._contents[run], content_of(copy / run)
        unlike = []
        for key in new.keys() | (old.keys() if "log" in new else set()):
            one, two = old.get(key), new.get(key)
            if isinstance(two, Exception) and not (isinstance(one, Exception) and str(one) == str(two)):
                if isinstance(two, CilError) and self._names(str(two), what):
                    named.append(f"{key}: {two}")
                elif not (isinstance(one, Exception) and type(one) is type(two)):
                    unlike.append(f"{key}: {type(two).__name__}: {two}")
            elif not isinstance(two, Exception) and one != two:
                unlike.append(f"{key} differs")
        return unlike

    def _reports_differ(self, copy: Path) -> list[str]:
        """Reports of the command, which it has just written again."""
        unlike = []
        for path in sorted((self.expected / "here").rglob("*")):
            if path.name not in ("table.csv", "tune.json", "reused.json"):
                continue
            other = copy / path.relative_to(self.expected)
            if not other.exists() or _report(path) != _report(other):
                unlike.append(path.name)
        return unlike


def _report(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    rows = csv.DictReader(io.StringIO(path.read_text()))
    return [{k: v for k, v in row.items() if k not in SECONDS} for row in rows]


def _told(said: str, what: Damaged) -> str:
    return next((line for line in said.splitlines() if any(name in line for name in what.names)), said)[:300]


def table(outcomes: list[Outcome]) -> str:
    """Counts by command, as Markdown."""
    lines = [
        "| command | files | mended or not used | named | gone | silent |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for name in [*dict.fromkeys(one.case for one in outcomes), "all"]:
        count = Counter(one.verdict for one in outcomes if name in (one.case, "all"))
        row = (count.total(), count["equal"], count["named"], count["gone"], count["silent"])
        lines.append(f"| {name} | {' | '.join(map(str, row))} |")
    return "\n".join(lines)


def main() -> int:
    """Damage files of all cases in turn until there are enough, and say what came of it; 1 where any was silent."""
    given = options(__doc__, "files", "was silent").parse_args()
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    deadline, operations = time.monotonic() + 60 * given.minutes, Operations()
    known = json.loads(given.out.read_text()) if given.out is not None and given.out.exists() else []
    outcomes = [Outcome(**one) for one in known]
    chance = random.Random(f"{given.seed}/{len(outcomes)}")
    root = (given.folder or Path(tempfile.mkdtemp(prefix="cil-damage-"))).resolve()
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / "warm", ignore_errors=True)
    warm(CASES[WARM], root / "warm")
    plain = list(sys.path)
    shutil.rmtree(root / "site", ignore_errors=True)
    install_plugins(root / "site")
    packaged = list(sys.path)
    damagings: dict[str, Damaging] = {}
    while len(outcomes) < given.files and time.monotonic() < deadline:
        for name in (name for name in ROUND if name.startswith(given.only)):
            sys.path[:] = packaged if name == OF_A_PACKAGE else plain
            plugins.forget()
            if name not in damagings:
                folder = root / name.replace(", ", "-").replace(" ", "-")
                damagings[name] = Damaging(name, CASES[name], operations, folder, chance)
            one = damagings[name].one()
            outcomes.append(one)
            place = f"{name}, {one.state}: {one.path}: {one.words}"
            print(f"{len(outcomes):4d}  {one.cpu:4.1f} s  {one.verdict:6s}  {place}", flush=True)
            for words in one.detail if one.verdict == "silent" else ():
                print(f"      {words}", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
            if len(outcomes) >= given.files or time.monotonic() >= deadline:
                break
    print(table(outcomes))
    return int(any(one.verdict == "silent" for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
