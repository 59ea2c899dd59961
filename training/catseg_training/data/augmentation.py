"""The published training augmentation: shorter side resized to the crop's size, random crop, SSD's colour jitter (Liu
et al., ECCV 2016) and horizontal flip."""

import numpy as np
from PIL import Image

from catseg_hf.image_processing_catseg import get_resized_size


# Padding of pictures that are smaller than the crop, which happens when the longer side reaches its limit.
IMAGE_PADDING = 128
# Limit of the longer side, in crops: 1333 pixels for crops of 384.
LONGEST_EDGE = 1333 / 384

BRIGHTNESS_DELTA = 32.0
CONTRAST_RANGE = (0.5, 1.5)
SATURATION_RANGE = (0.5, 1.5)
HUE_DELTA = 18

# Hue in 8 bits counts steps of two degrees.
NUM_HUES = 180


def training_crop(
    image: np.ndarray,
    label: np.ndarray,
    size: int,
    generator: np.random.Generator,
    ignore_index: int = 255,
    color_jitter: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """
    One training example out of a picture and its label map.

    Args:
        image (`np.ndarray` of shape `(H, W, 3)`): RGB, uint8.
        label (`np.ndarray` of shape `(H, W)`): Class ids, any integer type that holds `ignore_index`.
        size (`int`): Side of the crop in pixels, hence of the picture's shorter side.
        generator (`np.random.Generator`): All randomness comes from it.
        ignore_index (`int`, *optional*, defaults to 255): Label of padding.
        color_jitter (`bool`, *optional*, defaults to `True`): Whether to change brightness, contrast and colours.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The crop `(size, size, 3)`, uint8, and its labels `(size, size)`.
    """
    height, width = label.shape
    resized_height, resized_width = get_resized_size(height, width, size, LONGEST_EDGE * size)
    top = int(generator.integers(max(resized_height - size, 0) + 1))
    left = int(generator.integers(max(resized_width - size, 0) + 1))
    rows, columns = slice(top, top + size), slice(left, left + size)

    resized = Image.fromarray(image).resize((resized_width, resized_height), Image.Resampling.BILINEAR)
    image = np.asarray(resized)[rows, columns]
    label = label[
        np.ix_(_nearest_pixels(height, resized_height)[rows], _nearest_pixels(width, resized_width)[columns])
    ]
    if color_jitter:
        image = jitter_colors(image, generator)
    if generator.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]

    padding = [(0, size - length) for length in label.shape]
    if padding != [(0, 0), (0, 0)]:
        image = np.pad(image, [*padding, (0, 0)], constant_values=IMAGE_PADDING)
        label = np.pad(label, padding, constant_values=ignore_index)
    return image, label


def _nearest_pixels(old: int, new: int) -> np.ndarray:
    """Which of `old` pixels lies under the centre of each of `new`."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def jitter_colors(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """
    Changes brightness, contrast, saturation and hue, each with probability 1/2; contrast before or after the last two.

    Args:
        image (`np.ndarray` of shape `(H, W, 3)`): RGB, uint8.
        generator (`np.random.Generator`): All randomness comes from it.

    Returns:
        `np.ndarray` of shape `(H, W, 3)`: RGB, uint8.
    """

    def chosen() -> bool:
        return bool(generator.random() < 0.5)

    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))  # (3, H, W): far faster to work on than pixels of three
    if chosen():
        planes = _scaled(planes, 1.0, generator.uniform(-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA))
    contrast_first = chosen()
    contrast = generator.uniform(*CONTRAST_RANGE) if chosen() else None
    if contrast is not None and contrast_first:
        planes = _scaled(planes, contrast)
    if chosen():
        hue, saturation, value = rgb_to_hsv(planes)
        planes = hsv_to_rgb(hue, _scaled(saturation, generator.uniform(*SATURATION_RANGE)), value)
    if chosen():
        hue, saturation, value = rgb_to_hsv(planes)
        turned = (np.arange(NUM_HUES) + generator.integers(-HUE_DELTA, HUE_DELTA, endpoint=True)) % NUM_HUES
        planes = hsv_to_rgb(np.take(turned.astype(np.uint8), hue), saturation, value)
    if contrast is not None and not contrast_first:
        planes = _scaled(planes, contrast)
    return np.moveaxis(planes, 0, -1)


def _scaled(values: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    """`values * factor + offset` of 8-bit values, cut to 0..255 and to integers."""
    return np.take(np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8), values)


# Conversion to 8-bit HSV divides in fixed point with 12 fractional bits: by the value for the saturation, and for the
# hue by the spread between the largest and the smallest channel.
_FRACTION_BITS = 12
_HALF = 1 << (_FRACTION_BITS - 1)
_DIVISORS = np.maximum(np.arange(256), 1)
_SATURATION_SCALE = np.rint((255 << _FRACTION_BITS) / _DIVISORS).astype(np.int32)
_HUE_SCALE = np.rint((NUM_HUES << _FRACTION_BITS) / (6 * _DIVISORS)).astype(np.int32)


def rgb_to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    HSV in 8 bits, as OpenCV defines it.

    Args:
        rgb (`np.ndarray` of shape `(3, ...)`): uint8.

    Returns:
        `tuple[np.ndarray, np.ndarray, np.ndarray]`: Hue in 0..179, saturation and value in 0..255, uint8.
    """
    value = np.maximum(np.maximum(rgb[0], rgb[1]), rgb[2])
    spread = value - np.minimum(np.minimum(rgb[0], rgb[1]), rgb[2])
    red, green, blue = rgb.astype(np.int32)
    wide_spread = spread.astype(np.int32)
    sixths = np.where(
        rgb[0] == value,
        green - blue,
        np.where(rgb[1] == value, blue - red + 2 * wide_spread, red - green + 4 * wide_spread),
    )
    hue = (sixths * np.take(_HUE_SCALE, spread) + _HALF) >> _FRACTION_BITS
    hue += NUM_HUES * (hue < 0)
    saturation = (wide_spread * np.take(_SATURATION_SCALE, value) + _HALF) >> _FRACTION_BITS
    return hue.astype(np.uint8), saturation.astype(np.uint8), value


def _missing_shares() -> np.ndarray:
    """(3, 180): how far each channel stays below the value, as a share of the spread, for every hue."""
    position = (np.array([[5.0], [3.0], [1.0]]) + np.arange(NUM_HUES) / 30) % 6
    return np.clip(np.minimum(position, 4 - position), 0, 1).astype(np.float32)


_MISSING_SHARES = _missing_shares()


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The inverse of [`rgb_to_hsv`], up to the rounding of 8 bits: `(3, ...)`, uint8."""
    rounded = value.astype(np.float32)
    spread = rounded * saturation
    spread *= np.float32(1 / 255)
    rounded += 0.5
    return np.stack([(rounded - spread * np.take(shares, hue)).astype(np.uint8) for shares in _MISSING_SHARES])
