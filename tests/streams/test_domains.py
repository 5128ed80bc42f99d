"""Domain streams: what changes from experience to experience, what does not, and who is told."""

import numpy as np
import pytest
import torch
from PIL import Image

from cil.data import Samples
from cil.errors import ConfigError, DataError, StreamError
from cil.streams import DomainStream, domain_files, permuted_domains, rotated_domains
from cil.streams.domains import permute, rotate
from cil.testing import check_stream, toy_run
from cil.testing.toy import toy_dataset


def permutations(**given):
    return permuted_domains("digits", **{"experiences": 3, "train_per_class": 8, "test_per_class": 4} | given)


# images ---------------------------------------------------------------------------------------------------------------


def test_a_permutation_moves_pixels_alike_in_all_channels():
    pixels = torch.arange(12).reshape(1, 2, 2, 3).byte()
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    assert permute(pixels, order).tolist() == [[[[5, 4, 3], [2, 1, 0]], [[11, 10, 9], [8, 7, 6]]]]
    assert torch.equal(permute(permute(pixels, order), order), pixels)


def test_a_quarter_turn_goes_to_the_left_and_so_do_other_angles():
    pixels = torch.tensor([[1, 2], [3, 4]]).byte()[None, None]
    assert rotate(pixels, 90).tolist() == [[[[2, 4], [1, 3]]]]
    image = torch.randint(0, 256, (2, 3, 9, 9), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(rotate(image, 90.0001)[..., 1:-1, 1:-1], rotate(image, 90)[..., 1:-1, 1:-1])
    back = rotate(rotate(image.float().mean((2, 3), keepdim=True).expand(-1, -1, 9, 9).byte(), 30), 330)
    assert (back[..., 4, 4].int() - image.float().mean((2, 3)).byte().int()).abs().max() <= 1


def test_turning_keeps_shapes_of_images_that_are_not_square():
    dot = torch.zeros(1, 1, 9, 17).byte()
    dot[..., 4, 12] = 255  # four right of the centre
    turned = rotate(dot, 90)
    assert turned.shape == dot.shape and turned[0, 0].flatten().argmax() == 0 * 17 + 8  # four above it
    assert torch.equal(rotate(dot, 180), dot.flip(2, 3))


# streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [permutations, lambda **given: rotated_domains("digits", angles=[0, 90, 45], **given)])
def test_the_stream_keeps_the_contract(make):
    stream = make(validation=0.25)
    check_stream(stream)
    assert isinstance(stream, DomainStream) and len(stream.domains) == len(stream) == 3
    assert [s.num_classes for s in stream.signatures] == [10] * 3
    assert [s.new_slots for s in stream.signatures] == [tuple(range(10)), (), ()]
    assert all(s.present == tuple(range(10)) for s in stream.signatures)
    assert all(e.validation is not None and set(e.validation.counts()) == set(range(10)) for e in stream)


def test_training_test_and_validation_images_of_a_domain_are_permuted_alike():
    stream = permutations(validation=0.25)
    for take in (lambda i: stream[i].train, lambda i: stream[i].validation, stream.test):
        plain, moved = take(0).pixels.flatten(1), take(2).pixels.flatten(1)
        order = torch.from_numpy(np.random.RandomState([1993, 6, 2]).permutation(64))
        assert torch.equal(plain[:, order], moved) and not torch.equal(plain, moved)


def test_the_domain_is_for_the_evaluator_and_the_record():
    stream = permutations()
    assert stream.description()["domains"] == ["as they are", "permutation 1", "permutation 2"]
    assert "domain" not in str(vars(stream[1].signature)) and not hasattr(stream[1], "domain")


def test_another_seed_angle_or_image_is_another_stream():
    turned = [rotated_domains("digits", angles=angles).fingerprint for angles in ([0, 90], [0, 91], [90, 0], [360, 90])]
    assert len(set(turned)) == 3 and turned[0] == turned[3]
    made = [permutations(), permutations(order_seed=1), permutations(experiences=2), permutations(validation=0.25)]
    assert len({stream.fingerprint for stream in made}) == 4
    assert permutations().fingerprint == made[0].fingerprint


@pytest.mark.parametrize("name", ["finetune", "replay", "derpp", "er_ace", "icarl"])
def test_learners_train_on_it_without_a_larger_head_and_every_domain_is_evaluated(name, tmp_path):
    stream = rotated_domains(toy_dataset(), angles=[0, 90, 180])
    run = toy_run(name, stream, tmp_path, keep="all")
    record = run.execute()
    assert record.status == "finished"
    assert all(value is not None for row in record.results["accuracy_matrix"] for value in row)
    heads = {run.checkpoints.state(index).tensors["net.head.weight"].shape for index in range(3)}
    assert len(heads) == 1
    R = record.results["accuracy_matrix"]
    assert record.results["accuracy_curve"] == pytest.approx([np.mean(R[i][: i + 1]) for i in range(3)])
    found = record.results["domains"]
    assert found.pop("names") == ["0 degrees", "90 degrees", "180 degrees"]
    assert found == pytest.approx(
        {
            "in_domain": (R[0][0] + R[1][1] + R[2][2]) / 3,
            "next_domain": (R[0][1] + R[1][2]) / 2,
            "backward": (R[1][0] + R[2][0] + R[2][1]) / 3,
            "forward": (R[0][1] + R[0][2] + R[1][2]) / 3,
        }
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: permutations(experiences=0), ConfigError, r"stream\.experiences is 0"),
        (lambda: rotated_domains("digits", angles=[]), StreamError, r"stream\.angles is \[\]; name each angle once"),
        (lambda: rotated_domains("digits", angles=[0, 360]), StreamError, "name each angle once"),
        (lambda: rotated_domains("digits", angles="up"), ConfigError, r"stream\.angles is 'up'; it must list"),
        (lambda: permutations(order_seed=-1), StreamError, r"stream\.order_seed is -1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


# files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Two domains of two classes, 8 x 8: photo in red, sketch in green; a class's images differ in brightness."""
    for domain, channel in (("photo", 0), ("sketch", 1)):
        for split, many in (("train", 3), ("test", 2)):
            for label in ("cat", "dog"):
                folder = tmp_path / "pets" / domain / split / label
                folder.mkdir(parents=True)
                for number in range(many):
                    colour = [0, 0, 0]
                    colour[channel] = 50 + 100 * (label == "dog") + number
                    Image.new("RGB", (8, 8), tuple(colour)).save(folder / f"{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def written(folders):
    """The same as a table, the sketches first."""
    files = sorted(folders.glob("*/*/*/*.png"), key=lambda file: (file.parts[-4] == "photo", file))
    lines = [f"{file.relative_to(folders)},{file.parts[-2]},{file.parts[-4]},{file.parts[-3]}" for file in files]
    table = folders / "table.csv"
    table.write_text("\n".join(["image,label,domain,split", *lines]) + "\n")
    return table


def test_folders_are_domains(folders):
    stream = domain_files(folders, size=8, in_memory=True)
    check_stream(stream)
    assert stream.domains == ("photo", "sketch") and stream.classes == ("cat", "dog")
    for index, channel in ((0, 0), (1, 1)):
        for samples in (stream[index].train, stream.test(index)):
            assert bool((samples.pixels[:, channel] > 0).all()) and int(samples.pixels.amax((0, 2, 3)).gt(0).sum()) == 1
    assert stream[0].train.counts() == {0: 3, 1: 3} and stream.test(1).counts() == {0: 2, 1: 2}
    assert stream.mean[1] == 0 < stream.mean[0]  # of the first domain alone
    turned = domain_files(folders, domains=["sketch", "photo"], size=8, in_memory=True)
    assert turned.domains == ("sketch", "photo") and turned.fingerprint != stream.fingerprint


def test_a_table_with_a_domain_column_is_the_same(folders, written):
    stream = domain_files(written, size=8, in_memory=True)
    check_stream(stream)
    assert stream.domains == ("sketch", "photo")
    for split in (lambda s, i: s[i].train, lambda s, i: s.test(i)):
        same = domain_files(folders, domains=stream.domains, size=8, in_memory=True)
        assert all(torch.equal(split(stream, i).pixels, split(same, i).pixels) for i in range(2))
    lazy = domain_files("table.csv", root=folders, size=8)
    assert not lazy[0].train.in_memory and lazy.augment.resized_crop
    assert torch.equal(lazy[0].train.slots, stream[0].train.slots)


def test_domains_must_have_the_same_classes(folders):
    extra = folders / "sketch"
    for split in ("train", "test"):
        (extra / split / "emu").mkdir()
        Image.new("RGB", (8, 8)).save(extra / split / "emu" / "0.png")
    with pytest.raises(StreamError, match="domains 'photo' and 'sketch' differ in class 'emu'"):
        domain_files(folders, size=8)


def test_what_is_missing_is_named(folders, written, tmp_path):
    with pytest.raises(DataError, match=r"no folder of domains and no \.csv table"):
        domain_files("nowhere", root=tmp_path)
    with pytest.raises(ConfigError, match=r"stream\.domains has 'foto'.*photo"):
        domain_files(folders, domains=["foto"], size=8)
    with pytest.raises(ConfigError, match="name each domain once"):
        domain_files(folders, domains=["photo", "photo"], size=8)
    text = written.read_text()
    written.write_text(text.replace("domain,split", "area,split", 1))
    with pytest.raises(DataError, match="has no column 'domain'; it needs image, label, domain, split"):
        domain_files(written, size=8)
    written.write_text(text.replace(",sketch,test", ",sketch,train"))
    with pytest.raises(DataError, match="domain 'sketch' has no row whose split is test"):
        domain_files(written, size=8)
    written.write_text(text + "photo/train/cat/0.png,cat,photo,held\n")
    with pytest.raises(DataError, match="has the split 'held'; train and test are known"):
        domain_files(written, size=8)
    written.write_text(text + "photo/train/cat/0.png,cat\n")
    with pytest.raises(DataError, match=r"table.csv line \d+ has no value for 'domain'"):
        domain_files(written, size=8)
    for other in ("dog,photo,train", "cat,sketch,test"):
        written.write_text(f"{text}photo/train/../train/cat/0.png,{other}\n")
        with pytest.raises(DataError, match=r"cat/0.png in line \d+ and in line \d+; name each image once"):
            domain_files(written, size=8)
    written.write_bytes(text.encode() + b"caf\xe9.png,cat,photo,train\n")
    with pytest.raises(DataError, match=r"cannot be read as a table: .* save it as UTF-8"):
        domain_files(written, size=8)
    written.write_text(text, encoding="utf-8-sig")  # as spreadsheets do
    assert len(domain_files(written, size=8)) == 2
    written.write_text(text + "photo/train/emu/0.png,emu,photo,train\n")
    with pytest.raises(DataError, match="class 'emu' has no"):
        domain_files(written, size=8)


def test_changed_images_must_be_arrays(folders):
    with pytest.raises(StreamError, match=r"are files; domains made of them need arrays in memory: set stream\.in_mem"):
        rotated_domains("folder", angles=[0, 90], path=folders / "photo", size=8)
    stream = rotated_domains("folder", angles=[0, 90], path=folders / "photo", size=8, in_memory=True)
    assert isinstance(stream[1].train, Samples) and len(stream[1].train) == 6
