"""The part of a kind of run that the command line asks; imported when it is first asked for."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from cil import plugins
from cil.kinds.parts import KindOfParts

if TYPE_CHECKING:
    from typing import Any

    from cil.cli.job import Job
    from cil.engine.driver import Run
    from cil.engine.options import RunOptions
    from cil.memory.training_memory import TrainingMemory
    from cil.streams import Stream
    from cil.streams.shifts import ShiftStream
    from cil.tracking import Record

    AnyStream: TypeAlias = Stream | ShiftStream


class Commands(Protocol):
    """What ``KindOfParts.commands`` names.

    One whose streams can be shown as a page has ``stream_page(stream, path, count)`` too, which writes it, with
    ``count`` images of each step.
    """

    def build(self, job: Job, stream: AnyStream, options: RunOptions, facts: Mapping[str, Any]) -> Run:
        """Build the run of a composed configuration.

        Args:
            facts: Further facts of the identity.

        Raises:
            CilError: for whatever is wrong with it, a stream of another kind too, in one line that names the key.
        """

    def bill(self, run: Run) -> str:
        """Bytes that will be carried, as ``cil run --dry-run`` prints them; nothing is trained."""

    def summary(self, record: Record, note: str = "") -> str:
        """Results in a few lines, as ``cil run`` prints them; ``note`` stands beside the status."""

    def curve(self, record: Record) -> str:
        """Results as bars, as ``cil show RUN_DIR`` prints them."""

    def stream_lines(self, stream: AnyStream) -> list[str]:
        """The stream in a few lines, as ``cil show stream=NAME`` prints it."""

    def memory(self, job: Job, stream: AnyStream, experience: int | None) -> tuple[str, Sequence[TrainingMemory]]:
        """Measure the largest step, as ``cil memory`` prints it.

        Args:
            stream: Perhaps without images: shapes and numbers are all that is read.
            experience: From 1; None: the largest of all steps.

        Returns:
            The method and what it is measured on; the largest step of the run, and of what comes before it, if any.
        """


def find_kind(name: str) -> KindOfParts:
    found: KindOfParts = plugins.find("cil.kinds", name)
    return found


def find_commands(name: str) -> Commands:
    """The commands of a kind of run."""
    found: Commands = pkgutil.resolve_name(find_kind(name).commands)
    return found


def commands_for(job: Job, stream: AnyStream) -> Commands:
    """Of the stream's kind; where it has no such method, of one that has, to refuse the stream in its own words."""
    names = (stream.kind, *plugins.names("cil.kinds"))
    return find_commands(next(name for name in names if find_kind(name).learner == job.learner))
