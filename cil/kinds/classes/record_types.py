"""Types of what stands in the record of a run on a stream of classes."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from cil.tracking.record_types import (
    Accuracy,
    AnytimeResults,
    Caps,
    ExperienceDescription,
    Plan,
    Scores,
    Spending,
    StrategyIdentity,
)


class ClassStream(ExperienceDescription):
    """A stream of classes; ``domains`` where the same classes come from one after the other.

    Of a pool of data sets: ``origins``, the set of each slot, and ``pool``, the same in any order of the classes.
    ``groups`` of test images by column, where the data set names some.
    """

    domains: NotRequired[list[str]]
    pool: NotRequired[str]
    origins: NotRequired[list[str]]
    groups: NotRequired[dict[str, list[str]]]


class ClassIdentity(StrategyIdentity):
    """What makes a run on a stream of classes this run."""

    kind: Literal["classes"]
    stream: ClassStream


class DomainMeans(TypedDict):
    """Names of the domains, and means of R; see ``cil.metrics.domain_summary``."""

    names: list[str]
    in_domain: float | None
    next_domain: float | None
    backward: float | None
    forward: float | None


class AnswerScores(TypedDict):
    """Accuracy of one of several answers, on all classes seen after each experience; null where it was not given."""

    accuracy_curve: Scores
    average_incremental_accuracy: float | None
    last_accuracy: float | None
    top5_curve: Scores


class Averages(TypedDict):
    """Accuracy after each experience on all classes seen, as a mean over images, over classes and over data sets.

    The last one, and that on each of the ``sets``, on pools alone.
    """

    by_image: Scores
    by_class: Scores
    by_set: NotRequired[Scores]
    sets: NotRequired[dict[str, Scores]]


class GroupScores(TypedDict):
    """Accuracy on each group of the test images after each experience; of all classes seen.

    ``worst`` has the lowest accuracy, ``disparity`` is the highest less the lowest, among groups of ten images or more;
    the others are ``unranked``. ``count`` is of the last experience.
    """

    names: list[str]
    count: list[int]
    accuracy: list[Scores]
    worst: list[str | None]
    worst_accuracy: Scores
    disparity: Scores
    unranked: list[str]


class AcceptedScores(TypedDict):
    """Accuracy where several classes of an image count as right, on the ``counted`` images that have one seen."""

    accuracy_curve: Scores
    last_accuracy: float | None
    counted: list[int]


class OpenSetScores(TypedDict):
    """Known against unknown classes after each experience, by the maximum logit; null where no class is unknown.

    ``unknown`` counts images; the means are over the experiences that have some.
    """

    score: Literal["max_logit"]
    auroc: Scores
    fpr95: Scores
    aupr_unknown: Scores
    aupr_known: Scores
    oscr: Scores
    unknown: list[int]
    mean_auroc: float | None
    mean_oscr: float | None


class ClassScores(Accuracy):
    """Accuracy over time and forgetting, with what some streams and settings add.

    ``answer`` names the method's own among its ``answers``: that of all other results. Records of versions up to 0.3
    have neither. ``metrics`` are those that other packages bring. ``task_identification_curve`` is the percent of
    answers within the right experience, where each class has one; ``validation_curve`` is the accuracy on held-out
    training images.
    """

    averages: NotRequired[Averages]
    groups: NotRequired[dict[str, GroupScores]]
    accepted: NotRequired[AcceptedScores]
    answer: NotRequired[str]
    answers: NotRequired[dict[str, AnswerScores]]
    anytime: NotRequired[AnytimeResults]
    domains: NotRequired[DomainMeans]
    forgetting_by_class: NotRequired[float | None]
    metrics: NotRequired[dict[str, float | None]]
    task_identification_curve: NotRequired[Scores]
    validation_curve: NotRequired[Scores]
    open_set: NotRequired[OpenSetScores]


class ClassResults(ClassScores, Spending, Caps, Plan):
    """All results of a run on a stream of classes."""
