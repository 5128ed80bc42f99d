"""Tracking: the record of a run on disk, and the loggers that show it while it runs."""

from cil.tracking.files import RecordError
from cil.tracking.loggers import FileLogger, Logger, Loggers, build_loggers
from cil.tracking.record import Record, describe_environment
from cil.tracking.storage import (
    fsync_dir,
    identity_hash,
    plain,
    replacing,
    without_secrets,
    write_bytes_atomic,
    write_json_atomic,
)
from cil.tracking.upgrades import SCHEMA_VERSION
from cil.tracking.validation import STATUSES

__all__ = [
    "SCHEMA_VERSION", "STATUSES", "FileLogger", "Logger", "Loggers", "Record", "RecordError", "build_loggers",
    "describe_environment", "fsync_dir", "identity_hash", "plain", "replacing", "without_secrets", "write_bytes_atomic",
    "write_json_atomic",
]  # fmt: skip
