"""Run directories on disk: how large they are, what of them can go, and moving them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cil.errors import ConfigError
from cil.tracking.files import RECORD
from cil.tracking.lock import is_held
from cil.tracking.record import Record
from cil.tracking.storage import PARTIAL

SNAPSHOT, CHECKPOINT = "snapshot", "checkpoint"  # folders in a run directory


@dataclass(frozen=True)
class Removal:
    """A folder that can go, its bytes, and what is lost with it."""

    path: Path
    bytes: int
    loses: str


def bytes_below(path: Path) -> int:
    """Bytes of all files in a folder; a file with several names counts once."""
    files: dict[tuple[int, int], int] = {}
    for base, _, names in os.walk(path):
        for name in names:
            found = (Path(base) / name).lstat()
            files[found.st_dev, found.st_ino] = found.st_size
    return sum(files.values())


def status_of(record: Record) -> str:
    """As the record says, but ``stopped`` for a run that says ``running`` where no live process holds its lock."""
    stopped = record.status == "running" and not record.writable and not is_held(record.directory)
    return "stopped" if stopped else record.status


def removable(records: Iterable[Record], *, unfinished: bool, checkpoints: bool, trials: bool) -> list[Removal]:
    """What can go without touching the results of finished runs.

    Args:
        unfinished: Runs that did not finish, whole; by default only their snapshots inside an experience stay.
        checkpoints: Carried states of finished runs; their tables and curves stay.
        trials: Runs of tunings, whole.
    """
    found = []
    for record in records:
        directory = record.directory
        if is_held(directory):
            continue
        if trials and record.identity.get("role") == "trial":
            found.append(Removal(directory, bytes_below(directory), "a trial of a tuning"))
        elif unfinished and record.status != "finished":
            found.append(Removal(directory, bytes_below(directory), f"a run that is {status_of(record)}"))
        elif checkpoints and record.status == "finished" and (directory / CHECKPOINT).is_dir():
            lost = "states: no cil evaluate, audit, predict or export any more"
            found.append(Removal(directory / CHECKPOINT, bytes_below(directory / CHECKPOINT), lost))
        if record.status == "finished" and (directory / SNAPSHOT).is_dir():
            found.append(Removal(directory / SNAPSHOT, bytes_below(directory / SNAPSHOT), "nothing"))
    return found


def remove(removals: Iterable[Removal]) -> int:
    """Delete them; bytes that were freed."""
    freed = 0
    for one in removals:
        shutil.rmtree(one.path)
        freed += one.bytes
    return freed


def move(source: Path, target: Path, records: Iterable[Record]) -> Path:
    """Move a run directory, or a folder of them; across file systems it is copied whole before the old one goes.

    Args:
        target: The new place; a folder that exists takes the source into it, as ``mv`` does.

    Raises:
        ConfigError: where a run in it is being written, the target is taken, or cannot be made, or lies in a run:
            reports look for no run below a run.
    """
    place = target / source.name if target.is_dir() else target
    if place.exists():
        raise ConfigError(f"{place} exists already; choose another place")
    if source.absolute() in (place.absolute(), *place.absolute().parents):
        raise ConfigError(f"{source} cannot be moved into itself")
    inside = next((folder for folder in place.absolute().parents if (folder / RECORD).is_file()), None)
    if inside is not None:
        raise ConfigError(f"{place} would lie in {inside}, which is a run; choose another place")
    busy = next((record.directory for record in records if is_held(record.directory)), None)
    if busy is not None:
        raise ConfigError(f"{busy} is being written by another process; move it when that has ended")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{place.parent} cannot be made ({error.strerror}); choose another place") from None
    try:
        source.rename(place)
    except OSError:
        part = place.with_name(f"{PARTIAL}{os.getpid()}.{place.name}")
        shutil.copytree(source, part, symlinks=True)
        part.rename(place)
        shutil.rmtree(source)
    return place
