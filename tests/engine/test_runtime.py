"""Device, precision and threads: wrong ones are refused in one line that says what to set instead."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from toys import fit_of, grown, plain, some_samples

from cil.engine.runtime import Runtime
from cil.errors import ConfigError
from cil.strategies import Phase


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device": "gpu"}, "device is 'gpu'; did you mean 'cpu'? known: auto, cpu, cuda, cuda:0, mps"),
        ({"device": "cuda:x"}, "device is 'cuda:x'; did you mean"),
        ({"device": "cuda"}, "device is 'cuda' but torch sees no GPU here; set device=cpu"),
        ({"device": "mps"}, "device is 'mps' but torch has no Metal device here; set device=cpu"),
        ({"precision": "fp8"}, "trainer.precision is 'fp8'; did you mean"),
        ({"precision": "fp16"}, "trainer.precision is 'fp16', which needs a GPU; on device=cpu set bf16 or fp32"),
        ({"threads": 0}, "trainer.threads is 0; it must be a whole number of 1 or more"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_what_cannot_be_had_is_refused(given, says):
    with pytest.raises(ConfigError) as refused:
        Runtime(**{"device": "cpu", **given})
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def test_a_gpu_that_is_not_there_is_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="device is 'cuda:2' but there are 2 GPUs"):
        Runtime("cuda:2")


@pytest.mark.usefixtures("no_gpu")
def test_auto_says_what_it_became():
    runtime = Runtime("auto", "auto")
    assert (runtime.device, runtime.precision) == ("cpu", "fp32")


def test_auto_precision_is_bf16_where_the_gpu_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert Runtime("cuda", "auto").precision == expected


def test_threads_are_taken_when_a_run_begins_where_they_are_given():
    before = torch.get_num_threads()
    try:
        runtime = Runtime("cpu", threads=before + 1)
        assert torch.get_num_threads() == before  # what plans and then forks has started none
        runtime.begin()
        Runtime("cpu").begin()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_bf16_computes_losses_in_bf16_and_keeps_weights_in_fp32():
    learner, seen = grown(), []

    def loss(batch):
        seen.append(learner.net(batch.images).logits.dtype)
        return learner.loss(batch)

    fit_of(learner, Phase("main", some_samples(4), loss), plain(), runtime=Runtime("cpu", "bf16")).run()
    assert seen == [torch.bfloat16]
    assert learner.net.head.weight.dtype == torch.float32


# the loss scale of fp16, tried on the CPU with the scaler that a GPU would use ----------------------------------------


@pytest.fixture
def scaled():
    """A runtime whose losses are scaled by 65536 before they go backward."""
    runtime = Runtime("cpu")
    runtime.precision = "fp16"
    return runtime


def test_a_loss_scale_is_undone_before_gradients_are_looked_at(scaled):
    steps = []
    for runtime in (Runtime("cpu"), scaled):
        learner = grown()
        before = learner.net.head.weight.detach().clone()
        phase = Phase("main", some_samples(4), learner.loss)
        far = partial(torch.optim.SGD, lr=1.0)
        fit_of(learner, phase, plain(optimizer=far, clip_norm=100.0), runtime=runtime).run()
        steps.append(learner.net.head.weight.detach() - before)
    assert steps[0].norm() > 0.01
    assert torch.allclose(steps[0], steps[1], rtol=0.02, atol=1e-4)


def test_a_loss_scale_goes_on_after_an_interruption(scaled):
    weights, kept = [], []
    for resume in (False, True):
        learner = grown()
        phase = Phase("main", some_samples(8), learner.loss)
        fit = fit_of(learner, phase, plain(batch_size=2, snapshot_steps=2, epochs=1), runtime=scaled)
        if not resume:
            fit.on_snapshot = lambda tensors, content: kept.append(
                ({name: tensor.clone() for name, tensor in tensors.items()}, content)
            )
        fit.run(kept[0] if resume else None)
        weights.append(learner.net.head.weight.detach().clone())
    assert kept[0][1]["scale"]["_growth_tracker"] == 2
    assert kept[0][1]["scale"]["scale"] == 65536
    assert torch.equal(*weights)
    assert scaled.loss_scale()["_growth_tracker"] == 4
