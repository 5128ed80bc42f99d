"""Corruption streams: what comes when, every image once, the same pixels however they are asked for."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cil.data import Dataset, Samples
from cil.data.corruptions import CANONICAL, NAMES, corrupt_all
from cil.errors import ConfigError, DataError, StreamError
from cil.streams import corrupted, materialise, stream_builder
from cil.streams.show import CAPTION, GAP, TILE, contact_sheet

FEW = ["contrast", "fog", "shot_noise"]


@pytest.fixture(scope="module")
def toys(make_dataset):
    """Four classes of 6 test images, 3x12x12."""
    return make_dataset([5] * 4, [6] * 4)


def images_of(samples):
    return samples.pixels.permute(0, 2, 3, 1).numpy()


def numbers(samples):
    return samples.extras["image"].tolist()


def test_fifteen_domains_in_canonical_order_show_every_image_once(toys):
    stream = corrupted(toys)
    assert stream.name == "toy_corrupted"
    assert [segment.name.replace("_synthetic", "") for segment in stream.segments] == list(CANONICAL)
    assert stream.domains[8] == "frost_synthetic"
    assert [segment.count for segment in stream.segments] == [24] * 15
    assert not any(segment.reset for segment in stream.segments)
    for place, segment in enumerate(stream.segments):
        samples = segment.samples()
        assert numbers(samples) == list(range(24))  # stored order
        assert samples.slots.tolist() == toys.test.slots.tolist()
        assert segment.domains.tolist() == [place] * 24
        assert (samples.pixels != toys.test.pixels).any()
    assert (stream.clean().pixels == toys.test.pixels).all()
    assert stream.source() is toys.train


def test_pixels_are_those_of_the_corruption_for_any_choice_of_images(toys):
    whole = corrupt_all(images_of(toys.test), "shot_noise", 4, seed=9)
    for settings in ({}, {"shuffle": True}, {"images": 7}, {"images": 7, "shuffle": True, "order_seed": 3}):
        samples = corrupted(toys, corruptions="shot_noise", severity=4, seed=9, **settings).segments[0].samples()
        assert (images_of(samples) == whole[numbers(samples)]).all()
    assert (corrupted(toys, corruptions="shot_noise", severity=4).segments[0].samples().pixels.numpy()
            != whole.transpose(0, 3, 1, 2)).any()  # fmt: skip


def test_a_part_of_the_images_is_the_same_in_every_domain(toys):
    first = corrupted(toys, corruptions=FEW, images=5)
    assert all(numbers(segment.samples()) == [0, 1, 2, 3, 4] for segment in first.segments)
    shuffled = [corrupted(toys, corruptions=FEW, images=5, shuffle=True, order_seed=seed) for seed in (0, 1)]
    chosen = {tuple(sorted(numbers(segment.samples()))) for stream in shuffled for segment in stream.segments}
    assert len(chosen) == 1  # whatever the order
    assert chosen != {(0, 1, 2, 3, 4)}
    assert sorted(numbers(shuffled[0].clean())) == list(chosen.pop())


def test_shuffled_domains_each_have_an_order_of_their_own(toys):
    stream = corrupted(toys, corruptions=FEW, shuffle=True)
    orders = [tuple(numbers(segment.samples())) for segment in stream.segments]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(24)) for order in orders)
    for segment in stream.segments:
        samples = segment.samples()
        assert samples.slots.tolist() == toys.test.slots[samples.extras["image"]].tolist()
    again = corrupted(toys, corruptions=FEW, shuffle=True)
    assert orders == [tuple(numbers(segment.samples())) for segment in again.segments]
    assert stream.fingerprint == again.fingerprint != corrupted(toys, corruptions=FEW).fingerprint


def test_images_that_lie_class_by_class_are_shuffled_unless_told(toys):
    order = toys.test.slots.argsort(stable=True)
    data = Dataset("sorted", toys.train, toys.test[order], toys.classes)
    for shuffle, shuffled in (("auto", True), (True, True), (False, False)):
        stream = corrupted(data, corruptions="contrast", shuffle=shuffle, images=12)
        slots = stream.segments[0].samples().slots.tolist()
        assert (slots != sorted(slots)) == shuffled == stream.settings["shuffle"]
        assert (len(set(slots)) > 2) == shuffled
        clean = stream.clean().slots.tolist()
        assert sorted(clean) == sorted(slots) and (clean != sorted(clean)) == shuffled


def test_published_arrays_may_have_another_order_than_the_test_set(toys, arrays, tmp_path):
    order = toys.test.slots.argsort(stable=True)
    data = Dataset("toy", toys.train, toys.test[order], toys.classes)
    stream = corrupted(data, corruptions="fog", folder=arrays)
    samples = stream.segments[0].samples()
    assert samples.slots.tolist() == toys.test.slots.tolist()  # the labels of the files
    assert (images_of(samples) == corrupt_all(images_of(toys.test), "fog", 5, seed=2)).all()
    clean = stream.clean().pixels  # these lie class by class, so they are shuffled
    assert not torch.equal(clean, data.test.pixels)
    assert sorted(clean.flatten(1).sum(1).tolist()) == sorted(data.test.pixels.flatten(1).sum(1).tolist())


def test_gradual_goes_up_and_down_for_each_corruption(toys):
    stream = corrupted(toys, corruptions=["fog", "contrast"], order="gradual", reset=True)
    ladder = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert stream.name == "toy_corrupted_gradual"
    assert [s.name for s in stream.segments] == [f"{name}-{level}" for name in ("fog", "contrast") for level in ladder]
    assert stream.domains == ("fog", "contrast")
    assert [segment.reset for segment in stream.segments] == [place == 9 for place in range(18)]
    for place in (0, 4, 6, 8):
        made = corrupt_all(images_of(toys.test), "fog", ladder[place])
        assert (images_of(stream.segments[place].samples()) == made).all()
    lower = corrupted(toys, corruptions=["fog"], order="gradual", severity=2)
    assert [segment.name for segment in lower.segments] == ["fog-1", "fog-2", "fog-1"]


def test_mixed_has_every_image_in_every_domain_once_and_in_no_order(toys):
    stream = corrupted(toys, corruptions=FEW, order="mixed")
    (segment,) = stream.segments
    samples = segment.samples()
    assert (segment.name, segment.count) == ("mixed", 72)
    pairs = list(zip(segment.domains.tolist(), numbers(samples), strict=True))
    assert len(set(pairs)) == 72
    assert pairs != sorted(pairs)
    assert set(segment.domains[:24].tolist()) == {0, 1, 2}
    made = [corrupt_all(images_of(toys.test), name, 5) for name in FEW]
    for image, (domain, number) in zip(images_of(samples), pairs, strict=True):
        assert (image == made[domain][number]).all()


def test_correlated_orders_sort_labels_or_cluster_them(toys):
    for order, count in (("correlated", 24), ("mixed_correlated", 72)):
        stream = corrupted(toys, corruptions=FEW, order=order)
        segment = stream.segments[0]
        samples = segment.samples()
        assert samples.slots.tolist() == sorted(samples.slots.tolist())
        assert len(samples) == count == len(set(zip(segment.domains.tolist(), numbers(samples), strict=True)))
    assert set(segment.domains[:18].tolist()) == {0, 1, 2}  # mixed within the first class too

    def runs(concentration):
        stream = corrupted(toys, corruptions=FEW, order="correlated", concentration=concentration, order_seed=1)
        samples = [segment.samples() for segment in stream.segments]
        assert all(sorted(numbers(own)) == list(range(24)) for own in samples)
        return sum(int((own.slots.diff() != 0).sum()) for own in samples)

    assert 9 <= runs(0.01) < runs(100.0)  # at least three changes in each of three segments
    wide = corrupted(toys, corruptions=FEW, order="correlated", concentration=1.0)
    assert len({tuple(numbers(segment.samples())) for segment in wide.segments}) == 3


def test_rounds_repeat_the_pixels_and_resets_come_at_every_shift(toys):
    stream = corrupted(toys, corruptions=FEW, rounds=2, reset=True)
    assert [segment.name for segment in stream.segments] == [*FEW, *(f"{name} (round 2)" for name in FEW)]
    assert [segment.reset for segment in stream.segments] == [False] + [True] * 5
    assert stream.segments[4].domains.tolist() == [1] * 24
    assert (stream.segments[1].samples().pixels == stream.segments[4].samples().pixels).all()
    assert len(corrupted(toys, corruptions=FEW, rounds=2, order="mixed")) == 2


def test_the_order_of_domains_can_be_drawn(toys):
    orders = {corrupted(toys, domain_order="seed", order_seed=seed).domains for seed in range(3)}
    assert len(orders) == 3
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(corrupted(toys).domains))}
    assert len(corrupted(toys, corruptions="all")) == len(NAMES) == 19


def test_a_segment_is_made_once_while_it_is_the_last_asked_for(toys, monkeypatch):
    calls = []

    def counted(images, *given, **more):
        calls.append(given[0])
        return corrupt_all(images, *given, **more)

    monkeypatch.setattr("cil.data.corruptions.image_sources.corrupt_all", counted)
    stream = corrupted(toys, corruptions=FEW)
    assert calls == []  # nothing before it is asked for
    assert stream.segments[0].samples() is stream.segments[0].samples()
    stream.segments[1].samples()
    stream.segments[0].samples()
    assert calls == ["contrast", "fog", "contrast"]


def test_segments_too_large_for_memory_stay_lazy_and_give_the_same_pixels(toys, monkeypatch):
    stream = corrupted(toys, corruptions=FEW, order="mixed")
    whole = stream.segments[0].samples()
    monkeypatch.setattr(sys.modules["cil.streams.corrupted"], "MOST_BYTES", 1000)
    lazy = corrupted(toys, corruptions=FEW, order="mixed").segments[0].samples()
    assert (whole.in_memory, lazy.in_memory) == (True, False)
    assert (lazy[10:50].pixels == whole.pixels[10:50]).all()
    assert (lazy[[3, 60]].sealed().pixels == whole.pixels[[3, 60]]).all()
    assert lazy.parts[0][0].digest(torch.arange(72)) == lazy.sealed().parts[0][0].digest(torch.arange(72))
    assert (lazy.slots == whole.slots).all()


def test_what_the_record_says(toys):
    stream = corrupted(toys, corruptions=FEW, severity=2, images=8, seed=4)
    said = json.loads(json.dumps(stream.description()))
    expected = {"severity": 2, "order": "continual", "images_per_domain": 8, "seed": 4, "pixels": "generated"}
    assert expected.items() <= said.items()
    assert (said["kind"], said["data"], said["domains"], said["table"]) == ("shifts", "unofficial", FEW, "32")
    assert said["segments"] == FEW


def test_fingerprints_follow_everything_that_changes_the_stream(toys, make_dataset):
    changes = [
        *({}, {"severity": 4}, {"images": 20}, {"order": "mixed"}, {"order": "correlated"}, {"rounds": 2}),
        *({"reset": True}, {"shuffle": True}, {"shuffle": True, "order_seed": 1}, {"seed": 1}, {"table": "224"}),
        *({"exact_bug_compat": True}, {"corruptions": FEW[:2]}, {"corruptions": FEW[::-1]}),
    ]
    found = [corrupted(toys, **{"corruptions": FEW, **change}).fingerprint for change in changes]
    found.append(corrupted(make_dataset([5] * 4, [6] * 4, size=13), corruptions=FEW).fingerprint)
    assert len(set(found)) == len(changes) + 1


def test_grey_images_work(make_dataset):
    stream = corrupted(make_dataset([3, 3], [4, 4], channels=1, size=8), corruptions="all")
    for segment in stream.segments:
        assert segment.samples().pixels.shape == (8, 1, 8, 8)
    assert len(stream.mean) == 1


# files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays(toys, tmp_path_factory):
    """The toys' test set in the published layout."""
    return materialise(toys, tmp_path_factory.mktemp("arrays") / "toy-C", corruptions=[*FEW, "frost"], seed=2)


