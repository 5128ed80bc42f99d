"""Names of the files in a run directory, and the error of one that cannot be read."""

from __future__ import annotations

from cil.errors import CilError

RECORD, METRICS, INDEX_OF_ARRAYS = "record.json", "metrics.jsonl", "arrays/index.jsonl"


class RecordError(CilError):
    """A run directory has no readable record, or one that may not be written."""
