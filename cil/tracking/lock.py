"""The lock of a run directory: one process writes it, and notices when it is taken away."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from cil.errors import ConfigError, ResumeError, TrainingError

LOCK = ".lock"
GLANCE = 0.05  # seconds after which a lock is tried again: a reader that looks whether it is held has let go of it
_say = logging.getLogger("cil.tracking")


class DirectoryLock:
    """Held until it is closed, or the process ends.

    Where the file system has no locks this is said, and the run goes on.

    Raises:
        ResumeError: if another process holds it. ConfigError: if its file cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._path = directory, directory / LOCK
        try:
            self._handle = self._path.open("a")
        except OSError as error:
            raise ConfigError(
                f"{self._path} cannot be opened ({error.strerror}); make it writable, or choose another run_dir"
            ) from error
        held = os.fstat(self._handle.fileno())
        self._file = held.st_dev, held.st_ino
        try:
            self._lock()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl

            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                time.sleep(GLANCE)
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ResumeError(
                f"run_dir={self._directory} is being written by another process; wait for it, or choose another run_dir"
            ) from None
        except (ImportError, OSError):
            _say.warning(
                "run_dir=%s is on a file system without locks: start no second run in it while this one runs",
                self._directory,
            )

    def check(self) -> None:
        """Make sure that the directory is still the one that was locked.

        Raises:
            TrainingError: if it was removed, or another was put in its place.
        """
        try:
            there = self._path.stat()
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != self._file:
            raise TrainingError(
                f"run_dir={self._directory} was removed or replaced while this run was writing to it, so the run "
                f"stops; leave the folder where it is, and start it again"
            )

    def close(self) -> None:
        with suppress(OSError):
            self._handle.close()


def is_held(directory: Path) -> bool:
    """True if a process holds the lock of a run directory, or where that cannot be known."""
    try:
        import fcntl

        with (directory / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:  # it was copied from elsewhere, or a run of another place left it
        return False
    except (ImportError, OSError):
        return True
