"""The published training augmentation: shorter side resized to the crop's size, random crop, SSD's colour jitter (Liu
et al., ECCV 2016) and horizontal flip."""

import cv2
import numpy as np
from PIL import Image

from catseg_hf.resizing_catseg import get_resized_size


# The loader's workers share the cores already, and threads would not survive the fork that starts them.
cv2.setNumThreads(0)

# Padding of images that are smaller than the crop, which happens when the longer side reaches its limit.
IMAGE_PADDING = 128
# Limit of the longer side, in crops: 1333 pixels for crops of 384.
LONGEST_EDGE = 1333 / 384

BRIGHTNESS_DELTA = 32.0
CONTRAST_RANGE = (0.5, 1.5)
SATURATION_RANGE = (0.5, 1.5)
HUE_DELTA = 18

# Hue in 8 bits counts steps of two degrees.
NUM_HUES = 180
_SAME = np.arange(256, dtype=np.uint8)


def training_crop(
    image: np.ndarray,
    label: np.ndarray,
    size: int,
    generator: np.random.Generator,
    ignore_index: int = 255,
    color_jitter: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """
    One training example out of an image and its label map.

    Args:
        image (`np.ndarray` of shape `(H, W, 3)`): RGB, uint8.
        label (`np.ndarray` of shape `(H, W)`): Class ids, any integer type that holds `ignore_index`.
        size (`int`): Side of the crop in pixels, hence of the image's shorter side.
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

    image = np.ascontiguousarray(image)
    if chosen():
        image = cv2.LUT(image, _levels(1.0, generator.uniform(-BRIGHTNESS_DELTA, BRIGHTNESS_DELTA)))
    contrast_first = chosen()
    contrast = generator.uniform(*CONTRAST_RANGE) if chosen() else None
    if contrast is not None and contrast_first:
        image = cv2.LUT(image, _levels(contrast))
    if chosen():
        image = _change_hsv(image, saturation=_levels(generator.uniform(*SATURATION_RANGE)))
    if chosen():
        turned = (np.arange(256) + generator.integers(-HUE_DELTA, HUE_DELTA, endpoint=True)) % NUM_HUES
        image = _change_hsv(image, hue=turned.astype(np.uint8))
    if contrast is not None and not contrast_first:
        image = cv2.LUT(image, _levels(contrast))
    return image


def _levels(factor: float, offset: float = 0.0) -> np.ndarray:
    """(256,): `level * factor + offset` of 8-bit levels, cut to 0..255 and to integers."""
    return np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8)


def _change_hsv(image: np.ndarray, hue: np.ndarray = _SAME, saturation: np.ndarray = _SAME) -> np.ndarray:
    """An RGB image with other hues and saturations, which tables (256,) give."""
    tables = np.stack([hue, saturation, _SAME], axis=-1)[None]  # (1, 256, 3)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
