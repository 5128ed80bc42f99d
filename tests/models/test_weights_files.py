"""Weights from files: strict, without pickles, and with the right shortcut padding."""

import io
import json
import os
import pickle
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import (
    CifarResNet,
    CifarResNeXt,
    ImageNetResNet,
    SmallConvNet,
    WideResNet,
    build_backbone,
    load_weights,
    save_weights,
)


def published(backbone: nn.Module, classifier: str) -> dict[str, torch.Tensor]:
    """The backbone's tensors under the names of torchvision and of the public CIFAR ResNets, with a classifier."""
    tensors = {f"{classifier}.weight": torch.rand(10, 64), f"{classifier}.bias": torch.rand(10)}
    for name, value in backbone.state_dict().items():
        name = name.replace("stem.0.", "conv1.").replace("stem.1.", "bn1.")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.", f"layer{stage + 1}.")
        tensors[name] = value
        if name.endswith("running_var"):
            tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(5)
    return tensors


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_saved_weights_load_into_the_same_backbone(tmp_path):
    backbone = SmallConvNet().to(memory_format=torch.channels_last)
    backbone(torch.rand(4, 3, 8, 8))
    save_weights(backbone, tmp_path / "small.safetensors")
    assert equal(build_backbone("smallconv", 3, 8, weights=tmp_path / "small.safetensors"), backbone)


def test_a_torch_file_in_the_public_layout_loads_without_its_classifier(tmp_path):
    backbone = ImageNetResNet((1, 1, 1, 1))
    wrapped = {f"module.{name}": value for name, value in published(backbone, "fc").items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "resnet10.pt")
    assert equal(build_backbone("resnet10", 3, 224, weights=tmp_path / "resnet10.pt"), backbone)


def test_the_public_cifar_layout_needs_centred_shortcuts(tmp_path):
    backbone = CifarResNet(14, shortcut="centre")
    torch.save(published(backbone, "linear"), tmp_path / "cifar.pt")
    assert equal(build_backbone("resnet14", 3, 32, weights=tmp_path / "cifar.pt", shortcut="centre"), backbone)
    with pytest.raises(ConfigError, match=r"set model\.options\.shortcut=centre"):
        build_backbone("resnet14", 3, 32, weights=tmp_path / "cifar.pt")


WIDE = {"stem.": "conv1.", "stages.2.2.": "bn1.", ".shortcut.": ".convShortcut."}
NEXT = {"stem.0.": "conv_1_3x3.", "stem.1.": "bn_1."}


