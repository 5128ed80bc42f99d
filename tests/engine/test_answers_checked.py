"""Scores are plain numbers: nobody who handed them over is asked when they are compared with labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cil.adapt.source import SourceOnly
from cil.api import plan
from cil.engine.anytime import Anytime
from cil.errors import ContractError
from cil.memory import Budget
from cil.strategies.finetune import Finetune
from cil.strategies.replay import Replay
from cil.testing.shifts import toy_adaptation, toy_shifts
from cil.testing.toy import toy_run, toy_stream


def same_as_asked(function: Any, args: Any, kwargs: Any) -> Any:
    """Equal to whatever labels are compared with it."""
    if getattr(function, "__name__", "") in ("eq", "__eq__") and isinstance(args[1], Tensor) and args[1].ndim == 1:
        return torch.ones(len(args[1]), dtype=torch.bool)
    return function(*args, **kwargs)


class Agrees(Tensor):
    """Scores that are equal to whatever label they are compared with."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = same_as_asked(func, args, kwargs or {})
        return found.as_subclass(cls) if isinstance(found, Tensor) and found.dtype is not torch.bool else found


class SubclassAnswers(Finetune):
    def predict(self, images: Tensor) -> Tensor:
        return super().predict(images).as_subclass(Agrees)


class FurtherSubclass(Finetune):
    def further_answers(self, images: Tensor, output: Any) -> dict[str, Tensor]:
        return {"other": output.logits.as_subclass(Agrees)}


class Open(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return same_as_asked(func, args, kwargs or {})


class LeavesOpen(Finetune):
    """A mode that goes on after the hook that opened it."""

    mode = Open()

    def after_experience(self, experience: Any) -> None:
        self.mode.__enter__()


@pytest.mark.parametrize("cheat", [SubclassAnswers, FurtherSubclass])
def test_answers_of_a_class_of_their_own_are_refused(cheat, tmp_path):
    with pytest.raises(ContractError, match=rf"{cheat.__name__}\.\w+ gives a Agrees; allowed: a plain torch.Tensor"):
        toy_run(cheat, toy_stream(), tmp_path).execute()


def test_they_are_refused_inside_an_experience_and_of_adapters_too(tmp_path):
    with pytest.raises(ContractError, match=r"inside|gives a Agrees"):
        toy_run(SubclassAnswers, toy_stream(), tmp_path / "one", anytime=Anytime(every=1)).execute()

    class Adapting(SourceOnly):
        def adapt_and_predict(self, images: Tensor) -> Tensor:
            return super().adapt_and_predict(images).as_subclass(Agrees)

    with pytest.raises(ContractError, match=r"Adapting.adapt_and_predict gives a Agrees"):
        toy_adaptation(Adapting, toy_shifts(), tmp_path / "two").execute()


def test_a_mode_of_torch_that_is_left_open_is_refused(tmp_path):
    try:
        with pytest.raises(ContractError, match=r"a mode of torch, Open, is open after LeavesOpen.predict"):
            toy_run(LeavesOpen, toy_stream(), tmp_path).execute()
    finally:
        LeavesOpen.mode.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda net, images: net(images), "gives a Output; .*; its logits are meant, perhaps"),
        (lambda net, images: net(images).logits.numpy(), "gives a ndarray; allowed: a plain torch.Tensor"),
        (lambda net, images: None, "gives a NoneType"),
        (lambda net, images: net(images).logits > 0, "scores that are torch.bool"),
        (lambda net, images: net(images).logits + 0j, "scores that are torch.complex64"),
    ],
)
def test_what_is_no_tensor_of_scores_is_told_in_one_line(answer, says, tmp_path):
    class Odd(Finetune):
        def predict(self, images: Tensor) -> Tensor:
            return answer(self.net, images)  # type: ignore[no-any-return]

    with pytest.raises(ContractError, match=says):
        toy_run(Odd, toy_stream(), tmp_path).execute()


def test_the_classes_of_an_evaluation_are_the_streams(tmp_path):
    class SaysFewer(Finetune):
        """Answers for two classes and says that there are no more."""

        def load_state(self, state: Any) -> None:
            super().load_state(state)
            self.num_classes = 2

        def predict(self, images: Tensor) -> Tensor:
            return super().predict(images)[:, :2]

    with pytest.raises(ContractError, match=r"predict gave scores of shape \(\d+, 2\) for \d+ images and 4 classes"):
        toy_run(SaysFewer, toy_stream(), tmp_path).execute()


# what is lent is a copy ----------------------------------------------------------------------------------------------


class TellsMore(Replay):
    """Says in the stream's own counts that more images arrive, and gives up what was never there."""

    def accepts(self, signature: Any) -> dict[int, int]:
        own = dict(signature.counts)
        for slot in own:
            signature.counts[slot] = 10**6
        return own


def test_a_learner_has_a_signature_of_its_own(tmp_path):
    budget = Budget(exemplars=10, scope="carried+incoming")
    stream = toy_stream()
    before = [dict(signature.counts) for signature in stream.signatures]
    record = toy_run(TellsMore, stream, tmp_path, budget=budget).execute()
    assert max(record.results["exemplars"]) <= 10 and set(record.results["given_up"]) == {0}
    assert [dict(signature.counts) for signature in stream.signatures] == before


def test_what_is_put_on_a_signature_does_not_reach_the_next_experience(tmp_path):
    met = []

    class Stashes(Finetune):
        def grow(self, signature: Any) -> None:
            super().grow(signature)
            met.append(hasattr(signature, "stash"))
            object.__setattr__(signature, "stash", 1)

        def before_experience(self, experience: Any) -> None:
            object.__setattr__(experience.signature, "stash", experience.train)
            object.__setattr__(experience.signature, "present", (10**6,))  # would take it out of the evaluation

    record = toy_run(Stashes, toy_stream(), tmp_path).execute()
    assert met and not any(met)
    assert all(value is not None for value in record.results["accuracy_matrix"][-1])


def test_what_is_put_on_other_things_that_are_lent_reaches_no_other_experience(tmp_path):
    met = []

    class Stashes(Finetune):
        def before_experience(self, experience: Any) -> None:
            lent = [self.context.augment, self.make_net, self.make_net.template]
            met.append([hasattr(one, "stash") for one in lent])
            for one in lent:
                object.__setattr__(one, "stash", experience.index)

    stream = toy_stream()
    plan(Stashes, stream, "smallconv", run_dir=tmp_path).execute()
    assert met == [[False] * 3] * len(stream)


def test_a_logger_gets_copies(tmp_path):
    class Writes:
        def start(self, identity: Any, run_dir: Any, name: str, group: str | None) -> None:
            identity["bound"] = "changed"

        def log(self, kind: str, values: Any, axes: Any) -> None:
            values.clear()
            axes.clear()

        def table(self, name: str, columns: Any, rows: Any) -> None: ...

        def finish(self, status: str) -> None: ...

    record = toy_run(Finetune, toy_stream(), tmp_path, loggers=[Writes(), Writes()]).execute()
    assert record.identity["bound"] is False and record.results["accuracy_curve"]
