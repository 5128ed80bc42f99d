"""SimpleCIL, SLDA, RanPAC and FeTrIL: a backbone that is public, or trained once, and then frozen for good."""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_runs import UNTRAINED, B, D, P, public_run, public_weights, scores_by_label, split
from PIL import Image
from small_runs import bare, bits, differing, observed

from cil.api import networks, plan
from cil.contract import holder
from cil.data import Dataset, Samples
from cil.engine.recipe import Recipe
from cil.errors import BudgetExceeded, ConfigError, StateError, TrainingError
from cil.memory import Budget
from cil.models import build_backbone, save_weights, weights
from cil.strategies import find, reference_of
from cil.streams import class_incremental
from cil.testing import toy_run, toy_stream, uneven_stream
from cil.trained import load

NAMES = ("simplecil", "slda", "ranpac", "fetril")
STATISTICS = {  # bytes beside the backbone, with C classes
    "simplecil": lambda c: 4 * D * c,
    "slda": lambda c: 4 * (D * c + D * D + c),
    "ranpac": lambda c: 4 * (64 * 64 + 64 * c) + 8 + 4,  # G, Q, seed, lambda
    "fetril": lambda c: 4 * (D * c + c) + 4 * (D * c + c),  # head; means and counts
}


# how the backbone comes to be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["toy", "uneven"])
@pytest.mark.parametrize("name", NAMES)
def test_with_a_linear_head_the_first_experience_trains_as_finetune_does(learn, name, stream):
    hyperparameters = {} if name == "fetril" else {"first_head": "linear"}
    expected = learn("finetune", stream).net(0)
    found = {**learn(name, stream, hyperparameters=hyperparameters).state(0).tensors}
    if name != "fetril":
        assert not [key for key in found if "first_head" in key]
        expected = {key: value for key, value in expected.items() if ".head." not in key}
    else:
        found |= {f"net.head.{key}": found.pop(f"head.{key}") for key in ("weight", "bias")}
    assert differing({key: value for key, value in found.items() if key in expected}, expected) == []


@pytest.mark.parametrize("name", ["ecotta_cil", "linear_probe", "bn_tuning"])
def test_frozen_between_two_phases_of_the_first_experience_the_backbone_does_not_change_in_the_second(learn, name):
    """The engine asks for a phase with all modules in evaluation mode, which each of them leaves again."""
    frozen = []

    class Looking(find(name)):  # type: ignore[misc]
        def phases(self, experience):
            for number, phase in enumerate(super().phases(experience)):
                if number == 1 and experience.index == 0:
                    frozen.append({f"net.{name}": value for name, value in bits(self.net).items()})
                yield phase

    done = learn(Looking)
    assert len(frozen) == 1 and differing(frozen[0], done.net(0)) == []
    assert any("running_mean" in key for key in frozen[0])


@pytest.mark.parametrize("name", NAMES)
def test_after_the_first_experience_the_backbone_never_changes(learn, name):
    done = learn(name)
    assert differing(done.net(0), done.net(1)) == differing(done.net(0), done.net(2)) == []
    start = bits(done.run.work.learners.rebuilt(0, None).net)
    assert differing({key.removeprefix("net."): value for key, value in done.net(0).items()}, start)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_that_is_not_trained_stays_as_it_was_made(learn, name):
    done = learn(name, hyperparameters=UNTRAINED)
    start = bits(done.run.work.learners.rebuilt(0, None).net)
    assert differing({key.removeprefix("net."): value for key, value in done.net(2).items()}, start) == []
    steps = [line for line in done.record.lines() if line["kind"] == "step"]
    assert {line["phase"] for line in steps} == ({"head"} if name == "fetril" else set())


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_backbone_is_in_evaluation_mode_and_asks_for_no_gradient(learn, name, trained):
    seen = []

    def see(when, learner, experience):
        learner.train_mode()
        if when == "prepared":
            frozen = not any(p.requires_grad for p in learner.net.parameters())
            seen.append((frozen, not any(layer.training for layer in learner.net.modules())))

    learn(observed(name, see), hyperparameters={"train_first": trained})
    assert seen == [(not trained,) * 2, (True, True), (True, True)]


