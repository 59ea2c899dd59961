"""An image under its segmentation, beside a legend."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from .legend import draw_legend
from .overlay import area_shares, overlay_segmentation


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
