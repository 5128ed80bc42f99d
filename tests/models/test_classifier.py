"""Whole classifiers from files: public layouts and own ones, loaded strictly."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from cil.errors import ConfigError
from cil.models import GrowingNet, LinearHead, Normalise, build_backbone
from cil.models.classifier import load_classifier, save_classifier

STATED = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def net():
    """A small ResNet with padding on both sides, and statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet14", 3, 32, width=4, shortcut="centre")
    made = GrowingNet(backbone, LinearHead(backbone.feature_dim), Normalise(**STATED))
    made.grow(5)
    made(torch.rand(8, *SHAPE))
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def public(net, tmp_path_factory):
    """The same in the layout of public CIFAR ResNets."""
    tensors = {}
    for name, tensor in net.state_dict().items():
        part, _, rest = name.removeprefix("backbone.").partition(".")
        if name.startswith("head."):
            tensors[f"module.linear.{rest}"] = tensor
        elif part == "stem":
            tensors[f"module.{'conv1' if rest[0] == '0' else 'bn1'}.{rest[2:]}"] = tensor
        elif part == "stages":
            tensors[f"module.layer{int(rest[0]) + 1}.{rest[2:]}"] = tensor
    path = tmp_path_factory.mktemp("public") / "net.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _options(shortcut="centre", **more):
    return {"options": {"width": 4, "shortcut": shortcut}, **more}


def test_a_public_file_gives_the_network_it_came_from(net, public):
    images = torch.rand(3, *SHAPE)
    loaded = load_classifier("resnet14", public, SHAPE, **_options(**STATED))
    assert loaded.num_classes == 5
    torch.testing.assert_close(loaded(images).logits, net(images).logits)
    assert not loaded.training


def test_the_normalisation_must_be_given_for_a_public_file_and_it_matters(net, public):
    with pytest.raises(ConfigError, match="does not say how its images were normalised: give mean and std"):
        load_classifier("resnet14", public, SHAPE, **_options())
    with pytest.raises(ConfigError, match=r"model\.mean and model\.std go together"):
        load_classifier("resnet14", public, SHAPE, **_options(mean=[0.5] * 3))
    other = load_classifier("resnet14", public, SHAPE, **_options(mean=[0.0] * 3, std=[1.0] * 3))
    images = torch.rand(3, *SHAPE)
    assert not torch.allclose(other(images).logits, net(images).logits, atol=1e-3)


def test_another_padding_is_refused(public):
    with pytest.raises(ConfigError, match=r"pad zeros by 'centre', this one's by 'append'.*shortcut=centre"):
        load_classifier("resnet14", public, SHAPE, **_options("append", **STATED))


def test_an_own_file_says_padding_and_normalisation_itself(net, tmp_path):
    save_classifier(net, tmp_path / "own.safetensors")
    images = torch.rand(3, *SHAPE)
    loaded = load_classifier("resnet14", tmp_path / "own.safetensors", SHAPE, **_options())
    torch.testing.assert_close(loaded(images).logits, net(images).logits)
    with pytest.raises(ConfigError, match="pad zeros by 'centre'"):
        load_classifier("resnet14", tmp_path / "own.safetensors", SHAPE, **_options("append"))


def test_a_file_without_a_classifier_is_refused(net, tmp_path):
    body = {name: t.contiguous() for name, t in net.backbone.state_dict().items()}
    save_file(body, tmp_path / "body.safetensors", metadata={"shortcut": "centre"})
    with pytest.raises(ConfigError, match=r"has no classifier \(fc, linear, classifier, head\)"):
        load_classifier("resnet14", tmp_path / "body.safetensors", SHAPE, **_options(**STATED))


def test_what_does_not_fit_is_named(public, tmp_path):
    with pytest.raises(ConfigError, match="does not fit CifarResNet"):
        load_classifier("resnet20", public, SHAPE, **_options(**STATED))
    with pytest.raises(ConfigError, match=r"model\.weights=none\.pt is no file"):
        load_classifier("resnet14", "none.pt", SHAPE, **_options(**STATED))


def test_a_timm_file_keeps_its_classifier(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=6).eval()
    path = tmp_path / "timm.safetensors"
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    loaded = load_classifier("timm:resnet10t", path, (3, 64, 64), mean=[0.0] * 3, std=[1.0] * 3)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded(images).logits, model(images), rtol=1e-4, atol=1e-5)
