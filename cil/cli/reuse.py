"""Finished runs of other folders, taken over into a comparison in place of being trained again."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cil.errors import CilError
from cil.tracking import Record, RecordError, identity_hash, write_json_atomic
from cil.tracking.storage import PARTIAL

_say = logging.getLogger("cil.cli")
REUSED = "reused.json"  # in the folder of a comparison: run -> folder that it was taken from


def take_over(identities: Mapping[Path, Mapping[str, Any]], out: Path, root: Path = Path("runs")) -> None:
    """Put finished runs of the same identity into the folder of a comparison, and say which.

    Looked at are ``root``, the folder beside ``out``, and the folders in them. A file takes no room twice where the
    file system has links.

    Args:
        identities: Folder of a run, under ``out``, to its identity; those that are there already are left alone.
    """
    before = _read(out)
    kept, taken = dict(before), dict[str, str]()
    for path, identity in identities.items():
        if path.exists() and any(path.iterdir()):
            continue
        place = path.relative_to(out)
        kept.pop(str(place), None)
        found = next(_finished(_places(place, out, root), identity_hash(identity)), None)
        if found is None:
            continue
        try:
            _copy(found, path)
        except OSError as error:
            _say.warning("not reused: %s cannot be copied to %s: %s", found, path, error.strerror or "it has changed")
        else:
            taken[str(place)] = str(found)[: -len(str(place)) - 1] or "."
    if {**kept, **taken} != before:
        write_json_atomic(out / REUSED, {**kept, **taken})
    if taken:
        print(f"cil: note: {'; '.join(_sentences(taken))}", file=sys.stderr, flush=True)


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
        return {str(key): str(value) for key, value in json.loads((out / REUSED).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _places(place: Path, out: Path, root: Path) -> Iterator[Path]:
    """Where else a run with this place in a comparison may lie."""
    for above in dict.fromkeys((root, out.parent)):
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
    """Read what a report and ``cil evaluate`` read of a run.

    Raises:
        CilError: naming the first file that is missing or damaged.
    """
    from cil.engine.checkpoint import Checkpoints
    from cil.engine.recovery import read_counts

    deque(record.lines(), maxlen=0)
    record.arrays().files()
    stored = Checkpoints(record.directory, run=record.run)
    done = stored.done()
    for index in range(done):
        read_counts(stored, index, done, last=True)
    if done:
        stored.state(done - 1)


def _copy(source: Path, target: Path) -> None:
    """Copy a run, all or nothing."""
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
