"""What a learner does to torch as a whole ends with its run: the next one in this process is as it would be alone."""

from __future__ import annotations

import sys
from contextlib import suppress

import pytest
import torch
from toys import Learner, small_run

from cil.api import plan
from cil.engine.torch_settings import torch_as_before
from cil.memory import Budget
from cil.testing.toy import toy_stream

OPTIMIZERS = sys.modules["torch.optim.optimizer"]


class InDoubles(Learner):
    """Asks for another type when it is made, and for other kernels."""

    def __init__(self, make_net, budget):
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.set_default_device("cpu")
        super().__init__(make_net, budget)


class WithoutGradients(Learner):
    """Switches gradients off and does not switch them on again."""

    def after_experience(self, experience):
        torch.set_grad_enabled(False)


class Spoils(Learner):
    """Leaves hooks behind that spoil every layer and count every step."""

    def after_experience(self, experience):
        torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: None)
        OPTIMIZERS.register_optimizer_step_post_hook(lambda *call: None)
        torch.backends.mkldnn.enabled = False
        torch.set_num_threads(torch.get_num_threads() + 1)


def settings() -> list[object]:
    return [
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.mkldnn.enabled,
        len(torch.nn.modules.module._global_forward_hooks),
        len(OPTIMIZERS._global_optimizer_post_hooks),
    ]


@pytest.mark.parametrize("kind", [InDoubles, WithoutGradients, Spoils])
def test_what_a_run_changes_of_torch_is_put_back(kind, tmp_path):
    before, alone = settings(), small_run(Learner, tmp_path / "alone").execute().results["losses"]
    with suppress(RuntimeError):  # which is its own affair
        small_run(kind, tmp_path / "own").execute()
    assert settings() == before
    assert small_run(Learner, tmp_path / "next").execute().results["losses"] == alone


def test_what_a_bill_changes_of_torch_is_put_back():
    before = settings()
    assert plan(InDoubles, toy_stream(), "smallconv", Budget(exemplars=2)).work.bill
    assert settings() == before


def test_what_the_user_set_holds_after_a_run():
    """Also a warning in place of an error, which is a setting of its own, and the type of autocast."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch_as_before():
            torch.use_deterministic_algorithms(True)
            torch.set_autocast_dtype("cpu", torch.float16)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.get_autocast_dtype("cpu") is torch.bfloat16
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has the old names alone")
def test_a_precision_that_torch_does_not_tell_stops_no_run(tmp_path):
    """Set by its new name for one device, asking for it by the old one is an error of torch."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        assert small_run(Learner, tmp_path).execute().results["losses"]
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
    with torch_as_before():
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert torch.get_float32_matmul_precision() == "highest"
