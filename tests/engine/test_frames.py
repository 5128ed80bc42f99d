"""How far it is from a run to the loss of a strategy."""

from __future__ import annotations

import inspect

import torch.nn.functional as F
from toys import small_run

from cil.strategies import Strategy

MOST = 8  # frames from execute to loss


class Looking(Strategy):
    """Notes by which functions its loss is called."""

    frames: tuple[str, ...] = ()

    def loss(self, batch):
        names = [frame.function for frame in inspect.stack(context=0)]
        type(self).frames = tuple(reversed(names[: names.index("execute") + 1]))
        return F.cross_entropy(self.net(batch.images).logits, batch.slots)


def test_few_frames_lie_between_a_run_and_a_loss(tmp_path):
    small_run(Looking, tmp_path).execute()
    assert len(Looking.frames) <= MOST, Looking.frames
