"""Asked to stop where no step is being made: at the next place at which nothing is lost."""

from __future__ import annotations

import os
import signal
from typing import ClassVar

import pytest
from toys import Rehearse, small_run

from cil.testing.compare import demand_same
from cil.tracking import Record


class Asked(Rehearse):
    """Is asked to stop in a hook of experience 1, once."""

    hook: ClassVar[str] = ""
    heard: ClassVar[list[str]] = []

    def _hear(self, hook):
        if self.num_classes == 4:
            Asked.heard.append(hook)
            if hook == Asked.hook:
                Asked.hook = ""
                os.kill(os.getpid(), signal.SIGINT)

    def phases(self, experience):
        yield from super().phases(experience)
        self._hear("trained")

    def after_experience(self, experience):
        self._hear("after")
        super().after_experience(experience)

    def predict(self, images):
        self._hear("predict")
        return super().predict(images)


@pytest.mark.parametrize(
    ("hook", "heard", "committed"),
    [
        ("trained", ["trained"], 1),  # the snapshot after the last phase is what it goes on from
        ("after", ["trained", "after"], 2),  # the boundary is committed, and evaluated when it goes on
        ("predict", ["trained", "after", "predict"], 2),  # one batch of four
    ],
)
def test_nothing_slow_is_begun_after_a_stop_was_asked_for(tmp_path, hook, heard, committed):
    options = {"evaluation_batch": 4, "keep": "all"}
    Asked.hook, Asked.heard = "", []
    straight = small_run(Asked, tmp_path / "straight", **options)
    expected = straight.execute()
    answered = 1 + 4 + 1  # exemplars for their means, four batches, some images again
    assert Asked.heard == ["trained", "after", *["predict"] * answered]
    Asked.hook, Asked.heard = hook, []
    with pytest.raises(KeyboardInterrupt):
        small_run(Asked, tmp_path / "other", **options).execute()
    assert Asked.heard == heard
    assert Record.load(tmp_path / "other").status == "interrupted"
    run = small_run(Asked, tmp_path / "other", **options)
    assert run.checkpoints.done() == committed
    Asked.hook = ""
    demand_same(f"asked to stop in {hook}", straight, expected, run, run.execute())
