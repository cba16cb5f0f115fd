import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ode_detect.classification.data.mapper import Augmentation, BatchMapper, Mapper, build_mapper, draw, middle, to_side
from ode_detect.classification.data.sources import Pictures
from ode_detect.engine.config import add_ode_config
from ode_detect.engine.stream import build_stream

EVERYTHING = {"pad_crop": 2, "flip": True, "rotation": 15.0, "scale": (0.8, 1.2), "color_jitter": 0.3, "cutout": 3}
# The middle of every range: nothing is changed where it is drawn, except that a picture is not mirrored.
NEUTRAL = 0.5


def pictures(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(count: int, **columns: float) -> Tensor:
    """What is drawn, with some columns given and the others neutral."""
    names = ["down", "right", "flip", "angle", "scale", "brightness", "contrast", "saturation", "hole_y", "hole_x"]
    return torch.tensor([[columns.get(name, NEUTRAL) for name in names]] * count)


def by_hand(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    """Pad by the border, crop, mirror."""
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="edge")
    height, width = image.shape[1:]
    moved = padded[:, 3 + down : 3 + down + height, 3 + right : 3 + right + width]
    return moved[:, :, ::-1] if flip else moved


@pytest.mark.parametrize("shape", [(64, 3, 8, 8), (64, 1, 6, 9)])
def test_pad_crop_and_flip_are_what_they_are_by_hand(shape: tuple[int, ...]) -> None:
    images, drawn = pictures(*shape), draw(64, seeded())
    found = Augmentation(pad_crop=3, flip=True)(images, drawn)
    shifts = np.floor(drawn[:, :2].numpy() * 7).astype(int) - 3
    assert set(shifts.flatten()) == set(range(-3, 4))
    for image, moved, (down, right), flip in zip(images, found, shifts, drawn[:, 2] < 0.5, strict=True):
        np.testing.assert_array_equal(moved.numpy(), by_hand(image.numpy(), down, right, bool(flip)))
    assert 20 < int((drawn[:, 2] < 0.5).sum()) < 44


@pytest.mark.parametrize("shape", [(32, 3, 8, 8), (32, 1, 6, 9)])
def test_an_affine_map_that_turns_by_nothing_moves_as_the_gather_does(shape: tuple[int, ...]) -> None:
    images, drawn = pictures(*shape), draw(32, seeded())
    moved = Augmentation(pad_crop=2, flip=True)(images, drawn)
    turned = Augmentation(pad_crop=2, flip=True, scale=(1.0, 1.0))(images, drawn)
    assert (turned.int() - moved.int()).abs().max() <= 1
    assert (turned == moved).float().mean() > 0.99


def test_a_rotation_by_90_degrees_is_torchs() -> None:
    images = pictures(4, 3, 8, 8)
    left = Augmentation(rotation=90.0)(images, numbers(4, angle=1.0))
    right = Augmentation(rotation=90.0)(images, numbers(4, angle=0.0))
    assert (left.int() - torch.rot90(images, 1, (2, 3)).int()).abs().max() <= 1
    assert (right.int() - torch.rot90(images, -1, (2, 3)).int()).abs().max() <= 1


def test_a_rotation_keeps_angles_in_pictures_that_are_not_square() -> None:
    # A dot 4 pixels right of the middle of a wide picture is 4 pixels above it after 90 degrees.
    image = torch.zeros(1, 1, 11, 21, dtype=torch.uint8)
    image[0, 0, 5, 14] = 255
    turned = Augmentation(rotation=90.0)(image, numbers(1, angle=1.0))
    assert np.argwhere(turned[0, 0].numpy() > 250).tolist() == [[1, 10]]


def test_a_scale_of_two_shows_twice_as_large() -> None:
    image = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    image[0, 0, 4:8, 4:8] = 255
    large = Augmentation(scale=(0.5, 2.0))(image, numbers(1, scale=1.0))
    small = Augmentation(scale=(0.5, 2.0))(image, numbers(1, scale=0.0))
    assert float(large.float().sum() / 255) == pytest.approx(64, rel=0.1)
    assert float(small.float().sum() / 255) == pytest.approx(4, rel=0.1)


def test_colours_are_those_of_pillow() -> None:
    # Its contrast takes the mean of the grey picture, and is not compared.
    from PIL import ImageEnhance

    images = pictures(1, 3, 8, 8) // 2 + 40
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    for column, enhance in (("brightness", ImageEnhance.Brightness), ("saturation", ImageEnhance.Color)):
        found = Augmentation(color_jitter=0.4)(images, numbers(1, **{column: 1.0}))
        expected = np.asarray(enhance(picture).enhance(1.4)).transpose(2, 0, 1).astype(int)
        assert np.abs(found[0].numpy().astype(int) - expected).max() <= 1
    low = Augmentation(color_jitter=1.0)(images, numbers(1, contrast=0.0))
    assert low.unique().numel() == 1
    assert abs(float(low[0, 0, 0, 0]) - float(images.float().mean())) <= 0.5


def test_colours_of_grey_pictures_stay_in_range() -> None:
    images = pictures(16, 1, 5, 5)
    found = Augmentation(color_jitter=0.9)(images, draw(16, seeded()))
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    brighter = Augmentation(color_jitter=0.9)(torch.full_like(images, 250), numbers(16, brightness=1.0))
    assert (brighter == 255).all()


def test_cutout_makes_a_square_grey_wherever_its_middle_is() -> None:
    images = torch.zeros(400, 3, 8, 10, dtype=torch.uint8)
    holes = Augmentation(cutout=4)(images, draw(400, seeded()))[:, 0] == 128
    areas = holes.flatten(1).sum(1)
    assert areas.max() == 16
    assert areas.min() == 4
    assert holes.any(0).all()
    assert torch.equal(Augmentation(cutout=2)(images[:1], numbers(1))[0, 1].nonzero()[0], torch.tensor([3, 4]))


def test_nothing_switched_on_gives_the_same_tensor() -> None:
    images = pictures(4, 3, 8, 8)
    augmentation = Augmentation()
    assert not augmentation.any
    assert augmentation(images, draw(4, seeded())) is images


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_each_change_is_one(name: str) -> None:
    images = pictures(8, 3, 8, 8)
    augmentation = Augmentation(**{name: EVERYTHING[name]})  # type: ignore[arg-type]
    assert augmentation.any
    found = augmentation(images, draw(8, seeded()))
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert not torch.equal(found, images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pad_crop": -1}, "0 or more"),
        ({"scale": (0.0, 1.0)}, "smallest and a largest"),
        ({"scale": (1.2, 0.8)}, "smallest and a largest"),
        ({"scale": (1.0,)}, "smallest and a largest"),
    ],
)
def test_impossible_values_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)  # type: ignore[arg-type]


