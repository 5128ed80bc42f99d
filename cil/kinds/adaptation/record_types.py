"""Types of what stands in the record of an adaptation run."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from cil.tracking.record_types import BoundaryLedger, Given, Identity, Scores, StreamDescription


class ShiftDescription(StreamDescription):
    """A stream of test images that shift; its settings stand beside, by name."""

    segments: list[str]
    counts: list[int]
    domains: list[str]


class SourceDescription(TypedDict):
    """The network that is adapted: public or own ``weights``, or that of a finished ``run``."""

    kind: str
    name: str


class AdaptationIdentity(Identity):
    """What makes an adaptation run this run."""

    kind: Literal["adaptation"]
    adapter: str
    source: SourceDescription
    stream: ShiftDescription
    batch_size: NotRequired[Given]


class AdaptationFlops(TypedDict):
    """Operations on source data and at deployment; sums up to each segment; of all."""

    source: int
    deploy: int
    adapt: list[int]
    total: int


class AdaptationSeconds(TypedDict):
    """Seconds of the same, and of a batch that no meter slowed down."""

    source: float
    deploy: float
    adapt: list[float]
    evaluate: list[float]
    per_batch: float | None
    total: float


class AdaptationResults(TypedDict):
    """All results of an adaptation run; see ``cil.kinds.adaptation.results``."""

    domain_errors: Scores
    mean_error: float | None
    segment_errors: Scores
    online_error: float | None
    clean_error_before: float | None
    clean_error_after: float | None
    ledger: list[BoundaryLedger]
    flops: AdaptationFlops
    seconds: AdaptationSeconds
    peak_training_bytes: int | None
    peak_source_training_bytes: int | None
