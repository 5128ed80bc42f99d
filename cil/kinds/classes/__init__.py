"""Streams of classes: a strategy learns them one experience after the other, and is tested on all classes seen."""

from __future__ import annotations

from typing import Any, ClassVar


class Classes:
    """The kind ``classes``."""

    name: ClassVar[str] = "classes"
    learner: ClassVar[str] = "strategy"

    def identity_type(self) -> type:
        """What makes a run of this kind that run."""
        from cil.kinds.classes.record_types import ClassIdentity

        return ClassIdentity

    def results_type(self) -> type:
        """What a record of this kind has as results."""
        from cil.kinds.classes.record_types import ClassResults

        return ClassResults

    def work(self, **parts: Any) -> Any:
        """The work of a run; ``parts`` as ``ClassWork`` takes them."""
        from cil.kinds.classes.work import ClassWork

        return ClassWork(**parts)


CLASSES = Classes()
