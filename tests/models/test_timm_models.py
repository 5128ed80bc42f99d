"""timm models as backbones; no test needs a network."""

from functools import partial

import pytest
import torch
from torch import nn

from cil.errors import ConfigError
from cil.models import NetFactory, build_backbone, count_parameters, timm_backbone
from cil.models.timm_zoo import full_name

VIT = {"img_size": 32, "patch_size": 8, "depth": 2}


def vit(**options):
    return timm_backbone("vit_tiny_patch16_224", **(VIT | options))


def save(model: nn.Module, path) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


@pytest.mark.parametrize(("name", "dim", "options"), [("resnet10t", 512, {}), ("vit_tiny_patch16_224", 192, VIT)])
def test_a_timm_model_is_a_growing_network(name, dim, options):
    factory = NetFactory(partial(build_backbone, f"timm:{name}", 3, 32, **options))
    net = factory()
    net.grow(5)
    output = net(torch.rand(2, 3, 32, 32))
    assert output.logits.shape == (2, 5)
    assert output.features.shape == (2, dim) == (2, factory.feature_dim)
    assert not any("num_batches_tracked" in key for key in net.state_dict())
    assert net.survey_parameters == count_parameters(net.backbone)


def test_weights_bring_their_statistics_where_none_are_given_and_random_ones_have_none(tmp_path):
    save(vit().model, tmp_path / "vit.safetensors")
    trained = partial(vit, weights=tmp_path / "vit.safetensors")
    own = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 2.0)}
    assert NetFactory(trained).normalise().mean.flatten().tolist() == [0.5, 0.5, 0.5]
    plain = partial(trained, preprocess="unit_range")
    assert NetFactory(plain).normalise().mean.flatten().tolist() == [0.0] * 3
    assert NetFactory(plain).normalise().std.flatten().tolist() == [1.0] * 3
    with pytest.raises(ConfigError, match=r"model\.options\.preprocess is 'none'; allowed: timm, unit_range"):
        trained(preprocess="none")
    assert NetFactory(trained, meta=True).normalise().mean.shape == (1, 3, 1, 1)
    assert NetFactory(trained, **own).normalise().mean.flatten().tolist() == pytest.approx(own["mean"])
    assert NetFactory(vit, **own).normalise().mean.flatten().tolist() == pytest.approx(own["mean"])
    assert type(NetFactory(vit).normalise()) is nn.Identity


def test_weights_for_three_channels_are_summed_for_images_of_one(tmp_path):
    colour = timm_backbone("resnet10t", in_channels=3)
    save(colour.model, tmp_path / "net.safetensors")
    path = tmp_path / "net.safetensors"
    colour = timm_backbone("resnet10t", path).eval()
    grey = timm_backbone("resnet10t", path, in_channels=1).eval()
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(grey(images)[0], colour(images.expand(-1, 3, -1, -1))[0], rtol=1e-4, atol=1e-4)
    assert len(colour.mean) == 3
    assert grey.mean == pytest.approx((sum(colour.mean) / 3,))
    net = NetFactory(partial(timm_backbone, "resnet10t", path, 1))()
    assert net(torch.rand(2, 1, 32, 32)).features.shape == (2, 512)


def test_a_vit_b16_without_head_is_charged_85798656_parameters_on_meta():
    build = partial(build_backbone, "timm:vit_base_patch16_224.augreg_in21k", 3, 224, weights="hub")
    net = NetFactory(build, meta=True)()
    assert net.survey_parameters == 85_798_656
    assert net.backbone.mean == (0.5, 0.5, 0.5)


def test_the_image_size_of_the_stream_reaches_models_of_fixed_size():
    backbone = build_backbone("timm:vit_tiny_patch16_224", 1, (32, 32), patch_size=8, depth=1)
    assert backbone(torch.rand(1, 1, 32, 32))[0].shape == (1, 192)


def test_intermediate_maps_come_where_asked_for_and_leave_features_alone():
    torch.manual_seed(0)
    plain = timm_backbone("resnet10t").eval()
    staged = timm_backbone("resnet10t", stages=True).eval()
    staged.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64)
    features, stages = staged(images)
    torch.testing.assert_close(features, plain(images)[0])
    assert plain(images)[1] == ()
    assert stages[-1].shape == (2, 512, 2, 2)


def test_a_file_in_timms_layout_loads_without_its_classifier(tmp_path):
    import timm

    model = timm.create_model("resnet10t", num_classes=7).eval()
    save(model, tmp_path / "net.safetensors")
    backbone = timm_backbone("resnet10t", tmp_path / "net.safetensors").eval()
    images = torch.rand(2, 3, 64, 64)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(backbone(images)[0], expected)


def test_position_embeddings_are_resized_to_another_image_size(tmp_path):
    small = vit()
    save(small.model, tmp_path / "vit.safetensors")
    large = vit(img_size=64, weights=tmp_path / "vit.safetensors")
    assert large.model.pos_embed.shape == (1, 65, 192)
    assert torch.equal(large.model.blocks[0].attn.qkv.weight, small.model.blocks[0].attn.qkv.weight)


def test_weights_of_another_model_are_refused_in_one_line(tmp_path):
    save(vit().model, tmp_path / "vit.safetensors")
    with pytest.raises(
        ConfigError, match=r"vit.safetensors does not fit ResNet: missing conv1.*unexpected blocks"
    ) as e:
        timm_backbone("resnet10t", tmp_path / "vit.safetensors")
    assert "\n" not in str(e.value)


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: type("Api", (), {"model_info": unreachable})())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(
        ConfigError, match=r"cannot fetch model.safetensors of timm/resnet10t.*path of a downloaded"
    ) as e:
        timm_backbone("resnet10t", "hub")
    assert "\n" not in str(e.value)


def test_cached_hub_weights_need_no_hub(monkeypatch, tmp_path):
    import huggingface_hub

    source = timm_backbone("resnet10t")
    save(source.model, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "model.safetensors"))
    loaded = timm_backbone("resnet10t", "hub")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), source.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10x", {}, "has no model 'resnet10x'; near: .*resnet10"),
        ("resnet10t", {"no_such_key": 1}, "timm cannot build 'resnet10t'"),
        ("resnet10t.no_such_tag", {"weights": None}, "timm cannot build 'resnet10t.no_such_tag'"),
    ],
)
def test_an_unknown_timm_model_option_or_tag_is_refused_in_one_line(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        timm_backbone(name, **options)
    assert "\n" not in str(caught.value)


def test_a_bare_name_is_written_with_the_tag_that_it_stands_for():
    assert full_name("vit_base_patch16_224") == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert full_name("vit_base_patch16_224.augreg_in21k") == "vit_base_patch16_224.augreg_in21k"