def test_materialised_arrays_have_the_published_layout(toys, arrays):
    labels = np.load(arrays / "labels.npy")
    assert (labels.dtype, labels.tolist()) == (np.uint8, toys.test.slots.tolist() * 5)
    made = np.load(arrays / "fog.npy")
    assert (made.dtype, made.shape) == (np.uint8, (120, 12, 12, 3))
    for severity in (1, 3, 5):
        rows = made[(severity - 1) * 24 : severity * 24]
        assert (rows == corrupt_all(images_of(toys.test), "fog", severity, seed=2)).all()
    assert sorted(path.name for path in arrays.iterdir()) == sorted(
        ["contrast.npy", "fog.npy", "frost_synthetic.npy", "generated.json", "labels.npy", "shot_noise.npy"]
    )


def test_a_stream_reads_back_what_was_materialised(toys, arrays):
    names = [*FEW, "frost"]
    for severity, order in ((2, "continual"), (5, "mixed")):
        read = corrupted(toys, corruptions=names, severity=severity, order=order, folder=arrays)
        made = corrupted(toys, corruptions=names, severity=severity, order=order, seed=2, data="generated")
        assert read.name == made.name  # not the published name
        assert read.domains == made.domains == (*FEW, "frost_synthetic")
        assert read.official is False
        for one, other in zip(read.segments, made.segments, strict=True):
            assert (one.samples().pixels == other.samples().pixels).all()
            assert (one.samples().slots == other.samples().slots).all()


