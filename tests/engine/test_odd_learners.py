"""Honest learners of unusual make run, or are told in one line what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from cil import train
from cil.errors import ContractError, StateError
from cil.models import frozen_copy
from cil.strategies.finetune import Finetune
from cil.testing.toy import toy_run, toy_stream


class InnerStep(Finetune):
    """The loss after a step on the batch, by ``torch.func``."""

    def inner(self, loss: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = grad(loss)(weights)
        return found

    def loss(self, batch: Any) -> Tensor:
        weights = dict(self.net.named_parameters())

        def loss(given: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(self.net, given, (batch.images,)).logits, batch.slots)

        found = self.inner(loss, {name: weight.detach() for name, weight in weights.items()})
        return loss({name: weight - 0.01 * found[name] for name, weight in weights.items()})


class InnerStepByHand(InnerStep):
    """The same by what hooks on saved tensors can follow."""

    def inner(self, loss: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        free = {name: weight.requires_grad_() for name, weight in weights.items()}
        return dict(zip(free, torch.autograd.grad(loss(free), list(free.values())), strict=True))


def test_a_loss_that_uses_transforms_of_torch_is_trained(tmp_path):
    one, other = (toy_run(kind, toy_stream(), tmp_path / kind.__name__) for kind in (InnerStep, InnerStepByHand))
    found, expected = one.execute(), other.execute()
    assert found.results["flops"]["training"] == expected.results["flops"]["training"]
    assert found.results["peak_training_bytes"] < expected.results["peak_training_bytes"]  # no activations, it is said
    last = [run.checkpoints.state(2).tensors for run in (one, other)]
    assert all(torch.allclose(tensor, last[1][name], atol=1e-4) for name, tensor in last[0].items())


def test_after_the_gradients_they_are_refused_in_one_line(tmp_path):
    class Adjusts(Finetune):
        def adjust_gradients(self, batch: Any) -> None:
            grad(lambda weight: weight.square().sum())(self.net.head.weight.detach())

    with pytest.raises(ContractError, match=r"adjust_gradients: torch.func.grad and its like .*autograd.grad does"):
        toy_run(Adjusts, toy_stream(), tmp_path).execute()


def test_a_part_that_a_network_has_under_two_names_is_carried(tmp_path):
    class Tied(Finetune):
        def build_net(self) -> nn.Module:
            net = super().build_net()
            net.alias = nn.ModuleList([net.backbone])
            return net

    assert toy_run(Tied, toy_stream(), tmp_path).execute().status == "finished"


def test_a_view_that_is_a_conjugate_is_carried_with_its_values(tmp_path):
    class Conjugates(Finetune):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.keep("wave", torch.zeros(2, dtype=torch.complex64), kind="statistics")

        def after_experience(self, experience: Any) -> None:
            self.wave = torch.full((2,), 1 + 2j, dtype=torch.complex64).conj()

    run = toy_run(Conjugates, toy_stream(), tmp_path)
    run.execute()
    assert run.checkpoints.state(2).tensors["wave"].tolist() == [1 - 2j] * 2


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex32)])
def test_what_no_file_of_weights_holds_is_refused_before_training(value, tmp_path):
    class Odd(Finetune):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.keep("odd", value, kind="statistics")

    with pytest.raises(StateError, match=r"odd is a tensor of .* stored as dense numbers; keep its parts"):
        toy_run(Odd, toy_stream(), tmp_path).execute()


@pytest.mark.parametrize(("given", "says"), [(None, "NoneType"), (1.0, "float"), ((), "tuple"), ({}, "no term")])
def test_a_loss_that_is_no_number_with_a_gradient_is_told(given, says, tmp_path):
    class Odd(Finetune):
        def loss(self, batch: Any) -> Any:
            return given

    with pytest.raises(ContractError, match=f"the loss of phase 'main' gives {says}; allowed: a tensor"):
        toy_run(Odd, toy_stream(), tmp_path).execute()


def test_a_teacher_that_is_given_up_at_the_end_was_held(tmp_path):
    class Teacher(Finetune):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            self.keep("teacher", None, kind="teacher")

        def before_experience(self, experience: Any) -> None:
            self.teacher = frozen_copy(self.net)

    class GivenUp(Teacher):
        def after_experience(self, experience: Any) -> None:
            self.teacher = None

        def training_entries(self) -> list[Any]:
            return []  # the engine does not ask

    held, given_up = (toy_run(kind, toy_stream(), tmp_path / kind.__name__).execute() for kind in (Teacher, GivenUp))
    assert given_up.results["peak_training_bytes"] == held.results["peak_training_bytes"]


def test_a_factory_may_be_asked_in_a_hook_for_the_first_time(tmp_path):
    class Asks(Finetune):
        def after_experience(self, experience: Any) -> None:
            assert self.make_net.template is not None

    assert train(Asks, toy_stream(), "smallconv", run_dir=tmp_path, epochs=1).status == "finished"


def test_a_learner_that_does_not_grow_is_told_before_training(tmp_path):
    class StaysAsItIs(Finetune):
        def grow(self, signature: Any) -> None:
            pass

    with pytest.raises(
        ContractError, match=r"StaysAsItIs\.grow leaves num_classes at 0 of \d+ .*call.* super\(\)\.grow"
    ):
        toy_run(StaysAsItIs, toy_stream(), tmp_path).execute()
