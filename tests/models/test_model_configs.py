"""Each file of conf/model composes, shows its options at their defaults, and builds on meta what it says."""

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from cil.errors import ConfigError
from cil.models import CosineHead, LinearHead, NetFactory, build_backbone, timm_backbone
from cil.models.clip import clip_backbone
from cil.models.registry import MODELS

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
PARAMETERS = {  # of the backbone, as the survey charges them
    "convnet2": 38_976,
    "resnet14": 171_856,
    "resnet14_narrow": 43_304,
    "resnet20": 269_072,
    "resnet26": 366_288,
    "resnet32": 463_504,
    "resnet32_cosine": 463_504,
    "resnet18": 11_176_512,
    "timm": 11_176_512,
}
NAMED_WEIGHTS = {"vit_b16": "hub"}  # all others start at random
MORE_OPTIONS = {  # that a file of one timm model hands to timm.create_model
    "small_vit": {"patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3},
    "vit_b16": {"img_size": 224},
}


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name=f"model/{name}", overrides=list(overrides)).model


def factory(config: DictConfig, size: int = 32) -> NetFactory:
    backbone = partial(build_backbone, config.name, 3, size, config.weights, **config.options)
    return NetFactory(backbone, head=config.head, meta=True, channels_last=config.channels_last)


@pytest.mark.parametrize("name", FILES)
def test_a_model_file_composes_and_builds_on_meta(name):
    if name == "clip":
        pytest.importorskip("open_clip")
    config = composed(name)
    assert set(config) == {"name", "head", "weights", "options", "channels_last"}
    assert config.weights == NAMED_WEIGHTS.get(name)
    net = factory(config)()
    net.grow(3)
    assert all(value.is_meta for value in (*net.parameters(), *net.buffers()))
    assert isinstance(net.head, CosineHead if name.endswith("cosine") else LinearHead)
    assert net(torch.empty(2, 3, 32, 32, device="meta")).logits.shape == (2, 3)
    if name in PARAMETERS:
        assert net.survey_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", FILES)
def test_the_options_shown_are_those_of_the_builder_at_their_defaults(name):
    config = composed(name)
    zoos = {"timm": timm_backbone, "clip": clip_backbone}
    builder = zoos.get(config.name.partition(":")[0]) or MODELS.find(config.name)
    given = {"name", "weights", "in_channels", "image_size"}
    own = {
        key: parameter.default
        for key, parameter in inspect.signature(builder).parameters.items()
        if key not in given and parameter.kind is not parameter.VAR_KEYWORD
    }
    assert OmegaConf.to_container(config.options) == own | MORE_OPTIONS.get(name, {})


def test_options_and_names_are_set_from_the_command_line():
    centred = composed("resnet20", "model.options.shortcut=centre")
    assert factory(centred).template.shortcut == "centre"
    named = composed("timm", "model.name=timm:vit_tiny_patch16_224.augreg_in21k", "+model.options.depth=2")
    assert factory(named, 224).feature_dim == 192


def test_an_unknown_option_names_the_key():
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'padding'; see model\.options"):
        factory(composed("resnet20", "+model.options.padding=centre")).template  # noqa: B018
