"""The record: a run directory with the identity, the outcome and all numbers of a run."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cil.errors import ConfigError, ResumeError, TrainingError, nearest
from cil.tracking.digests import FileSum, sealed, unseal
from cil.tracking.files import INDEX_OF_ARRAYS, METRICS, RECORD, RecordError
from cil.tracking.lock import DirectoryLock
from cil.tracking.storage import (
    cannot_write,
    first_difference,
    identity_hash,
    in_short,
    plain,
    remove_partial,
    without_secrets,
    write_json_atomic,
)
from cil.tracking.upgrades import SCHEMA_VERSION, upgraded
from cil.tracking.validation import STATUSES, first_problem

if TYPE_CHECKING:
    import pandas

    from cil.tracking.arrays import Arrays, Part

FIRST_BOUNDARY = "checkpoint/experience-000.json"
RUN = "run"  # added to what is read: digest of the identity, as it was written


@dataclass
class Record:
    """One run directory. Only the process that trains writes it; everyone else loads it.

    Attributes:
        identity: Facts that distinguish runs: kind, config, strategy, stream, budget, seed, versions, device... Never
            changes, holds no secrets. Its type is the kind's (``identity_type``).
        environment: Further facts: processor, start time. No host names.
        results: Numbers so far. Percent, bytes, seconds; undefined is None. Those of a finished run are of the kind's
            ``results_type``.
        status: running, finished, interrupted, failed or over_budget.
        error: One line: the reason of a failure, or the excess over the budget.
        run: Digest of the identity as it was written; every file of the run is sealed with it.
        log: Of a finished run, bytes of ``metrics.jsonl`` (``offset``) and their SHA-256 (``log``), and that of the
            index of its ``arrays``, where it has any.
    """

    directory: Path
    identity: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    error: str | None = None
    writable: bool = False
    run: str = ""
    log: dict[str, Any] | None = None
    _log: IO[bytes] | None = field(default=None, repr=False)
    _log_sum: FileSum | None = field(default=None, repr=False)
    _lock: DirectoryLock | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """Name of the kind of run (entry point ``cil.kinds``)."""
        return str(self.identity["kind"])

    @classmethod
    def open(
        cls, directory: str | Path, identity: Mapping[str, Any], environment: Mapping[str, Any] | None = None
    ) -> Record:
        """Begin a run, or go on with one that has the same identity.

        Args:
            directory: Made if absent.
            identity: See the class. Differences are searched in its order.
            environment: Environment of a new run; default ``describe_environment``.

        Raises:
            ResumeError: if the directory belongs to another run, naming the first key that differs; or if another
                process is writing it.
            RecordError: if what is there cannot be read, is damaged, or is no record of its kind.
            ConfigError: if the directory cannot be made, or locked.
        """
        directory = Path(directory)
        own = plain(without_secrets(identity))
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run_dir={directory} cannot be made ({error.strerror}); choose another") from error
        lock = DirectoryLock(directory)
        try:
            for folder in (directory, (directory / INDEX_OF_ARRAYS).parent):
                remove_partial(folder)
            if (directory / RECORD).exists():
                content = _read(directory)
                difference = first_difference(content.get("identity"), own)
                if difference:
                    key, old, new = difference
                    raise ResumeError(
                        f"run_dir={directory} belongs to another run: {key or 'identity'} was {in_short(old)} and is "
                        f"now {in_short(new)}; choose another run_dir"
                    )
                record = cls._of(directory, content)
                record.writable, record._lock = True, lock
            else:
                facts = plain(describe_environment() if environment is None else environment)
                record = cls(directory, own, facts, writable=True, run=identity_hash(own), _lock=lock)
                record.save()
            return record
        except BaseException:
            lock.close()
            raise

    @classmethod
    def load(cls, directory: str | Path) -> Record:
        """Read a run directory, for reading only.

        Records of earlier versions are brought up to this one. Those of a kind that is not installed are not checked.

        Raises:
            RecordError: if ``record.json`` is missing, is of a newer version, is not what a record of its kind looks
                like, naming the file and the field, or is of another run than the files beside it.
        """
        record = cls._of(Path(directory), _read(Path(directory)))
        if record.log is not None and record._beside_another():
            raise RecordError(
                f"{record.directory / RECORD} is of another run than {METRICS} and other files beside it; "
                f"restore it, or remove it, and the same command makes it again from the checkpoints"
            )
        return record

    def _beside_another(self) -> bool:
        """True where the log is not that of this finished run, and files beside it say that they are of another."""
        named = {_run_named_in(self.directory / name) for name in (INDEX_OF_ARRAYS, FIRST_BOUNDARY)}
        return bool(named - {None, self.run}) and (self.directory / METRICS).exists() and not self._has_log()

    def _has_log(self) -> bool:
        path = self.directory / METRICS
        return self.log is None or (path.exists() and FileSum(path).upto(self.log["offset"]) == self.log["log"])

    @classmethod
    def _of(cls, directory: Path, content: dict[str, Any]) -> Record:
        problem = first_problem(content)
        if problem:
            raise RecordError(f"{directory / RECORD} {problem}; restore it or remove it")
        parts = {key: content[key] for key in ("identity", "environment", "results", "status", "error", RUN)}
        return cls(directory, **parts, log=content.get("log"))

    def refresh(self) -> None:
        """Take over results that another process wrote, such as a child that worked for this one.

        Raises:
            RecordError: if ``record.json`` cannot be read.
        """
        self.results |= _read(self.directory)["results"]

    def save(self) -> None:
        """Write ``record.json``, whole or not at all."""
        self._check_writable()
        content = {"schema_version": SCHEMA_VERSION, "status": self.status, "error": self.error}
        content |= {"identity": self.identity, "environment": self.environment, "results": self.results}
        content |= {} if self.log is None else {"log": self.log}
        write_json_atomic(self.directory / RECORD, sealed(content))

    def update(self, results: Mapping[str, Any]) -> None:
        """Replace the named results and save."""
        self.results |= plain(results)
        self.save()

    def set_status(self, status: str, error: str | None = None) -> None:
        """Set the status, and save. A finished run stays finished.

        Raises:
            RecordError: for an unknown status, or if the run has finished.
        """
        if status not in STATUSES:
            raise RecordError(f"status '{status}' is unknown; {nearest(status, STATUSES)}")
        if self.status == "finished" and status != "finished":
            raise RecordError(f"{self.directory} has finished and cannot become {status}; choose another run_dir")
        self.status, self.error = status, error
        index = self.directory / INDEX_OF_ARRAYS
        arrays = {"arrays": FileSum(index).whole()} if index.exists() else {}
        self.log = {**self.mark(), **arrays} if status == "finished" else None
        self.save()

    # metrics.jsonl

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl`` and hand it to the operating system."""
        data = json.dumps(plain(line), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        log = self._open_log()
        try:
            log.write(data.encode() + b"\n")
            log.flush()
        except OSError as error:
            raise TrainingError(cannot_write(self.directory / METRICS, error)) from error

    def mark(self) -> dict[str, Any]:
        """Where ``metrics.jsonl`` stands, for ``truncate``: ``offset`` in bytes, ``log``, the SHA-256 up to there."""
        offset, path = self.offset(), self.directory / METRICS
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(self._open_log().fileno())):
            raise TrainingError(f"{path} was removed or replaced while this run was writing it, so the run stops")
        return {"offset": offset, "log": self._sum_of_log(offset)}

    def _sum_of_log(self, length: int) -> str:
        self._log_sum = self._log_sum or FileSum(self.directory / METRICS)
        return self._log_sum.upto(length)

    def offset(self) -> int:
        """Bytes of ``metrics.jsonl``, all of them on the disk."""
        log = self._open_log()
        try:
            log.flush()
            os.fsync(log.fileno())
        except OSError as error:
            raise TrainingError(cannot_write(self.directory / METRICS, error)) from error
        return log.tell()

    def truncate(self, offset: int, log: str | None = None) -> None:
        """Remove the lines after ``offset``, so that a resumed run does not write them twice.

        Args:
            log: SHA-256 of what is before, where it is known.

        Raises:
            ResumeError: if the file is shorter, or is not the one the checkpoint was made with.
        """
        file = self._open_log()
        size = file.tell()
        if not 0 <= offset <= size:
            raise ResumeError(
                f"{self.directory / METRICS} has {size:,} bytes, the checkpoint was made at {offset:,}; "
                "restore the file or choose another run_dir"
            )
        if log is not None and self._sum_of_log(offset) != log:
            raise ResumeError(
                f"{self.directory / METRICS} is damaged: its first {offset:,} bytes are not those the checkpoint was "
                f"made with; restore the file, or remove {self.directory} to train anew"
            )
        file.truncate(offset)
        file.seek(offset)
        os.fsync(file.fileno())

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; one that a crash cut short is left out, and what follows a finished run.

        Raises:
            RecordError: if the file of a finished run is not the one that was written, or a line is none.
        """
        path = self.directory / METRICS
        if not self._has_log():
            raise RecordError(f"{path} is damaged or missing: it has not the SHA-256 it was written with; restore it")
        if path.exists():
            with path.open("rb") as file:
                left = path.stat().st_size if self.log is None else self.log["offset"]
                for number, line in enumerate(file, 1):
                    left -= len(line)
                    if left >= 0 and line.endswith(b"\n"):
                        yield self._line(line, number)

    def _line(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            path = self.directory / METRICS
            raise RecordError(f"{path} is damaged at line {number}; restore it, or run its command again") from error

    def frame(self) -> pandas.DataFrame:
        """A data frame with a line for each experience; see ``cil.tracking.lines``.

        Raises:
            MissingPackage: if pandas is not installed (the extra ``cil[frames]``).
        """
        from cil.tracking.lines import frame, lines

        return frame(lines(self))

    def _open_log(self) -> IO[bytes]:
        self._check_writable()
        if self._log is None:
            path = self.directory / METRICS
            try:
                path.touch()
                self._log = path.open("r+b")
            except OSError as error:
                raise TrainingError(f"cannot write {path}: {error.strerror}; choose another run_dir") from error
            whole = path.read_bytes().rfind(b"\n") + 1  # a crash may have cut the last line short
            self._log.truncate(whole)
            self._log.seek(whole)
        return self._log

    # arrays

    def add_arrays(self, name: str, arrays: Mapping[str, Part]) -> None:
        """Add one file of arrays, such as those of ``boundary-003``; what is there is not written again."""
        from cil.tracking.arrays import add_arrays

        self._check_writable()
        if arrays:
            add_arrays(self.directory, name, arrays, self.run)

    def arrays(self) -> Arrays:
        """All arrays by name, read when they are asked for.

        Raises:
            RecordError: if the index, or the one file of earlier releases, is damaged.
        """
        from cil.tracking.arrays import Arrays

        index, known = self.directory / INDEX_OF_ARRAYS, (self.log or {}).get("arrays")
        if known is not None and (not index.exists() or FileSum(index).whole() != known):
            raise RecordError(f"{index} is damaged or missing: it has not the SHA-256 it was written with; restore it")
        return Arrays(self.directory, self.run)

    def close(self) -> None:
        """Close the files; the directory may then be opened by another process."""
        for handle in (self._log, self._lock):
            if handle is not None:
                with suppress(OSError):  # a line that a full disk did not take: it was reported when it was written
                    handle.close()
        self._log = self._log_sum = self._lock = None
        self.writable = False

    def _check_writable(self) -> None:
        if not self.writable:
            raise RecordError(f"{self.directory} is open for reading only; Record.open(directory, identity) writes")
        self.check_place()

    def check_place(self) -> None:
        """Make sure that the directory is still there, and still the one that was opened.

        Raises:
            TrainingError: if it was removed or replaced.
        """
        if self._lock is not None:
            self._lock.check()


def describe_environment() -> dict[str, Any]:
    """Time and machine of a run, without host, user or path. ``cores``: those this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": cores,
    }


