"""Plain phases are trained once for all runs with a folder, and no bit of a record tells which of them trained."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from cil.api import plan
from cil.contract.plain import PlainLoss, plain_at_first
from cil.data import ArrayStore, Augment, Batch, Samples
from cil.data.file_store import FileStore
from cil.data.mapped_store import MappedStore
from cil.data.pooled import FittedStore
from cil.engine.driver import Run
from cil.engine.fit import Fit
from cil.engine.plain_phase import PlainPhase
from cil.engine.recipe import Recipe
from cil.engine.runtime import Runtime
from cil.engine.shared_phases import SharedPhases
from cil.memory import Budget
from cil.strategies import Phase, Strategy, find
from cil.strategies.replay import Replay
from cil.streams import Stream, class_incremental
from cil.testing.toy import toy_dataset, toy_factory, toy_stream

IDENTITY = {"code": "1", "versions": {}, "device": "cpu", "threads": 1, "precision": "fp32"}
RECIPE = Recipe(epochs=2, batch_size=12, log_every=1)


def two_experiences() -> Stream:
    """Of two classes each, eight training images a class."""
    return class_incremental(toy_dataset(train=(8,) * 4, test=(2,) * 4), increment=2)


def run_of(strategy: Any, folder: Path, reuse: Path | None, **options: Any) -> Run:
    """A short run on the CPU."""
    make = partial(find(strategy), **find(strategy).toy) if isinstance(strategy, str) else strategy
    given: dict[str, Any] = {"recipe": RECIPE, "device": "cpu", "threads": 1, **options}
    return plan(make, two_experiences(), "smallconv", Budget(exemplars=8), run_dir=folder, reuse=reuse, **given)


def outcome(run: Run) -> dict[str, Any]:
    """All that a run leaves but times: results, log, carried tensors."""
    record = run.execute()
    results = {name: value for name, value in record.results.items() if name not in ("seconds", "reused_seconds")}
    lines = [{key: value for key, value in line.items() if key != "time"} for line in record.lines()]
    tensors = run.checkpoints.state(1).tensors
    bits = {name: t.contiguous().flatten().view(torch.uint8).tolist() for name, t in sorted(tensors.items())}
    return {"results": json.loads(json.dumps(results)), "lines": lines, "bits": bits}


def reused(run: Run) -> list[float]:
    """Seconds of each experience that another run took."""
    return run.execute().results.get("reused_seconds", [])


def trained(folder: Path) -> list[Path]:
    """The phases in a folder."""
    return sorted(folder.glob("*.json"))


def check_same(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "phases"
    run_of(names[0], tmp_path / "first", folder).execute()
    for name in names[1:]:
        shared = run_of(name, tmp_path / f"{name}-shared", folder)
        assert outcome(shared) == outcome(run_of(name, tmp_path / name, None)), name
        seconds = shared.execute().results["seconds"]["train"]
        assert reused(shared)[0] > 0 == reused(shared)[1], name
        assert reused(shared)[0] <= seconds[0], name  # billed
    assert len(trained(folder)) == 1
    assert not list(folder.glob("*.lock"))


def test_methods_of_other_networks_and_heads_share_one_phase_and_no_bit_moves(tmp_path: Path) -> None:
    check_same(("finetune", "icarl", "der", "slda"), tmp_path)


@pytest.mark.slow
def test_all_that_share_one_phase_end_in_the_same_bits(tmp_path: Path) -> None:
    names = ("replay", "wa", "lwf", "ewc", "mas", "joint", "gem", "agem", "coil", "bic", "foster", "rmm")
    check_same(("finetune", *names, "fetril", "acil", "ds_al", "gkeal"), tmp_path)


def test_cosine_heads_share_among_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "phases"
    run_of("finetune", tmp_path / "linear", folder).execute()
    assert not reused(run_of("lucir", tmp_path / "lucir", folder))
    assert len(trained(folder)) == 2
    assert reused(run_of("ranpac", tmp_path / "ranpac", folder))[0] > 0  # which drops the head afterwards
    assert len(trained(folder)) == 2


def test_what_is_damaged_is_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "phases"
    right = outcome(run_of("finetune", tmp_path / "first", folder))
    path = trained(folder)[0].with_suffix(".safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    with caplog.at_level(logging.WARNING):
        again = run_of("finetune", tmp_path / "second", folder)
        assert outcome(again) == right
    assert "trained again" in caplog.text
    assert not reused(again)
    assert reused(run_of("finetune", tmp_path / "third", folder))  # it is whole again


class Stopping:
    """A logger that interrupts the run once, at the so-manieth line."""

    def __init__(self, at: int) -> None:
        self.left = at

    def start(self, identity: Mapping[str, Any], run_dir: Path, name: str, group: str | None) -> None: ...

    def log(self, kind: str, values: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt

    def table(self, name: str, columns: Any, rows: Any) -> None: ...

    def finish(self, status: str) -> None: ...


@pytest.mark.parametrize("at", [4, 8])  # in the phase that is shared, and after it
def test_an_interrupted_run_goes_on_to_the_same_bits(at: int, tmp_path: Path) -> None:
    folder, saving = tmp_path / "phases", replace(RECIPE, snapshot_steps=1)
    right = outcome(run_of("replay", tmp_path / "whole", None, recipe=saving))
    for name in ("trains", "takes over"):
        with pytest.raises(KeyboardInterrupt):
            run_of("replay", tmp_path / name, folder, recipe=saving, loggers=[Stopping(at)]).execute()
        assert outcome(run_of("replay", tmp_path / name, folder, recipe=saving)) == right
        if name == "trains":
            run_of("replay", tmp_path / "other", folder, recipe=saving).execute()
    assert not list(folder.glob("*.lock"))


# what is plain, and of which key -----------------------------------------------------------------------------------


class OwnLoss(Replay):
    def loss(self, batch: Batch) -> Tensor:
        return 2 * F.cross_entropy(self.net(batch.images).logits, batch.slots)


class OwnStep(Replay):
    def after_step(self, batch: Batch) -> None:
        """Anything."""


class OwnParameters(Replay):
    def trainable(self) -> list[torch.nn.Parameter]:
        return super().trainable()[:-1]


class Named(Strategy):
    @plain_at_first("named")
    def loss(self, batch: Batch) -> Tensor:
        raise AssertionError("not in the first experience")


def fit_of(kind: Any = Named, change: Any = None, **options: Any) -> Fit:
    """The first phase of a learner on toy images."""
    stream = two_experiences()
    torch.manual_seed(options.pop("weights", 0))
    learner = kind(toy_factory(stream, seed=0), Budget(exemplars=8))
    learner.grow(stream.signatures[0])
    if change is not None:
        change(learner)
    phase = Phase("main", options.pop("data", stream.training_half()[0].train), learner.loss)
    given: dict[str, Any] = {"experience": 0, "seed": 0, "augment": Augment(), "runtime": Runtime("cpu"), **options}
    return Fit(learner, phase, 0, given.pop("recipe", RECIPE), **given)


def key_of(*given: Any, identity: Mapping[str, Any] = IDENTITY, **options: Any) -> str | None:
    plain = PlainPhase.of(fit_of(*given, **options), identity)
    return None if plain is None else plain.key


def test_the_key_is_of_what_the_bits_depend_on_and_of_no_method() -> None:
    own = key_of()
    assert own is not None
    assert own == key_of(find("icarl")) == key_of(find("der")) == key_of(find("wa"))
    others = [
        key_of(weights=1), key_of(seed=1), key_of(experience=1), key_of(augment=Augment(flip=True)),
        key_of(recipe=replace(RECIPE, epochs=3)), key_of(recipe=replace(RECIPE, clip_norm=1.0)),
        key_of(data=toy_stream().training_half()[0].train), key_of(secret="another stream"),
        key_of(change=lambda learner: learner.net.backbone.requires_grad_(False)),
        key_of(change=lambda learner: setattr(learner.net.backbone, "note", 1)),
        *(key_of(identity={**IDENTITY, name: "other"}) for name in IDENTITY),
    ]  # fmt: skip
    assert None not in others
    assert len({own, *others}) == 1 + len(others)


def test_the_same_files_seen_in_another_way_are_another_phase(tmp_path: Path) -> None:
    """The digest of a file says nothing of the size that it is decoded at."""
    from PIL import Image

    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (12, 10), (60 * number, 0, 0)).save(path)
    files, slots = FileStore(paths, 8), torch.tensor([0, 0, 1, 1])
    everything, shape = torch.arange(4), (3, 8, 8)
    stores = [
        files, FileStore(paths, 9), FileStore(paths, 8, shorter=8), FittedStore(FileStore(paths, 6), shape, pad=True),
        FittedStore(FileStore(paths, 6), shape, pad=False), ArrayStore(files.pixels(everything)),
        MappedStore(tmp_path / "decoded", shape, files.sums(everything)),
    ]  # fmt: skip
    keys = [key_of(data=Samples(store, slots)) for store in stores]
    assert None not in keys and len(set(keys)) == len(stores)
    assert key_of(data=Samples(FileStore(paths, 8), slots)) == keys[0]
    assert stores[3].digest(everything) != stores[4].digest(everything)


@pytest.mark.parametrize("kind", [OwnLoss, OwnStep, OwnParameters])
def test_a_method_with_code_of_its_own_in_a_step_is_not_plain(kind: Any) -> None:
    assert key_of(Replay) is not None
    assert key_of(kind) is None


def test_what_a_network_computes_must_be_known() -> None:
    class Mine(torch.nn.Identity):
        """A class of another package."""

    assert key_of(change=lambda learner: learner.net.register_forward_hook(lambda *given: None)) is None
    assert key_of(change=lambda learner: setattr(learner.net, "normalise", Mine())) is None
    assert key_of(change=lambda learner: setattr(learner.net, "forward", lambda images: images)) is None
    assert key_of(change=lambda learner: setattr(learner.net.backbone, "forward", lambda images: (images, ()))) is None
    assert key_of(recipe=replace(RECIPE, optimizer=partial(lambda given: torch.optim.SGD(given, lr=0.1)))) is None
    assert key_of(identity={name: IDENTITY[name] for name in IDENTITY if name != "code"}) is None


def test_code_that_was_left_behind_makes_no_plain_phase() -> None:
    """It runs with every gradient, module, operator or step, and another run would not have it."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    def on_gradients(learner: Any) -> None:
        next(learner.net.parameters()).register_hook(torch.zeros_like)

    def after_gradients(learner: Any) -> None:
        next(learner.net.parameters()).register_post_accumulate_grad_hook(lambda weight: None)

    assert key_of(change=on_gradients) is None
    assert key_of(change=after_gradients) is None
    for register in (register_module_forward_hook, register_optimizer_step_pre_hook):
        handle = register(lambda *given: None)
        assert key_of() is None
        handle.remove()
    with Mode():
        assert key_of() is None
    assert key_of() is not None


