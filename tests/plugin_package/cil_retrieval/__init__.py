"""A whole new kind of run, brought by a package: image retrieval over a gallery that grows.

A strategy learns classes as ever. It is then not asked which class an image has, but for other images of that class.
What is shared with class-incremental runs is inherited; this file names what is not, and imports none of it.
"""

from __future__ import annotations

from cil.kinds.classes import Classes


class Retrieval(Classes):
    """The kind of retrieval runs: recall and mean average precision over experiences."""

    name = "retrieval"
    progress = "recall_at_1"
    commands = "cil_retrieval.commands:COMMANDS"
    identity = "cil_retrieval.record_types:RetrievalIdentity"
    results = "cil_retrieval.record_types:RetrievalResults"
    works = "cil_retrieval.work:RetrievalWork"
    report = "cil_retrieval.section:sections"
    contract = "cil_retrieval.rules:RULES"
    tested = "cil_retrieval.rules:RetrievalSubject"


RETRIEVAL = Retrieval()