def test_files_in_the_data_root_are_taken_where_they_are_there(toys, arrays):
    taken = corrupted(toys, corruptions=FEW, root=arrays.parent)
    assert taken.description()["pixels"] == "files made by this package"
    made = corrupted(toys, corruptions=FEW, root=arrays.parent, data="generated")
    assert made.description()["pixels"] == "generated"
    assert corrupted(toys, corruptions=FEW, root=arrays.parent / "elsewhere").description()["pixels"] == "generated"


def test_arrays_without_the_mark_go_by_the_published_name(toys, arrays, tmp_path):
    for name in ("fog.npy", "labels.npy"):
        (tmp_path / name).write_bytes((arrays / name).read_bytes())
    stream = corrupted(toys, corruptions="fog", folder=tmp_path)
    assert (stream.name, stream.official) == ("toy_c", None)
    other = np.load(tmp_path / "fog.npy")
    other[4 * 24] ^= 1  # a pixel of severity 5
    np.save(tmp_path / "fog.npy", other)
    assert corrupted(toys, corruptions="fog", folder=tmp_path).fingerprint != stream.fingerprint


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("fog.npy", None, r"fog\.npy does not exist; put it there, set stream\.folder, or use stream\.data=generated"),
        ("fog.npy", np.zeros((24, 12, 12, 3), np.uint8), r"fog\.npy holds uint8 \(24, 12, 12, 3\); need uint8 \(120,"),
        ("fog.npy", np.zeros((120, 12, 12, 3)), r"fog\.npy holds float64"),
        ("fog.npy", np.zeros((120, 3, 12, 12), np.uint8), r"fog\.npy holds uint8 \(120, 3, 12, 12\)"),
        ("fog.npy", b"nonsense", r"fog\.npy cannot be read as \.npy"),
        ("fog.npy", np.array([{}]), r"fog\.npy cannot be read as \.npy"),
        ("labels.npy", None, r"labels\.npy does not exist"),
        ("labels.npy", np.zeros(119, int), r"labels\.npy holds int64 \(119,\); need 120 whole numbers"),
        ("labels.npy", np.full(120, 3), r"labels\.npy has other numbers of labels than the test set"),
        ("labels.npy", np.arange(120) % 4 * (np.arange(120) != 50), r"row 50 is 0, but row 2, the same image, is 2"),
        ("generated.json", b"{", r"generated\.json cannot be read as JSON"),
    ],
)
def test_wrong_files_are_named_in_one_line(toys, arrays, tmp_path, name, array, message):
    for file in arrays.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if array is None:
        (tmp_path / name).unlink()
    elif isinstance(array, bytes):
        (tmp_path / name).write_bytes(array)
    else:
        np.save(tmp_path / name, array)
    with pytest.raises(DataError, match=message) as caught:
        corrupted(toys, corruptions="fog", folder=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folders(toys, tmp_path):
    """NAME/SEVERITY/CLASS/*.png of two images a class; grey says which."""
    for name, level in (("fog", 0), ("contrast", 100)):
        for severity in (4, 5):
            for label, kind in enumerate(toys.classes):
                for number in range(2):
                    file = tmp_path / "toy-C" / name / str(severity) / kind / f"{number}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    value = level + 10 * severity + 2 * label + number
                    Image.fromarray(np.full((12, 12, 3), value, np.uint8)).save(file)
    return tmp_path


def test_folders_of_images_are_read_in_order_of_their_classes(toys, folders):
    stream = corrupted(toys, corruptions=["fog", "contrast"], root=folders, shuffle=False)
    assert (stream.name, stream.domains) == ("toy_c", ("fog", "contrast"))
    for segment, level in zip(stream.segments, (50, 150), strict=True):
        samples = segment.samples()
        assert samples.slots.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert samples.pixels[:, 0, 0, 0].tolist() == [level + number for number in range(8)]
    more = {"order": "mixed", "severity": 4, "images": 6, "shuffle": False}
    mixed = corrupted(toys, corruptions=["fog", "contrast"], root=folders, **more)
    samples = mixed.segments[0].samples()
    assert sorted(samples.pixels[:, 0, 0, 0].tolist()) == [40, 41, 42, 43, 44, 45, 140, 141, 142, 143, 144, 145]
    assert (samples.pixels[:, 0, 0, 0] % 100 // 2 - 20 == samples.slots).all()


def test_wrong_folders_are_named_in_one_line(toys, folders):
    with pytest.raises(DataError, match=r"toy-C/snow/5 does not exist"):
        corrupted(toys, corruptions=["fog", "snow"], root=folders)
    (folders / "toy-C" / "contrast" / "5" / "class 1" / "0.png").unlink()
    with pytest.raises(DataError, match=r"contrast/5 lacks class 1/0\.png, unlike the other corruptions"):
        corrupted(toys, corruptions=["fog", "contrast"], root=folders)
    (folders / "toy-C" / "contrast" / "5" / "class 1" / "1.png").unlink()
    with pytest.raises(DataError, match=r"contrast/5/class 1 has no image"):
        corrupted(toys, corruptions=["fog", "contrast"], root=folders)


# what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"corruptions": ["fogg"]}, ConfigError, r"unknown corruption 'fogg' \(stream\.corruptions\); did you mean"),
        ({"corruptions": []}, StreamError, r"stream\.corruptions is empty"),
        ({"corruptions": ["fog", "fog"]}, StreamError, r"stream\.corruptions names fog twice"),
        ({"severity": 6}, ConfigError, r"stream\.severity is 6; it must be 1, 2, 3, 4 or 5"),
        ({"images": 25}, StreamError, r"stream\.images is 25; the test set has 24 images"),
        ({"images": 0}, StreamError, r"stream\.images is 0"),
        ({"order": "continuous"}, ConfigError, r"stream\.order is 'continuous'; did you mean 'continual'"),
        ({"domain_order": "random"}, ConfigError, r"stream\.domain_order is 'random'"),
        ({"data": "file"}, ConfigError, r"stream\.data is 'file'; did you mean 'files'"),
        ({"table": "48"}, ConfigError, r"stream\.table is '48'"),
        ({"rounds": 0}, ConfigError, r"stream\.rounds is 0; it must be a whole number from 1"),
        ({"seed": -1}, ConfigError, r"stream\.seed is -1"),
        ({"order_seed": "x"}, ConfigError, r"stream\.order_seed is 'x'"),
        ({"shuffle": "yes"}, ConfigError, r"stream\.shuffle is 'yes'; it must be true, false or auto"),
        ({"reset": 1}, ConfigError, r"stream\.reset is 1; it must be true or false"),
        ({"reset": True, "order": "mixed"}, StreamError, r"stream\.reset=true needs one domain after the other"),
        ({"concentration": 1.0}, StreamError, r"stream\.concentration is 1\.0 with stream\.order=continual"),
        ({"concentration": 0, "order": "correlated"}, ConfigError, r"stream\.concentration is 0; .*above 0"),
        ({"data": "files"}, DataError, r"toy-C does not exist; put the files there, set stream\.folder"),
        ({"folder": "nowhere"}, DataError, r"nowhere does not exist"),
        ({"folder": "x", "data": "generated"}, StreamError, r"stream\.folder is x with stream\.data=generated"),
        ({"frost_photos": "nowhere"}, DataError, r"nowhere has no photograph of frost"),
        ({"mean": [0.5]}, StreamError, r"stream\.mean has 1 values; images have 3 channels"),
        ({"std": "x"}, ConfigError, r"stream\.std is 'x'; it must list a number a channel"),
    ],
)
def test_wrong_values_are_refused_in_one_line(toys, tmp_path, given, error, message):
    with pytest.raises(error, match=message) as caught:
        corrupted(toys, root=tmp_path, **given)
    assert "\n" not in str(caught.value)


