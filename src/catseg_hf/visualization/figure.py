"""Segmentations, and names of classes in any script, as matplotlib draws them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from .colors import class_color
from .fonts import font_family, font_file, font_files, needs_shaping
from .legend import composed_name, cut_entries, names_in_legend, share_text
from .overlay import area_shares, overlay_segmentation


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# Around a name that is written from right to left, in a line that is not.
LEFT_TO_RIGHT = "\u200e"
MAX_PLOT_ROWS, MAX_PLOT_COLUMNS = 24, 3


def plot_segmentation(
    image: Image.Image,
    segmentation: np.ndarray | torch.Tensor,
    labels: Sequence[str] | Mapping[int, str],
    opacity: float = 0.6,
) -> "Figure":
    """
    The same as a matplotlib figure, to show in a notebook or to save in any format. Its legend has numbers for the
    names that `draw_legend` has them for, and before matplotlib 3.11 for all names of which letters have to be joined.

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
        from matplotlib.font_manager import FontProperties
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError(
            "`plot_segmentation` needs matplotlib: install it, or catseg_hf with its extra, `catseg_hf[plot]`."
        ) from error
    overlay = overlay_segmentation(image, segmentation, opacity)
    shares = area_shares(segmentation)
    names = writable_names(names_in_legend(shares, labels))
    entries = [(class_color(index), name + share_text(shares[index])) for index, name in names.items()]
    entries = cut_entries(entries, MAX_PLOT_ROWS * MAX_PLOT_COLUMNS, str)
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
        properties = FontProperties(family=font_families(texts), size=8)
        figure.legend(handles, texts, loc="outside right upper", ncols=columns, prop=properties, frameon=False)
    return figure


def writable_names(names: Mapping[int, str]) -> dict[int, str]:
    """
    The names of classes, each in one line and cut if it is long, as matplotlib can write them with the
    [`font_families`]: "#" and the index where no font here can.
    """
    written = {index: _writable(composed_name(name)) for index, name in names.items()}
    return {index: f"#{index}" if name is None else name for index, name in written.items()}


def font_families(texts: Iterable[str]) -> list[str]:
    """The families that matplotlib looks for the letters of some texts in: its own first."""
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    words = {word for text in texts for word in text.split() if not word.isascii()}
    files = sorted({file for file in map(font_file, words) if file is not None}, key=font_files().index)
    known = {entry.fname for entry in fontManager.ttflist}
    for file in files:
        if file not in known:
            fontManager.addfont(file)
    return [*rcParams["font.family"], *(font_family(file) for file in files)]


def _writable(name: str) -> str | None:
    if name.isascii():
        return name
    if font_file(name) is None:
        return None
    if not needs_shaping(name):
        return name
    return f"{LEFT_TO_RIGHT}{name}{LEFT_TO_RIGHT}" if _matplotlib_shapes() else None


def _matplotlib_shapes() -> bool:
    from matplotlib import ft2font

    return hasattr(ft2font, "__libraqm_version__")