@pytest.mark.parametrize("name", NAMES)
def test_later_experiences_of_all_but_fetril_train_nothing(learn, name):
    done = learn(name)
    trained = [line["experience"] for line in done.record.lines() if line["kind"] == "step"]
    assert set(trained) == ({0, 1, 2} if name == "fetril" else {0})
    assert all(flops > 0 for flops in done.record.results["flops"]["consolidation" if name != "fetril" else "training"])


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_the_images_is_billed_as_compute(learn, name):
    """One pass of the backbone over them, between phases too: as much as evaluation spends on an image."""
    flops = learn(name, hyperparameters=UNTRAINED).record.results["flops"]
    for index in range(3):
        images, shown = 24, 16 * (index + 1)
        spent = flops["training"][index] + flops["consolidation"][index]
        assert spent > 0.95 * flops["evaluation"][0] / 16 * images, shown


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", ["yes", 2, None])
def test_an_unknown_choice_of_train_first_is_refused(name, wrong):
    with pytest.raises(ConfigError, match=r"strategy.train_first is '.*'; allowed: auto, true, false"):
        bare(name, train_first=wrong, **find(name).toy)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fetril"])
def test_an_unknown_first_head_is_refused(name):
    with pytest.raises(ConfigError, match=r"strategy.first_head is 'linaer'.*linear"):
        bare(name, classes=[2], first_head="linaer", **find(name).toy)


# public weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_public_weights_are_used_as_they_are_and_carried_as_a_reference_alone(tmp_path, name):
    done = public_run(name, split(2), tmp_path, recipe=Recipe(epochs=20, batch_size=8))
    public = build_backbone("smallconv", 3, 12, weights=tmp_path / "toy_public.safetensors")
    for index in range(3):
        state = done.state(index)
        assert not [key for key in state.tensors if key.startswith("net")]
        (reference,) = state.references
        assert (reference.tag, reference.bytes) == ("smallconv toy_public.safetensors", 4 * (P + B))
        assert reference == reference_of(done.learner(index).net, reference.tag)
        entries = done.record.results["ledger"][index]["entries"]
        assert [entry["sha256"] for entry in entries if "sha256" in entry] == [reference.sha256]
        assert differing(bits(done.learner(index).net.backbone), bits(public)) == []
        ledger = done.record.results["ledger"][index]
        assert ledger["public"] == 4 * (P + B)
        assert ledger["totals"]["exact"]["total"] - ledger["public"] == STATISTICS[name](2 * (index + 1))
        assert ledger["totals"]["survey"]["total"] == 4 * P
        assert done.record.results["bills"][index]["total"]["exact"] == ledger["totals"]["exact"]["total"]
    assert done.record.results["last_accuracy"] > 60  # of six noisy patterns