@pytest.mark.parametrize(
    ("name", "make", "renamed", "stage", "classifier"),
    [
        ("wrn_16_2", lambda: WideResNet(16, 2), WIDE, "block{}.layer.", "fc"),
        ("resnext29", CifarResNeXt, NEXT, "stage_{}.", "classifier"),
    ],
)
def test_files_in_the_layout_of_augmix_and_robustbench_load(tmp_path, name, make, renamed, stage, classifier):
    """By name and value, with counters, a wrapper, a classifier and the normalisation that RobustBench adds."""
    backbone, tensors = make(), {"mu": torch.full((1, 3, 1, 1), 0.5), "sigma": torch.full((1, 3, 1, 1), 0.5)}
    for own, value in backbone.state_dict().items():
        for ours, theirs in renamed.items():
            own = own.replace(ours, theirs)
        for index in range(3):
            own = own.replace(f"stages.{index}.", stage.format(index + 1))
        tensors[own] = torch.rand_like(value)
    tensors |= {f"{classifier}.weight": torch.rand(10, 4), f"{classifier}.bias": torch.rand(10)}
    tensors["block1.layer.0.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save({"state_dict": {f"module.{key}": value for key, value in tensors.items()}}, tmp_path / "public.pt")
    loaded = build_backbone(name, 3, 32, weights=tmp_path / "public.pt").state_dict()
    found = {key: value for key, value in tensors.items() if not key.startswith((classifier, "mu", "sigma"))}
    found.pop("block1.layer.0.bn1.num_batches_tracked")
    assert len(loaded) == len(found) and all(map(torch.equal, loaded.values(), found.values()))


@pytest.mark.parametrize(("ours", "other"), [("append", "centre"), ("centre", "append")])
def test_saved_weights_know_their_shortcuts(tmp_path, ours, other):
    save_weights(CifarResNet(14, shortcut=ours), tmp_path / "cifar.safetensors")
    load_weights(CifarResNet(14, shortcut=ours), tmp_path / "cifar.safetensors")
    with pytest.raises(ConfigError, match=f"set model.options.shortcut={ours}"):
        load_weights(CifarResNet(14, shortcut=other), tmp_path / "cifar.safetensors")


def test_a_file_that_does_not_tell_its_padding_is_refused_where_padding_matters(tmp_path):
    torch.save(CifarResNet(14).state_dict(), tmp_path / "cifar.pt")
    with pytest.raises(ConfigError, match=r"append or centre \(this network: append\).*save_weights") as caught:
        build_backbone("resnet14", 3, 32, weights=tmp_path / "cifar.pt")
    assert "\n" not in str(caught.value)
    torch.save(CifarResNet(14, cosine=True).state_dict(), tmp_path / "cosine.pt")
    build_backbone("resnet14_cosine", 3, 32, weights=tmp_path / "cosine.pt")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: CifarResNet(20), r"missing stages\.0\.2\.conv1\.weight.*\(\+27 more\)"),
        (lambda: CifarResNet(14, cosine=True), r"missing stages\.1\.0\.downsample\.0\.weight"),
        (lambda: CifarResNet(14, in_channels=1), r"stem\.0\.weight \(16, 3, 3, 3\) in place of \(16, 1, 3, 3\)"),
        (SmallConvNet, r"unexpected stages\.0\.0\.bn1\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, target, message):
    save_weights(CifarResNet(14), tmp_path / "cifar.safetensors")
    backbone = target()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(ConfigError, match=message) as caught:
        load_weights(backbone, tmp_path / "cifar.safetensors")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(ConfigError, match="plain tensors") as caught:
            load_weights(SmallConvNet(), name)
        assert "\n" not in str(caught.value)
    assert not Path("trapped").exists()


def test_a_missing_file_or_a_damaged_one_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no weights at .*none.safetensors"):
        load_weights(SmallConvNet(), tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        load_weights(SmallConvNet(), tmp_path / "bad.safetensors")


def test_on_meta_no_file_is_read():
    with torch.device("meta"):
        backbone = build_backbone("smallconv", 3, 8, weights="nowhere.safetensors")
    assert all(parameter.is_meta for parameter in backbone.parameters())


DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not (DATA / "weights").is_dir(), reason="no ../shared/data with weights/ and cifar10/")
@pytest.mark.parametrize(("depth", "printed"), [(20, 91.73), (32, 92.63)])
def test_public_cifar10_weights_reach_their_accuracy_with_centred_shortcuts_and_not_with_appended_ones(depth, printed):
    from safetensors.torch import load_file

    path = DATA / "weights" / f"cifar10_resnet{depth}.safetensors"
    images, labels = cifar10_test(DATA / "cifar10" / "test.zip", step=20)
    classifier = load_file(path)

    def accuracy(backbone: nn.Module) -> float:
        with torch.no_grad():
            features, _ = backbone.eval().to(memory_format=torch.channels_last)(images)
        scores = features @ classifier["linear.weight"].T + classifier["linear.bias"]
        return 100 * scores.argmax(1).eq(labels).float().mean().item()

    centred = build_backbone(f"resnet{depth}", 3, 32, weights=path, shortcut="centre")
    appended = CifarResNet(depth)
    appended.load_state_dict(centred.state_dict())
    assert accuracy(centred) == pytest.approx(printed, abs=3.5)  # 500 images: a standard error of 1.2
    assert accuracy(appended) < 40


@cache
def cifar10_test(path: Path, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every step-th test image, normalised as the public weights expect."""
    image = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(path) as pack:
        meta = json.loads(pack.read("meta.json"))
        height, width = meta["tile"]
        tiles = []
        for name, count in meta["sheets"]["test"]:
            sheet = np.asarray(image.open(io.BytesIO(pack.read(name))).convert("RGB"))
            grid = sheet.reshape(sheet.shape[0] // height, height, -1, width, 3).swapaxes(1, 2)
            tiles.append(grid.reshape(-1, height, width, 3)[:count])
        labels = np.load(io.BytesIO(pack.read("test_y.npy")), allow_pickle=False)
    pixels = torch.from_numpy(np.concatenate(tiles)[::step].copy()).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return (pixels - mean[:, None, None]) / std[:, None, None], torch.from_numpy(labels[::step].astype(np.int64))