def test_the_loss_is_plain_in_the_first_experience_alone() -> None:
    learner = fit_of().learner
    assert isinstance(learner.loss, PlainLoss)
    batch = next(iter(two_experiences().training_half()[0].train.batches(4)))
    with torch.no_grad():
        expected = F.cross_entropy(learner.net(batch.images).logits, batch.slots)
        assert {name: float(value) for name, value in learner.loss(batch).items()} == {"named": float(expected)}
    learner.grow(two_experiences().signatures[1])
    with pytest.raises(AssertionError):
        learner.loss(batch)


def test_a_second_process_waits_for_the_first_and_may_be_stopped_meanwhile(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    began, ended, looks = threading.Event(), threading.Event(), list[int]()

    def hold() -> None:
        with SharedPhases(tmp_path)._turn("key"):
            began.set()
            ended.wait(10)

    def here() -> None:
        looks.append(1)
        if len(looks) == 1:
            raise Stop
        ended.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert began.wait(10)
    with pytest.raises(Stop), SharedPhases(tmp_path, here)._turn("key"):
        raise AssertionError("another holds it")
    with SharedPhases(tmp_path, here)._turn("key"):
        assert len(looks) >= 2
    holder.join()


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_sharing(tmp_path: Path) -> None:
    (tmp_path / "phases").write_text("a file")
    assert not reused(run_of("finetune", tmp_path / "run", tmp_path / "phases"))
