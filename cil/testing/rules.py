"""Rules that learners of all kinds keep. A rule is a function of a ``Subject`` that raises where it is broken."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cil.errors import ContractError
from cil.memory.tensor_bits import same_bits
from cil.testing.compare import demand, demand_same
from cil.testing.subject import CheckedRun, Interruption, L, Subject


def state_survives_the_round_trip(subject: Subject[L]) -> None:
    """``load_state(state())`` gives a learner with the same state and the same answers."""
    run = subject.finished()
    last = run.boundaries[-1]
    state = run.state(last)
    first = run.rebuilt(last)
    again = run.rebuilt(last, first.state())
    for name, tensor in state.tensors.items():
        for learner in (first, again):
            held = learner.state().tensors.get(name)
            demand(held is not None and same_bits(held, tensor), f"load_state changed {name}")
    demand(dict(again.state().meta) == dict(state.meta), "load_state changed the metadata")
    one, other = (run.answers(learner, run.images()) for learner in (first, again))
    demand(same_bits(one, other), "two learners of the same state answer differently")


def what_was_not_kept_cannot_help(subject: Subject[L]) -> None:
    """Each experience in a process of its own gives the same numbers and the same state."""
    for one in (subject.on_long(), *([subject] if subject.stream_was_given else [])):
        processes_make_no_difference(one)


def processes_make_no_difference(subject: Subject[L]) -> None:
    """The rule above, on the stream of the subject alone."""
    how = f"with a process for each {subject.experience} and in one process"
    straight = subject.finished()  # its first experience was in a process of its own
    with of_another_past(subject, how), subject.fresh(start=1, boundary="process") as sealed:
        runs_are_the_same(subject, how, sealed, straight)


def the_ledger_is_the_checkpoint(subject: Subject[L]) -> None:
    """The sum of the ledger is what lies on the disk: tensors, metadata and references."""
    run = subject.finished()
    for boundary in run.boundaries:
        stored = sum(run.stored(boundary).values())
        charged = run.record.results["ledger"][boundary]["totals"]["exact"]["total"]
        demand(stored == charged, f"the checkpoint holds {stored:,} bytes, the ledger says {charged:,}")


def same_seed_same_bits(subject: Subject[L]) -> None:
    """Two runs of one seed end in the same numbers and the same state."""
    with subject.fresh() as again:
        runs_are_the_same(subject, "twice with the same seed", subject.finished(), again)


def a_resumed_run_ends_where_the_straight_run_ends(subject: Subject[L]) -> None:
    """Stopped three times and run again each time, it ends in the same numbers, state and log."""
    straight = subject.finished()
    expected = list(straight.record.lines())
    steps = sum(1 for line in expected if line["kind"] == "step")
    stops = sorted({2, steps // 2, steps - 1})
    recipe = replace(subject.options.get("recipe", subject.recipe), snapshot_steps=2)
    with tempfile.TemporaryDirectory(prefix="cil-check-") as folder:
        for loggers in (*([Interruption(stop)] for stop in stops), []):
            resumed = subject.run(Path(folder), recipe=recipe, loggers=loggers)
            with suppress(KeyboardInterrupt):
                resumed.run.execute()
        how = f"interrupted at {subject.step}s {', '.join(map(str, stops))} and resumed"
        with of_another_past(subject, how):
            runs_are_the_same(subject, f"straight and {how}", straight, resumed)
            same_log = [line["values"] for line in resumed.record.lines()] == [line["values"] for line in expected]
            demand(same_log, f"{how}, metrics.jsonl differs")


def hooks_keep_to_themselves(subject: Subject[L]) -> None:
    """No hook writes, lists or reads files, opens sockets, starts processes or searches the interpreter's objects."""
    seen = subject.noted()["side_effects"]
    demand(
        not seen,
        f"a hook {seen[0] if seen else ''}; allowed are what it is handed, what self.keep(...) names, and imports of "
        f"code: hand data over by the stream, and weights by model.weights",
    )


@contextmanager
def of_another_past(subject: Subject[L], how: str) -> Iterator[None]:
    """Say of what fails in here that it used something of a past that is not in the state.

    Raises:
        ContractError: in place of any error, with the attributes that may be meant.
    """
    try:
        yield
    except Exception as error:
        failed = f"run {how}, it fails ({type(error).__name__}: {error})"
        what, names = str(error) if isinstance(error, ContractError) else failed, list[str]()
        with suppress(Exception):  # what breaks here may break there
            names = subject.unkept()
        raise ContractError(
            f"{what}: something of another past was used; allowed is what a hook is handed and what self.keep(...) "
            f"names{', and not kept is ' * bool(names)}{', '.join(names)}"
        ) from error


def runs_are_the_same(subject: Subject[L], how: str, one: CheckedRun[L], two: CheckedRun[L]) -> None:
    """Demand that two executed runs ended in the same bits; ``how`` says in what they differ."""
    demand_same(how, one.run, one.record, two.run, two.record, subject.place)
