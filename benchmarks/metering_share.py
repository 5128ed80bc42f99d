"""What metering and asking again take of a run: what they do in it, counted, times what that costs, measured apart.

    python benchmarks/metering_share.py --net smallconv --method finetune icarl
    python benchmarks/metering_share.py --net resnet32 --method icarl --epochs 20

Two runs differ by more than what is sought, above all on a loaded machine. None of the costs depends on the size of a
batch, so they are measured on steps of one image, whose arithmetic is small: plain ones, watched ones (every step is)
and counted ones (few are) in turn, hundreds of them, in CPU seconds of this thread. Then one run as it is: its steps,
the operators that were counted in it, and the seconds of asking again. Medians, with the interval that holds the true
one at 95 %. Dry runs are no part of it: they are the bill, before anything is trained.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import overhead
import torch

from cil.api import plan
from cil.contract import Phase
from cil.engine import learning
from cil.engine.asked_again import Asked
from cil.engine.cost import Cost
from cil.engine.fit import Fit
from cil.engine.step_kinds import StepWatch
from cil.memory import Budget
from cil.memory.meters import _Counting

Middle = tuple[float, float, float]  # median, and the ends of its interval


def middle(values: Sequence[float]) -> Middle:
    """The median, and the order statistics between which the true one lies at 95 %.

    >>> middle(range(101))
    (50, 40, 60)
    """
    ordered, half = sorted(values), 0.98 * math.sqrt(len(values))
    places = (len(ordered) / 2, len(ordered) / 2 - half, len(ordered) / 2 + half)
    found = [ordered[min(len(ordered) - 1, max(0, math.floor(place)))] for place in places]
    return found[0], found[1], found[2]


class Tally:
    """What the metering does while it is open: operators counted, steps watched, seconds of asking again."""

    def __init__(self) -> None:
        self.operators = self.steps = 0
        self.asking = 0.0

    @contextmanager
    def open(self) -> Iterator[None]:
        dispatch, step, again, asks = _Counting.__torch_dispatch__, Fit._step, Asked.again, learning.asks_again

        def dispatched(mode: Any, *given: Any) -> Any:
            self.operators += 1
            return dispatch(mode, *given)

        def stepped(fit: Fit, *given: Any) -> Any:
            self.steps += 1
            return step(fit, *given)

        def asked(*given: Any) -> bool:
            self.asking -= time.thread_time() if (found := asks(*given)) else 0.0  # a learner is rebuilt, and answers
            return found

        def ended(*given: Any) -> None:
            again(*given)
            self.asking += time.thread_time()

        with ExitStack() as stack:
            for owner, name, new in (
                (_Counting, "__torch_dispatch__", dispatched), (Fit, "_step", stepped),
                (learning, "asks_again", asked), (Asked, "again", ended),
            ):  # fmt: skip
                stack.enter_context(patch.object(owner, name, new))
            yield


def costs(net: str, count: int) -> tuple[Middle, Middle]:
    """Seconds by which the watch makes a step longer, and counting an operator."""
    work = overhead.make_work(net, "fp32")
    stream = overhead.make_stream(work)
    with tempfile.TemporaryDirectory() as folder:
        learners = plan("finetune", stream, net, Budget(exemplars=1), run_dir=folder).work.learners
        learner = learners.fresh(0)
        learners.grow(learner, 0)
    learner.train_mode()
    images, tally = torch.rand(2, *stream.image_shape), Tally()  # batch norm wants two
    optimizer, cost = torch.optim.SGD(learner.trainable(), lr=0.0), Cost()
    phase = Phase("main", stream[0].train, learner.loss)

    def plain() -> None:
        loss = learner.net(images).logits.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def metered(drawn: bool) -> None:
        with cost.step(learner, watch, phase, [1], True, drawn) as saving:
            with saving:
                plain()
            watch.note(["loss"])

    def seconds(step: Callable[[], None]) -> float:
        began = time.thread_time()
        step()
        return time.thread_time() - began

    watched, counted = [], []
    with StepWatch(learner) as watch, tally.open():
        for _ in range(5):
            metered(True)
        in_step, tally.operators = tally.operators // 5, 0
    for number in range(count):
        order = (1, -1)[number % 2]
        bare = seconds(plain)
        with StepWatch(learner) as watch:
            found = {drawn: seconds(lambda drawn=drawn: metered(drawn)) for drawn in (False, True)[::order]}
        watched.append(found[False] - bare)
        counted.append((found[True] - found[False]) / in_step)
    return middle(watched), middle(counted)


def main() -> None:
    """The two costs, then one line for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="smallconv", choices=sorted(overhead.SIZES))
    parser.add_argument("--method", nargs="+", default=["finetune", "icarl"])
    parser.add_argument("--epochs", type=int, default=None, help="of an experience; short by default")
    parser.add_argument("--steps", type=int, default=400, help="of each sort, to measure the costs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    watch, operator = costs(given.net, given.steps)
    for name, (median, low, high) in (("watching a step", watch), ("counting an operator", operator)):
        print(f"{given.net} {name}: {1e6 * median:.1f} microseconds ({1e6 * low:.1f} to {1e6 * high:.1f})", flush=True)
    for method in given.method:
        work, tally = overhead.make_work(given.net, "fp32", given.epochs), Tally()
        stream = overhead.make_stream(work)
        with tempfile.TemporaryDirectory() as folder, tally.open():
            began = time.process_time()
            overhead.framework(work, stream, method, given.net, Path(folder))
            whole = time.process_time() - began
        parts = [(tally.steps * a, tally.operators * b) for a, b in zip(watch, operator, strict=True)]
        found, low, high = (100 * (sum(part) + tally.asking) / whole for part in parts)
        print(
            f"{given.net} {method:9s} {found:.2f} % ({low:.2f} to {high:.2f}) of {whole:.1f} CPU s: {tally.steps:,} "
            f"steps watched {parts[0][0]:.3f}, {tally.operators:,} operators counted {parts[0][1]:.3f}, asking again "
            f"{tally.asking:.3f}", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
