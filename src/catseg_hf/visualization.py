"""Pictures of segmentations: an overlay in stable colours beside a legend with every class's share of the area."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont


# Consecutive multiples of the golden ratio are spread evenly over the hues, however many there are.
GOLDEN_RATIO = 0.618033988749895
BRIGHTNESS = (0.95, 0.7, 0.5)


def class_color(index: int) -> tuple[int, int, int]:
    """The RGB colour, 0..255, that class `index` has in every picture."""
    hue = index * GOLDEN_RATIO % 1
    value = BRIGHTNESS[index % len(BRIGHTNESS)]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, value))


def area_shares(segmentation: np.ndarray | torch.Tensor) -> dict[int, float]:
    """Class indices of a segmentation `(height, width)` and their shares of its area in (0, 1], largest first."""
    indices, counts = np.unique(np.asarray(segmentation), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(indices[i]): float(counts[i] / counts.sum()) for i in order}


def draw_segmentation(
    image: Image.Image,
    segmentation: np.ndarray | torch.Tensor,
    labels: Sequence[str] | Mapping[int, str],
    opacity: float = 0.6,
) -> Image.Image:
    """
    A picture under its segmentation, with a legend to its right.

    Args:
        image (`PIL.Image.Image`): The picture.
        segmentation (`np.ndarray` or `torch.Tensor` of shape `(height, width)`): Class of every pixel, in the
        picture's
            size. Negative indices are pixels of no class: they stay as they are.
        labels (`Sequence[str]` or `Mapping[int, str]`): Name of every class index, such as `config.id2label`.
        opacity (`float`, *optional*, defaults to 0.6): Of the colours, between 0 and 1.

    Returns:
        `PIL.Image.Image` in RGB, wider than `image` by the legend and at least as high.

    Raises:
        ValueError: If picture and segmentation differ in size.
    """
    segmentation = np.asarray(segmentation)
    if segmentation.shape != (image.height, image.width):
        raise ValueError(
            f"The segmentation of shape {segmentation.shape} (height, width) is not of the picture's size, "
            f"{(image.height, image.width)}: resize it with `post_process_semantic_segmentation(target_sizes=...)`."
        )
    shares = {index: share for index, share in area_shares(segmentation).items() if index >= 0}
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    for index in shares:
        mask = segmentation == index
        pixels[mask] = (1 - opacity) * pixels[mask] + opacity * np.array(class_color(index))
    overlay = Image.fromarray(pixels.round().astype(np.uint8))
    legend = _draw_legend([(class_color(index), f"{labels[index]}  {share:.1%}") for index, share in shares.items()])
    canvas = Image.new("RGB", (overlay.width + legend.width, max(overlay.height, legend.height)), "white")
    canvas.paste(overlay, (0, 0))
    canvas.paste(legend, (overlay.width, 0))
    return canvas


def _draw_legend(entries: list[tuple[tuple[int, int, int], str]], font_size: int = 16) -> Image.Image:
    font, line = ImageFont.load_default(font_size), round(1.5 * font_size)
    width = max((round(font.getlength(text)) for _, text in entries), default=0) + 3 * font_size
    legend = Image.new("RGB", (width, line * len(entries) + font_size), "white")
    draw = ImageDraw.Draw(legend)
    for row, (color, text) in enumerate(entries):
        top = row * line + font_size // 2
        draw.rectangle((font_size // 2, top, 3 * font_size // 2, top + font_size), fill=color)
        draw.text((2 * font_size, top + font_size // 2), text, fill="black", font=font, anchor="lm")
    return legend
