"""Images under the colours of their classes, and the classes' shares of the area."""

import numpy as np
import torch
from PIL import Image

from .colors import class_color


def area_shares(segmentation: np.ndarray | torch.Tensor) -> dict[int, float]:
    """Class indices of a segmentation `(height, width)` and their shares of its area in (0, 1], largest first."""
    indices, counts = np.unique(_to_array(segmentation), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(indices[i]): float(counts[i] / counts.sum()) for i in order}


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


def _to_array(segmentation: np.ndarray | torch.Tensor) -> np.ndarray:
    return segmentation.cpu().numpy() if isinstance(segmentation, torch.Tensor) else np.asarray(segmentation)
