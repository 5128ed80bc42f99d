"""CLIP without training: class texts, and the nearest of them."""

import json
import logging
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from frozen_runs import scores_by_label, split
from small_runs import bare, differing

from cil.errors import ConfigError
from cil.models import NetFactory, build_backbone
from cil.models.clip import TextEncoder
from cil.strategies.clip_zero_shot import ClipZeroShot
from cil.strategies.parts.class_texts import ClassTexts, class_weight, clean_name, read_sentences

PLAIN = ["a bad photo of a {}."]


class Written:
    """Reads two sentences."""

    def encode_texts(self, texts):
        return torch.tensor([{"one": [2.0, 0.0], "two": [0.0, 1.0]}[text] for text in texts])


def test_a_class_weight_is_the_unit_mean_of_unit_texts():
    assert class_weight(Written(), ["one", "two"]).tolist() == pytest.approx([0.5**0.5] * 2)


def test_names_are_written_as_a_person_would():
    assert clean_name("n02123045_tabby_cat") == "tabby cat"
    assert clean_name("001.Black_footed_Albatross") == "Black footed Albatross"  # CUB
    assert clean_name("n02007558") == "flamingo"  # ImageNet-R, ImageNet-A
    assert clean_name("n99999999") == "n99999999"


def test_answers_are_cosines_to_the_texts_of_the_classes_seen(learn):
    done = learn("clip_zero_shot", split(2))
    learner = done.learner(1)
    assert isinstance(learner.net.backbone, TextEncoder)
    texts = learner.net.backbone.encode_texts([f"a bad photo of a {name}." for name in done.stream.classes[:4]])
    torch.testing.assert_close(learner.weights, texts)
    images = done.stream.test(0).images
    with torch.no_grad():
        features = F.normalize(learner.net(images).features)
        torch.testing.assert_close(learner.predict(images), 100 * features @ texts.T)


def test_nothing_learns_and_a_new_class_changes_no_old_text(learn):
    done = learn("clip_zero_shot", split(2))
    assert differing(done.net(0), done.net(2)) == []
    assert not [line for line in done.record.lines() if line["kind"] == "step"]
    assert torch.equal(done.learner(2).weights[:2], done.learner(0).weights)
    assert done.ledger(2)["prototypes"] == 6 * 4 * 32


def test_neither_order_nor_grouping_of_the_classes_matters(learn):
    expected = scores_by_label(learn("clip_zero_shot", split(6)))
    for stream in (split(2), split(1, order=[4, 2, 0, 5, 1, 3])):
        torch.testing.assert_close(scores_by_label(learn("clip_zero_shot", stream)), expected, rtol=1e-5, atol=1e-4)


def test_sentences_of_a_file_stand_in_place_of_templates(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"tabby cat": ["a cat with stripes", "a striped pet"]}))
    texts = ClassTexts("clip_zero_shot", PLAIN, str(path))
    assert texts.of("tabby_cat") == ["a cat with stripes", "a striped pet"]
    with pytest.raises(ConfigError, match="has no sentence for class 'dog'"):
        texts.of("dog")
    for wrong, words in (("[1]", "must map each class name"), ("{", "is no JSON file")):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=words):
            read_sentences(path)


def test_what_does_not_read_or_has_no_place_for_the_name_is_refused():
    factory = NetFactory(partial(build_backbone, "smallconv", 3, 12))
    with pytest.raises(ConfigError, match="reads class names, which the network cannot; set model=clip"):
        ClipZeroShot(factory, bare("clip_zero_shot").budget)
    for wrong in ("a {}", [], ["a photo"], ["a {} of {kind}"], ["{} {"], ["{{}}"]):
        with pytest.raises(ConfigError, match=r"strategy\.templates of clip_zero_shot is .*list of sentences"):
            bare("clip_zero_shot", templates=wrong)


# open_clip ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    """The name of a CLIP model of one block a tower."""
    open_clip = pytest.importorskip("open_clip")
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    return "clip:tiny-clip"


def test_a_clip_model_answers_as_open_clips_own_zero_shot_classifier(tiny, tmp_path):
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    public = open_clip.create_model("tiny-clip", load_weights=False).eval()
    save_file({k: v.contiguous() for k, v in public.state_dict().items()}, tmp_path / "clip.safetensors")
    backbone = build_backbone(tiny, 3, 12, weights=tmp_path / "clip.safetensors").eval()
    assert backbone.mean == open_clip.OPENAI_DATASET_MEAN and backbone.feature_dim == 24
    names, images = ["cat", "dog", "fish"], torch.rand(2, 3, 32, 32)
    expected = open_clip.build_zero_shot_classifier(public, open_clip.get_tokenizer("tiny-clip"), names, PLAIN[:1])
    found = torch.stack([class_weight(backbone, [PLAIN[0].format(name)]) for name in names])
    torch.testing.assert_close(found, expected.T)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[0], public.encode_image(images))
        assert backbone(torch.rand(2, 3, 12, 12))[0].shape == (2, 24)  # resized to its input
    assert backbone.logit_factor() == pytest.approx(float(public.logit_scale.exp()))
    images_only = build_backbone(tiny, 1, 12, weights=tmp_path / "clip.safetensors", text=False)
    assert not any("token_embedding" in name for name in images_only.state_dict())
    assert images_only(torch.rand(2, 1, 12, 12))[0].shape == (2, 24)
    with pytest.raises(ConfigError, match=r"no text tower; set model\.options\.text"):
        images_only.encode_texts(["cat"])


def test_the_sizes_of_clip_vit_b_16():
    pytest.importorskip("open_clip")
    with torch.device("meta"):
        backbone = build_backbone("clip:ViT-B-16/openai", 3, 224)
    assert sum(p.numel() for p in backbone.parameters()) == 149_620_737
    assert backbone.survey_parameters == 86_192_640 and backbone.feature_dim == 512


def test_that_weights_are_random_before_they_are_loaded_is_not_logged(tiny, caplog):
    build_backbone(tiny, 3, 12)
    assert not caplog.records
    logging.warning("heard again")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("name", "words"), [
    ("ViT-B-61", "open_clip has no model 'ViT-B-61'; near: .*ViT-B-16"),
    ("ViT-B-16/opneai", "open_clip has no weights 'opneai' of ViT-B-16; tags: .*openai"),
])  # fmt: skip
def test_an_unknown_clip_model_or_tag_is_refused(name, words):
    pytest.importorskip("open_clip")
    with pytest.raises(ConfigError, match=words):
        build_backbone(f"clip:{name}", 3, 224)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"model clip:ViT-B-16 needs open_clip: pip install 'cil\[clip\]'"):
        build_backbone("clip:ViT-B-16", 3, 224)
