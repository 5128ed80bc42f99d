"""Codecs: what comes back, and the bytes that are charged; memories filled by actual size."""

import io
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cil.data import ArrayStore, Samples
from cil.errors import ConfigError, StateError
from cil.memory import Allowance, Budget, ExemplarMemory, tensor_bytes
from cil.memory.codecs import codec


def noise(count: int, shape: tuple[int, int, int] = (3, 16, 16), key: int = 0) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(key))


def smooth(count: int, shape: tuple[int, int, int] = (3, 16, 16)) -> Tensor:
    """A ramp for each image, brighter from one to the next."""
    ramp = torch.linspace(0, 100, shape[2]).expand(shape)
    return torch.stack([ramp + 10 * (k % 12) for k in range(count)]).to(torch.uint8)


def samples(pixels: Tensor, slots: list[int]) -> Samples:
    return Samples(ArrayStore(pixels), torch.tensor(slots))


def held(memory: ExemplarMemory, num_classes: int = 10) -> int:
    return sum(tensor_bytes(tensor) for tensor, _ in memory.tensors(num_classes).values())


shapes = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


@given(shapes, st.integers(0, 4), st.sampled_from(["raw", "jpeg", "jpeg:20", "downsample:1"]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_sizes_add_up_to_the_data_and_shapes_come_back(shape, count, name):
    pixels = noise(count, shape)
    data, sizes = codec(name).encode(pixels)
    assert data.dtype == torch.uint8
    assert len(sizes) == count
    assert int(sizes.sum()) == len(data)
    if count:
        back = codec(name).decode(data, sizes, shape)
        assert back.shape == pixels.shape
        assert back.dtype == torch.uint8


def test_raw_gives_back_every_bit_for_a_byte_a_value():
    pixels = noise(5).to(memory_format=torch.channels_last)
    data, sizes = codec("raw").encode(pixels)
    assert sizes.tolist() == [768] * 5
    assert torch.equal(codec("raw").decode(data, sizes, (3, 16, 16)), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_stores_what_a_jpeg_file_holds_and_comes_close(channels):
    from PIL import Image

    pixels = smooth(2, (channels, 16, 16))
    data, sizes = codec("jpeg:95").encode(pixels)
    file = data[: int(sizes[0])].numpy().tobytes()
    image = Image.open(io.BytesIO(file))
    assert (image.format, image.size, image.mode) == ("JPEG", (16, 16), "L" if channels == 1 else "RGB")
    back = codec("jpeg:95").decode(data, sizes, (channels, 16, 16))
    assert (back.int() - pixels.int()).abs().float().mean() < 3


def test_a_lower_quality_takes_fewer_bytes():
    pixels = noise(2, (3, 64, 64))
    fine, coarse = (int(codec(f"jpeg:{quality}").encode(pixels)[1].sum()) for quality in (90, 20))
    assert coarse < 0.6 * fine < 0.6 * pixels.numel()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpg", r"no codec 'jpg' \(strategy\.codec\); did you mean 'jpeg'"),
        ("jpeg:high", "jpeg:75"),
        ("raw:5", "no codec 'raw:5'"),
        ("jpeg:0", r"quality 0 is not in 1\.\.95"),
        ("jpeg:100", r"quality 100 is not in 1\.\.95"),
        ("downsample:0", r"cannot be 0 pixels wide; write strategy\.codec=downsample:16"),
        ("downsample:half", "downsample:16"),
    ],
)
def test_an_unknown_codec_or_quality_is_refused_in_one_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        codec(name)
    assert "\n" not in str(caught.value)


def test_jpeg_refuses_images_that_are_neither_grey_nor_colour():
    with pytest.raises(ConfigError, match=r"1 or 3 channels, not 4; set strategy\.codec=raw"):
        codec("jpeg").encode(noise(1, (4, 8, 8)))


# down-sampling ------------------------------------------------------------------------------------------------------


def test_downsampling_averages_squares_and_rounds():
    rows = torch.tensor([[0, 10, 20, 30], [2, 8, 20, 31], [255, 255, 0, 0], [255, 254, 0, 1]], dtype=torch.uint8)
    data, sizes = codec("downsample:2").encode(rows.expand(2, 3, 4, 4))
    # (0 + 10 + 2 + 8) / 4 = 5, 101 / 4 = 25.25, 1019 / 4 = 254.75, 1 / 4
    assert data.reshape(2, 3, 4).tolist() == [[[5, 25, 255, 0]] * 3] * 2
    assert sizes.tolist() == [12, 12]


def test_it_is_decoded_by_bilinear_interpolation_between_centres_of_pixels():
    data = torch.tensor([0, 100, 0, 100], dtype=torch.uint8)
    back = codec("downsample:2").decode(data, torch.tensor([4], dtype=torch.int32), (1, 4, 4))
    assert back[0, 0].tolist() == [[0, 25, 75, 100]] * 4


def test_at_full_side_nothing_is_lost_and_a_plain_image_never_changes():
    pixels = noise(3)
    data, sizes = codec("downsample:16").encode(pixels)
    assert torch.equal(codec("downsample:16").decode(data, sizes, (3, 16, 16)), pixels)
    plain = torch.full((1, 3, 15, 20), 77, dtype=torch.uint8)
    data, sizes = codec("downsample:7").encode(plain)
    assert len(data) == 3 * 7 * 7
    assert torch.equal(codec("downsample:7").decode(data, sizes, (3, 15, 20)), plain)


def test_an_image_may_not_grow_by_being_stored():
    message = r"downsample:17 would enlarge images of 16 x 32 pixels; set strategy\.codec to .*SIDE <= 16, or raw"
    with pytest.raises(ConfigError, match=message):
        codec("downsample:17").encode(noise(1, (3, 16, 32)))
    with pytest.raises(ConfigError, match=message):  # the dry run asks this
        ExemplarMemory("downsample:17").item_bytes((3, 16, 32), 10)


def test_a_downsampled_memory_charges_its_small_images_and_the_survey_the_raw_ones():
    memory = ExemplarMemory("downsample:4")
    assert memory.item_bytes((3, 16, 16), 10) == 3 * 4 * 4 + 1
    assert memory.item_bytes((3, 224, 224), 1000) == 3 * 4 * 4 + 2
    assert memory.item_bytes((3, 16, 16), 10, "survey") == 768
    assert memory.item_kinds((3, 16, 16), 10) == {"exemplars": 48, "labels": 1}
    memory.replace([samples(noise(5), [0, 1, 1, 2, 2])])
    tensors = {name: tensor for name, (tensor, _) in memory.tensors(10).items()}
    assert tensors["images"].shape == (5, 3, 4, 4)
    assert held(memory) == 5 * 49
    assert memory.survey_bytes() == 5 * 768
    other = ExemplarMemory("downsample:4")
    other.load(tensors, (3, 16, 16))
    assert torch.equal(other.samples().pixels, memory.samples().pixels)
    with pytest.raises(StateError, match=r"5 images of \(3, 16, 16\) are 3840 bytes, the state has 240"):
        ExemplarMemory().load(tensors, (3, 16, 16))


class OneMemory:
    """What a budget asks of a learner."""

    def __init__(self, memory: ExemplarMemory, fixed: int, num_classes: int) -> None:
        self.memory, self.fixed, self.num_classes, self.image_shape = memory, fixed, num_classes, (3, 16, 16)

    def fixed_bytes(self, convention: str) -> int:
        return self.fixed

    def memories(self) -> dict[str, ExemplarMemory]:
        return {"memory": self.memory}


@pytest.mark.parametrize("name", ["raw", "downsample:1", "downsample:5", "downsample:16"])
@pytest.mark.parametrize("limit", [1_000, 5_000, 76_901, 76_902])
def test_a_budget_in_bytes_holds_as_many_as_fit_and_not_one_more(name, limit):
    memory = ExemplarMemory(name)
    slots = Allowance(Budget(limits=[limit])).exemplar_slots(OneMemory(memory, 2, 300))
    memory.replace([samples(noise(slots), [7] * slots)] if slots else [])
    assert 2 + held(memory, 300) <= limit
    memory.add(8, samples(noise(1), [8]))
    assert 2 + held(memory, 300) > limit


# what a rule sees is what is stored ----------------------------------------------------------------------------------


class Counting:
    """A codec that counts the images it encodes."""

    def __init__(self, name: str) -> None:
        self.inner, self.encoded = codec(name), 0
        self.fixed, self.lossless, self.stored_shape = self.inner.fixed, self.inner.lossless, self.inner.stored_shape
        self.decode = self.inner.decode

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.encoded += len(pixels)
        return self.inner.encode(pixels)


def images_of(data: Samples) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.pixels}


