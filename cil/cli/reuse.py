"""Finished runs of other folders, taken over into a comparison in place of being trained again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cil.errors import CilError
from cil.report.runs import run_directories
from cil.tracking import Record, RecordError, identity_hash, write_json_atomic
from cil.tracking.digests import sealed, unseal
from cil.tracking.files import RECORD
from cil.tracking.storage import PARTIAL

_say = logging.getLogger("cil.cli")
RUNS = Path("runs")  # the folder of runs whose place nobody chose
REUSED = "reused.json"  # in the folder of a comparison, under taken_over: run -> folder that it was taken from


@dataclass(frozen=True)
class EarlierRun:
    """A finished run, as its record says without being checked: its folder, digest, identity, and seconds in all."""

    path: Path
    run: str
    identity: dict[str, Any]
    seconds: float


def earlier_runs(folder: Path) -> list[EarlierRun]:
    """Every finished run at or under a folder; what cannot be read is left out."""
    found = []
    for path in run_directories(folder) if folder.is_dir() else ():
        try:
            content = json.loads((path / RECORD).read_bytes())
            if content["status"] == "finished":
                seconds = float(content["results"]["seconds"]["total"])
                found.append(EarlierRun(path, identity_hash(content["identity"]), content["identity"], seconds))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def runs_of_streams(streams: Iterable[Path], out: Path) -> list[EarlierRun]:
    """Every finished run where ``find_finished`` looks, and in ``out``; beside ``out`` those of some streams.

    Args:
        streams: Folders of streams, as they are named under ``out``.
    """
    beside = [place for stream in sorted(streams) for place in _places(stream, out)]
    runs = RUNS.absolute()
    folders = [RUNS, out, *(place for place in beside if runs not in place.absolute().parents)]
    return [one for folder in folders for one in earlier_runs(folder)]


def find_finished(identities: Mapping[Path, Mapping[str, Any]], out: Path) -> dict[Path, Path]:
    """Finished runs of the same identity in other folders.

    Looked at are the folder beside ``out``, the folders in it, and everything under ``runs/``.

    Args:
        identities: Folder of a run, under ``out``, to its identity; those that are there already are left alone.

    Returns:
        Folder of a run, under ``out``, to where it has finished.
    """
    found: dict[Path, Path] = {}
    anywhere: dict[str, list[Path]] | None = None
    for path, identity in identities.items():
        if path.exists() and any(path.iterdir()):
            continue
        digest = identity_hash(identity)
        place = next(_finished(_places(path.relative_to(out), out), digest), None)
        if place is None:
            anywhere = _by_digest(out) if anywhere is None else anywhere
            place = next(_finished(anywhere.get(digest, ()), digest), None)
        if place is not None:
            found[path] = place
    return found


def _by_digest(out: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for one in earlier_runs(RUNS):
        if out.absolute() not in one.path.absolute().parents:
            found.setdefault(one.run, []).append(one.path)
    return found


def take_over(identities: Mapping[Path, Mapping[str, Any]], found: Mapping[Path, Path], out: Path) -> None:
    """Put finished runs of other folders into the folder of a comparison, and say which.

    A file takes no room twice where the file system has links. ``identities`` are those of ``find_finished``.
    """
    before = _read(out)
    missing = {str(path.relative_to(out)) for path in identities if not path.exists()}
    kept = {place: folder for place, folder in before.items() if place not in missing}
    places = {path: str(path.relative_to(out)) for path in found}
    taken = {place: _folder_of(found[path], place) for path, place in places.items()}
    noted = kept | taken
    _note(out, before, noted)  # first: a run that was copied, and not noted, would look trained here
    for path, source in found.items():
        try:
            _copy(source, path)
        except OSError as error:
            _say.warning("not reused: %s cannot be copied to %s: %s", source, path, error.strerror or "it has changed")
            del taken[places[path]]
    _note(out, noted, kept | taken)
    if taken:
        print(f"cil: note: {'; '.join(_sentences(taken))}", file=sys.stderr, flush=True)


def _note(out: Path, before: Mapping[str, str], taken: Mapping[str, str]) -> None:
    if dict(taken) != before:
        write_json_atomic(out / REUSED, sealed({"taken_over": dict(taken)}))


def _folder_of(source: Path, place: str) -> str:
    """The folder of the comparison that a run was found in; of a run that lies elsewhere the folder above."""
    inside = str(source).endswith(f"/{place}")
    return (str(source)[: -len(place) - 1] if inside else str(source.parent)) or "."


def remarks(out: Path) -> list[str]:
    """Sentences on the runs of a comparison that were taken over from other folders."""
    return _sentences(_read(out))


def _sentences(taken: Mapping[str, str]) -> list[str]:
    return [
        f"reused: {count} finished {'run' if count == 1 else 'runs'} of {folder}, of the same identity"
        for folder, count in sorted(Counter(taken.values()).items())
    ]


def _read(out: Path) -> dict[str, str]:
    try:
        content, whole = unseal(dict(json.loads((out / REUSED).read_bytes())))
        found = content if whole is None else dict(content["taken_over"])  # earlier versions had no sum
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        found, whole = {}, False
    if whole is False or not all(isinstance(folder, str) for folder in found.values()):
        _say.warning("%s is damaged: which runs were taken over from other folders is not known", out / REUSED)
        return {}
    return found


def _places(place: Path, out: Path) -> Iterator[Path]:
    """Where else a run with this place in a comparison may lie."""
    for above in dict.fromkeys((RUNS, out.parent)):
        if above.is_dir():
            folders = sorted(folder for folder in above.iterdir() if folder.is_dir())
            yield from (folder / place for folder in (above, *folders) if folder.absolute() != out.absolute())


def _finished(places: Iterable[Path], run: str) -> Iterator[Path]:
    """Those of the places that have the run, whole; of one that is damaged it is said why it is not taken."""
    for path in places:
        try:
            record = Record.load(path)
        except (RecordError, OSError):
            continue
        if record.status == "finished" and record.run == run:
            try:
                _check_whole(record)
            except (CilError, OSError) as error:
                _say.warning("not reused: %s", str(error).partition("; ")[0])
            else:
                yield path


def _check_whole(record: Record) -> None:
    """Read what a report and ``cil evaluate`` read of a run; an error names the first file missing or damaged."""
    from cil.engine.checkpoint import Checkpoints
    from cil.engine.recovery import committed, read_counts

    deque(record.lines(), maxlen=0)
    record.arrays().files()
    stored = Checkpoints(record.directory, run=record.run)
    done = committed(stored, record.results)
    for index in range(done):
        read_counts(stored, index, done, last=True)
    if done:
        stored.state(done - 1)


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(f"{PARTIAL}{os.getpid()}.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f"{PARTIAL}*.{target.name}"):
            shutil.rmtree(left)
        shutil.copytree(source, part, copy_function=_link, ignore=shutil.ignore_patterns(".lock"))
        part.rename(target)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _link(source: str, target: str) -> None:
    """A second name for a file that is only ever replaced whole; a copy of others, which lines are added to."""
    try:
        if Path(source).suffix not in (".safetensors", ".json"):
            raise OSError
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