@contextmanager
def reading(record: Record) -> Iterator[None]:
    """Around what reads the content of a record: what it does not find is told in one line, with the file.

    Raises:
        RecordError: in place of the bare errors of Python.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RecordError(
            f"{record.directory / RECORD} is not what {record.kind} records look like ({type(error).__name__}: "
            f"{error}); restore it or remove it"
        ) from error


def _run_named_in(path: Path) -> str | None:
    """The run that a JSON file of a run names at its beginning; None where there is none."""
    with suppress(OSError), path.open("rb") as file:
        found = re.match(rb'{"run": ?"([0-9a-f]{12})"', file.read(40))
        return found[1].decode() if found else None
    return None


def _read(directory: Path) -> dict[str, Any]:
    """The content of ``record.json``, of today's version, and ``run``: its parts are there, and not looked into."""
    path = directory / RECORD
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RecordError(f"{directory} is no run directory: it has no {RECORD}; give one that has") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read ({error}); restore it or choose another run_dir") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1 or content.get("status") not in STATUSES:
        raise RecordError(f"{path} is no record: schema_version or status is wrong; restore it or remove it")
    if version > SCHEMA_VERSION:
        raise RecordError(f"{path} has schema_version {version}, this cil reads up to {SCHEMA_VERSION}: update cil")
    content, whole = unseal(content)
    now = upgraded({"error": None, "environment": {}, "results": {}} | content)
    if whole is False and first_problem(now) is None:
        raise RecordError(
            f"{path} is damaged: it has not the SHA-256 it was written with; restore it, or remove it, and the same "
            f"command makes it again from the checkpoints"
        )
    return now | {RUN: identity_hash(content["identity"]) if isinstance(content.get("identity"), dict) else ""}
