"""Images of segmentations: an overlay in stable colours beside a legend with every class's share of the area."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import printable


if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLOR_LEVELS = 17
MAX_COLORS = 4096
# Not given to a class: the page, pixels of no class, and a grey that is no colour.
RESERVED_COLORS = ((255, 255, 255), (0, 0, 0), (128, 128, 128))

MIN_FONT_SIZE = 14
MIN_LEGEND_ROWS = 12
MAX_NAME_LENGTH = 32
MAX_PLOT_ROWS, MAX_PLOT_COLUMNS = 24, 3


def class_color(index: int) -> tuple[int, int, int]:
    """The RGB colour, 0..255, that class `index` (not negative) has in every image. The first 4096 differ; the lower
    the indices, the more."""
    index %= MAX_COLORS
    # Colours do not depend on how many are made at once, and few are made much faster than all.
    return _distinct_colors(max(256, 1 << index.bit_length()))[index]


def area_shares(segmentation: np.ndarray | torch.Tensor) -> dict[int, float]:
    """Class indices of a segmentation `(height, width)` and their shares of its area in (0, 1], largest first."""
    indices, counts = np.unique(_to_array(segmentation), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(indices[i]): float(counts[i] / counts.sum()) for i in order}


def draw_segmentation(
    image: Image.Image,
    segmentation: np.ndarray | torch.Tensor,
    labels: Sequence[str] | Mapping[int, str],
    opacity: float = 0.6,
) -> Image.Image:
    """
    An image under its segmentation, with a legend to its right. The legend's text grows with the image. Of more
    classes than find room beside it the largest are listed.

    Args:
        image (`PIL.Image.Image`): The image.
        segmentation (`np.ndarray` or `torch.Tensor` of shape `(height, width)`): Class of every pixel, integers, in
            the image's size. Negative indices are pixels of no class: they stay as they are.
        labels (`Sequence[str]` or `Mapping[int, str]`): Name of every class index, such as `config.id2label`.
        opacity (`float`, *optional*, defaults to 0.6): Of the colours, between 0 and 1.

    Returns:
        `PIL.Image.Image` in RGB, wider than `image` by the legend and at least as high.

    Raises:
        ValueError: If image and segmentation differ in size, a class has no name, or the opacity is out of range.
    """
    overlay = overlay_segmentation(image, segmentation, opacity)
    legend = draw_legend(area_shares(segmentation), labels, overlay.size)
    canvas = Image.new("RGB", (overlay.width + legend.width, max(overlay.height, legend.height)), "white")
    canvas.paste(overlay, (0, 0))
    canvas.paste(legend, (overlay.width, 0))
    return canvas


def plot_segmentation(
    image: Image.Image,
    segmentation: np.ndarray | torch.Tensor,
    labels: Sequence[str] | Mapping[int, str],
    opacity: float = 0.6,
) -> "Figure":
    """
    The same as a matplotlib figure, to show in a notebook or to save in any format.

    Args:
        image, segmentation, labels, opacity: As for `draw_segmentation`.

    Returns:
        `matplotlib.figure.Figure`, which pyplot knows nothing of: there is nothing to close.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: As for `draw_segmentation`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError(
            "`plot_segmentation` needs matplotlib: install it, or catseg_hf with its extra, `catseg_hf[plot]`."
        ) from error
    overlay = overlay_segmentation(image, segmentation, opacity)
    entries = legend_entries(area_shares(segmentation), labels)
    entries = _cut(entries, MAX_PLOT_ROWS * MAX_PLOT_COLUMNS)
    columns = -(-len(entries) // MAX_PLOT_ROWS)
    width = min(max(5 * overlay.width / overlay.height, 2), 12)
    figure = Figure(figsize=(width + 2.6 * columns, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(overlay)
    axes.set_axis_off()
    if entries:
        handles = [Patch(color=[channel / 255 for channel in color], label=text) for color, text in entries]
        # A label that begins with "_" would be left out of a legend that finds its labels itself.
        texts = [text for _, text in entries]
        figure.legend(handles, texts, loc="outside right upper", ncols=columns, fontsize=8, frameon=False)
    return figure


def overlay_segmentation(
    image: Image.Image, segmentation: np.ndarray | torch.Tensor, opacity: float = 0.6
) -> Image.Image:
    """
    What `draw_segmentation` draws without the legend: `image`, in RGB, under the colours of its classes.

    Raises:
        ValueError: If image and segmentation differ in size, or the opacity is out of range.
    """
    segmentation = _to_array(segmentation)
    if segmentation.shape != (image.height, image.width):
        raise ValueError(
            f"The segmentation of shape {segmentation.shape} (height, width) is not of the image's size, "
            f"{(image.height, image.width)}: resize it with `post_process_semantic_segmentation(target_sizes=...)`."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must lie between 0 and 1, got {opacity}.")
    indices = np.unique(segmentation[segmentation >= 0])
    colors = np.zeros((indices.max(initial=0) + 1, 3), dtype=np.uint8)
    for index in indices:
        colors[index] = class_color(int(index))
    image = image.convert("RGB")
    overlay = Image.blend(image, Image.fromarray(colors[np.maximum(segmentation, 0)]), opacity)
    overlay.paste(image, mask=Image.fromarray(segmentation < 0))
    return overlay


def draw_legend(
    shares: Mapping[int, float], labels: Sequence[str] | Mapping[int, str], image_size: tuple[int, int]
) -> Image.Image:
    """
    The legend of `draw_segmentation` alone.

    Args:
        shares (`Mapping[int, float]`): Class indices and their shares of the area, largest first, as `area_shares`
            gives them.
        labels (`Sequence[str]` or `Mapping[int, str]`): Name of every class index.
        image_size (`tuple[int, int]`): Width and height of the image that it stands beside.

    Returns:
        `PIL.Image.Image` in RGB.

    Raises:
        ValueError: If a class has no name.
    """
    entries, (image_width, image_height) = legend_entries(shares, labels), image_size
    font_size = max(MIN_FONT_SIZE, round(0.035 * (image_width * image_height) ** 0.5))
    font, line, margin = ImageFont.load_default(font_size), round(1.5 * font_size), font_size // 2
    text_width = max((round(font.getlength(text)) for _, text in entries), default=0)
    column_width = text_width + 2 * font_size + margin
    rows = max(MIN_LEGEND_ROWS, (image_height - 2 * margin) // line)
    columns = max(1, max(image_width, 30 * font_size) // column_width)
    entries = _cut(entries, rows * columns)
    columns = -(-len(entries) // rows)
    size = (columns * column_width + 2 * margin, min(rows, len(entries)) * line + 2 * margin)
    legend = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(legend)
    for place, (color, text) in enumerate(entries):
        left, middle = margin + place // rows * column_width, margin + place % rows * line + line // 2
        half = font_size // 2
        draw.rectangle((left, middle - half, left + 2 * half, middle + half), fill=color)
        draw.text((left + round(1.5 * font_size), middle), text, fill="black", font=font, anchor="lm")
    return legend


def legend_entries(
    shares: Mapping[int, float], labels: Sequence[str] | Mapping[int, str]
) -> list[tuple[tuple[int, int, int], str]]:
    """
    What a legend says: RGB colour and text of every class of `shares`, as `draw_legend` takes them.

    Raises:
        ValueError: If a class has no name.
    """
    shares = {index: share for index, share in shares.items() if index >= 0}
    names = dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels))
    if unnamed := sorted(set(shares) - set(names)):
        raise ValueError(f"The classes {unnamed[:10]} of the segmentation have no name among the {len(names)} labels.")
    return [(class_color(index), legend_text(names[index], share)) for index, share in shares.items()]


def legend_text(name: str, share: float) -> str:
    """What a legend says of a class: its name in one line, cut if it is long, and its share of the area, in 0..1."""
    name = printable(" ".join(name.split()))
    name = name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3].rstrip()}..."
    return f"{name}  {share:.1%}" if share >= 0.001 else f"{name}  < 0.1%"


def _to_array(segmentation: np.ndarray | torch.Tensor) -> np.ndarray:
    return segmentation.cpu().numpy() if isinstance(segmentation, torch.Tensor) else np.asarray(segmentation)


def _cut(entries: list, room: int) -> list:
    """At most `room` entries, of which the last one counts those that were left out."""
    if len(entries) <= room:
        return entries
    return [*entries[: room - 1], ((255, 255, 255), f"and {len(entries) - room + 1} more")]


@lru_cache
def _distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """Greedily, each colour the one that looks least like all before it."""
    levels = np.linspace(0, 255, COLOR_LEVELS).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    perceived = _to_lab(candidates)
    reserved = _to_lab(np.array(RESERVED_COLORS))
    distances = ((perceived[:, None] - reserved) ** 2).sum(axis=-1).min(axis=-1)
    colors = []
    for _ in range(count):
        farthest = distances.argmax()
        colors.append(tuple(int(channel) for channel in candidates[farthest]))
        distances = np.minimum(distances, ((perceived - perceived[farthest]) ** 2).sum(axis=-1))
    return colors


def _to_lab(colors: np.ndarray) -> np.ndarray:
    """sRGB colours `(..., 3)` in 0..255 in CIE L*a*b* (D65), in which distances are perceived ones."""
    linear = colors / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=-1)
    xyz = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(xyz, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
