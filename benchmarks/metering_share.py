"""What metering and asking again take of a run: seconds inside their own functions, in one run, against the whole.

    python benchmarks/metering_share.py --net smallconv --method finetune icarl der
    python benchmarks/metering_share.py --net resnet32 --method icarl --epochs 20

Two runs that are compared differ by more than what is sought, above all on a loaded machine (``overhead.py
--metering``). Here one run is measured: a clock of this thread's CPU seconds changes hands at each entry to and exit
from a function of the metering, also where that calls the run's own work. What a call costs before it reaches such a
function, in torch, is measured apart on small tensors, and added for each call. The clock's own time is in the sum,
so it is rather too large. Dry runs before training are no part of it: they are the bill, whatever is trained.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import overhead
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cil.engine import fit, learning
from cil.engine.asked_again import Asked
from cil.engine.cost import Cost
from cil.engine.step_kinds import StepWatch, _Call
from cil.memory import Flops, OptimizerSteps, SavedBytes
from cil.memory.meters import _Counting

WORK = "work"  # all that is no metering
OPERATORS, SAVED, STEPS, ASKING = "operators", "saved bytes", "steps and hooks", "asking again"
FUNCTIONS = (  # owner, name, the part that they are
    (SavedBytes, "__init__", SAVED), (SavedBytes, "_pack", SAVED), (SavedBytes, "_release", SAVED),
    (SavedBytes, "__enter__", SAVED), (SavedBytes, "__exit__", SAVED),
    (StepWatch, "__enter__", STEPS), (StepWatch, "__exit__", STEPS), (StepWatch, "take", STEPS),
    (StepWatch, "note", STEPS), (StepWatch, "_graded", STEPS), (_Call, "__call__", STEPS),
    (OptimizerSteps, "_stepped", STEPS), (Cost, "bill_gradients", STEPS), (fit, "drawn_steps", STEPS),
)  # fmt: skip
CONTEXTS = (
    (Flops, "counting", OPERATORS), (Flops, "counting_rest", OPERATORS),
    (Cost, "step", STEPS), (Cost, "hook", STEPS), (Cost, "adjusting", STEPS),
)  # fmt: skip


class Hands:
    """Whose time it is: CPU seconds of this thread by part, and how often each function was called."""

    def __init__(self) -> None:
        self.seconds, self.calls = Counter[str](), Counter[str]()
        self._stack, self._mark = [WORK], time.thread_time()

    def to(self, part: str) -> None:
        self._pass_on()
        self._stack.append(part)

    def back(self) -> None:
        self._pass_on()
        self._stack.pop()

    def _pass_on(self) -> None:
        now = time.thread_time()
        self.seconds[self._stack[-1]] += now - self._mark
        self._mark = now

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, in whose time ``part`` goes on."""
        name = getattr(function, "__qualname__", part).rpartition(".<locals>.")[2]

        @wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            self.calls[name] += 1
            self.to(part)
            try:
                return function(*given, **named)
            finally:
                self.back()

        return call

    def entered(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """A maker of contexts, of which entry and exit are the part's time."""

        @wraps(function)
        @contextmanager
        def around(*given: Any, **named: Any) -> Iterator[Any]:
            context = function(*given, **named)
            value = self.timed(context.__enter__, part)()
            try:
                yield value
            except BaseException as error:
                if not self.timed(context.__exit__, part)(type(error), error, error.__traceback__):
                    raise
            else:
                self.timed(context.__exit__, part)(None, None, None)

        return around


class Operator:
    """An operator of torch, whose own time is work."""

    def __init__(self, func: Any, hands: Hands) -> None:
        self.func, self._call = func, hands.timed(func, WORK)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._call(*given, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def __hash__(self) -> int:
        return hash(self.func)

    def __eq__(self, other: object) -> bool:
        return self.func == getattr(other, "func", other)


@contextmanager
def watched(hands: Hands) -> Iterator[None]:
    """Around a run: all functions of the metering are timed."""
    operators: dict[Any, Operator] = {}
    dispatch, listening, again, asks = _Counting.__torch_dispatch__, Asked.listening, Asked.again, learning.asks_again

    def dispatched(mode: Any, func: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        known = operators.get(func) or operators.setdefault(func, Operator(func, hands))
        return dispatch(mode, known, types, given, named)

    def listened(asked: Asked, predict: Any) -> Any:
        return hands.timed(listening(asked, hands.timed(predict, WORK)), ASKING)

    def asked_for(*given: Any) -> bool:
        found = asks(*given)
        if found:
            hands.to(ASKING)  # the learner is rebuilt, and answers once more
        return found

    def ended(*given: Any) -> None:
        try:
            again(*given)
        finally:
            hands.back()

    with ExitStack() as stack:
        for owner, name, part in FUNCTIONS:
            stack.enter_context(patch.object(owner, name, hands.timed(getattr(owner, name), part)))
        for owner, name, part in CONTEXTS:
            stack.enter_context(patch.object(owner, name, hands.entered(getattr(owner, name), part)))
        stack.enter_context(patch.object(_Counting, "__torch_dispatch__", hands.timed(dispatched, OPERATORS)))
        stack.enter_context(patch.object(Asked, "listening", listened))
        stack.enter_context(patch.object(learning, "asks_again", asked_for))
        stack.enter_context(patch.object(Asked, "again", ended))
        yield


class _Through(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def ways(count: int = 2000, blocks: int = 15) -> dict[str, float]:
    """Seconds that a call takes on its way to us: of an operator, of a module with a hook. Medians of blocks."""
    one, plain, hooked = torch.ones(1), nn.Identity(), nn.Identity()
    hooked.register_forward_pre_hook(lambda module, inputs: None)

    def seconds(work: Callable[[], Any]) -> float:
        began = time.thread_time()
        for _ in range(count):
            work()
        return (time.thread_time() - began) / count

    through, calls = [], []
    for _ in range(blocks):
        bare = seconds(one.neg)
        with _Through():
            through.append(seconds(one.neg) - bare)
        calls.append(seconds(partial(hooked, one)) - seconds(partial(plain, one)))
    return {"operator": statistics.median(through), "module": statistics.median(calls)}


def share(net: str, method: str, epochs: int | None) -> dict[str, float]:
    """Seconds of one run by part, and the ``whole``."""
    work = overhead.make_work(net, "fp32", epochs)
    stream, cost, hands = overhead.make_stream(work), ways(), Hands()
    with tempfile.TemporaryDirectory() as folder, watched(hands):
        began = time.process_time()
        overhead.framework(work, stream, method, net, Path(folder))
        whole = time.process_time() - began
    found = {part: hands.seconds[part] for part in (OPERATORS, SAVED, STEPS, ASKING)}
    found[OPERATORS] += cost["operator"] * hands.calls["dispatched"]
    found[SAVED] += cost["operator"] * hands.calls[SavedBytes._pack.__qualname__]
    found[STEPS] += cost["operator"] * hands.calls[StepWatch._graded.__qualname__]
    found[STEPS] += cost["module"] * hands.calls[_Call.__call__.__qualname__]
    return {**found, "whole": whole}


def main() -> None:
    """One line for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="smallconv", choices=sorted(overhead.SIZES))
    parser.add_argument("--method", nargs="+", default=["finetune", "icarl", "der"])
    parser.add_argument("--epochs", type=int, default=None, help="of an experience; short by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    share(given.net, "finetune", 1)  # warms up
    for method in given.method:
        found = share(given.net, method, given.epochs)
        whole = found.pop("whole")
        each = ", ".join(f"{part} {seconds:.3f}" for part, seconds in found.items())
        print(f"{given.net} {method:9s} {100 * sum(found.values()) / whole:.2f} % of {whole:.1f} CPU s ({each})", flush=True)


if __name__ == "__main__":
    main()
