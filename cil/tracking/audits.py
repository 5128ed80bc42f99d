"""Audits of a run: what came out where an experience was redone from its stored state. They lie beside the record."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from cil.targets import fits
from cil.tracking.digests import sealed, unseal
from cil.tracking.storage import plain, write_json_atomic

AUDITS = "audits.json"
VERDICTS = ("equal", "differs")
_say = logging.getLogger("cil.tracking")


@dataclass(frozen=True)
class Audit:
    """One experience redone.

    Attributes:
        run: Hash of the identity of the run: audits of another run that was in the folder are not read.
        experience: Number of the boundary that it leads to.
        compared: Parts whose bits were compared: ``state``, ``answers``, ``facts``.
        verdict: ``equal`` or ``differs``.
        key: The first thing that differs, or the error that was raised; empty where all is equal.
        elsewhere: In what the audit was not like the run: code, versions, device...; by name what the run had, and what
            the audit had. A difference then says nothing.
        device: Where it was redone: only on the CPU a run has the same bits again for sure.
        code, versions: Digest of the code, and versions of packages, with which it was redone.
    """

    run: str
    experience: int
    compared: tuple[str, ...]
    verdict: str
    key: str = ""
    elsewhere: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    code: str = ""
    versions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        return self.verdict == "equal"

    @property
    def refutes(self) -> bool:
        """True if the run cannot have come about as its record says."""
        return not self.equal and not self.elsewhere and self.device == "cpu"


_TYPES = get_type_hints(Audit)


def read_audits(directory: Path, run: str) -> list[Audit]:
    """Audits of a run, in order of its experiences; what is damaged, or of another run, is left out with a warning."""
    path = directory / AUDITS
    try:
        content, whole = unseal(dict(json.loads(path.read_bytes())))
        found = [_read(line) for line in list(content["audits"])]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        found, whole = [], False
    if whole is False or None in found:
        _say.warning("%s is damaged, so no audit of this run is shown; audit it again", path)
        return []
    own = {audit.experience: audit for audit in found if audit is not None and audit.run == run}
    if len(own) < len(found):
        _say.warning("%s has audits of another run, which are not shown", path)
    return [own[experience] for experience in sorted(own)]


def _read(line: Any) -> Audit | None:
    if not isinstance(line, dict) or line.keys() != _TYPES.keys():
        return None
    if not all(fits(line[name], hint) for name, hint in _TYPES.items()) or line["verdict"] not in VERDICTS:
        return None
    return Audit(**line | {"compared": tuple(line["compared"])})


def write_audit(directory: Path, audit: Audit) -> None:
    """Keep an audit, in place of an earlier one of the same experience."""
    others = [one for one in read_audits(directory, audit.run) if one.experience != audit.experience]
    kept = sorted([*others, audit], key=lambda one: one.experience)
    write_json_atomic(directory / AUDITS, sealed(plain({"audits": [asdict(one) for one in kept]})))
