"""What an author forgets to keep is refused in a plain line, before it is lost."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from functools import lru_cache, partial
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cil.errors import ConfigError, NotKept
from cil.memory import Budget
from cil.models import frozen_copy
from cil.models.growing import Normalise
from cil.strategies import Strategy
from cil.strategies.replay import Replay
from cil.testing.toy import toy_factory, toy_run, toy_stream

STREAM = toy_stream()
NET = nn.Linear(2, 2)


def learner() -> Replay:
    return Replay(toy_factory(STREAM, seed=0), Budget(exemplars=10))


def closing_over(net: nn.Module) -> Any:
    def answer(images: Tensor) -> Tensor:
        return net(images)

    return answer


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros(3), r"a ndarray that was not kept.*as a tensor"),
        (STREAM[0].train, r"a Samples that was not kept.*kind='temporary' for this experience"),
        (torch.optim.SGD(NET.parameters(), lr=0.1), r"a SGD that was not kept.*the engine makes the optimizer"),
        (closing_over(NET), r"a function with a Linear in it"),
        (lambda images, net=NET: net(images), r"a function with a Linear in it"),
        (partial(torch.matmul, torch.ones(2, 2)), r"a partial with a Tensor in it"),
        (NET.forward, r"a method with a Linear in it"),
        ({"prior": [np.ones(2)]}, r"a dict with a ndarray in it"),
        ([closing_over(NET)], r"a list with a Linear in it"),
        (deque([torch.ones(2)], maxlen=5), r"a deque with a Tensor in it"),
    ],
    ids=["array", "samples", "optimizer", "closure", "default", "partial", "method", "dict", "list", "deque"],
)
def test_data_that_were_not_kept_are_refused_wherever_they_are(value, says):
    one = learner()
    with pytest.raises(NotKept, match=rf"^Replay\.extra is {says}") as refused:
        one.extra = value
    assert "\n" not in str(refused.value)


def test_functions_without_data_and_the_learners_own_are_no_data():
    one = learner()
    one.rule, one.score, one.half = lambda x: x + 1, one.predict, partial(round, ndigits=2)


class FillsADict(Replay):
    """Puts a tensor where nothing was when it was assigned."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stash: dict[str, Tensor] = {}

    def after_experience(self, experience: Any) -> None:
        super().after_experience(experience)
        self.stash["prior"] = experience.train.slots.float()


class Prior(nn.Module):
    """A layer with a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prior", torch.zeros(3), persistent=False)


class HoldsABuffer(Replay):
    def grow(self, signature: Any) -> None:
        super().grow(signature)
        self.net.prior = Prior()


class CarriesATeacher(Replay):
    """A teacher that is carried, and made of a network that nobody billed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep("old", None, kind="teacher", lifetime="carried")


@pytest.mark.parametrize(
    ("careless", "error", "says"),
    [
        (HoldsABuffer, NotKept, r"net\.prior\.prior would not survive.*persistent=False is not carried"),
        (CarriesATeacher, ConfigError, r"keeps old as carried, and neither __init__ nor grow makes it"),
    ],
)
def test_what_the_bill_cannot_know_is_refused_before_training(careless: type[Strategy], error, says, tmp_path):
    with pytest.raises(error, match=says):
        toy_run(careless, STREAM, tmp_path / "run").execute()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_what_was_put_in_later_is_refused_at_the_boundary(tmp_path):
    with pytest.raises(NotKept, match=r"FillsADict\.stash is a dict with a Tensor in it"):
        toy_run(FillsADict, STREAM, tmp_path / "run").execute()


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module) -> None:
        self.net = net


def endless(net: nn.Module) -> Iterator[nn.Module]:
    while True:
        yield net


def in_a_context(net: nn.Module) -> Any:
    held: ContextVar[nn.Module] = ContextVar("held")
    held.set(net)
    return held


def on_a_function(net: nn.Module) -> Any:
    def answer() -> None:
        """Nothing."""

    answer.net = net  # type: ignore[attr-defined]
    return answer


WAYS = {
    "object": lambda net: SimpleNamespace(a=[{"net": net}]),
    "slots": Slotted,
    "generator": endless,
    "iterator": lambda net: iter([net] * 9),
    "cycle": lambda net: cycle([net]),
    "context variable": in_a_context,
    "attribute of a function": on_a_function,
    "cached function": lambda net: lru_cache(lambda given=net: given),
    "deep list": lambda net: [[[[[[[[[net]]]]]]]]],
    "keys": lambda net: {net: 1},
    "error": ValueError,
    "class": lambda net: type("Own", (), {"net": net}),
    "weak reference": lambda net: (ALIVE.append(net), weakref.ref(net))[1],
    "bound method of an object": lambda net: Slotted(net).__repr__,
}
ALIVE: list[nn.Module] = []


@pytest.mark.parametrize("way", WAYS)
def test_a_teacher_inside_whatever_object_is_refused_at_the_boundary(way):
    one = learner()
    one.grow(STREAM.signatures[0])
    with one.making():
        one.helper = SimpleNamespace(kernel=torch.ones(3))  # every learner of this structure has it
    one.refuse_lost()
    one.past = WAYS[way](nn.Linear(2, 2))
    with pytest.raises(NotKept, match=r"^Replay\.past (came to hold|is a method with) a Linear.* was not kept"):
        one.refuse_lost()


@pytest.mark.parametrize("place", ["make_net", "context", "net"])
def test_what_is_lent_and_networks_are_no_place_for_data(place):
    one = learner()
    one.grow(STREAM.signatures[0])
    with one.making():
        pass
    one.helper = SimpleNamespace(net=one.net, weight=one.net.head.weight)  # what is kept is not lost
    one.refuse_lost()
    getattr(one, place).hidden = [torch.ones(2)]
    with pytest.raises(NotKept, match=rf"^Replay\.{place} came to hold a Tensor, inside an object"):
        one.refuse_lost()


def test_a_teacher_in_an_object_ends_a_run(tmp_path):
    class Hides(Replay):
        def before_experience(self, experience: Any) -> None:
            self.helper = SimpleNamespace(teacher=frozen_copy(self.net))

    with pytest.raises(NotKept, match=r"^Hides\.helper came to hold a GrowingNet"):
        toy_run(Hides, STREAM, tmp_path / "run").execute()


def test_declared_constants_may_be_left_out():
    one = learner()
    one.net.more = Normalise([0.5], [0.5])
    assert not [name for name in one.structure().tensors if "more" in name]


def test_samples_of_an_experience_are_in_no_snapshot():
    one = learner()
    one.keep("data", None, kind="temporary")
    one.data = STREAM[0].train
    tensors, meta = one.full_state()
    assert not [name for name in tensors if "data" in name] and "data" not in meta
    one.load_full_state(tensors, meta)
    assert one.data is not None and not one.training_entries()