@pytest.mark.parametrize("name", NAMES)
def test_public_weights_may_be_trained_and_are_then_carried_and_owned(tmp_path, name):
    done = public_run(name, split(2), tmp_path, hyperparameters={"train_first": True})
    assert done.state(2).references == ()
    assert differing(done.net(0), done.net(2)) == []
    public = build_backbone("smallconv", 3, 12, weights=tmp_path / "toy_public.safetensors")
    assert differing(bits(done.learner(2).net.backbone), bits(public))
    assert done.record.results["ledger"][2]["public"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_other_public_weights_than_those_that_were_used_are_refused(tmp_path, name):
    done = public_run(name, split(2), tmp_path)
    other = build_backbone("smallconv", 3, 12, weights=tmp_path / "toy_public.safetensors")
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    save_weights(other, tmp_path / "toy_public.safetensors")
    with pytest.raises(StateError, match="references to public weights"):
        done.learner(2)


@pytest.mark.parametrize("name", NAMES)
def test_a_modified_reference_is_noticed_at_the_boundary(tmp_path, name):
    learner = public_run(name, split(2), tmp_path).learner(0)
    backbone = learner.net.backbone
    with torch.no_grad():
        next(backbone.buffers()).add_(1) if name == "slda" else next(backbone.parameters()).mul_(2)
    with pytest.raises(StateError, match="was modified"):
        learner.state()


def test_a_write_past_autograd_is_noticed_too(tmp_path):
    learner = public_run("simplecil", split(2), tmp_path).learner(0)
    next(learner.net.parameters()).data.mul_(2)
    with pytest.raises(StateError, match="was modified"):
        learner.state()


def test_public_weights_are_read_once_and_hashed_once_and_then_once_a_boundary(tmp_path, monkeypatch):
    hashed, original = [], holder.reference_of

    def counted(module, tag):
        hashed.append(next(module.parameters()).is_meta)
        return original(module, tag)

    monkeypatch.setattr(holder, "reference_of", counted)
    weights._read.cache_clear()
    done = public_run("simplecil", split(2), tmp_path)
    assert weights._read.cache_info().misses == 1
    assert hashed.count(False) == 1 + 3
    read = weights.read_weights(tmp_path / "toy_public.safetensors")[0]
    assert differing(bits(build_backbone("smallconv", 3, 12, weights=tmp_path / "toy_public.safetensors")), read) == []
    done.learner(2)
    assert weights._read.cache_info().misses == 1 and hashed.count(False) == 1 + 3


@pytest.mark.parametrize("name", NAMES)
def test_a_run_on_public_weights_is_planned_and_loaded_by_name(tmp_path, name):
    model = {"name": "smallconv", "weights": str(public_weights(tmp_path))}
    kind = find(name)
    run = plan(partial(kind, **kind.toy), split(3), model, run_dir=tmp_path / "run", threads=torch.get_num_threads())
    record = run.execute()
    assert record.results["ledger"][1]["public"] == 4 * (P + B)
    classifier = load(tmp_path / "run")
    images = run.work.stream.test(0).images
    right = (classifier(images).argmax(1) == run.work.stream.test(0).slots).float().mean()
    expected = record.results["accuracy_matrix"][1][0]
    assert 100 * float(right) == pytest.approx(expected, abs=1e-4)


def test_a_factory_says_which_public_weights_it_has(tmp_path):
    assert networks((3, 12, 12), name="smallconv")(seed=0).pretrained is None
    path = public_weights(tmp_path)
    assert networks((3, 12, 12), name="smallconv", weights=str(path))(seed=0).pretrained == f"smallconv {path.name}"
    public = networks((3, 12, 12), name="timm:resnet10t", weights="hub")(seed=0).pretrained
    assert public == "timm:resnet10t.c3_in1k hub"  # with the tag that the bare name stands for


# what does not depend on the order ----------------------------------------------------------------------------------

CLOSED_FORM = [
    ("simplecil", {}),
    ("simplecil", {"metric": "euclidean"}),
    ("simplecil", {"metric": "euclidean", "unit": True}),
    ("slda", {"shrinkage": 0.01}),
    ("ranpac", {"ridge": 10.0, "statistics": "float64"}),
    ("ranpac", {"ridge": 10.0, "statistics": "float64", "gram": "packed", "projection": "stored"}),
]
SPLITS = {
    "one": lambda: split(6),
    "pairs": lambda: split(2),
    "single classes": lambda: split(1),
    "another order": lambda: split(2, [4, 1, 5, 0, 3, 2]),
    "one class first": lambda: split(3, [5, 3, 4, 0, 2, 1], base=1),
}


@pytest.mark.parametrize("kind", [key for key in SPLITS if key != "one"])
@pytest.mark.parametrize(("name", "hyperparameters"), CLOSED_FORM, ids=str)
def test_the_final_answers_depend_neither_on_the_split_nor_on_the_order(learn, name, hyperparameters, kind):
    found = [
        scores_by_label(learn(name, SPLITS[which](), hyperparameters={**UNTRAINED, **hyperparameters}))
        for which in ("one", kind)
    ]
    spread = float(found[0].max() - found[0].min())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5 * spread)
    assert torch.equal(found[0].argmax(1), found[1].argmax(1))


@pytest.mark.parametrize(("name", "hyperparameters"), CLOSED_FORM[:3], ids=str)
def test_scores_of_old_classes_stay_when_classes_come(learn, name, hyperparameters):
    done = learn(name, hyperparameters={**UNTRAINED, **hyperparameters})
    images = done.stream.test(0).images
    scores = [done.run.work.learners.scores(done.learner(index), images) for index in range(3)]
    assert torch.equal(scores[2][:, :2], scores[0]) and torch.equal(scores[2][:, :4], scores[1])


@pytest.mark.parametrize("name", NAMES)
def test_in_batches_of_another_size_answers_are_the_same(learn, name):
    done = learn(name)
    learner = done.learner(2)
    images = torch.cat([done.stream.test(index).images for index in range(3)])
    whole = done.run.work.learners.scores(learner, images)
    parts = torch.cat([done.run.work.learners.scores(learner, part) for part in images.split(7)])
    assert torch.equal(whole.argmax(1), parts.argmax(1))


# the bill -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_carried_bytes_are_those_of_the_formulas(learn, name):
    done = learn(name)
    for index in range(3):
        ledger = done.ledger(index)
        head = 4 * (D + 1) * 2 * (index + 1) if name == "fetril" else 0
        assert ledger.pop("parameters") == 4 * P + head and ledger.pop("buffers") == 4 * B
        assert sum(ledger.values()) + head == STATISTICS[name](2 * (index + 1))
        assert set(ledger) == {
            "simplecil": {"prototypes"}, "ranpac": {"statistics"},
        }.get(name, {"prototypes", "statistics"})  # fmt: skip
        assert done.record.results["ledger"][index]["totals"]["survey"]["total"] == 4 * P
        assert done.state(index).meta == {}


