"""Contract checks: those of class streams, on toy galleries, and one of its own."""

from __future__ import annotations

from typing import cast

import torch

from cil.kinds.classes import rules
from cil.kinds.classes.subject import StrategyRun, StrategySubject
from cil.testing import toy_stream, uneven_stream
from cil.testing.compare import close, demand
from cil_retrieval.gallery import GalleryStream
from cil_retrieval.work import embed


class RetrievalSubject(StrategySubject):
    """A strategy under test on galleries."""

    toy = staticmethod(lambda **seeds: GalleryStream.of(toy_stream(**seeds)))
    uneven = staticmethod(lambda: GalleryStream.of(uneven_stream()))


def a_query_finds_the_same_alone(subject: RetrievalSubject) -> None:
    """A query finds the same images when it is asked alone, and when the gallery lies in another order."""
    run = cast(StrategyRun, subject.finished())
    queries, gallery = run.images()[::2], run.images()[1::2]
    order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(0))
    for _, learner in run.learners():
        with run.work.learners.answering(learner):
            asked, held, shuffled = (embed(learner, images) for images in (queries, gallery, gallery[order]))
            alone = torch.cat([embed(learner, query[None]) for query in queries])
        near = asked @ held.T
        demand(close(near, alone @ held.T), "a query that is asked alone finds other images")
        demand(close(near[:, order], asked @ shuffled.T), "a gallery in another order has other images near a query")


RULES = (*rules.RULES, a_query_finds_the_same_alone)
