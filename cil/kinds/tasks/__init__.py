"""Runs of a strategy on a stream of unlike tasks, each with its task known."""

from __future__ import annotations

from cil.kinds.parts import KindOfParts


class Tasks(KindOfParts):
    """The kind of task-stream runs: error against operations, and which learners trade best."""

    name = "tasks"
    learner = "strategy"
    unit = "experiences"
    progress = "accuracy_curve"
    by_step = (
        "errors", "losses", "ledger", "exemplars", "over_budget", "flops", "seconds", "compute", "own_updates",
        "own_images",
    )  # fmt: skip
    commands = "cil.kinds.tasks.commands:COMMANDS"
    identity = "cil.kinds.tasks.record_types:TaskIdentity"
    results = "cil.kinds.tasks.record_types:TaskResults"
    works = "cil.kinds.tasks.work:TaskWork"
    report = "cil.kinds.tasks.section:sections"
    contract = "cil.kinds.classes.rules:RULES"
    tested = "cil.kinds.tasks.subject:TaskSubject"

    def runs(self, learner: type) -> bool:
        from cil.strategies import Strategy

        return issubclass(learner, Strategy) and learner.takes_task


TASKS = Tasks()
