"""What is written for an image: its label map, its overlay, and what the summary says of it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from .files import replaced_file
from .visualization import area_shares, class_color, draw_segmentation


LARGEST_CLASSES = 5
RESULT_MARK = "catseg-hf segment"  # in every result, which is thereby known from other images


def write_result(
    path: Path, image: Image.Image, result: dict[str, Any], labels: list[str], has_gaps: bool
) -> dict[str, Any]:
    """Writes both images of one result under the stem `path` and returns what the summary says of it."""
    label_map, no_class = draw_label_map(result["segmentation"], len(labels), has_gaps)
    drawings = {"overlay": draw_segmentation(image, result["segmentation"], labels), "labels": label_map}
    files = {}
    for kind, drawing in drawings.items():
        target = path.with_name(f"{path.name}_{kind}.png")
        mark = PngImagePlugin.PngInfo()
        mark.add_text("Software", RESULT_MARK)
        with replaced_file(target) as file:
            drawing.save(file, format="PNG", pnginfo=mark)
        files[kind] = target.name
    shares = {index: share for index, share in area_shares(result["segmentation"]).items() if index >= 0}
    segments = [
        {"index": index, "label": segment["label"], "area": round(share, 6), "score": round(segment["score"], 6)}
        for segment, (index, share) in zip(result["segments"], shares.items(), strict=True)
    ]
    return {"width": image.width, "height": image.height, **files, "no_class": no_class, "segments": segments}


def draw_label_map(segmentation: torch.Tensor, num_labels: int, has_gaps: bool) -> tuple[Image.Image, int | None]:
    """
    A label map as an image.

    Args:
        segmentation (`torch.LongTensor` of shape (H, W)): Class of every pixel, -1 for none.
        num_labels (`int`): Number of classes.
        has_gaps (`bool`): Whether a value is kept for pixels of no class.

    Returns:
        `PIL.Image.Image` whose values are the classes, of mode "P" in the classes' colours, or of mode "I;16" if they
        do not go into 8 bits; and the value of pixels of no class, 255 or 65535, or `None`.
    """
    few = num_labels + has_gaps <= 256
    no_class = 255 if few else 65535
    pixels = segmentation.masked_fill(segmentation < 0, no_class).numpy()
    label_map = Image.fromarray(pixels.astype(np.uint8 if few else np.uint16))
    if few:
        colors = [class_color(index) for index in range(num_labels)] + [(0, 0, 0)] * (256 - num_labels)
        label_map.putpalette([channel for color in colors for channel in color])
    return label_map, no_class if has_gaps else None


def list_largest(shares: dict[str, float]) -> str:
    """The first few labels with their shares of the area."""
    largest = [f"{label} {share:.1%}" for label, share in shares.items()]
    if len(largest) > LARGEST_CLASSES:
        largest = [*largest[:LARGEST_CLASSES], f"and {len(largest) - LARGEST_CLASSES} more"]
    return ", ".join(largest) or "no class"


def is_result(path: str) -> bool:
    """Whether a file was written by this command."""
    if not path.endswith(("_overlay.png", "_labels.png")):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == RESULT_MARK
    except Exception:  # whatever it is, it is reported when it is read
        return False
