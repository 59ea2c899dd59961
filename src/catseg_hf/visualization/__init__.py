"""Images of segmentations: an overlay in stable colours beside a legend with every class's share of the area."""

from .colors import COLOR_LEVELS, MAX_COLORS, RESERVED_COLORS, class_color
from .drawing import draw_segmentation
from .figure import MAX_PLOT_COLUMNS, MAX_PLOT_ROWS, plot_segmentation
from .legend import (
    MAX_NAME_LENGTH,
    MIN_FONT_SIZE,
    MIN_LEGEND_ROWS,
    describe_numbers,
    draw_legend,
    legend_entries,
    legend_text,
    numbered_labels,
)
from .overlay import area_shares, overlay_segmentation


__all__ = [
    "COLOR_LEVELS",
    "MAX_COLORS",
    "MAX_NAME_LENGTH",
    "MAX_PLOT_COLUMNS",
    "MAX_PLOT_ROWS",
    "MIN_FONT_SIZE",
    "MIN_LEGEND_ROWS",
    "RESERVED_COLORS",
    "area_shares",
    "class_color",
    "describe_numbers",
    "draw_legend",
    "draw_segmentation",
    "legend_entries",
    "legend_text",
    "numbered_labels",
    "overlay_segmentation",
    "plot_segmentation",
]