def held(images: Tensor) -> tuple[Pictures, list[dict[str, int]]]:
    labels = [index % 3 for index in range(len(images))]
    channels = "RGB" if images.shape[1] == 3 else "L"
    return Pictures(labels, images, (), channels), [{"index": i, "label": label} for i, label in enumerate(labels)]


def same(a: list[dict[str, object]], b: list[dict[str, object]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x["image"], y["image"]) and x["label"] == y["label"]  # type: ignore[arg-type]
        for x, y in zip(a, b, strict=True)
    )


def test_what_is_drawn_depends_on_the_row_only() -> None:
    sets, dicts = held(pictures(10, 3, 8, 8))
    mapper = BatchMapper(sets, side=0, augmentation=Augmentation(**EVERYTHING))  # type: ignore[arg-type]
    whole = mapper.map_batch(dicts, range(10), 10, seeded(5))
    for rank in range(2):
        share = mapper.map_batch(dicts[rank::2], range(rank, 10, 2), 10, seeded(5))
        assert same(share, whole[rank::2])
    other = mapper.map_batch(dicts[:1] * 10, range(10), 10, seeded(5))
    assert torch.equal(other[0]["image"], whole[0]["image"])
    assert len({tuple(example["image"].flatten().tolist()) for example in other}) == 10
    assert not same(mapper.map_batch(dicts, range(10), 10, seeded(6)), whole)


# More workers than the cores that the test may use is what torch warns of.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
@pytest.mark.parametrize("arguments", [{}, EVERYTHING])
def test_workers_give_the_same_batches(arguments: dict[str, object]) -> None:
    sets, dicts = held(pictures(10, 3, 8, 8))
    mapper = BatchMapper(sets, side=0, augmentation=Augmentation(**arguments))  # type: ignore[arg-type]
    alone, shared = (iter(build_stream(dicts, mapper, batch=4, seed=0, workers=workers)) for workers in (0, 2))
    for _ in range(5):
        assert same(next(alone), next(shared))


def test_examples_without_augmentation_are_the_pictures() -> None:
    images = pictures(5, 1, 4, 6)
    sets, dicts = held(images)
    mapper = BatchMapper(sets, side=0)
    for examples in (mapper.map_batch(dicts, range(5), 5, seeded()), [mapper(record) for record in dicts]):
        assert torch.equal(torch.stack([example["image"] for example in examples]), images)
        assert [(e["label"], e["height"], e["width"]) for e in examples] == [(i % 3, 4, 6) for i in range(5)]
    mapper(dicts[0])["image"].zero_()
    assert torch.equal(mapper(dicts[0])["image"], pictures(5, 1, 4, 6)[0])


