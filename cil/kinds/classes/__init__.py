"""Streams of classes: a strategy learns them one experience after the other, and is tested on all classes seen."""

from __future__ import annotations

from typing import Any, ClassVar

from cil.kinds.command_line import CommandLine


class Classes(CommandLine):
    """The kind ``classes``."""

    name: ClassVar[str] = "classes"
    learner: ClassVar[str] = "strategy"
    commands: ClassVar[str] = "cil.kinds.classes.commands:COMMANDS"

    def work(self, **parts: Any) -> Any:
        """The work of a run; ``parts`` as ``ClassWork`` takes them."""
        from cil.kinds.classes.work import ClassWork

        return ClassWork(**parts)


CLASSES = Classes()
