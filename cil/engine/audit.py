"""The audit of a finished run: an experience is redone from its stored state, and all bits are compared."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cil.engine.checkpoint import Checkpoints
from cil.engine.driver import Run
from cil.engine.keys import key
from cil.engine.recovery import committed, read_counts
from cil.engine.running import Rows
from cil.engine.work import Facts
from cil.errors import ConfigError, in_words
from cil.memory import State, encode_meta
from cil.memory.tensor_bits import same_bits
from cil.tracking import Record, describe_environment, identity_hash, plain, without_secrets
from cil.tracking.audits import Audit, read_audits
from cil.tracking.storage import first_difference, in_short

COMPUTES = ("device", "precision", "threads", "versions", "code")  # keys of an identity: what computes, and which code
MACHINE = ("platform", "processor")  # keys of an environment
FACTS = ("steps", "exemplars", "flops", "ledger")  # that are compared; seconds are of the machine
METRICS = "metrics"  # of other packages, among the results
NO_STATE = State({}, {}, {}, (), {})
LONGEST = 200  # characters of an error
Contents = Mapping[str, Any]


@dataclass
class Redoing:
    """Redoes experiences of a finished run.

    Args:
        run: The same run, planned anew; its own folder is not touched.

    Raises:
        ConfigError: where ``stored`` has not finished, or ``run`` is another run.
        ResumeError: where counts of it are missing or damaged.
    """

    stored: Record
    run: Run

    def __post_init__(self) -> None:
        check_finished(self.stored)
        self.checkpoints = Checkpoints(self.stored.directory, run=self.stored.run)
        done = committed(self.checkpoints, self.stored.results)
        for index in range(done):
            read_counts(self.checkpoints, index, done, last=True)
        own, ours = dict(self.stored.identity), dict(plain(without_secrets(self.run.identity)))
        computed = {name: (own.pop(name, None), ours.pop(name, None)) for name in COMPUTES}
        difference = first_difference(own, ours)
        if difference:
            name, old, new = difference
            raise ConfigError(
                f"{self.stored.directory}: what is to be redone is another run: {name} was {in_short(old)} and is now "
                f"{in_short(new)}; give the data and settings of the run"
            )
        here = describe_environment() | {"processor": self.run.runtime.processor}
        computed |= {name: (self.stored.environment.get(name), here[name]) for name in MACHINE}
        self.elsewhere = {name: list(pair) for name, pair in computed.items() if pair[0] != pair[1]}

    def redo(self, index: int, folder: Path) -> Audit:
        """Redo one experience in an empty ``folder``, from what was carried to it and nothing else of the past.

        Raises:
            ConfigError: where nothing of it can be compared, naming the setting that would keep more.
        """
        if not 0 <= index < self.checkpoints.done():
            last = self.checkpoints.done() - 1
            raise ConfigError(f"experience {index} of {self.stored.directory} is not there; it has 0 to {last}")
        able = candidates(self.checkpoints)
        if index not in able:
            raise ConfigError(
                f"experience {index} cannot be redone: the states around it were not kept; checkpoint.keep=all keeps "
                f"them, and here {', '.join(map(str, able))} can be"
            )
        options = replace(self.run.options, keep="all", boundary="inline", reuse=None)
        run = replace(self.run, run_dir=folder, options=options)
        again = run.checkpoints
        whole = index == 0 or self.checkpoints.kept(index - 1)
        self._lay_out(again, index if whole else index + 1)
        try:
            run.redo(index)
        except (KeyboardInterrupt, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            return self._audit(index, ["state"], f"raises {in_words(error)}"[:LONGEST])
        compared, differing = list[str](), self._misreported()
        for part, old, new in self._parts(again, index, whole):
            compared.append(part)
            found = _difference(old, new)
            differing = differing or (f"{part}: {found}" if found else "")
        if not compared:
            raise ConfigError(
                f"experience {index} cannot be redone: the state before it was not kept; checkpoint.keep=all keeps it"
            )
        return self._audit(index, compared, differing)

    def _lay_out(self, again: Checkpoints, count: int) -> None:
        """What a run has at boundary ``count`` - 1: facts of all, and the states that are read from there on."""
        facts = [self.checkpoints.facts(index) for index in range(count)]
        rows = [self.checkpoints.evaluated(index) or {} for index in range(count)]
        held = self.run.work.kept(self.run.work.results(rows, facts))[1] if count else set()
        for index in range(count):
            state = self.checkpoints.state(index) if index in {count - 1, *held} else NO_STATE
            without_log = {name: value for name, value in facts[index].items() if name != "log"}
            again.commit(index, state, {**without_log, "offset": 0})

    def _parts(self, again: Checkpoints, index: int, whole: bool) -> Iterator[tuple[str, Contents, Contents]]:
        """What was stored of an experience, and what came out now, by name."""
        one, two = self.checkpoints, again
        old, new = _answers(one.evaluated(index)), _answers(two.evaluated(index))
        if whole and one.kept(index):
            yield "state", _contents(one.state(index)), _contents(two.state(index))
        if old and (new or whole):
            yield "answers", old, new
        if whole:
            yield "facts", _facts(one.facts(index)), _facts(two.facts(index))

    def _misreported(self) -> str:
        """The first of the record's results that its own counts and facts do not give; empty where all are given."""
        done = self.checkpoints.done()
        facts = [self.checkpoints.facts(index) for index in range(done)]
        given = json.loads(json.dumps(plain(self.run.work.results(Rows(self.checkpoints, done), facts))))
        stored = {name: self.stored.results.get(name) for name in given}
        own = [results.get(METRICS) or {} for results in (stored, given)]
        both = [name for name in own[0] if name in own[1]]  # packages may have come or gone since
        stored[METRICS], given[METRICS] = ({name: metrics[name] for name in both} for metrics in own)
        difference = first_difference(stored, given)
        if not difference:
            return ""
        name, told, counted = difference
        return f"record: {name} is {in_short(told)}, and what was counted gives {in_short(counted)}"[:LONGEST]

    def _audit(self, index: int, compared: Sequence[str], differing: str) -> Audit:
        identity = plain(self.run.identity)
        return Audit(
            identity_hash(self.stored.identity), index, tuple(compared), "differs" if differing else "equal", differing,
            self.elsewhere, self.run.runtime.device, str(identity.get("code", "")), identity.get("versions", {}),
        )  # fmt: skip