def test_unknown_data_sets_and_options_are_refused(tmp_path):
    build = stream_builder("corrupted")
    with pytest.raises(ConfigError, match="unknown data set 'digit'"):
        build("digit", root=tmp_path)
    with pytest.raises(ConfigError, match=r"data set 'digits' has no option stream\.sized"):
        build("digits", root=tmp_path, sized=3)


def test_multi_label_sets_are_refused():
    samples = Samples.from_arrays(torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long(), torch.eye(2))
    with pytest.raises(StreamError, match="multi-label"):
        corrupted(Dataset("both", samples, samples, ["a", "b"]))


# the picture ----------------------------------------------------------------------------------------------------------


def test_the_contact_sheet_has_the_same_images_in_a_row_for_each_domain(toys, tmp_path):
    flat = torch.arange(24).reshape(24, 1, 1, 1).expand(24, 3, 6, 6).byte() * 4 + 60
    samples = Samples.from_arrays(flat, toys.test.slots)
    data = Dataset("flat", samples, samples, toys.classes)
    stream = corrupted(data, corruptions=["contrast", "brightness"], severity=1, shuffle=True)
    sheet = np.asarray(Image.open(contact_sheet(stream, tmp_path / "sheet.png", per_experience=4)))
    assert len(sheet) == 2 * CAPTION + 3 * (TILE + GAP + CAPTION)  # clean and two domains
    margin = sheet.shape[1] - 4 * (TILE + GAP)
    for column in range(4):
        clean, low, bright = (
            sheet[2 * CAPTION + row * (TILE + GAP + CAPTION) + CAPTION + 5, margin + column * (TILE + GAP) + 5, 0]
            for row in range(3)
        )
        assert low == clean  # an even image has no contrast to lose
        assert bright - clean in (12, 13)  # 0.05 * 255


def test_the_contact_sheet_of_a_mixed_stream_has_a_row_a_domain(toys, tmp_path):
    stream = corrupted(toys, corruptions=FEW, order="mixed")
    sheet = np.asarray(Image.open(contact_sheet(stream, tmp_path / "sheet.png", per_experience=3)))
    assert len(sheet) == 2 * CAPTION + 4 * (TILE + GAP + CAPTION)
