"""Manifests as objects: order, filters, class numbers, text and back; and those that come with the package."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from cil.errors import ConfigError, StreamError
from cil.streams.manifest import Manifest, ManifestTask, StreamInfo, as_mapping
from cil.streams.manifest_files import SHIPPED, manifest_path, read_manifest, to_yaml
from cil.streams.manifest_rules import errors_in, parse
from cil.streams.manifest_schema import DOMAINS


def task(name, year, classes=2, dataset=None, **more):
    """A task without data."""
    settings = {"domain": "object", "kind": "multiclass", "license": {"name": "mine"}, "splits": {"rule": "A"},
                "preprocess": {"resize": 64}, "source": {"type": "npz", "file": "x.npz"}}  # fmt: skip
    return ManifestTask(name, dataset or name, year, classes=classes, **(settings | more))


MIXED = Manifest(
    StreamInfo(name="mixed"),
    (
        task("late", 2010, 4),
        task("b", 2000, 3, domain="ocr", train_examples=500),
        task("a", 2000, 5, date="2000-06-01", domain="face", train_examples=50),
        task("early", 1990, 10, kind="multilabel"),
        task("b-again", 2012, 3, dataset="b", domain="ocr", train_examples=500),
    ),
)


def ids(manifest_or_tasks):
    return [item.id for item in manifest_or_tasks]


# --- order ---


def test_by_year_or_date_then_as_in_the_file():
    assert ids(MIXED.ordered()) == ["early", "b", "a", "late", "b-again"]  # a year alone comes before its days
    same_year = Manifest(StreamInfo(), tuple(task(name, 2000) for name in "cab"))
    assert ids(same_year.ordered()) == ["c", "a", "b"]
    assert MIXED.repeats == ("b-again",) and MIXED.datasets == ("early", "b", "a", "late")


def test_shuffles_are_by_seed_and_stay_within_a_year_where_asked():
    many = Manifest(StreamInfo(), tuple(task(f"t{k}", 2000 + k // 8) for k in range(24)))
    for how in ("within_year", "all"):
        shuffled = many.ordered(how, 3)
        assert ids(shuffled) == ids(many.ordered(how, 3)) != ids(many.ordered(how, 4))
        assert sorted(ids(shuffled)) == sorted(ids(many)) and ids(shuffled) != ids(many)
        assert ids(replace(many, stream=StreamInfo(shuffle=how, seed=3)).ordered()) == ids(shuffled)
    years = [item.year for item in many.ordered("within_year", 3)]
    assert years == sorted(years)
    assert [item.year for item in many.ordered("all", 3)] != years
    with pytest.raises(ConfigError, match="no shuffle 'years'"):
        many.ordered("years")


def test_a_shuffle_may_bring_a_repeat_first():
    twice = Manifest(StreamInfo(shuffle="all"), (task("one", 2000, dataset="d"), task("two", 2001, dataset="d")))
    for seed in range(8):
        order = replace(twice, stream=StreamInfo(shuffle="all", seed=seed))
        assert order.repeats == (ids(order.ordered())[1],)


# --- filters ---

CHOICES = [
    ({"domains": ["ocr"]}, ["b", "b-again"]),
    ({"kinds": ["multilabel"]}, ["early"]),
    ({"years": [2000, 2010]}, ["late", "b", "a"]),
    ({"years": [None, 1999]}, ["early"]),
    ({"years": [2011, None]}, ["b-again"]),
    ({"ids": ["late", "a"]}, ["late", "a"]),
    ({"first": 2}, ["b", "early"]),
    ({"last": 2}, ["late", "b-again"]),
    ({"first": 3, "last": 2}, ["b", "a"]),
    ({"domains": ["ocr", "face"], "min_size": 100}, ["b", "b-again"]),
    ({"domains": ["ocr", "face"], "min_size": 100, "sizes": {"a": 200}}, ["b", "a", "b-again"]),
]


@pytest.mark.parametrize(("filters", "left"), CHOICES, ids=[str(item) for item, _ in CHOICES])
def test_filters_leave_what_passes_all_of_them(filters, left):
    assert sorted(ids(MIXED.select(**filters))) == sorted(left)


def test_filters_name_what_is_unknown():
    for filters, message in (
        ({"ids": ["lates"]}, "filter ids has 'lates'; did you mean 'late'"),
        ({"domains": ["ocrs"]}, "filter domains has 'ocrs'; did you mean 'ocr'"),
        ({"kinds": ["labels"]}, "filter kinds has 'labels'"),
        ({"min_size": 3}, "filter min_size: early has no train_examples"),
    ):
        with pytest.raises(ConfigError, match=message):
            MIXED.select(**filters)
    with pytest.raises(StreamError, match="no task of 'mixed' passes the filters"):
        MIXED.select(years=[1900, 1901])
    with pytest.raises(ConfigError, match="the stream has no task 'lat'; did you mean 'late'"):
        MIXED["lat"]


def test_class_numbers_run_on_in_order_of_appearance_and_outlive_filters():
    offsets = {"b": 0, "a": 3, "late": 8}  # 3, 5 and 4 classes; repeats share, multilabel has none
    assert MIXED.offsets() == offsets
    for filters, _ in CHOICES:
        left = MIXED.select(**filters)
        assert left.offsets() == {name: offsets[name] for name in left.datasets if name in offsets}
        twice = left.select(last=1)
        assert twice.offsets().items() <= offsets.items()
        written, problems = parse(as_mapping(left))
        assert not errors_in(problems) and written.offsets() == left.offsets()  # through the file too
    later = replace(MIXED, tasks=(*MIXED.tasks, task("newest", 2020, 7)))
    assert later.offsets() == {**offsets, "newest": 12}


def test_a_variant_has_its_own_years_and_order():
    variants = {"small": {"late": 1995, "a": 1995, "b": None}}
    manifest = replace(MIXED, stream=StreamInfo(variants=variants))
    small = manifest.variant("small")
    assert [(item.id, item.year) for item in small.ordered()] == [("late", 1995), ("a", 1995), ("b", 2000)]
    assert small.offsets() == {"late": 8, "a": 3, "b": 0}
    with pytest.raises(ConfigError, match="no variant 'smal'; did you mean 'small'"):
        manifest.variant("smal")


# --- text ---


@pytest.mark.parametrize("name", ["embedded_tasks", "nevis22", "small_tasks", "example_folder"])
def test_text_to_object_to_text(name, tmp_path):
    once = read_manifest(name)
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(once))
    again = read_manifest(file)
    assert again == once
    assert to_yaml(again) == file.read_text()


def test_what_needs_care_in_text_survives(tmp_path):
    source = {"type": "csv", "file": "a b.csv", "label_separator": "|"}
    transform, paper = {"label_map": {"3": "no", "x": None}}, {"title": '"Quoted", 50 %'}
    names = ("no", "1", "a: b", "${x}", "ä")
    odd = task("odd", 2001, names, transform=transform, source=source, paper=paper)
    file = tmp_path / "odd.yaml"
    file.write_text(to_yaml(Manifest(StreamInfo(name="odd"), (odd,))), encoding="utf-8")
    assert read_manifest(file).tasks == (odd,)


def test_errors_of_a_file_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no manifest 'embeded_tasks'.*did you mean 'embedded_tasks'"):
        read_manifest("embeded_tasks")
    file = tmp_path / "bad.yaml"
    file.write_text("version: 1\ntasks: [\n")
    with pytest.raises(StreamError, match=r"bad\.yaml cannot be read as YAML"):
        read_manifest(file)
    file.write_text("version: 2\nx: 1\ny: 1\nz: 1\ntasks: []\n")
    with pytest.raises(StreamError) as caught:
        read_manifest(file)
    assert "version: 2: known: 1" in str(caught.value) and "and 2 more (cil stream validate" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert manifest_path("nevis22.yaml") == SHIPPED / "nevis22.yaml"


# --- what comes with the package ---


@pytest.fixture(scope="module")
def nevis():
    return read_manifest("nevis22")


def test_nevis22_has_the_published_counts(nevis):
    assert len(nevis) == 106 and len(nevis.datasets) == 97 and len(nevis.repeats) == 9
    assert sum(item.multilabel for item in nevis) == 9
    assert sum(item.year < 2020 for item in nevis) == 92 and sum(item.year < 2019 for item in nevis) == 79
    assert [item.year for item in nevis] == sorted(item.year for item in nevis)
    assert Counter(item.year for item in nevis) == {
        1992: 2, 1998: 3, 2000: 1, 2001: 2, 2004: 2, 2005: 3, 2006: 4, 2007: 1, 2008: 1, 2009: 2, 2010: 4, 2011: 10,
        2012: 5, 2013: 5, 2014: 1, 2015: 4, 2016: 14, 2017: 4, 2018: 11, 2019: 13, 2020: 3, 2021: 11,
    }  # fmt: skip


def test_nevis22_tells_what_to_put_where_for_all_that_is_not_fetched(nevis):
    fetched = [item.dataset for item in nevis if item.source["type"] == "torchvision"]
    assert (len(fetched), len(set(fetched))) == (25, 22)
    for item in nevis:
        if item.source["type"] != "torchvision":
            assert len(item.source["obtain"]) > 20, item.id
            where = item.source.get("root") or item.source.get("file") or item.source["train"]
            assert where.startswith(f"nevis/{item.dataset}"), item.id


def test_nevis22_rows_are_those_of_the_table(nevis):
    """Every tenth row, by hand: year, domain, classes, training examples, rule."""
    rows = {
        1: ("venus-volcanoes", 1992, "satellite", 2, 75, "A"),
        10: ("mnist", 2004, "ocr", 10, 42000, "T"),
        20: ("pascal-voc-2006", 2009, "object", 10, 1830, "T"),
        31: ("oxford-flowers-102", 2011, "object", 102, 816, "V"),
        41: ("iaprtc-12", 2013, "object", 276, 11200, "A"),
        53: ("fgvc-aircraft", 2016, "object", 70, 4667, "T"),
        65: ("celeba", 2017, "face", 40, 130216, "V"),
        77: ("emnist-balanced", 2018, "ocr", 47, 78960, "T"),
        81: ("mall", 2019, "counting", 10, 560, "X"),
        98: ("domainnet", 2021, "object", 345, 361620, "X"),
        104: ("patch-camelyon", 2021, "medical", 2, 209715, "V"),
    }
    for number, row in rows.items():
        own = nevis.tasks[number - 1]
        found = (own.dataset, own.year, own.domain, own.num_classes, own.train_examples, own.splits["rule"])
        assert found == row
    assert {item.domain for item in nevis} <= set(DOMAINS)


def test_nevis22_variants_have_the_published_sizes(nevis):
    short, tiny = nevis.variant("short"), nevis.variant("tiny")
    assert (len(short), len(short.datasets)) == (29, 28)
    assert [(item.dataset, item.year) for item in tiny.ordered()] == [
        ("mnist", 2004), ("caltech-101", 2010), ("pascal-voc-2012", 2014), ("cifar-100", 2018), ("mnist", 2018),
        ("isic-2017", 2018), ("cub-200", 2020),
    ]  # fmt: skip
    assert [item.dataset for item in nevis.variant("debug").ordered()] == ["pascal-voc-2007", "coil-20"]
    major = nevis.variant("major_domains")
    assert len(major) == 70 and sum(item.year < 2019 for item in major) == 43
    large = nevis.variant("large_datasets")
    assert len(large) == 67 and sum(item.year < 2019 for item in large) == 40
    assert {item.id for item in large if item.year > 2018} == {item.id for item in nevis if item.year > 2018}
    assert {"usps", "lfw", "pacs", "caltech-101-silhouettes"} <= set(large.datasets)  # listed, though they are smaller
    assert [(item.dataset, item.year) for item in nevis.variant("imagenet_only")] == [("imagenet", 2014)]
    assert tiny.offsets()["cifar-100"] == nevis.offsets()["cifar-100"] > 1000


def test_embedded_tasks_are_twelve():
    embedded = read_manifest("embedded_tasks")
    assert [(item.year, item.dataset, item.num_classes, item.kind) for item in embedded.ordered()] == [
        (1990, "face-or-not", 2, "multiclass"), (1992, "textures", 3, "multiclass"), (1995, "digits", 10, "multiclass"),
        (1998, "digit-parity", 2, "multiclass"), (2001, "digits-rot", 4, "multiclass"),
        (2004, "shapes", 4, "multiclass"), (2007, "shapes-present", 4, "multilabel"),
        (2010, "dot-count", 5, "multiclass"), (2013, "photo-patches", 8, "multiclass"),
        (2016, "digit-pairs", 10, "multilabel"), (2019, "digits", 10, "multiclass"),
        (2021, "digits-noisy", 10, "multiclass"),
    ]  # fmt: skip
    assert embedded.stream.final_year_from == 2019 and embedded.stream.image_size == 32
    assert [item.id for item in embedded if item.empty_labels] == ["shapes-present"]
    still = [item.dataset for item in embedded if not item.preprocess["hflip"]]
    assert still == ["digits", "digit-parity", "digits-rot", "digit-pairs", "digits", "digits-noisy"]
