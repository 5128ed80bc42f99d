"""Logs of PyCIL and PILOT as records of the kind ``foreign``: results of another toolbox, neither billed nor ranked.

Both toolboxes write a log for each setting: the settings, the order of the classes, and after each experience the
accuracies so far. Several runs may stand in one file: that of a second seed, or a repeated one. Only text is read.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cil.errors import ConfigError
from cil.metrics import average_incremental_accuracy, forgetting
from cil.tracking import Record, RecordError, identity_hash

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \[([\w.]+)\] => (.*)")  # file of the code, message
SETTING = re.compile(r"([A-Za-z_]\w*): (.*)")
GROUPED = re.compile(r"(CNN|NME): (\{.*)")
CURVE = re.compile(r"(CNN|NME) (top1|top5) curve: (.*)")
STORED = re.compile(r"Exemplar size: (\d{1,12})")
WHOLE = re.compile(r"[0-9]{1,12}")
NUMPY = re.compile(r"np\.\w+\(([^()]*)\)")  # how numpy 2 writes a number
ANSWERS = {"CNN": "head", "NME": "nearest_mean"}  # theirs and our words
NEEDED = ("dataset", "model_name", "init_cls", "increment", "seed")
TOOLBOXES = {"convnet_type": "pycil", "backbone_type": "pilot"}  # a setting that only one of them has


class CutShort(RecordError):
    """The last line of a log ends in the middle."""


@dataclass
class LoggedRun:
    """One run in a log, as far as it was read.

    Attributes:
        settings: As the log has them, by name.
        order: Label of each slot.
        curves: By answer and top1 or top5, percent after each experience.
        groups: By answer, after each experience the accuracy on classes ``00-09`` and so on.
        exemplars: Stored after each experience, where the log says it.
        first, last: Numbers of its lines.
    """

    path: Path
    first: int
    last: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    curves: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    groups: dict[str, list[Mapping[str, float | None]]] = field(default_factory=dict)
    exemplars: dict[int, int] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """True once its settings are complete."""
        return bool(self.order or self.curves)

    def at(self, number: int) -> str:
        """A line for a message."""
        return f"{self.path}:{number}"


def read_logs(path: str | Path) -> tuple[list[Record], list[str]]:
    """The runs of a log, or of all logs at or under a folder, such as a checkout.

    Returns:
        The records, and a line for each log that cannot be read.

    Raises:
        ConfigError: if there is no such path, or no log at all.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"'{path}' does not exist; give a log of PyCIL or PILOT, or a folder with logs")
    files = sorted(path.rglob("*.log")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no *.log at or under '{path}'; PyCIL and PILOT write theirs below logs/")
    records, problems = [], []
    for file in files:
        try:
            records += read_log(file)
        except RecordError as error:
            problems.append(str(error))
    return records, problems


def read_log(path: str | Path) -> list[Record]:
    """The runs in one log as records of the kind ``foreign``, in their order.

    A record holds what the log says: settings, order of the classes, accuracies of the classifier and of the nearest
    mean after each experience, and exemplars stored. It is in memory alone; ``write_record`` makes a run directory of
    it. A run that ends before its last experience is ``interrupted``, and says at which line.

    Raises:
        RecordError: for a file that is no such log, or a line that is damaged, naming file and line.

    Source: formats of https://github.com/LAMDA-CL/PyCIL and https://github.com/LAMDA-CL/LAMDA-PILOT as of 2025.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read as text: {error}") from error
    runs = list(_runs(path, text))
    if not runs:
        raise RecordError(
            f"{path} is no log of PyCIL or PILOT: no line is like '2024-05-01 10:00:00,123 [trainer.py] => seed: 1993'"
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    return [_record(run, digest) for run in runs]


def write_record(record: Record, root: str | Path) -> Record:
    """Write a record as a run directory below ``root``; one that is there already is left as it is."""
    identity = record.identity
    name = _file_name(f"{identity['strategy']}-{identity['toolbox']}-s{identity['seed']}")
    folder = Path(root) / _file_name(identity["stream"]["name"]) / f"{name}-{record.run}"
    written = Record.open(folder, identity, record.environment)
    try:
        if written.status == "running":
            written.update(record.results)
            written.set_status(record.status, record.error)
    finally:
        written.close()
    return Record.load(folder)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:60]  # file systems take 255 bytes


# lines to runs --------------------------------------------------------------------------------------------------------


def _runs(path: Path, text: str) -> Iterator[LoggedRun]:
    """The runs of a log, each with the lines that are its own."""
    lines = text.splitlines()
    whole = text.endswith("\n")
    run: LoggedRun | None = None
    for number, line in enumerate(lines, 1):
        found = LINE.fullmatch(line)
        if found is None:
            continue
        code, message = found.groups()
        setting = SETTING.fullmatch(message) if code == "trainer.py" else None
        is_setting = setting is not None and setting[1] not in ANSWERS
        if is_setting and (run is None or run.begun):
            if run is not None:
                yield run
            run = LoggedRun(path, number)
        if run is None:
            continue
        try:
            if setting is not None and is_setting:
                run.settings[setting[1]] = setting[2].strip()
            else:
                _take(run, code, message, number)
        except CutShort as error:
            if number < len(lines) or whole:
                raise RecordError(str(error)) from error
            break  # what the line would have said is not there: a run that stopped
        run.last = number
    if run is not None:
        yield run


def _take(run: LoggedRun, code: str, message: str, number: int) -> None:
    """Take what a line says of results, the order of the classes or exemplars into the run."""
    if code == "data_manager.py" and message.startswith("["):
        run.order = _order(run.at(number), message)
    elif found := CURVE.fullmatch(message):
        answer, which, values = found.groups()
        curve, before = _numbers(run.at(number), values), run.curves.get((answer, which), [])
        if curve[:-1] != before and curve != before:  # two handlers of their logger write each line twice
            raise RecordError(
                f"{run.at(number)}: the {answer} {which} curve has {len(curve)} values that do not go on from the "
                f"{len(before)} of the one before; lines of another run are among these, or are missing"
            )
        run.curves[answer, which] = curve
    elif found := GROUPED.fullmatch(message):
        rows, row = run.groups.setdefault(found[1], []), _groups(run.at(number), found[2])
        rows += [row] if rows[-1:] != [row] else []
    elif found := STORED.fullmatch(message):
        run.exemplars[len(run.curves.get(("CNN", "top1"), ()))] = int(found[1])


def _literal(where: str, text: str) -> Any:
    """A list or dictionary of numbers as Python prints it, with those of numpy and nan.

    Raises:
        CutShort: where it does not end.
        RecordError: where it is something else.
    """
    try:
        return ast.literal_eval(re.sub(r"\bnan\b", "None", NUMPY.sub(r"\1", text)))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        kind = RecordError if text.rstrip().endswith(("]", "}")) else CutShort
        raise kind(f"{where}: '{_short(text)}' is no list or dictionary of numbers, or is cut short") from error


def _numbers(where: str, text: str) -> list[float]:
    """A curve: percents, at least one."""
    values = _literal(where, text)
    if not (isinstance(values, list) and values):
        raise RecordError(f"{where}: '{_short(text)}' is no list of numbers")
    return [_percent(where, text, value) for value in values]


def _groups(where: str, text: str) -> dict[str, float | None]:
    """Percents by group of classes; None for one without images."""
    values = _literal(where, text)
    if not isinstance(values, dict):
        raise RecordError(f"{where}: '{_short(text)}' is no dictionary of numbers")
    return {str(key): value if value is None else _percent(where, text, value) for key, value in values.items()}


def _percent(where: str, text: str, value: object) -> float:
    if not isinstance(value, (int, float)):
        raise RecordError(f"{where}: '{_short(text)}' holds what is no number")
    if not 0 <= value <= 100:
        raise RecordError(f"{where}: '{_short(text)}' has values outside 0 to 100 percent")
    return float(value)


def _order(where: str, text: str) -> list[int]:
    """Each class once."""
    values = _literal(where, text)
    whole = isinstance(values, list) and all(type(value) is int for value in values)
    if not whole or sorted(values) != list(range(len(values))):
        raise RecordError(f"{where}: '{_short(text)}' is no order of classes, which has each number from 0 on once")
    return list(values)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


# runs to records ------------------------------------------------------------------------------------------------------


def _record(run: LoggedRun, digest: str) -> Record:
    base, increment, seed = (_whole(run, key) for key in ("init_cls", "increment", "seed"))
    toolbox = next((name for key, name in TOOLBOXES.items() if key in run.settings), None)
    if toolbox is None:
        raise RecordError(
            f"{run.at(run.first)}: none of {' and '.join(TOOLBOXES)} is among the settings that begin here"
        )
    results = _results(run, base, increment)
    done = len(results["accuracy_curve"])
    sizes = portions(len(run.order), base, increment)
    if sum(sizes) != len(run.order) or done > len(sizes):
        raise RecordError(
            f"{run.at(run.first)}: the run that begins here has accuracies of {done} experiences, and {len(run.order)} "
            f"classes for init_cls={base} and increment={increment}; lines are missing, or of another run"
        )
    dataset = run.settings["dataset"]
    split = f"_b{0 if base == increment else base}_inc{increment}"
    identity = {
        "kind": "foreign",
        "toolbox": toolbox,
        "strategy": run.settings["model_name"],
        "seed": seed,
        "stream": {
            "name": f"{dataset}{split}", "dataset": dataset, "experiences": len(sizes),
            "classes": list(range(sum(sizes))), "new_slots": _slots(sizes), "class_order": run.order,
        },
        "config": {**run.settings, "seed": seed},
        "log": {"file": run.path.name, "line": run.first, "sha256": digest},
    }  # fmt: skip
    stopped = None
    if done < len(sizes) or not sizes:
        after = f"{done} of {len(sizes)} experiences" if sizes else "the settings"
        stopped = f"{run.at(run.last)}: the log ends after {after}"
    return Record(
        run.path.parent, identity, {}, results, "interrupted" if stopped else "finished", stopped,
        run=identity_hash(identity),
    )  # fmt: skip


def _whole(run: LoggedRun, key: str) -> int:
    """A setting that is a whole number; that all are there is checked too."""
    missing = next((name for name in NEEDED if name not in run.settings), None)
    if missing is not None:
        raise RecordError(f"{run.at(run.first)}: no '{missing}' among the settings of the run that begins here")
    value = run.settings[key]
    if not WHOLE.fullmatch(value) or (key != "seed" and int(value) < 1):
        raise RecordError(f"{run.at(run.first)}: '{key}' of the run that begins here is {value}, not a whole number")
    return int(value)


def _results(run: LoggedRun, base: int, increment: int) -> dict[str, Any]:
    """Numbers of the classifier, and of each answer; up to the last experience of which all answers are told."""
    done = min((len(curve) for (_, which), curve in run.curves.items() if which == "top1"), default=0)
    answers = {ours: _answer(run, theirs, done) for theirs, ours in ANSWERS.items() if (theirs, "top1") in run.curves}
    curve = answers.get("head", {}).get("accuracy_curve", [])
    matrix = _matrix(run.groups.get("CNN", [])[: len(curve)], base, increment)
    lost = float(forgetting(np.array(matrix, dtype=float))) if len(matrix) > 1 else math.nan
    return {
        "accuracy_curve": curve,
        "average_incremental_accuracy": average_incremental_accuracy(curve) if curve else None,
        "last_accuracy": curve[-1] if curve else None,
        "forgetting": None if math.isnan(lost) else lost,
        "accuracy_matrix": matrix,
        "answers": answers,
        "exemplars": [size for step, size in sorted(run.exemplars.items()) if step < len(curve)],
    }


def _answer(run: LoggedRun, name: str, done: int) -> dict[str, Any]:
    curve, top5 = run.curves[name, "top1"][:done], run.curves.get((name, "top5"), [])[:done]
    return {
        "accuracy_curve": curve,
        "top5_curve": top5 if len(top5) == len(curve) else [],
        "average_incremental_accuracy": average_incremental_accuracy(curve),
        "last_accuracy": curve[-1],
    }


def _matrix(rows: list[Mapping[str, float | None]], base: int, increment: int) -> list[list[float | None]]:
    """Accuracy on each experience after each, where the groups of classes in the log are the experiences.

    PyCIL groups by ten classes whatever an experience has; then this is empty.
    """
    firsts = [0, *(base + increment * step for step in range(len(rows) - 1))]
    names = [f"{first:02d}-{first + (increment if first else base) - 1:02d}" for first in firsts]
    matrix: list[list[float | None]] = [
        [row.get(name) if place <= step else None for place, name in enumerate(names)] for step, row in enumerate(rows)
    ]
    known = all(value is not None for step, row in enumerate(matrix) for value in row[: step + 1])
    return matrix if known else []


def portions(classes: int, base: int, increment: int) -> list[int]:
    """Classes of each experience; what is left over is a last one.

    >>> portions(100, 50, 20), portions(10, 5, 5)
    ([50, 20, 20, 10], [5, 5])
    """
    sizes = [base] if classes > 0 else []
    while (left := classes - sum(sizes)) > 0:
        sizes.append(min(increment, left))
    return sizes


def _slots(sizes: Iterable[int]) -> list[list[int]]:
    return [list(range(first, end)) for first, end in pairwise([0, *accumulate(sizes)])]
