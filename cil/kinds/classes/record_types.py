"""Types of what stands in the record of a run on a stream of classes."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from cil.tracking.record_types import (
    Accuracy,
    Caps,
    ExperienceDescription,
    Plan,
    Scores,
    Spending,
    StrategyIdentity,
)


class ClassStream(ExperienceDescription):
    """A stream of classes; ``domains`` where the same classes come from one after the other."""

    domains: NotRequired[list[str]]


class ClassIdentity(StrategyIdentity):
    """What makes a run on a stream of classes this run."""

    kind: Literal["classes"]
    stream: ClassStream


class StabilityGap(TypedDict):
    """How an earlier experience fell and came back while a later one was learned; see ``cil.metrics``."""

    earlier: int
    later: int
    gap: float | None
    recovery: float | None
    recovery_updates: float | None


class AnytimeResults(TypedDict):
    """Evaluation inside experiences; see ``cil.kinds.classes.anytime``."""

    every: int
    unit: str
    images: int | None
    updates: list[int]
    samples: list[int]
    experiences: list[int]
    accuracy: Scores
    accuracy_by_experience: list[Scores]
    a_auc: float | None
    online_accuracy: float | None
    average_anytime_accuracy: float | None
    min_accuracy: float | None
    worst_case_accuracy: float | None
    windowed_forgetting: dict[str, float | None]
    windowed_plasticity: dict[str, float | None]
    stability_gaps: list[StabilityGap]
    stability_gap: float | None
    flops: int


class DomainMeans(TypedDict):
    """Names of the domains, and means of R; see ``cil.metrics.domain_summary``."""

    names: list[str]
    in_domain: float | None
    next_domain: float | None
    backward: float | None
    forward: float | None


class ClassScores(Accuracy):
    """Accuracy over time and forgetting, with what some streams and settings add."""

    anytime: NotRequired[AnytimeResults]
    domains: NotRequired[DomainMeans]
    forgetting_by_class: NotRequired[float | None]


class ClassResults(ClassScores, Spending, Caps, Plan):
    """All results of a run on a stream of classes."""
