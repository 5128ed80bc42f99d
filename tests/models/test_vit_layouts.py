"""Weights of vision transformers in the layouts of other codes: the same features from each."""

import numpy as np
import pytest
import torch

from cil.errors import ConfigError
from cil.models import timm_backbone
from cil.models.vit_layouts import to_timm

SMALL = {"img_size": 32, "patch_size": 8, "depth": 2}


def vit(path=None, name="vit_tiny_patch16_224", **options):
    return timm_backbone(name, path, **(SMALL | options)).eval()


def model():
    torch.manual_seed(0)
    found = vit().model
    for value in found.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return found


def arrays(state, heads=3):
    """timm's tensors under the names and shapes of the original arrays."""

    def kernel(value):
        return value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T

    made = {
        "cls": state["cls_token"], "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": kernel(state["patch_embed.proj.weight"]), "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"], "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": torch.zeros(192, 7), "head/bias": torch.zeros(7), "pre_logits/bias": torch.zeros(192),
    }  # fmt: skip
    for block in range(2):
        own, to = f"blocks.{block}.", f"Transformer/encoderblock_{block}/"
        for norm, number in (("norm1", 0), ("norm2", 2)):
            made[f"{to}LayerNorm_{number}/scale"] = state[f"{own}{norm}.weight"]
            made[f"{to}LayerNorm_{number}/bias"] = state[f"{own}{norm}.bias"]
        attention = f"{to}MultiHeadDotProductAttention_1/"
        weights, biases = (state[f"{own}attn.qkv.{what}"].chunk(3) for what in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            made[f"{attention}{name}/kernel"] = weight.T.reshape(192, heads, -1)
            made[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        made[f"{attention}out/kernel"] = state[f"{own}attn.proj.weight"].T.reshape(heads, -1, 192)
        made[f"{attention}out/bias"] = state[f"{own}attn.proj.bias"]
        for layer, number in (("fc1", 0), ("fc2", 1)):
            made[f"{to}MlpBlock_3/Dense_{number}/kernel"] = state[f"{own}mlp.{layer}.weight"].T
            made[f"{to}MlpBlock_3/Dense_{number}/bias"] = state[f"{own}mlp.{layer}.bias"]
    return {name: value.numpy() for name, value in made.items()}


def written(layout, folder, state):
    path = folder / ("vit.npz" if layout == "npz" else "vit.pth")
    if layout == "npz":
        np.savez(path, **arrays(state))
    elif layout == "deit":
        torch.save({"model": {**state, "head.weight": torch.zeros(7, 192), "head.bias": torch.zeros(7)}}, path)
    else:
        teacher = {f"module.backbone.{name}": value for name, value in state.items()}
        torch.save({"teacher": {**teacher, "module.head.mlp.0.weight": torch.zeros(3, 3)}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("layout", ["npz", "deit", "dino"])
def test_each_layout_gives_the_same_features(tmp_path, layout):
    public, images = model(), torch.rand(2, 3, 32, 32)
    path = written(layout, tmp_path, public.state_dict())
    torch.testing.assert_close(vit(path)(images)[0], public(images))
    assert vit(path, img_size=64).model.pos_embed.shape == (1, 65, 192)  # resized to another image size


def test_the_image_tower_of_a_clip_model_is_read(tmp_path):
    """OpenAI's and open_clip's names; the projection is left out."""
    torch.manual_seed(0)
    name = "vit_base_patch16_clip_224"
    small = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 64, "num_heads": 2}
    public = timm_backbone(name, **small).eval().model
    state = public.state_dict()
    renamed = {
        "class_embedding": state["cls_token"][0, 0], "positional_embedding": state["pos_embed"][0],
        "conv1.weight": state["patch_embed.proj.weight"], "proj": torch.zeros(64, 8),
    }  # fmt: skip
    for own, other in (("norm_pre", "ln_pre"), ("norm", "ln_post")):
        renamed |= {f"{other}.{what}": state[f"{own}.{what}"] for what in ("weight", "bias")}
    block = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for what in ("weight", "bias"):
        renamed[f"transformer.resblocks.0.attn.in_proj_{what}"] = state[f"blocks.0.attn.qkv.{what}"]
        for own, other in block.items():
            renamed[f"transformer.resblocks.0.{other}.{what}"] = state[f"blocks.0.{own}.{what}"]
    whole = {f"visual.{name}": value for name, value in renamed.items()} | {"logit_scale": torch.zeros(())}
    torch.save(whole, tmp_path / "clip.pt")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(timm_backbone(name, tmp_path / "clip.pt", **small).eval()(images)[0], public(images))


QUERY = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"


@pytest.mark.parametrize(
    ("layout", "name", "value", "channels", "says"),
    [
        ("npz", QUERY, None, 3, "cannot be converted .KeyError 'query'"),
        ("npz", QUERY, torch.zeros(192), 3, "cannot be converted .IndexError"),
        ("deit", "pos_embed", torch.zeros(1, 0, 192), 3, "cannot be converted .ValueError"),
        ("deit", "pos_embed", torch.zeros(192), 3, "cannot be converted"),
        ("deit", "patch_embed.proj.weight", torch.zeros(192, 5), 3, "cannot be converted .RuntimeError"),
        ("deit", "patch_embed.proj.weight", torch.zeros(192, 1, 8, 8), 2, r"\(192, 1, 8, 8\) in place of \(192, 2"),
        ("deit", "patch_embed.proj.weight", torch.zeros(192, 4, 8, 8), 1, r"\(192, 4, 8, 8\) in place of \(192, 1"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_line(tmp_path, layout, name, value, channels, says):
    state = model().state_dict()
    tensors = arrays(state) if layout == "npz" else state
    changed = {key: torch.as_tensor(own) for key, own in tensors.items() if key != name}
    path = tmp_path / ("vit.npz" if layout == "npz" else "vit.pth")
    changed |= {} if value is None else {name: value}
    if layout == "npz":
        np.savez(path, **{key: own.numpy() for key, own in changed.items()})
    else:
        torch.save(changed, path)
    with pytest.raises(ConfigError, match=says) as caught:
        vit(path, in_channels=channels)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_an_unknown_layout_is_left_as_it_is():
    tensors = {"blocks.0.weight": torch.ones(1)}
    assert to_timm(tensors) == tensors
