"""``cil audit``: an experience of a finished run redone from its stored state, all bits compared."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cil.cli import environment
from cil.cli.arguments import config_dirs, split_options, whole_number
from cil.cli.names import METHODS, key_of, own_conf_dirs
from cil.errors import ConfigError
from cil.targets import TARGET
from cil.tracking import Record, identity_hash
from cil.tracking.audits import Audit, read_audits, write_audit

if TYPE_CHECKING:
    from cil.engine.driver import Run

HELP = """
usage: cil audit RUN_DIR [--experience N | --all] [strategy=module:Class] [data_root=PATH] [--run module:function]

Redoes one experience of a finished run in a clean process, from the state that was carried to it and without anything
else of the past, and compares the bits of the state after it, of its answers, and of what they took. What came out
lies beside the record, and tables show it. 0: the same bits; 1: others, or an error on the way.

  cil audit runs/split_digits/icarl-50exemplars-s0-0a1b2c3d4e5f
  cil audit RUN_DIR --all

  --experience N   this one, from 0; of an adapter 0 is its deployment, and N follows segment N. By default one is
                   chosen at random, by what came out of the run: no learner can know it
  --all            each that can be redone, in a process of its own
  --device NAME    where it is redone, by default as the run
  --config-dir DIR   own files of the configuration, where the run had some
  --run module:function   plans the run again (cil.plan), where the run was made in Python
  strategy=module:Class, adapter=module:Class   the class of a run whose own is not registered: a record alone never
                   imports code

An experience is redone from the state before it. With checkpoint.keep=last, the default, a run has its last state
alone: its first experience can be redone, without the state after it, and the last one is asked its answers again.
checkpoint.keep=all lets every experience be redone.
"""
GIVEN = (*METHODS, "data_root", "source")  # keys that a user may give beside the record
Planner = Callable[[], "Run"]


def main(arguments: Sequence[str]) -> int:
    names = {"--experience": "", "--run": "", "--device": ""}
    rest, options, flags = split_options(arguments, names, ["--all"])
    paths = [item for item in rest if "=" not in item and item not in flags]
    if len(paths) != 1:
        raise ConfigError("cil audit needs one run directory")
    experience = whole_number("--experience", options["--experience"], 0)
    overrides = [item for item in rest if "=" in item]
    odd = [item for item in overrides if key_of(item) not in GIVEN]
    if odd:
        raise ConfigError(f"{odd[0]}: a run is audited as it was; only {', '.join(GIVEN)} may be given")
    environment.prepare()
    if "--all" in flags:
        found = audit(paths[0], every=True, run=options["--run"] or None, device=options["--device"], given=overrides)
        print("\n".join(text(Record.load(paths[0]), one) for one in found))
        print(f"{paths[0]}: {sum(one.equal for one in found)} of {len(found)} experiences have the same bits")
        return int(not all(one.equal for one in found))
    from cil.engine.audit import Redoing, chosen

    record = Record.load(paths[0])
    check_own(record)
    with _empty_temporary_folder() as folder:
        redoing = Redoing(record, planned(record, overrides, options["--run"], options["--device"]))
        redone = redoing.redo(chosen(record) if experience is None else experience, folder / "run")
    write_audit(record.directory, redone)
    print(text(record, redone), flush=True)
    return int(not redone.equal)


def audit(
    run_dir: str | Path,
    *,
    experience: int | None = None,
    every: bool = False,
    run: str | Planner | None = None,
    device: str = "",
    given: Sequence[str] = (),
) -> list[Audit]:
    """Redo experiences of a finished run from their stored states, each in a process of its own, and compare all bits.

    Args:
        run_dir: Folder of the run; what came out is kept in it.
        experience: Which; by default one is chosen at keyed random.
        every: All that can be redone.
        run: A function that plans the run again, or ``module:function``; for runs that were made in Python.
        device: Where it is redone, by default as the run.
        given: What the record alone does not say, as on the command line: ``["strategy=module:Class"]``.

    Returns:
        What came out of each: ``equal``, ``key``, ``elsewhere``...

    Raises:
        ConfigError: where the run cannot be planned again, or nothing of it can be redone.
    """
    from cil.engine.audit import candidates, chosen
    from cil.engine.checkpoint import Checkpoints

    record = Record.load(run_dir)
    check_own(record)
    if every:
        wanted = candidates(Checkpoints(record.directory, run=record.run))
    else:
        wanted = [chosen(record) if experience is None else experience]
    for index in wanted:
        _in_process(record.directory, index, run, device, given)
    audits = {one.experience: one for one in read_audits(record.directory, identity_hash(record.identity))}
    return [audits[index] for index in wanted if index in audits]


def _in_process(
    directory: Path, experience: int, run: str | Planner | None, device: str, given: Sequence[str]
) -> None:  # fmt: skip
    """``cil audit --experience`` in a fresh interpreter, which sees the modules that this one sees."""
    command = [sys.executable, "-m", "cil.cli.main", "audit", str(directory), "--experience", str(experience), *given]
    if run is not None:
        command += ["--run", run if isinstance(run, str) else f"{run.__module__}:{getattr(run, '__qualname__', run)}"]
    if device:
        command += ["--device", device]
    path = os.pathsep.join(item for item in sys.path if item)
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 1) or not ended.stdout:
        said = ended.stderr.strip().splitlines() or [f"its process ended with {ended.returncode}"]
        raise ConfigError(said[-1].removeprefix("cil: "))


def check_own(record: Record) -> None:
    """Refuse what another toolbox left."""
    if toolbox := record.identity.get("toolbox"):
        raise ConfigError(f"{record.directory} is foreign: {toolbox}, which made it, alone can run it again")


@contextmanager
def _empty_temporary_folder() -> Iterator[Path]:
    """A folder for temporary files that holds nothing: what the run left in the other one is not found."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="cil-audit-") as folder, environment.in_environment(TMPDIR=folder):
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


