"""``cil stream``: a stream of tasks, written as a manifest: whether it holds, and what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cil.cli.show import split_options
from cil.errors import ConfigError, nearest

if TYPE_CHECKING:
    from cil.streams.manifest import Manifest, Task
    from cil.streams.manifest_data import Lock

HELP = """
usage: cil stream validate FILE [--offline | --data] [--root DIR] [--lock FILE] [--accept ID,...] [--relock]
       cil stream show FILE [--root DIR]

A manifest is a YAML file that lists data sets with their years, kinds, sources and splits. FILE is a path, or one that
comes along: embedded_tasks, nevis22, small_tasks, example_folder.

  cil stream validate embedded_tasks --data
  cil stream show nevis22

validate lists every error with its task and place; it exits with 1 where there is one.
  --data        open the sources too: labels, splits, exact copies; writes what was found into a lock file, and
                compares with it the next time
  --offline     nothing may be downloaded (with --data); alone: the structure only, which is the default
  --root DIR    data root; CIL_DATA by default
  --lock FILE   the lock file; beside the manifest by default
  --relock      write it anew where the data differ from it
  --accept IDS  tasks whose licence you have read and accept for this call; all: of all tasks

show prints counts and a time line.
"""
WIDTH = 40


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    actions = {"validate": _validate, "show": _show}
    if not arguments or arguments[0] not in actions:
        given = arguments[0] if arguments else ""
        raise ConfigError(f"cil stream has no action '{given}'; {nearest(given, actions)}")
    return actions[arguments[0]](list(arguments[1:]))


def _validate(arguments: list[str]) -> int:
    flags = {name: name in arguments for name in ("--offline", "--data", "--relock")}
    rest, options = split_options(
        [item for item in arguments if item not in flags], {"--root": "", "--lock": "", "--accept": ""}
    )
    path = _file(rest, "validate")
    from cil.streams.manifest import read_yaml
    from cil.streams.manifest_data import lock_path, read_lock, validate, write_lock
    from cil.streams.manifest_rules import parse
    from cil.streams.tasks import available

    manifest, problems = parse(read_yaml(path))
    notes: list[str] = []
    lock: Lock = {}
    if manifest is not None and flags["--data"] and not any(item.level == "error" for item in problems):
        manifest, notes = available(manifest)
        where = Path(options["--lock"]) if options["--lock"] else lock_path(path)
        before = {} if flags["--relock"] else read_lock(where)
        accepted = [item.strip() for item in options["--accept"].split(",") if item.strip()]
        known = [task.id for task in manifest]
        for name in accepted:
            if name != "all" and name not in known:
                raise ConfigError(f"--accept: {nearest(name, known)}")
        report = validate(
            manifest,
            data=True,
            root=options["--root"] or None,
            lock=before,
            offline=flags["--offline"],
            accept=known if "all" in accepted else accepted,
        )
        opened = {problem.task for problem in problems if problem.path == "license.accept"} & set(report.lock)
        problems = [item for item in problems if item.task not in opened] + list(report.problems)
        lock = report.lock
        if not report.errors and (merged := before | lock) != before:
            write_lock(where, merged)
            notes.append(f"lock written: {where}")
    for problem in problems:
        print(f"{problem.level:<7}  {problem}")
    for note in notes:
        print(f"note     {note}")
    errors = sum(problem.level == "error" for problem in problems)
    if manifest is not None and lock:
        print("\n".join(_counted(manifest, lock)))
    opened_said = f", data of {len(lock)} opened" if flags["--data"] else ", structure only (--data opens the sources)"
    count = "no manifest" if manifest is None else f"{len(manifest)} tasks"
    print(f"{path.name}: {count}, {errors} errors, {len(problems) - errors} warnings{opened_said}")
    return 1 if errors else 0


def _show(arguments: list[str]) -> int:
    rest, options = split_options(arguments, {"--root": ""})
    path = _file(rest, "show")
    from cil.streams.manifest import read_manifest
    from cil.streams.manifest_data import lock_path, read_lock

    manifest = replace(read_manifest(path), path=path)
    print("\n".join(timeline(manifest, read_lock(lock_path(path)))))
    return 0


def _file(rest: Sequence[str], action: str) -> Path:
    from cil.streams.manifest import manifest_path

    if len(rest) != 1:
        raise ConfigError(f"cil stream {action} takes one manifest, given {len(rest)}; see cil stream --help")
    return manifest_path(rest[0])


def _counted(manifest: Manifest, lock: Lock) -> list[str]:
    """Examples of each split, task by task."""
    wide = max(len(task.id) for task in manifest)
    lines = [f"{'task'.ljust(wide)}   train     dev  dev_test    test  classes"]
    for task in manifest.ordered(shuffle="none"):
        if task.id in lock:
            counts = lock[task.id]["counts"]
            lines.append(
                f"{task.id.ljust(wide)} {counts['train']:>7} {counts['dev']:>7} {counts['dev_test']:>9}"
                f" {counts['test']:>7} {task.num_classes:>8}"
            )
    return lines


def timeline(manifest: Manifest, lock: Lock) -> list[str]:
    """Counts, then a line a task in the order of the stream, marked by year."""
    info, tasks = manifest.stream, manifest.ordered()
    repeats, domains = set(manifest.repeats), Counter(task.domain for task in tasks)
    final = sum(info.final_year_from is not None and task.year >= info.final_year_from for task in tasks)
    lines = [
        f"{info.name}: {info.description}".rstrip(": "),
        f"{len(tasks)} tasks, {len(manifest.datasets)} data sets, {len(repeats)} repeats,"
        f" {sum(task.multilabel for task in tasks)} multilabel, {min(task.year for task in tasks)} to"
        f" {max(task.year for task in tasks)}; {final} kept for the end"
        f"{f' (from {info.final_year_from})' if final else ''}; heads {info.heads}, images {info.image_size} pixels",
        "domains: " + ", ".join(f"{name} {count}" for name, count in domains.most_common()),
        "",
    ]
    years = Counter(task.year for task in tasks)
    most = max(years.values())
    lines += [f"{year} {'#' * max(1, round(WIDTH * years[year] / most))} {years[year]}" for year in sorted(years)]
    lines.append("")
    wide, previous = max(len(task.id) for task in tasks), None
    for task in tasks:
        lines.append(_line(task, wide, task.id in repeats, lock, first=task.year != previous))
        previous = task.year
    return lines


def _line(task: Task, wide: int, repeat: bool, lock: Lock, *, first: bool) -> str:
    if task.id in lock:
        size = f"{lock[task.id]['counts']['train']:,}"
    else:
        size = "-" if task.train_examples is None else f"~{task.train_examples:,}"
    marks = " ".join(mark for mark, holds in (("multilabel", task.multilabel), ("repeat", repeat)) if holds)
    return (
        f"{task.year if first else '':>4}  {task.id.ljust(wide)}  {task.domain:<9} {task.num_classes:>5} classes"
        f" {size:>10}  {task.splits.get('rule', 'A')}  {task.source['type']:<11} {marks}"
    ).rstrip()
