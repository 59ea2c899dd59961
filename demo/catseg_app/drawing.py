"""What the page shows of a result. Large images are scaled for display only."""

import numpy as np
from PIL import Image

from catseg_hf.visualization import class_color, legend_text, overlay_segmentation

from .segmentation import Segmentation, probability_map


DISPLAY_SIDE = 1024
MAX_LEGEND_ENTRIES = 40
OTHER_COLOR = "#808080"

# From 0 to 1, ever brighter.
HEAT_COLORS = ("#0b0724", "#57106e", "#bc3754", "#f98e09", "#fcffa4")
HEAT_OPACITY = 0.75


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """The width and height in which an image of width and height `size` is shown: its own if they are small enough."""
    scale = min(1, DISPLAY_SIDE / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def to_image_pixel(result: Segmentation, x: float, y: float) -> tuple[int, int]:
    """The column and row, in the full image, of a pixel of what is shown."""
    pairs = zip((x, y), result.image.size, display_size(result.image.size), strict=True)
    return tuple(min(int((place + 0.5) * full / shown), full - 1) for place, full, shown in pairs)


def displayed(result: Segmentation) -> tuple[Image.Image, np.ndarray]:
    """The image in the size in which it is shown, and the class of its pixels (H, W)."""
    size = display_size(result.image.size)
    classes = Image.fromarray(result.segmentation.int().numpy()).resize(size, Image.Resampling.NEAREST)
    return result.image.resize(size, Image.Resampling.LANCZOS), np.array(classes)


def overlay(result: Segmentation, opacity: float) -> Image.Image:
    """The shown image in the colours of its classes, without a legend."""
    return overlay_segmentation(*displayed(result), opacity)


def annotations(
    result: Segmentation, opacity: float, alone: int | None = None
) -> tuple[Image.Image, list[tuple[np.ndarray, str]], dict[str, str]]:
    """
    Image, masks and colours of `gr.AnnotatedImage`.

    Args:
        result ([`Segmentation`]): The result.
        opacity (`float`): Of the masks, in 0..1.
        alone (`int`, *optional*): Place in the legend of the only class whose mask is shown.

    Returns:
        The shown image; for every class, the largest first, its mask (H, W) of 0 and `opacity`, and its text in the
        legend; and the colour of every text, such as "#ff0000". Classes beyond the first 39 share the last entry.
    """
    image, classes = displayed(result)
    shown = len(result.segments)
    shown = shown if shown <= MAX_LEGEND_ENTRIES else MAX_LEGEND_ENTRIES - 1
    entries = [
        (classes == segment["index"], legend_text(segment["label"], segment["area"]), _hex(segment["index"]))
        for segment in result.segments[:shown]
    ]
    if rest := [segment["index"] for segment in result.segments[shown:]]:
        entries.append((np.isin(classes, rest), f"and {len(rest)} more", OTHER_COLOR))
    masks = [
        (mask * (opacity if alone in (None, place) else 0.0), text) for place, (mask, text, _) in enumerate(entries)
    ]
    return image, masks, {text: color for _, text, color in entries}


def heat_map(result: Segmentation, label: str) -> Image.Image:
    """The shown image under the probability of one label, dark at 0 and bright at 1."""
    image = result.image.resize(display_size(result.image.size), Image.Resampling.LANCZOS).convert("L").convert("RGB")
    values = probability_map(result, label, (image.height, image.width)).numpy()
    colors = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in HEAT_COLORS])
    steps = np.linspace(0, 1, len(colors))
    heat = np.stack([np.interp(values, steps, channel) for channel in colors.T], axis=-1)
    return Image.blend(image, Image.fromarray(heat.round().astype(np.uint8)), HEAT_OPACITY)


def heat_scale() -> str:
    """The heat map's colours with their probabilities, in HTML."""
    bar = (
        f"flex: 1; height: 0.8em; border-radius: 4px; background: linear-gradient(to right, {', '.join(HEAT_COLORS)})"
    )
    return f'<div style="display: flex; align-items: center; gap: 0.6em">0 <div style="{bar}"></div> 1</div>'


def _hex(index: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_color(index))