@pytest.mark.parametrize("name", ["raw", "downsample:6", "jpeg:40"])
def test_a_rule_sees_the_images_as_they_will_be_stored(name):
    memory, seen = ExemplarMemory(name), []

    def see(data: Samples) -> Tensor:
        seen.append(data)
        return data.pixels.flatten(1).float()

    first, again = samples(noise(9), [0] * 9), samples(noise(9, key=1), [0] * 4 + [1] * 5)
    memory.rebuild(first, 4, see, torch.Generator())
    data, sizes = codec(name).encode(first.pixels)
    assert torch.equal(seen[0].pixels, codec(name).decode(data, sizes, (3, 16, 16)))
    kept = images_of(memory.samples())
    assert len(kept) == 4 and kept <= images_of(seen[0])
    memory.rebuild(again, 3, see, torch.Generator())
    assert [len(data) for data in seen] == [9, 3 + 4, 5]
    assert images_of(seen[1]) & kept == images_of(seen[1][:3])  # of the class that came again, as they were stored
    assert images_of(memory.samples()) <= images_of(seen[1]) | images_of(seen[2])
    assert (images_of(seen[2]) == images_of(again.of_class(1))) == (name == "raw")


@pytest.mark.parametrize("name", ["raw", "downsample:6", "jpeg:40"])
@pytest.mark.parametrize("rule", ["herding", "random"])
def test_an_image_is_encoded_once_and_one_that_no_rule_looks_at_only_to_be_stored(name, rule):
    counting = Counting(name)
    memory = ExemplarMemory(counting, rule)
    see = lambda data: data.pixels.flatten(1).float()  # noqa: E731
    looks = rule == "herding" and name != "raw"
    memory.rebuild(samples(noise(9), [0] * 9), 4, see, torch.Generator().manual_seed(0))
    assert counting.encoded == (9 if looks else 4)
    before = counting.encoded
    bytes_before = memory.of_class(0).parts[0][0].data.clone()
    memory.rebuild(samples(noise(6, key=1), [1] * 6), 4, see, torch.Generator().manual_seed(0))
    assert counting.encoded - before == (6 if looks else 4)
    now = counting.encoded
    memory.add(2, memory.of_class(1).with_slots(torch.full((4,), 2)))
    memory.shrink(2)
    memory.replace([memory.samples()])
    assert counting.encoded == now
    assert torch.equal(
        memory.tensors(3)["images"][0].flatten()[: len(bytes_before) // 4], bytes_before[: len(bytes_before) // 4]
    )


def test_the_images_that_were_not_chosen_are_let_go_before_the_next_class():
    memory, stores = ExemplarMemory("jpeg:40"), []

    def see(data: Samples) -> Tensor:
        assert all(store() is None for store in stores)
        stores.append(weakref.ref(data.parts[0][0]))
        return data.pixels.flatten(1).float()

    memory.rebuild(samples(noise(9), [0] * 4 + [1] * 5), 2, see, torch.Generator())
    assert len(stores) == 2


# memories of variable size ------------------------------------------------------------------------------------------


def test_a_jpeg_memory_charges_its_actual_bytes_a_size_and_a_label_each():
    memory = ExemplarMemory("jpeg")
    pixels = torch.cat([noise(1), smooth(2)])
    memory.replace([samples(pixels, [0, 1, 1])])
    data, sizes = codec("jpeg").encode(pixels)
    assert held(memory) == len(data) + 3 * 4 + 3 * 1
    assert sizes[0] > sizes[1]
    kinds = {name: kind for name, (_, kind) in memory.tensors(10).items()}
    assert kinds == {"images": "exemplars", "sizes": "exemplars", "slots": "labels"}
    assert memory.survey_bytes() == 3 * 768


def test_an_image_is_compressed_once_however_often_the_memory_changes():
    memory = ExemplarMemory("jpeg:30", "random")
    memory.replace([samples(noise(6), [0] * 6)])
    first, bytes_of_first = memory.samples().pixels, memory.tensors(10)["sizes"][0]
    for slot in range(1, 6):
        memory.rebuild(samples(noise(6, key=slot), [slot] * 6), 6 - slot, lambda data: None, torch.Generator())
        memory.add(slot, samples(noise(1, key=9), [slot]))
    memory.replace([memory.samples()])
    assert torch.equal(memory.of_class(0).pixels, first[:1])
    assert torch.equal(memory.tensors(10)["sizes"][0][:1], bytes_of_first[:1])


def test_bytes_are_filled_by_actual_size_the_best_of_each_class_first():
    pixels = torch.cat([noise(8), smooth(8)])  # class 0 costs more than class 1
    data = samples(pixels, [0] * 8 + [1] * 8)

    def filled(capacity: int) -> ExemplarMemory:
        memory = ExemplarMemory("jpeg")
        memory.rebuild(data, 8, lambda part: part.pixels.flatten(1).double(), torch.Generator(), capacity)
        return memory

    whole = filled(10**6)
    assert whole.counts() == {0: 8, 1: 8}
    for quota in range(9):
        exact = held(_prefix(whole, quota))
        assert filled(exact).counts() == ({0: quota, 1: quota} if quota else {})
        assert held(filled(exact)) == exact
        if quota:  # one byte less: the last of the last class has to go, and nothing else
            assert filled(exact - 1).counts() == {0: quota} | ({1: quota - 1} if quota > 1 else {})


def _prefix(memory: ExemplarMemory, quota: int) -> ExemplarMemory:
    other = ExemplarMemory("jpeg")
    other.load({name: tensor for name, (tensor, _) in memory.tensors(2).items()}, (3, 16, 16))
    other.shrink(quota)
    return other


def test_side_data_count_when_bytes_are_filled():
    memory = ExemplarMemory("jpeg", extras={"logits": "replay_logits"})
    data = Samples(ArrayStore(smooth(4)), torch.tensor([0, 0, 1, 1]), extras={"logits": torch.zeros(4, 100)})
    _, sizes = codec("jpeg").encode(smooth(1))
    each = int(sizes[0]) + 4 + 1 + 400
    memory.rebuild(data, 2, lambda part: part.pixels.flatten(1).double(), torch.Generator(), 3 * each + 20)
    assert memory.counts() == {0: 2, 1: 1}
    assert held(memory) == pytest.approx(3 * each, abs=20)
