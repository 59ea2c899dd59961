"""Labelme: a JSON file of shapes for each image."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..utils.files import replaced_folder
from .segmented_images import Region, SegmentedImage, read_results


FOLDER = "labelme"
VERSION = "6.3.1"  # of the program whose files these are like


def to_labelme(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> list[dict[str, Any]]:
    """
    Results of the pipeline as what is in Labelme's JSON files, one for each image, with masks as shapes.

    Args:
        results, labels, names, instances, min_area: As [`read_results`] takes them.

    Raises:
        UserError: As [`read_results`] does.
    """
    images = read_results(results, labels, names, instances=instances, min_area=min_area)
    return [_describe(image) for image in images]


def write(images: Iterable[SegmentedImage], labels: Sequence[str], output: Path):
    """Writes labelme/ with a JSON file for each image, and labels.txt for the program's option."""
    with replaced_folder(output / FOLDER) as folder:
        (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        for image in images:
            (folder / f"{image.stem}.json").write_text(json.dumps(_describe(image), indent=2) + "\n")


def _describe(image: SegmentedImage) -> dict[str, Any]:
    height, width = image.size
    return {
        "version": VERSION,
        "flags": {},
        "shapes": [_describe_region(region) for region in image.regions],
        "imagePath": image.path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _describe_region(region: Region) -> dict[str, Any]:
    left, top, width, height = region.box
    png = io.BytesIO()
    Image.fromarray(region.mask).save(png, format="PNG")
    return {
        "label": region.label,
        "points": [[left, top], [left + width - 1, top + height - 1]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(png.getvalue()).decode("ascii"),
        "score": region.score,
    }
