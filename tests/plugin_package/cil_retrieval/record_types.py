"""Types of what stands in the record: the framework checks each record that it reads against them."""

from __future__ import annotations

from typing import Literal

from cil.tracking.record_types import Caps, ExperienceDescription, Plan, Spending, StrategyIdentity


class RetrievalIdentity(StrategyIdentity):
    """What makes a retrieval run this run."""

    kind: Literal["retrieval"]
    stream: ExperienceDescription


class RetrievalResults(Spending, Caps, Plan):
    """Percent after each experience, and their means; ``gallery`` counts images. The rest is as of all strategies."""

    recall_at_1: list[float]
    mean_average_precision: list[float]
    average_recall_at_1: float
    average_mean_average_precision: float
    gallery: list[int]
