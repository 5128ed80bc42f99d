"""What a comparison will take, said before it starts: runs, those that exist, time, disk and memory."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import call
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from cil.cli.pool import record_of
from cil.cli.reuse import EarlierRun, runs_of_streams
from cil.engine.driver import Run
from cil.engine.process import in_child
from cil.engine.timed_step import SecondsPerImage
from cil.errors import CilError
from cil.memory.survey import MIB

RECIPE = ("strategy", "adapter", "model", "trainer", "optimizer", "scheduler", "adaptation")  # of a config
LONG = 5.0  # seconds of the first timing from which on a person wants to know what goes on
RECORDS = 2 * MIB  # bytes of a record, its log and its arrays
A_BOUNDARY = 0.5  # seconds of an experience beside steps: hooks, evaluation, files; 0.3 to 0.5 on small images


@runtime_checkable
class Foreseen(Protocol):
    """Work that says what it will take before anything is done; see ``PlannedWork``, whose methods these are."""

    def excess(self) -> str | None: ...

    def stored_bytes(self) -> list[int]: ...

    def rates(self) -> SecondsPerImage: ...

    def duration(self, rates: SecondsPerImage) -> float: ...


class Measured(NamedTuple):
    """Of a run: what steps of it take, and the most bytes that the process of these steps held."""

    rates: SecondsPerImage
    memory: int


@dataclass(frozen=True)
class Forecast:
    """What the runs of a comparison will take.

    Attributes:
        here, elsewhere: Finished before: in its folder, and in others, by folder.
        begun: Will go on.
        alike, timed: Seconds of runs by the slowest like one that has finished, and by steps timed now.
        unknown: Labels of runs of which the time is not known, with why their steps could not be timed.
        over: Runs that do not fit their budget, and why.
        disk: Bytes that all runs to be made leave, about.
        memory: Bytes of the process of a run, the largest that was measured; None: not known.
        jobs: Runs at a time.
    """

    total: int
    here: int
    elsewhere: Mapping[str, int]
    begun: int
    alike: Sequence[float]
    timed: Sequence[float]
    unknown: Mapping[str, str]
    over: Mapping[str, str]
    disk: int
    memory: int | None
    jobs: int

    def lines(self) -> Iterator[str]:
        done = self.here + sum(self.elsewhere.values())
        left = self.total - done - len(self.over)
        where = ", ".join(f"{count} in {folder}" for folder, count in sorted(self.elsewhere.items()))
        yield (
            f"runs: {self.total}; finished before: {done}{f' ({self.here} here, {where})' if where else ''}; "
            f"go on: {self.begun}; to be trained, {self.jobs} at a time: {left}"
        )
        yield from (f"does not fit: {label}: {why}" for label, why in self.over.items())
        if left:
            yield f"time: {self._time()}"
            held = "not known" if self.memory is None else f"about {_bytes(self.memory)} a run, {self.jobs} at a time"
            yield f"disk: about {_bytes(self.disk)}; memory: {held}"

    def _time(self) -> str:
        parts = []
        for seconds, how in (
            (self.alike, "by the slowest like run that has finished"),
            (self.timed, f"by steps timed on noise just now and {A_BOUNDARY} s an experience for all else"),
        ):
            if seconds:
                parts.append(f"{len(seconds)} {how}")
        known = [*self.alike, *self.timed]
        why = next((why for why in self.unknown.values() if why), "")
        reason = "none like them has finished" + (f", and steps could not be timed: {why}" if why else "")
        if not known:
            return f"not known of {len(self.unknown)} runs: {reason}"
        # the last to end may be the longest one, begun when all others are done
        most = sum(known) / self.jobs + max(known) * (1 - 1 / self.jobs)
        more = f"; not known of {len(self.unknown)} more: {reason}" if self.unknown else ""
        return f"{_duration(sum(known))} of computing, so at most about {_duration(most)} ({'; '.join(parts)}){more}"


def forecast(runs: Mapping[Path, tuple[str, Run]], found: Mapping[Path, Path], out: Path, jobs: int) -> Forecast:
    """Look ahead. Says on the standard error that it times steps, where they are long.

    Args:
        runs: Folder of each run, under ``out``, to its label and itself.
        found: Those that have finished in another folder, as ``cil.cli.reuse.find_finished`` gives them.
    """
    records = {path: record_of(path) for path in runs}
    here = [path for path, record in records.items() if record is not None and record.status == "finished"]
    left = {path: run for path, run in runs.items() if path not in found and path not in here}
    over = {label: why for label, run in left.values() if (why := _over(run))}
    todo = [(label, run) for label, run in left.values() if label not in over]
    known = runs_of_streams({path.relative_to(out).parent for path in left}, out) if todo else []
    measured = _timings([run for _, run in todo])
    alike, timed, unknown = [], [], {}
    for label, run in todo:
        like = [one.seconds for one in known if _alike(one, run)]
        steps = measured[_recipe_of(run.identity)]
        if like:
            alike.append(max(like))
        elif isinstance(steps, Measured) and isinstance(run.work, Foreseen):
            timed.append(run.work.duration(steps.rates) + A_BOUNDARY * run.work.boundaries)
        else:
            unknown[label] = steps if isinstance(steps, str) else ""
    return Forecast(
        total=len(runs), here=len(here), elsewhere=Counter(str(path.parents[1]) for path in found.values()),
        begun=sum(records[path] is not None for path in left), alike=alike, timed=timed, unknown=unknown, over=over,
        disk=sum(_disk(run) for _, run in todo),
        memory=max((one.memory for one in measured.values() if isinstance(one, Measured)), default=None), jobs=jobs,
    )  # fmt: skip


def _over(run: Run) -> str | None:
    """Why a run does not fit its budget, in a few words; None where it fits, or does not say."""
    try:
        why = run.work.excess() if isinstance(run.work, Foreseen) else None
    except CilError:  # told where the run is executed
        return None
    return None if why is None else why.partition(": ")[0]


def _recipe_of(identity: Mapping[str, Any]) -> str:
    """What is trained, and how: not on which stream, nor with which seed."""
    config = identity["config"] or {}
    own = {key: identity.get(key) for key in ("kind", "strategy", "adapter", "device", "threads", "precision")}
    return json.dumps([own, {key: config.get(key) for key in RECIPE}], sort_keys=True, default=str)


def _alike(one: EarlierRun, run: Run) -> bool:
    """True for a run that differs in seed and budget alone."""
    streams = [(each["stream"] or {}) for each in (one.identity, run.identity)]
    names = [(stream.get("name"), stream.get("train_counts"), stream.get("new_slots")) for stream in streams]
    return json.dumps(names[0]) == json.dumps(names[1]) and _recipe_of(one.identity) == _recipe_of(run.identity)


def _timings(runs: Sequence[Run]) -> dict[str, Measured | str]:
    """What ``_measured`` finds for each recipe, in the largest stream: its last experience bounds those of others."""
    largest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: -run.work.boundaries):
        largest.setdefault(_recipe_of(run.identity), run)
    measured: dict[str, Measured | str] = {}
    for recipe, run in largest.items():
        began = time.monotonic()
        measured[recipe] = _measured(run)
        took = time.monotonic() - began
        if len(measured) == 1 and took > LONG:
            words = f"timing steps of each recipe on this machine, {len(largest)} in all; the first took {took:.0f} s"
            print(words, file=sys.stderr, flush=True)
    return measured


def _measured(run: Run) -> Measured | str:
    """Time steps of a run; where that fails, why, and nothing where there is no more to say.

    On the CPU in a process of its own, as this one forks later and must start no threads; a GPU is lost by a fork.
    """
    if not isinstance(run.work, Foreseen):
        return ""
    apart = in_child if run.runtime.device == "cpu" else call
    with TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        try:
            apart(partial(_write_measured, run, run.work, path))
            first, last, memory = json.loads(path.read_text())
        except (CilError, RuntimeError) as error:
            return str(error).partition("\n")[0]
    return "" if math.isnan(first + last) else Measured(SecondsPerImage(first, last), memory)


def _write_measured(run: Run, work: Foreseen, path: Path) -> None:
    torch.set_num_threads(run.runtime.threads or torch.get_num_threads())
    path.write_text(json.dumps([*work.rates(), _peak_memory(run.runtime.torch_device)]))


def _peak_memory(device: torch.device) -> int:
    """Most bytes that this process held: of a GPU its memory, else the resident size, torch included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _disk(run: Run) -> int:
    """The state that is stored, twice while the next one is written (all of them with ``checkpoint.keep=all``)."""
    if not isinstance(run.work, Foreseen):
        return RECORDS
    sizes = run.work.stored_bytes()
    return RECORDS + (sum(sizes) if run.options.keep == "all" else 2 * max(sizes))


def _bytes(count: int) -> str:
    """
    >>> _bytes(3 * 2**20), _bytes(5 * 2**30)
    ('3 MiB', '5.0 GiB')
    """
    return f"{count / MIB:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def _duration(seconds: float) -> str:
    """
    >>> _duration(40), _duration(1500), _duration(36000)
    ('40 s', '25 min', '10.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