def planned(record: Record, given: Sequence[str], run: str, device: str) -> Run:
    """The run of a record planned again by its command, where that names no code, or by a function."""
    from cil.cli.build import build
    from cil.cli.compose import compose, own_class
    from cil.engine.driver import Run

    if run:
        made = own_class(run, "--run")()
        if not isinstance(made, Run):
            raise ConfigError(f"--run {run} gave a {type(made).__name__}; it must give a run, as cil.plan does")
        return made
    overrides = recorded_overrides(record, {key_of(item) for item in given})
    identity = record.identity
    facts: dict[str, Any] = {name: identity[name] for name in ("tuning", "role") if name in identity}
    changes: dict[str, Any] = {"device": device or identity["device"], "precision": identity["precision"]}
    threads = {"threads": identity["threads"]} if identity.get("threads") else {}
    return build(compose([*overrides, *given]), facts=facts, progress=False, loggers=(), **changes, **threads)


def recorded_overrides(record: Record, given: set[str]) -> list[str]:
    """Overrides of the command that a record was made by, without those given anew; refused where one names code."""
    command = shlex.split(str(record.environment.get("command") or ""))
    where = f"{record.directory}/record.json: environment.command"
    if command[:2] != ["cil", "run"]:
        raise ConfigError(
            f"{record.directory} was made in Python: say which function plans it again, as in --run module:function "
            f"(cil.audit(run_dir, run=function)), which returns cil.plan(...)"
        )
    from cil.cli.compose import CLASS

    rest, own = config_dirs(command[2:])
    if own and not own_conf_dirs():
        raise ConfigError(f"{where} has --config-dir {own}, whose files may name code; give --config-dir yourself")
    overrides = [item for item in rest if key_of(item) not in given]
    for item in overrides:
        key, values = key_of(item), item.partition("=")[2].replace("\\", "")
        if item.startswith("-") or key.startswith("hydra") or TARGET in item or "${" in item:
            raise ConfigError(f"{where} has {item}, which may name code; plan the run by --run module:function")
        named = [value for value in values.split(",") if CLASS.fullmatch(value.strip(" \t'\""))]
        if named and key in (*METHODS, "budget.to"):
            raise ConfigError(
                f"{where} has {item}, and code is never imported because a record names it; say it yourself: "
                f"{key}={named[0]} beside the run directory"
            )
    return overrides


def text(record: Record, found: Audit) -> str:
    """For people."""
    from cil.engine.audit import candidates
    from cil.engine.checkpoint import Checkpoints

    stored = Checkpoints(record.directory, run=record.run)
    lines = [f"{record.directory}, experience {found.experience}: "]
    if found.equal:
        lines[0] += f"the same bits ({', '.join(found.compared)})"
    else:
        lines[0] += f"not what the run stored: {found.key}"
    lines += [f"  {name} is not as in the run: {old} then, {new} now" for name, (old, new) in found.elsewhere.items()]
    if found.elsewhere and not found.equal:
        lines.append("  so the difference says nothing of the run; audit it where it was made")
    able = candidates(stored)
    if len(able) < stored.done() or "state" not in found.compared:
        words = f"{stored.done()} experiences, of which {', '.join(map(str, able))} can be audited"
        lines.append(f"  {words}; checkpoint.keep=all keeps all states")
    return "\n".join(lines)