def test_one_example_draws_from_torchs_generator() -> None:
    sets, dicts = held(pictures(2, 3, 8, 8))
    mapper = Mapper(sets, side=6, augmentation=Augmentation(**EVERYTHING))  # type: ignore[arg-type]
    torch.manual_seed(3)
    first, second = mapper(dicts[0]), mapper(dicts[0])
    torch.manual_seed(3)
    assert same([mapper(dicts[0])], [first])
    assert not same([first], [second])
    assert first["image"].shape == (3, 6, 6)


def test_a_random_part_has_at_least_8_percent_of_the_picture() -> None:
    # A picture whose values tell the column they come from.
    image = torch.arange(200, dtype=torch.uint8).expand(1, 3, 200, 200).contiguous()
    sets, dicts = held(image)
    mapper = Mapper(sets, side=32, augmentation=Augmentation())
    torch.manual_seed(0)
    seen = [mapper(dicts[0])["image"][0, 0].float() for _ in range(60)]
    widths = [float(row.max() - row.min()) for row in seen]
    assert min(widths) > 200 * math.sqrt(0.08 * 3 / 4) - 12
    assert max(widths) > 150
    assert len({float(row.min()) for row in seen}) > 20


def test_the_middle_of_a_picture() -> None:
    image = torch.zeros(3, 80, 120, dtype=torch.uint8)
    image[:, :, 60] = 255
    assert middle(image, 35, 0.875).shape == (3, 35, 35)
    # 80 -> 40, 120 -> 60: columns 12 to 46 of 60, in which the line is at 30.
    assert abs(int(middle(image, 35, 0.875)[0, 10].argmax()) - 17) <= 1
    assert middle(pictures(3, 20, 4), 32, 0.875).shape == (3, 32, 32)
    np.testing.assert_array_equal(middle(pictures(3, 8, 8), 7, 0.875), pictures(3, 8, 8)[:, :7, :7])
    # Of a strip, only what is near the middle is scaled.
    strip = torch.zeros(3, 2, 20_001, dtype=torch.uint8)
    strip[:, :, 10_000] = 255
    sized = middle(strip, 224, 0.875)
    assert sized.shape == (3, 224, 224)
    assert abs(int(sized[0, 100].argmax()) - 112) <= 64
    everything = middle(image, 40, 1.0)
    assert everything.shape == (3, 40, 40)
    assert abs(int(everything[0, 10].argmax()) - 20) <= 1


def config(**keys: object):  # type: ignore[no-untyped-def]  # a CfgNode
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_ode_config(cfg)
    cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = "RGB", "none"
    for key, value in keys.items():
        cfg.INPUT[key] = value
    return cfg


def test_the_config_says_what_is_drawn_and_how() -> None:
    sets, _ = held(pictures(4, 3, 8, 8))
    assert isinstance(build_mapper(config(), sets, is_train=True), BatchMapper)
    assert isinstance(build_mapper(config(SIDE=8), sets, is_train=True), BatchMapper)
    assert not isinstance(build_mapper(config(SIDE=6), sets, is_train=True), BatchMapper)
    assert not isinstance(build_mapper(config(), Pictures([0], None, ("a",), "RGB"), is_train=True), BatchMapper)
    keys = {"PAD_CROP": 2, "RANDOM_FLIP": "horizontal", "ROTATION": 15.0, "SCALE_JITTER": [0.8, 1.2]}
    mapper = build_mapper(config(**keys, COLOR_JITTER=0.3, CUTOUT=3), sets, is_train=True)
    assert mapper.augmentation is not None
    assert vars(mapper.augmentation) == vars(Augmentation(**EVERYTHING))  # type: ignore[arg-type]
    assert build_mapper(config(PAD_CROP=2), sets, is_train=False).augmentation is None
    with pytest.raises(ValueError, match="RANDOM_FLIP"):
        build_mapper(config(RANDOM_FLIP="vertical"), sets, is_train=True)


def test_a_picture_from_elsewhere_is_brought_to_what_was_trained_on() -> None:
    image = pictures(3, 40, 30)
    assert to_side(image, config(SIDE=14)).shape == (3, 14, 14)
    assert to_side(image, config(SIDE=14, FORMAT="L")).shape == (1, 14, 14)
    assert torch.equal(to_side(image, config()), image)
    square = pictures(3, 14, 14)
    assert torch.equal(to_side(square, config(SIDE=14)), square)
