"""Bills under every way of counting, how much of the past a budget could hold, and the set-up in words."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import pytest
from made_records import NO_BUDGET, byte_budget

from cil import class_incremental, plan
from cil.report import table, to_csv, to_markdown, to_text, write_html
from cil.report.bills import share_of_past, unused_share
from cil.report.setup import augmentation_words, optimizer_words
from cil.tracking.lock import LOCK, DirectoryLock

RECIPE = {
    "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9, "nesterov": False},
    "scheduler": {"_target_": "cil.engine.recipe.multistep", "milestones": [80, 120], "gamma": 0.1, "warmup": 0},
    "stream": {"name": "toy", "order_seed": 1993, "validation": 0.1},
}
NETWORK = {"name": "resnet32", "head": "linear", "weights": None, "mean": [0.5], "std": [0.25]}


def rows_of(*records):
    return {row.label: row for section in table(records).sections for row in section.rows}


def test_bytes_that_a_budget_leaves_beside_networks_are_a_share_of_the_past(run):
    """Limit 1,038,400 less 1,000,000 of parameters: 200 images of 192 bytes, half of the 400. Carried: 1,019,300."""
    row = rows_of(run(budget=byte_budget(1_038_400)))["icarl"]
    assert share_of_past(row) == 50.0
    assert unused_share(row) == pytest.approx(100 * (1 - 1_019_300 / 1_038_400))


def test_exemplars_of_the_strategy_that_a_budget_follows_are_no_cap(run):
    """DER with 20 exemplars has the bytes: of 400 images 200 fit beside the networks of a row, not 20."""
    budget = {**byte_budget(1_038_400), "kind": "aligned", "to": "der", "exemplars": 20}
    (section,) = table([run(budget=budget)]).sections
    assert share_of_past(section.rows[0]) == 50.0
    assert "aligned to der, 1,038,400 bytes (0.99 MiB, exact), what it has with 20 exemplars" in section.subtitle


def test_a_cap_on_exemplars_is_their_share_and_a_bound_has_none(run):
    rows = rows_of(run(), run("joint", bound=True))
    assert (share_of_past(rows["icarl"]), unused_share(rows["icarl"])) == (50.0, 50.0)  # 200 of 400, 100 of 200
    assert (share_of_past(rows["joint"]), unused_share(rows["joint"])) == (None, None)
    each = rows_of(run(budget={**NO_BUDGET, "kind": "per_class", "per_class": 30}))["icarl"]
    assert share_of_past(each) == 30.0  # 4 classes of 30


def test_images_that_were_given_up_in_the_last_experience_are_no_overuse(run):
    """100 exemplars under a cap of 50 and 75 images that were given up: 25 of 125 are left."""
    budget = {**NO_BUDGET, "kind": "exemplars", "exemplars": 50, "scope": "carried+incoming"}
    row = rows_of(run(budget=budget, results={"given_up": [0, 75]}))["icarl"]
    assert unused_share(row) == pytest.approx(20.0)


def test_who_keeps_most_of_the_past_is_marked(run):
    row = rows_of(run(exemplars=300, budget=byte_budget(2_000_000)))["icarl"]
    assert "keeps 75% of all images" in [note.mark for note in row.notes]


def test_a_further_way_of_counting_is_in_every_form_beside_the_two(run, tmp_path):
    ours = run()
    ours.results["ledger"][-1]["totals"]["libcontinual"] = {"parameters": 999_000, "total": 999_777}
    records = [ours, run("wa")]
    whole = table(records)
    for text in (to_text(whole, 300), to_markdown(whole), write_html(records, tmp_path / "page.html").read_text()):
        assert "libcontinual B" in text and "999,777" in text
    assert [line["libcontinual_bytes"] for line in csv.DictReader(io.StringIO(to_csv(whole)))] == ["999777", ""]


def test_bytes_stand_in_three_lines_where_a_row_has_public_weights(run, tmp_path):
    """1,000,000 B of parameters, 900,000 of them public; 100 images of 192 bytes with a label of one byte each."""
    records = [run("l2p", public=900_000, exemplars=0), run("icarl", public=900_000), run("wa")]
    (section,) = table(records).sections
    (three,) = (found for found in section.tables if found.heading == "Backbone, learned, stored")
    cells = {line.name: line.cells for line in three.grid.lines}
    assert cells["l2p"] == {
        "backbone B": "900,000", "learned B": "100,000", "stored B": "0", "learned + stored B": "100,000",
        "Last %": "65.00",
    }  # fmt: skip
    assert (cells["icarl"]["stored B"], cells["icarl"]["learned + stored B"]) == ("19,300", "119,300")
    assert (cells["wa"]["backbone B"], cells["wa"]["learned B"]) == ("0", "1,000,000")
    lines = {line["label"]: line for line in csv.DictReader(io.StringIO(to_csv(table(records))))}
    assert (lines["icarl"]["backbone_bytes"], lines["icarl"]["stored_bytes"]) == ("900000", "19300")
    assert "Last accuracy against learned bytes" in write_html(records, tmp_path / "page.html").read_text()
    bare = write_html([run("wa"), run("replay")], tmp_path / "bare.html").read_text()
    assert "learned bytes" not in bare and "Backbone, learned" not in bare


def test_a_table_of_public_weights_says_what_their_images_went_through(run):
    """Normalisation, RandomResizedCrop, and the size that a network of fixed size brings images of 8 pixels to."""
    network = {"name": "timm:vit", "head": "linear", "weights": "v.npz", "mean": None, "std": None}
    crop = {"resized_crop": True, "crop_area": 0.05, "crop_size": 224, "flip": True}

    def record(strategy, preprocess, size, augment):
        own = network | {"options": {"preprocess": preprocess, "img_size": size}}
        return run(strategy, public=900_000, networks=own, stream_changes={"augment": augment})

    records = [record("l2p", "timm", 224, crop), record("ranpac", "unit_range", 8, {})]
    (section,) = table(records).sections
    (three,) = (found for found in section.tables if found.heading == "Backbone, learned, stored")
    assert three.note.endswith(
        "Images of l2p: augmentation random resized crop of at least 5 % of the area to 224 pixels, horizontal flip; "
        "normalisation as the public weights expect; resized to 224 × 224, bicubic. "
        "Images of ranpac: augmentation none; normalisation none, images stay in [0, 1]."
    )
    assert section.facts["resized"] == "to 224 × 224, bicubic (l2p)"
    (alone,) = table(records[:1]).sections
    assert "Normalisation of images: as the public weights expect. The network resizes images to" in alone.setup
    (other,) = table([run("l2p", public=1, networks=network | {"name": "clip:ViT-B-16/openai"})]).sections
    assert other.facts["resized"] == "to the input of the image tower, bicubic"


def test_without_a_budget_nothing_is_said_of_its_use(run):
    (section,) = table([run(budget=NO_BUDGET)]).sections
    assert not {"past %", "unused %"} & set(section.grid.heads) and "past:" not in section.legend


def test_the_set_up_is_a_paragraph_and_its_facts_are_settings(run):
    config = {
        **RECIPE,
        "strategy": {"name": "icarl", "selection": "herding"},
        "trainer": {"epochs": 170, "batch_size": 128},
    }
    augment = {"crop_padding": 4, "flip": True, "brightness": 0.25}
    record = run(
        config=config, networks=NETWORK, stream_changes={"augment": augment}, results={"class_counts": [10] * 4}
    )
    (section,) = table([record]).sections
    for part in (
        "order seed 1993", "Network: resnet32, linear head, random weights.", "SGD, learning rate 0.1, momentum 0.9.",
        "multistep, milestones [80, 120], gamma 0.1.", "Epochs of each experience: 170; images a batch: 128.",
        "random crop after padding by 4 pixels, horizontal flip, brightness times U[0.75, 1.25]", "400 for training",
        "40 for testing", "0.1 of each class's training images, held out", "chosen by herding", "200 exemplars",
        "seed 0 alone",
    ):  # fmt: skip
        assert part in section.setup, part
    assert section.facts["optimizer"] == "SGD, learning rate 0.1, momentum 0.9"
    assert section.facts["training images"] == "400 (200 + 200)" and section.facts["test images"] == "40"


def test_where_rows_differ_the_settings_say_who_has_what(run):
    long = run("wa", config={"trainer": {"epochs": 170}})
    assert table([run(), long]).sections[0].facts["epochs"] == "10 (icarl); 170 (wa)"


def test_settings_are_those_that_count_where_a_method_has_its_own(run):
    config = {
        "strategy": {"epochs": 5, "lr": 0.05},
        "trainer": {"epochs": 10, "batch_size": 32},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "weight_decay": 0.001},
        "scheduler": {"_target_": "cil.engine.recipe.cosine"},
    }
    own = {"trainer.epochs": "strategy.epochs", "optimizer.lr": "strategy.lr", "optimizer.weight_decay": "no decay"}
    one = run("avalanche", config=config, ignored={**own, "scheduler": "a constant rate"})
    (section,) = table([run(config=config), one]).sections
    assert section.facts["epochs"] == "5 (avalanche); 10 (icarl)"
    assert section.facts["optimizer"].startswith("SGD, learning rate 0.05 (avalanche); SGD, learning rate 0.1, weight")
    assert section.facts["schedule"] == "cosine (icarl)"
    (said,) = [words for words in section.warnings if "recipe" in words]
    assert all(key in said for key in ("trainer.epochs", "optimizer.lr", "optimizer.weight_decay", "scheduler."))
    assert "batch_size" not in said


def test_a_run_says_which_settings_do_nothing_with_its_method():
    stream = class_incremental("digits", increment=5, train_per_class=5, test_per_class=2)
    assert plan("gpm", stream, "smallconv").identity["ignored"] == {"optimizer.weight_decay": "no decay"}
    assert "ignored" not in plan("replay", stream, "smallconv").identity


def test_what_a_record_does_not_say_is_not_made_up(run):
    (section,) = table([run()]).sections
    assert "None" not in section.setup and "optimizer" not in section.facts and "Optimizer" not in section.setup
    bare = SimpleNamespace(config={}, stream={"augment": {}}, identity={})
    assert augmentation_words(bare) == "none" and optimizer_words(bare) == ""


def test_what_is_done_to_the_images_of_each_set_of_a_pool_is_said():
    augment = {"flip": False, "choices": [{"flip": True, "crop_padding": 4}, {}], "choice_of": [1, 0, 1, 1]}
    pool = SimpleNamespace(config={}, stream={"augment": augment, "origins": ["b", "photos", "a", "b"]}, identity={})
    assert augmentation_words(pool) == "none (a, b); random crop after padding by 4 pixels, horizontal flip (photos)"


def test_a_run_whose_process_is_gone_has_stopped(run):
    record = run(status="running")
    marks = {note.mark for note in rows_of(record)["icarl"].notes}
    assert "stopped 2/2" in marks
    lock = DirectoryLock(record.directory)
    assert {note.mark for note in rows_of(record)["icarl"].notes} == {"running 2/2"}
    lock.close()
    (record.directory / LOCK).unlink()
    assert {note.mark for note in rows_of(record)["icarl"].notes} == {"stopped 2/2"}


def test_the_set_up_says_looks_and_passes_of_rows_and_names_rows_of_one_method_apart(run):
    trainers = [{"looks": "1", "updates_per_batch": 3}, {"looks": "free", "complexity": "5/2"}]
    selections = ["random", "herding"]
    runs = [
        run("icarl", config={"trainer": trainer, "strategy": {"selection": selection}})
        for trainer, selection in zip(trainers, selections, strict=True)
    ]
    section = table(runs).sections[0]
    once, free = sorted(row.label for row in section.rows)
    assert "selection=herding" in once and "selection=random" in free
    once, free = free, once
    assert section.facts["looks"] == f"at most 1 at each new image, hooks included ({once})"
    assert f"in the order of the stream, 3 steps a batch ({once})" in section.facts["single pass"]
    assert f"missed (complexity 5/2) ({free})" in section.facts["single pass"]
    for words in (f"Looks: {section.facts['looks']}.", f"Single pass: {section.facts['single pass']}."):
        assert words in section.setup
    assert f"random ({once})" in section.setup and "Numbers are of seed 0 alone." in section.setup
    assert "looks" not in table([run("icarl")]).sections[0].facts
