"""Test images with the answers to them: what the last evaluation said, on the page as in the record."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from cil import Budget, Recipe, plan
from cil.cli.main import main
from cil.kinds.classes.sample_answers import SIDE, SampleAnswers, small, spread
from cil.report import table
from cil.report.page import html
from cil.testing.toy import toy_dataset, toy_stream
from cil.tracking import Record


def test_classes_are_spread_over_all():
    assert spread(5) == [0, 1, 2, 3, 4]
    assert spread(100)[0] == 0 and spread(100)[-1] == 99 and len(spread(100)) == 16


def test_the_first_image_of_a_class_and_its_answer_are_kept():
    samples = SampleAnswers(2)
    scores = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 9.0]])
    images = torch.arange(3).reshape(3, 1, 1, 1).float() / 255
    samples.count(images, scores, torch.tensor([1, 0, 1]))
    samples.count(images, 1 - scores, torch.tensor([1, 0, 1]))  # both are there already
    found = samples.counts()
    assert found["sample_images"].flatten().tolist() == [1, 0] and found["sample_slots"].tolist() == [0, 1]
    assert found["sample_answers"].tolist() == [0, 1]


def test_large_images_are_made_small_by_means_over_areas():
    image = torch.tensor([0.0, 1.0]).repeat(2 * SIDE).expand(1, 3, 2 * SIDE, 4 * SIDE)[:, :, :, : 2 * SIDE]
    assert small(image).shape == (1, 3, SIDE, SIDE) and small(image).unique().tolist() == [128]
    assert torch.equal(small(torch.full((1, 1, 4, 6), 0.2)), torch.full((1, 1, 4, 6), 51, dtype=torch.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three experiences, and the same without pictures."""
    root = tmp_path_factory.mktemp("runs")
    for name, pictures in (("with", True), ("without", False)):
        given = {"run_dir": root / name, "pictures": pictures, "recipe": Recipe(epochs=1, batch_size=24)}
        plan("replay", toy_stream(), "smallconv", Budget(exemplars=12), **given).execute()
    return root


def test_the_page_shows_what_the_record_holds(folder):
    record = Record.load(folder / "with")
    arrays = record.arrays()
    slots, answers = arrays["sample_slots"], arrays["sample_answers"]
    confusion = arrays["confusion"][-1]
    assert slots.tolist() == [0, 1, 2, 3, 4, 5] and all(
        confusion[pair] > 0 for pair in zip(slots, answers, strict=True)
    )
    page = html(table([record]), "Report")
    part = page[page.index("Test images and answers") : page.index("Exemplars</h3>")]
    names = [toy_dataset().classes[label] for label in record.identity["class_order"]]
    assert names != toy_dataset().classes  # an order of its own
    assert re.findall(r'<img alt="([^"]*)"', part) == names
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]*)", part)]
    for image, kept in zip(shown, arrays["sample_images"], strict=True):
        assert np.array_equal(np.asarray(image).reshape(kept.shape), kept)
    cells = re.findall(r'<td class="(right|wrong)">([^<]*)', part)
    assert cells == [("right", "✓") if s == a else ("wrong", names[a]) for s, a in zip(slots, answers, strict=True)]


def test_results_are_the_same_without_pictures_and_no_page_has_any(folder, capsys):
    one, other = (Record.load(folder / name) for name in ("with", "without"))
    for key in ("accuracy_matrix", "exemplars", "flops"):
        assert one.results[key] == other.results[key]
    assert "sample_images" not in other.arrays() and "<img" not in html(table([other]), "Report")
    page = folder / "page.html"
    assert main(["report", str(folder / "with"), "--html", str(page), "--no-pictures"]) == 0
    text = page.read_text()
    assert "<img" not in text and "--no-pictures --html" in text
