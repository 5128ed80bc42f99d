"""``cil stream``: a stream of tasks, written as a manifest: its errors, and its tasks as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cil.cli.arguments import split_options
from cil.cli.formats import in_columns
from cil.errors import ConfigError, nearest

if TYPE_CHECKING:
    from cil.streams.manifest import Manifest
    from cil.streams.manifest_data import Lock

HELP = """
usage: cil stream validate FILE [--offline | --data] [--root DIR] [--lock FILE] [--accept ID,...] [--relock]
       cil stream show FILE [--root DIR]

A manifest is a YAML file that lists data sets with their years, kinds, sources and splits. FILE is a path, or one that
comes along: embedded_tasks, nevis22, small_tasks, example_folder.

  cil stream validate embedded_tasks --data
  cil stream show nevis22 --variant tiny

validate lists every error with its task and place; it exits with 1 where there is one.
  --offline     the structure alone, which is the default; with --data: nothing may be downloaded
  --data        open the sources too: labels, splits, exact copies; what was found goes into a lock file, and is
                compared with it the next time
  --accept IDS  tasks whose licence you have read and accept for this call; all: of all tasks
  --lock FILE   the lock file; by default beside the manifest, or in DATA_ROOT/locks for those that come along
  --relock      write it anew where the data differ from it

show prints the stream as a table; examples of each split are those of the lock, ~ marks what the manifest states.

Both:
  --root DIR      data root; CIL_DATA by default
  --ids ID,...    these tasks alone
  --variant NAME  a choice of tasks that the manifest names
"""
CHOICE = {"--root": "", "--ids": "", "--variant": ""}


def main(arguments: Sequence[str]) -> int:
    actions = {"validate": _validate, "show": _show}
    if not arguments or arguments[0] not in actions:
        given = arguments[0] if arguments else ""
        raise ConfigError(f"cil stream has no action '{given}'; {nearest(given, actions)}")
    return actions[arguments[0]](list(arguments[1:]))


def _validate(arguments: list[str]) -> int:
    valued = {**CHOICE, "--lock": "", "--accept": ""}
    rest, options, flags = split_options(arguments, valued, ("--offline", "--data", "--relock"))
    path = _file(rest, "validate")
    from cil.streams.manifest_data import Lock, known_lock, lock_path, read_lock, validate_data, write_lock
    from cil.streams.manifest_files import read_yaml
    from cil.streams.manifest_rules import errors_in, parse

    manifest, problems = parse(read_yaml(path))
    depth = "structure only (--data opens the sources)"
    manifest = None if manifest is None or errors_in(problems) else _chosen(manifest, options)
    if manifest is not None:
        problems = [item for item in problems if item.task in ("", *(task.id for task in manifest))]
    if manifest is not None and "--data" in flags:
        root, own = options["--root"] or None, options["--lock"]
        where = Path(own) if own else lock_path(path, root)
        written, before = "", Lock()
        if "--relock" not in flags:
            before = read_lock(where) if own else known_lock(path, root)
        accepted = _accepted(options["--accept"], [task.id for task in manifest])
        report = validate_data(manifest, root, lock=before, offline="--offline" in flags, accept=accepted)
        problems = [item for item in problems if item.path != "license.accept"] + list(report.problems)
        if report.lock and (merged := before | report.lock) != before:
            write_lock(where, merged)
            written = f", lock written: {where}"
        depth = f"data of {len(report.opened)} opened{written}"
    for problem in problems:
        print(f"{problem.level:<7}  {problem}")
    errors = len(errors_in(problems))
    count = "no manifest" if manifest is None else _many(len(manifest), "task")
    print(f"{path.name}: {count}, {_many(errors, 'error')}, {_many(len(problems) - errors, 'warning')}; {depth}")
    return 1 if errors else 0


def _show(arguments: list[str]) -> int:
    rest, options, _ = split_options(arguments, CHOICE)
    path = _file(rest, "show")
    from cil.streams.manifest_data import known_lock
    from cil.streams.manifest_files import read_manifest

    manifest = _chosen(read_manifest(path), options)
    print("\n".join(timeline(manifest, known_lock(path, options["--root"] or None))))
    return 0


def _file(rest: Sequence[str], action: str) -> Path:
    from cil.cli.names import choices
    from cil.streams.manifest_files import manifest_path

    if len(rest) != 1:
        raise ConfigError(f"cil stream {action} takes one manifest, given {len(rest)}; see cil stream --help")
    name = rest[0].removeprefix("stream=")
    try:
        return manifest_path(name)
    except ConfigError:
        if name not in choices("stream"):
            raise
        raise ConfigError(f"'{name}' is a stream of classes and no manifest: cil show stream={name}") from None


def _chosen(manifest: Manifest, options: dict[str, str]) -> Manifest:
    manifest = manifest.variant(options["--variant"]) if options["--variant"] else manifest
    return manifest.select(ids=_listed(options["--ids"])) if options["--ids"] else manifest


def _accepted(given: str, known: Collection[str]) -> Collection[str]:
    names = _listed(given)
    for name in names:
        if name not in (*known, "all"):
            raise ConfigError(f"--accept: no task '{name}'; {nearest(name, known)}")
    return known if "all" in names else names


def _listed(given: str) -> list[str]:
    return [item.strip() for item in given.split(",") if item.strip()]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def timeline(manifest: Manifest, lock: Lock) -> Iterator[str]:
    """The stream in a few lines, then a table with a row for each task in the order of the stream.

    Args:
        lock: Where counts of examples are known from.
    """
    info, tasks, repeats = manifest.stream, manifest.ordered(), set(manifest.repeats)
    years = [task.year for task in tasks]
    domains = Counter(task.domain for task in tasks)
    yield f"{info.name}: {info.description}".rstrip(": ")
    yield (
        f"{_many(len(tasks), 'task')} from {min(years)} to {max(years)}, {_many(len(manifest.datasets), 'data set')},"
        f" {_many(len(repeats), 'repeat')}, {sum(task.multilabel for task in tasks)} multilabel;"
        f" images {info.image_size} pixels, heads {info.heads}"
        f"{'' if info.shuffle == 'none' else f', shuffled: {info.shuffle}, seed {info.seed}'}"
    )
    yield "domains: " + ", ".join(f"{name} {count}" for name, count in domains.most_common())
    if info.variants:
        yield "variants: " + ", ".join(f"{name} {len(ids)}" for name, ids in info.variants.items())
    rows = [("event", "year", "task", "domain", "kind", "classes", "train", "dev", "dev_test", "test", "source", "")]
    for event, task in enumerate(tasks, start=1):
        marks = [f"repeat of {task.dataset}"] if task.id in repeats else []
        if info.final_year_from is not None and task.year >= info.final_year_from:
            marks.append("final")
        counts = lock.get(task.id, {}).get("counts", {})
        stated = "-" if task.train_examples is None else f"~{task.train_examples}"
        sizes = (str(counts.get(name, "-")) for name in ("dev", "dev_test", "test"))
        train, source = str(counts.get("train", stated)), task.source["type"]
        rows.append(
            (str(event), task.when, task.id, task.domain, task.kind, str(task.num_classes), train, *sizes, source,
             ", ".join(marks))
        )  # fmt: skip
    yield ""
    yield from in_columns(rows, right={0, 5, 6, 7, 8, 9})
    if info.final_year_from is not None:
        yield f"final: kept for the end, from {info.final_year_from} on"