def candidates(stored: Checkpoints) -> list[int]:
    """Experiences that can be redone, from nothing or from a state that was kept; or asked their answers again."""
    return [i for i in range(stored.done()) if i == 0 or stored.kept(i - 1) or stored.kept(i)]


def chosen(stored: Record) -> int:
    """An experience at keyed random, of those that were not audited yet where there are some.

    The key is what came out of the run: no learner can know it beforehand.

    Raises:
        ConfigError: where the run has not finished.
    """
    check_finished(stored)
    checkpoints = Checkpoints(stored.directory, run=stored.run)
    committed(checkpoints, stored.results)
    able = candidates(checkpoints)
    done = {audit.experience for audit in read_audits(stored.directory, identity_hash(stored.identity))}
    outcome = json.dumps(stored.results, sort_keys=True)
    return random.Random(key(0, "audit", outcome, len(done))).choice([i for i in able if i not in done] or able)


def check_finished(stored: Record) -> None:
    """Refuse a run that is not whole."""
    if stored.status != "finished":
        raise ConfigError(f"{stored.directory} is {stored.status}; a run is audited when it has finished")


def _contents(state: State) -> dict[str, Any]:
    references = {f"reference {reference.tag}": vars(reference) for reference in state.references}
    return {**state.tensors, "metadata": encode_meta(state.meta), **references}


def _answers(counts: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """What an evaluation counted, without seconds and what further budgets measured."""
    return {name: value for name, value in (counts or {}).items() if name != "seconds" and not name.startswith("cap.")}


def _facts(facts: Facts) -> dict[str, Any]:
    return {name: plain(facts[name]) for name in FACTS if name in facts}


def _difference(old: Contents, new: Contents) -> str:
    """The first name whose values differ in a bit, and how; empty where there is none."""
    for name in sorted(old.keys() | new.keys()):
        one, two = old.get(name), new.get(name)
        if one is None or two is None:
            return f"{name} is {'new' if one is None else 'gone'}"
        if not isinstance(one, Tensor):
            if one != two:
                return name
        elif one.dtype != two.dtype or one.shape != two.shape:
            return f"{name} has another type or shape"
        elif not same_bits(one, two):
            return f"{name}, {int((one != two).sum()):,} of {one.numel():,} numbers"
    return ""
