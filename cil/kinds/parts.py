"""A kind of run whose parts are named, and imported when they are asked for: finding the kind costs nothing."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cil.engine.work import Work
    from cil.kinds.base import Kind
    from cil.report.section import Sections
    from cil.testing import Rule
    from cil.testing.subject import Subject
    from cil.tracking import Record


class KindOfParts:
    """Looks up each part where its attribute says, ``module:object``; see ``cil.kinds.base.Kind``.

    Attributes:
        name, learner, unit, progress: As of every kind.
        commands: Object with the commands (``cil.kinds.command_line.Commands``).
        by_step: Where a kind has it: names of results with an entry for each step (``cil.tracking.lines``).
        identity, results: TypedDicts of what stands in a record.
        works: Class of the work of a run.
        report: Function of records that makes their sections.
        contract: Tuple of the rules that learners keep.
        tested: Class of a learner under test (``cil.testing.subject.Subject``).
    """

    name: str
    learner: str
    unit: str
    progress: str
    commands: str
    identity: str
    results: str
    works: str
    report: str
    contract: str
    tested: str

    def runs(self, learner: type) -> bool:
        raise NotImplementedError

    def identity_type(self) -> type:
        found: type = pkgutil.resolve_name(self.identity)
        return found

    def results_type(self) -> type:
        found: type = pkgutil.resolve_name(self.results)
        return found

    def work(self, **parts: Any) -> Work:
        made: Work = pkgutil.resolve_name(self.works)(**parts)
        return made

    def sections(self, records: Sequence[Record]) -> Sections:
        found: Sections = pkgutil.resolve_name(self.report)(records)
        return found

    def rules(self) -> tuple[Rule, ...]:
        found: tuple[Rule, ...] = pkgutil.resolve_name(self.contract)
        return found

    def subject(self, target: Any, hyperparameters: Mapping[str, Any], stream: Any = None) -> Subject[Any]:
        made: Subject[Any] = pkgutil.resolve_name(self.tested)(target, hyperparameters, stream)
        return made


if TYPE_CHECKING:
    _CHECKED: type[Kind] = KindOfParts  # it has all that a kind needs
