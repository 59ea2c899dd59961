"""YOLO segmentation: a text file of polygons for each image, and data.yaml."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..images.origins import is_url
from ..utils.files import link_file, replaced_folder
from .contours import trace_pixels
from .instances import import_cv2, split_parts
from .segmented_images import SegmentedImage, read_results


FOLDER, SPLIT = "yolo", "train"


def to_yolo(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> list[str]:
    """
    Results of the pipeline as what is in YOLO's label files, one for each image: lines of a class index and a polygon
    in shares of width and height. As a line has one polygon, every 8-connected part is one, whether or not
    `instances` are asked for; holes are joined to the outside.

    Args:
        results, labels, names, instances, min_area: As [`read_results`] takes them.

    Raises:
        UserError: As [`read_results`] does, and if OpenCV is not installed.
    """
    images = read_results(results, labels, names, instances=instances, min_area=min_area)
    return [_to_lines(image) for image in images]


def write(images: Iterable[SegmentedImage], labels: Sequence[str], output: Path):
    """Writes yolo/ with data.yaml, labels/train, and links to the images in images/train."""
    with replaced_folder(output / FOLDER) as folder:
        for kind in ("images", "labels"):
            (folder / kind / SPLIT).mkdir(parents=True)
        for image in images:
            (folder / "labels" / SPLIT / f"{image.stem}.txt").write_text(_to_lines(image))
            if not is_url(image.path):
                name = image.stem + PurePath(image.path).suffix
                link_file(folder / image.path, folder / "images" / SPLIT / name)
        names = [f"  {index}: {json.dumps(label)}\n" for index, label in enumerate(labels)]
        lines = ["path: .\n", f"train: images/{SPLIT}\n", f"val: images/{SPLIT}\n", "names:\n", *names]
        (folder / "data.yaml").write_text("".join(lines), encoding="utf-8")


def check_labels(labels: Sequence[str]):
    """
    Raises:
        UserError: If OpenCV is not installed.
    """
    import_cv2()


def _to_lines(image: SegmentedImage) -> str:
    height, width = image.size
    lines = []
    for region in image.regions:
        for left, top, part in split_parts(region.mask):
            (polygon,) = trace_pixels(part)
            # Of the pixels' middles, which readers cut down to whole numbers; three points are the fewest they take.
            points = np.resize(polygon, (max(len(polygon), 3), 2)) + (region.left + left + 0.5, region.top + top + 0.5)
            values = " ".join(f"{value:.8g}" for value in (points / (width, height)).ravel())
            lines.append(f"{region.index} {values}\n")
    return "".join(lines)
