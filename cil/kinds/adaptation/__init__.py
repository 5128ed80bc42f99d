"""Runs of an adapter: a trained network meets a stream of shifting test images."""

from __future__ import annotations

from cil.kinds.parts import KindOfParts


class Adaptation(KindOfParts):
    """The kind of adaptation runs: online error by domain, bytes and seconds."""

    name = "adaptation"
    learner = "adapter"
    unit = "segments"
    progress = "segment_errors"
    by_step = ("flops", "seconds")  # the first ledger is that of the deployment
    commands = "cil.kinds.adaptation.commands:COMMANDS"
    identity = "cil.kinds.adaptation.record_types:AdaptationIdentity"
    results = "cil.kinds.adaptation.record_types:AdaptationResults"
    works = "cil.kinds.adaptation.work:AdaptationWork"
    report = "cil.kinds.adaptation.section:sections"
    contract = "cil.kinds.adaptation.rules:RULES"
    tested = "cil.kinds.adaptation.subject:AdapterSubject"

    def runs(self, learner: type) -> bool:
        from cil.adapt import Adapter

        return issubclass(learner, Adapter)


ADAPTATION = Adaptation()