@pytest.mark.parametrize("name", NAMES)
def test_classes_without_an_image_are_never_the_answer(learn, name):
    learner = learn(name, "uneven").run.work.learners.rebuilt(
        1, None
    )  # grown for three classes, of which it saw nothing
    learner.load_state(learner.state())
    done = learn(name, "uneven")
    full = done.learner(2)
    state = done.state(2)
    emptied = {key: value.clone() for key, value in state.tensors.items()}
    for key, value in emptied.items():  # nothing was seen of class 1
        if key in ("sums", "means", "counts"):
            value[1] = 0
        elif key == "targets":
            value[:, 1] = 0
    full.load_state(type(state)(emptied, state.kinds, state.meta, state.references))
    images = torch.cat([uneven_stream().test(index).images for index in range(3)])
    found = done.run.work.learners.scores(full, images)
    assert torch.isneginf(found[:, 1]).all() and found[:, [0, 2, 3, 4, 5]].isfinite().all()
    assert torch.isneginf(done.run.work.learners.scores(learner, images)).all()


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_numbers_are_refused_in_one_line(name, learn):
    done = learn(name)
    learner = done.learner(1)
    with torch.no_grad():
        next(learner.net.parameters()).fill_(float("nan"))
    experience = done.stream[2]
    learner.grow(experience.signature)
    with pytest.raises(TrainingError, match="features are not finite"):
        list(learner.phases(experience))
        learner.after_experience(experience)


# real weights -------------------------------------------------------------------------------------------------------

SHARED = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = SHARED / "weights" / "cifar10_resnet20.safetensors"


@cache
def cifar10_images() -> Dataset:
    """Of each class of the CIFAR-10 test set 50 images to learn from and 50 to be tested on."""
    with zipfile.ZipFile(SHARED / "cifar10" / "test.zip") as file:
        meta = json.loads(file.read("meta.json"))
        labels = np.load(io.BytesIO(file.read("test_y.npy")))
        sheets = []
        for name, count in meta["sheets"]["test"]:
            sheet = np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB"))
            high, wide = (side // 32 for side in sheet.shape[:2])
            sheets.append(sheet.reshape(high, 32, wide, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[:count])
    images = np.concatenate(sheets).transpose(0, 3, 1, 2)
    rows = [np.flatnonzero(labels == label) for label in range(10)]

    def part(start: int) -> Samples:
        chosen = np.concatenate([own[start : start + 50] for own in rows])
        return Samples.from_arrays(torch.from_numpy(images[chosen].copy()), torch.from_numpy(labels[chosen]))

    return Dataset("cifar10_part", part(0), part(50), meta["classes"])


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs a ResNet-20 and CIFAR-10 images in ../shared/data")
@pytest.mark.parametrize(("name", "hyperparameters"), [
    ("simplecil", {}), ("slda", {}), ("ranpac", {"size": 300}), ("fetril", {"classifier": "svm"}),
])  # fmt: skip
def test_a_public_resnet_answers_without_any_training_as_well_as_it_did_with_its_own_head(
    tmp_path, name, hyperparameters
):
    """The ResNet-20 has 91.7 % on all test images; these are 500 of them, and each class has 50 to learn from."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    stream = class_incremental(cifar10_images(), increment=2, mean=mean, std=std)
    model = {"name": "resnet20", "weights": str(WEIGHTS), "options": {"shortcut": "centre"}, "mean": mean, "std": std}
    make = partial(find(name), **hyperparameters)
    record = plan(make, stream, model, run_dir=tmp_path / "run", threads=torch.get_num_threads()).execute()
    assert record.results["last_accuracy"] > 85
    assert sum(record.results["flops"]["training"]) == 0
    assert record.results["ledger"][-1]["public"] == WEIGHTS.stat().st_size // 4 * 4 - len_header(WEIGHTS) - 4 * 650


def len_header(path: Path) -> int:
    """Bytes of a safetensors file in front of its tensors."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_a_budget_of_bytes_counts_the_public_weights_too(tmp_path):
    need = 4 * (P + B) + STATISTICS["simplecil"](6)
    done = public_run("simplecil", split(2), tmp_path, budget=Budget(limits=[need]))
    assert done.record.status == "finished"
    (tmp_path / "again").mkdir()
    with pytest.raises(BudgetExceeded):
        public_run("simplecil", split(2), tmp_path / "again", budget=Budget(limits=[need - 1]))


def test_toy_hyperparameters_are_for_toy_runs_alone(tmp_path):
    assert find("ranpac").toy == {"size": 64} and find("icarl").toy == {}
    for number, (given, size) in enumerate([({}, 64), ({"size": 16}, 16)]):
        run = toy_run("ranpac", toy_stream(), tmp_path / str(number), hyperparameters=given)
        assert run.work.learners.rebuilt(1, None).gram.shape == (size, size)
    assert inspect.signature(find("ranpac")).parameters["size"].default == 10_000
