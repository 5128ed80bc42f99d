"""The part of a kind of run that the command line asks; imported when it is first asked for."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cil import plugins
from cil.errors import ConfigError

if TYPE_CHECKING:
    from cil.cli.job import Job
    from cil.engine.driver import Run
    from cil.engine.options import RunOptions
    from cil.memory.training_memory import TrainingMemory
    from cil.streams import Stream
    from cil.streams.shifts import ShiftStream
    from cil.tracking import Record

    AnyStream: TypeAlias = Stream | ShiftStream


class CommandLine:
    """Hands over to the object ``commands``, which has the same methods.

    Attributes:
        learner: Group of the configuration that names the method.
        commands: ``module:object``.
    """

    learner: str
    commands: str

    def _commands(self) -> CommandLine:
        found: CommandLine = pkgutil.resolve_name(self.commands)
        return found

    def build(self, job: Job, stream: AnyStream, options: RunOptions, facts: Mapping[str, Any]) -> Run:
        """Build the run of a composed configuration.

        Args:
            facts: Further facts of the identity.

        Raises:
            CilError: for whatever is wrong with it, a stream of another kind too, in one line that names the key.
        """
        return self._commands().build(job, stream, options, facts)

    def bill(self, run: Run) -> str:
        """Bytes that will be carried, as ``cil run --dry-run`` prints them; nothing is trained."""
        return self._commands().bill(run)

    def summary(self, record: Record, note: str = "") -> str:
        """Results in a few lines, as ``cil run`` prints them; ``note`` stands beside the status."""
        return self._commands().summary(record, note)

    def curve(self, record: Record) -> str:
        """Results as bars, as ``cil show RUN_DIR`` prints them."""
        return self._commands().curve(record)

    def stream_lines(self, stream: AnyStream) -> list[str]:
        """The stream in a few lines, as ``cil show stream=NAME`` prints it."""
        return self._commands().stream_lines(stream)

    def stream_page(self, stream: AnyStream, path: Path, count: int) -> Path:
        """Write the stream as a page, with ``count`` images of each step, where its kind has one.

        Raises:
            ConfigError: where it has none.
        """
        commands = self._commands()
        if not hasattr(commands, "stream_page"):
            raise ConfigError(
                f"--out {path}: a page is of a stream of tasks that tells the task, not of '{stream.name}'"
            )
        return commands.stream_page(stream, path, count)

    def memory(self, job: Job, stream: AnyStream, experience: int | None) -> tuple[str, Sequence[TrainingMemory]]:
        """Measure the largest step, as ``cil memory`` prints it.

        Args:
            stream: Perhaps without images: shapes and numbers are all that is read.
            experience: From 1; None: the largest of all steps.

        Returns:
            The method and what it is measured on; the largest step of the run, and of what comes before it, if any.
        """
        return self._commands().memory(job, stream, experience)


def find_kind(name: str) -> CommandLine:
    found: CommandLine = plugins.find("cil.kinds", name)
    return found


def kind_of(job: Job, stream: AnyStream) -> CommandLine:
    """The kind of the stream; where it has no such method, a kind that has, to refuse the stream in its own words."""
    kind = find_kind(stream.kind)
    if kind.learner == job.learner:
        return kind
    return next(kind for kind in map(find_kind, plugins.names("cil.kinds")) if kind.learner == job.learner)
