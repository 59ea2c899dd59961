"""The published augmentation, against Pillow, colorsys and the recipe written out."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from catseg_training.data.augmentation import HUE_DELTA, jitter_colors, training_crop


class ScriptedGenerator:
    """Stands in for a generator: `random` draws come from a list, and ranges give the number that is asked for."""

    def __init__(self, chosen: list[bool], numbers: list[float]):
        self.chosen = iter(chosen)
        self.numbers = iter(numbers)

    def random(self) -> float:
        return 0.25 if next(self.chosen) else 0.75

    def uniform(self, low: float, high: float) -> float:
        number = next(self.numbers)
        assert low <= number <= high
        return number

    def integers(self, low: int, high: int, endpoint: bool) -> int:
        number = next(self.numbers)
        assert endpoint and low <= number <= high
        return number


def numbered_picture(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose red and green are its rows and columns, and a label that numbers the pixels."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    return image, (rows * width + columns).astype(np.int32)


def coordinates(label: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    return label // width, label % width


def test_picture_and_label_are_cropped_and_flipped_together():
    image, label = numbered_picture(32, 50)
    seen = set()
    for seed in range(40):
        crop, crop_label = training_crop(image, label, 32, np.random.default_rng(seed), color_jitter=False)
        assert crop.shape == (32, 32, 3) and crop_label.shape == (32, 32)
        rows, columns = coordinates(crop_label, 50)
        np.testing.assert_array_equal(crop[..., 0], rows)
        np.testing.assert_array_equal(crop[..., 1], columns)
        assert rows.tolist() == [[row] * 32 for row in range(32)]
        step = int(columns[0, 1] - columns[0, 0])
        assert abs(step) == 1 and np.all(np.diff(columns, axis=1) == step)
        seen.add((int(columns.min()), step))
    assert {step for _, step in seen} == {1, -1}
    offsets = {offset for offset, _ in seen}
    assert min(offsets) <= 1 and max(offsets) >= 17 and len(offsets) > 10


def test_shorter_side_is_resized_as_pillow_does():
    generator = np.random.default_rng(0)
    # An odd width, so that no pixel's centre lies between two others.
    image = generator.integers(0, 256, (60, 99, 3), dtype=np.uint8)
    label = generator.integers(0, 171, (60, 99), dtype=np.uint8)
    resized = np.asarray(Image.fromarray(image).resize((53, 32), Image.Resampling.BILINEAR))
    resized_label = np.asarray(Image.fromarray(label).resize((53, 32), Image.Resampling.NEAREST))
    crop, crop_label = training_crop(image, label, 32, np.random.default_rng(1), color_jitter=False)
    windows = [np.s_[:, left : left + 32] for left in range(22)]
    places = [
        (left, flip)
        for left, window in enumerate(windows)
        for flip in (1, -1)
        if np.array_equal(crop, resized[window][:, ::flip])
    ]
    assert len(places) == 1
    left, flip = places[0]
    np.testing.assert_array_equal(crop_label, resized_label[windows[left]][:, ::flip])


@pytest.mark.parametrize("ignore_index", [255, 65535])
def test_what_is_smaller_than_the_crop_is_padded_below_and_right(ignore_index):
    image = np.full((4, 400, 3), 7, dtype=np.uint8)
    label = np.full((4, 400), 3, dtype=np.int32)
    for seed in range(6):  # flipped and not
        crop, crop_label = training_crop(
            image, label, 96, np.random.default_rng(seed), ignore_index, color_jitter=False
        )
        # The longer side is limited to 1333 / 384 crops, which leaves 3 rows.
        assert np.all(crop[:3] == 7) and np.all(crop[3:] == 128)
        assert np.all(crop_label[:3] == 3) and np.all(crop_label[3:] == ignore_index)
        upright, upright_label = training_crop(
            image.swapaxes(0, 1), label.T, 96, np.random.default_rng(seed), ignore_index, color_jitter=False
        )
        assert np.all(upright[:, :3] == 7) and np.all(upright[:, 3:] == 128)
        assert np.all(upright_label[:, :3] == 3) and np.all(upright_label[:, 3:] == ignore_index)


def test_padding_keeps_its_grey_when_colors_change():
    image = np.full((4, 400, 3), (200, 30, 90), dtype=np.uint8)
    label = np.zeros((4, 400), dtype=np.int32)
    crops = [training_crop(image, label, 96, np.random.default_rng(seed))[0] for seed in range(20)]
    assert all(np.all(crop[3:] == 128) for crop in crops)
    assert len({crop[0, 0].tobytes() for crop in crops}) > 10


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (31, 33), (383, 384), (1000, 700)])
def test_every_picture_gives_a_whole_crop(size):
    image, label = np.zeros((*size, 3), dtype=np.uint8), np.ones(size, dtype=np.int32)
    crop, crop_label = training_crop(image, label, 48, np.random.default_rng(0))
    assert crop.shape == (48, 48, 3) and crop.dtype == np.uint8 and crop_label.shape == (48, 48)
    assert crop_label[0, 0] == 1


def test_wide_labels_keep_their_values():
    label = np.full((40, 40), 40_000, dtype=np.uint16)
    label[:, ::2] = 846
    _, crop_label = training_crop(np.zeros((40, 40, 3), np.uint8), label, 32, np.random.default_rng(0), 65535)
    assert set(crop_label.ravel().tolist()) == {40_000, 846}


def test_all_randomness_comes_from_the_generator():
    image, label = numbered_picture(50, 70)
    image.flags.writeable = label.flags.writeable = False

    def crops(seed: int) -> bytes:
        return b"".join(part.tobytes() for part in training_crop(image, label, 32, np.random.default_rng(seed)))

    assert crops(3) == crops(3)
    assert len({crops(seed) for seed in range(10)}) == 10


@pytest.mark.parametrize("hue, saturation", [(0, 1.0), (-HUE_DELTA, 1.0), (7, 1.0), (0, 0.5), (0, 1.5)])
def test_hue_and_saturation_agree_with_colorsys(hue, saturation):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image[0] = image[0, :, :1]  # greys
    image[1, :, 0] = image[1, :, 1]  # two channels share the maximum or the minimum
    script = ScriptedGenerator([False, False, False, hue == 0, hue != 0], [hue or saturation])
    changed = jitter_colors(image, script).reshape(-1, 3)
    expected = []
    for pixel in (image.reshape(-1, 3) / 255).tolist():
        own_hue, own_saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected.append(colorsys.hsv_to_rgb((own_hue + hue / 180) % 1, min(own_saturation * saturation, 1), value))
    # A step of the 8-bit hue is two degrees, up to 8.5 levels of a channel; half of it is rounded away.
    difference = np.abs(changed - 255 * np.array(expected))
    assert difference.max() < 6 and difference.mean() < 1.5


# Brightness, contrast first, contrast, saturation, hue.
@pytest.mark.parametrize(
    "chosen, numbers, pixel, expected",
    [
        ([0, 0, 0, 0, 0], [], (10, 100, 250), (10, 100, 250)),
        ([1, 0, 0, 0, 0], [20.7], (10, 100, 250), (30, 120, 255)),
        ([1, 0, 0, 0, 0], [-32.0], (10, 100, 250), (0, 68, 218)),
        ([0, 0, 1, 0, 0], [1.5], (11, 100, 250), (16, 150, 255)),
        ([0, 0, 0, 1, 0], [0.5], (0, 0, 200), (100, 100, 200)),
        ([0, 0, 0, 1, 0], [1.5], (100, 100, 200), (50, 50, 200)),
        ([0, 0, 0, 0, 1], [HUE_DELTA], (255, 0, 0), (255, 153, 0)),
        ([0, 0, 0, 0, 1], [-HUE_DELTA], (255, 0, 0), (255, 0, 153)),
        ([1, 0, 0, 0, 1], [-32.0, -HUE_DELTA], (255, 0, 32), (223, 0, 134)),
        # A pixel that contrast makes white has no saturation left, if contrast comes first.
        ([0, 1, 1, 1, 0], [1.5, 0.5], (180, 200, 220), (255, 255, 255)),
        ([0, 0, 1, 1, 0], [1.2, 0.5], (180, 180, 200), (228, 228, 240)),
    ],
)
def test_color_jitter_step_by_step(chosen, numbers, pixel, expected):
    image = np.full((2, 3, 3), pixel, dtype=np.uint8)
    jittered = jitter_colors(image, ScriptedGenerator([bool(choice) for choice in chosen], numbers))
    assert jittered.shape == image.shape and jittered.dtype == np.uint8
    assert np.all(jittered == jittered[0, 0])
    assert jittered[0, 0].tolist() == pytest.approx(expected, abs=1)


def test_each_color_change_has_probability_one_half():
    image = np.array([[[200, 60, 90], [30, 120, 70]]], dtype=np.uint8)
    count = 800
    unchanged = sum(np.array_equal(jitter_colors(image, np.random.default_rng(seed)), image) for seed in range(count))
    # Four changes, each left out with probability 1/2; a few drawn ones change nothing here.
    assert 1 / 16 * 0.7 < unchanged / count < 1 / 16 * 1.6
