"""Work: what a kind of run does at each boundary, what the driver lends it, and what it gets back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from cil.contract import Frozen
from cil.engine.checkpoint import Checkpoints, Snapshots
from cil.engine.process import Stopped
from cil.engine.ranks import Ranks
from cil.engine.running import Counts, Rows
from cil.engine.status import Clock, Stop
from cil.memory import Allowance, Entry
from cil.tracking import Loggers, Record
from cil.tracking.arrays import Part
from cil.tracking.panels import Panel

Facts = Mapping[str, Any]  # what was committed at a boundary beside the state
BILLS = ("cost", "costs")  # in the content of a snapshot: each rank counts what it computes
ALWAYS_SETTLED = 16  # first boundaries at each of which the whole results are written
SETTLING = 0.02  # the part of the time that writing them may take later


@dataclass
class Boundary:
    """The outcome of training to a boundary.

    Attributes:
        carried: The frozen state: charged, held to the budget and committed as it is.
        facts: Plain data that is kept with the state, with ``flops``, ``seconds`` and ``steps``.
        training: Ledger lines of what was held in training only.
        allowance: The limit on what is carried here; None where nothing is capped.
        counts: Answers counted on the way, by work that predicts while it learns.
    """

    carried: Frozen
    facts: dict[str, Any]
    training: Sequence[Entry] = ()
    allowance: Allowance | None = None
    counts: Counts | None = None


@dataclass
class Context:
    """The record, files, loggers and signals of a run, lent to its work.

    Attributes:
        record, checkpoints: The run's files.
        loggers: All loggers.
        within: Those that may be used where the work is done, which may be a process of its own.
        stop: Says if the run was asked to stop.
        snapshots: Those inside the stretch that leads to the boundary that is worked on.
        clock: Seconds of work on that stretch.
        length: Experiences or segments of the stream, for progress.
        results: The results of the record from counts and facts of all boundaries.
        shared: Folder of plain phases that runs share; None: everything is trained here.
        ranks: The processes that do the work; the first one writes.
        published: Boundaries of which line and arrays are written.
    """

    record: Record
    checkpoints: Checkpoints
    loggers: Loggers
    within: Loggers
    stop: Stop
    length: int
    snapshots: Snapshots = field(init=False)
    results: Callable[[Rows, Sequence[Facts]], Mapping[str, object]]
    shared: Path | None = None
    clock: Clock = field(default_factory=Clock)
    ranks: Ranks = field(default_factory=Ranks)
    published: int = 0
    _settled: int = 0
    _due: float = 0.0

    def begin(self, index: int) -> None:
        """The stretch that leads to boundary ``index`` begins, or goes on from its snapshots."""
        self.snapshots = Snapshots(self.checkpoints, index)
        self.clock = Clock(max((one["seconds"] for one in self.snapshots.contents().values()), default=0.0))

    def facts(self, count: int) -> list[Facts]:
        """Facts of the first boundaries."""
        return [self.checkpoints.facts(index) for index in range(count)]

    def publish(self, count: int) -> None:
        """Line and arrays of the first boundaries are written; the record follows where that costs little.

        Its results are written whole, so of a stream of many quick experiences not at each boundary.
        """
        self.published = count
        if count <= ALWAYS_SETTLED or time.monotonic() >= self._due:
            self.settle()

    def settle(self) -> None:
        """Bring the results of the record up to the boundaries that were published."""
        if self.published > self._settled:
            began = time.monotonic()
            self.record.update(self.results(Rows(self.checkpoints, self.published), self.facts(self.published)))
            self._settled, now = self.published, time.monotonic()
            self._due = now + (now - began) / SETTLING

    def save(self, name: str, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Write a snapshot, with the place that the log has reached, the seconds worked, and the bills of all ranks."""
        self.ranks.wait()  # nobody reads any more what is replaced
        bills = self.ranks.gathered({key: content[key] for key in BILLS if key in content})
        if self.ranks.rank == 0:
            more = {**self.record.mark(), "seconds": self.clock.seconds}
            self.snapshots.write(name, tensors, {**content, **more, **({"bills": bills} if len(bills) > 1 else {})})
        self.ranks.wait()

    def snapshot(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and content of a snapshot, with the bill of this rank, if there is one."""
        found = self.snapshots.find(name)
        if found is None or "bills" not in found[1]:
            return found
        return found[0], {**found[1], **found[1]["bills"][self.ranks.rank]}

    def end_where_asked(self) -> None:
        """Stop where any rank was asked to; here no rank waits for another."""
        self.ranks.wait()  # rank 0 may have evaluated
        if any(self.ranks.any(self.stop())):
            raise Stopped

    def check_same(self, boundary: Boundary, index: int) -> None:
        """All ranks carry the same across a boundary."""
        state = boundary.carried.state
        self.ranks.check_same(state.tensors, state.meta, f"after experience {index}")

    def log(self, kind: Any, values: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
        """Send values to the loggers."""
        self.within.log(kind, values, {**axes, "experiences": self.length})


class Work(Protocol):
    """The work of one run: what its kind does at each boundary.

    Attributes:
        name: The method, for messages and dashboards.
        boundaries: How many there are.
        length: Experiences or segments of the stream, for progress.
        batch_key: The configuration key that makes a batch smaller.
    """

    name: str
    batch_key: str

    @property
    def boundaries(self) -> int: ...

    @property
    def length(self) -> int: ...

    def check(self) -> None:
        """Refuse what can be known to fail before anything is done.

        Raises:
            CilError: in one line that names the key to change.
        """
        ...

    def bills(self) -> dict[str, Any]:
        """Results that are known before the first boundary: the bill of each."""
        ...

    def check_budget(self) -> dict[str, Any]:
        """Refuse what cannot fit whatever is trained; further results that are known then.

        Raises:
            BudgetExceeded: naming every kind and its bytes.
        """
        ...

    def warnings(self) -> list[str]:
        """Sentences that a person should hear before the run."""
        ...

    def train(self, index: int, context: Context) -> Boundary:
        """Come to boundary ``index`` from the state that was carried to it, or from a snapshot on the way."""
        ...

    def evaluate(self, index: int, context: Context) -> Counts | None:
        """Count answers of what was carried across boundary ``index``; None where there is nothing to count."""
        ...

    def results(self, rows: Sequence[Counts], facts: Sequence[Facts]) -> Mapping[str, object]:
        """The results of the record, from the counts and facts of all boundaries so far."""
        ...

    def so_far(self, rows: Rows, facts: Sequence[Facts]) -> Mapping[str, Any]:
        """The part of the results that ``line`` and ``kept`` read; asked for at each boundary, so cheap."""
        ...

    def arrays(self, rows: Rows) -> Mapping[str, Part]:
        """What the last boundary adds to results that are large."""
        ...

    def line(self, index: int, so_far: Facts, facts: Sequence[Facts]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Values and axes of the line that loggers get at boundary ``index``; None for no line."""
        ...

    def panels(self, record: Record) -> Sequence[Panel]:
        """Tables and pictures for dashboards, of the results that are in the record, where any are."""
        ...

    def kept(self, so_far: Facts) -> tuple[int, set[int]]:
        """The best boundary so far, and those whose states are needed later."""
        ...
