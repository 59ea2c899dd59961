"""COCO panoptic: a JSON file of segments, beside a folder of PNGs whose colours are the segments' ids."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..utils.files import replaced_folder
from ..visualization import class_color
from .coco import describe_image, list_categories
from .segmented_images import SegmentedImage, read_results


FOLDER, FILE_NAME, PNG_FOLDER = "coco_panoptic", "panoptic.json", "panoptic"


def to_coco_panoptic(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> tuple[dict[str, Any], list[Image.Image]]:
    """
    Results of the pipeline as a COCO panoptic data set, and the images (RGB) that go beside it, each under the
    `file_name` of its annotation. Pixels of no segment are black.

    Args:
        results, labels, names, instances, min_area: As [`read_results`] takes them.

    Raises:
        UserError: As [`read_results`] does.
    """
    images = read_results(results, labels, names, instances=instances, min_area=min_area)
    return _to_dataset(images, labels), [_draw_ids(image) for image in images]


def write(images: Iterable[SegmentedImage], labels: Sequence[str], output: Path):
    """Writes coco_panoptic/ with panoptic.json and the PNGs in panoptic/."""
    with replaced_folder(output / FOLDER) as folder:
        (folder / PNG_FOLDER).mkdir()

        def written() -> Iterable[SegmentedImage]:
            for image in images:
                _draw_ids(image).save(folder / PNG_FOLDER / f"{image.stem}.png")
                yield image

        dataset = _to_dataset(written(), labels)
        (folder / FILE_NAME).write_text(json.dumps(dataset) + "\n")


def _to_dataset(images: Iterable[SegmentedImage], labels: Sequence[str]) -> dict[str, Any]:
    entries, annotations, are_things = [], [], False
    for image_id, image in enumerate(images, start=1):
        entries.append(describe_image(image, image_id))
        are_things |= image.are_instances
        segments = [
            {
                "id": segment_id,
                "category_id": region.index + 1,
                "area": region.area,
                "bbox": list(region.box),
                "iscrowd": 0,
                "score": region.score,
            }
            for segment_id, region in enumerate(image.regions, start=1)
        ]
        annotations.append({"image_id": image_id, "file_name": f"{image.stem}.png", "segments_info": segments})
    categories = [
        {**category, "isthing": int(are_things), "color": list(class_color(index))}
        for index, category in enumerate(list_categories(labels))
    ]
    return {"images": entries, "annotations": annotations, "categories": categories}


def _draw_ids(image: SegmentedImage) -> Image.Image:
    """The number of each pixel's region, from 1, as R + 256 G + 65536 B."""
    ids = np.zeros(image.size, np.uint32)
    for segment_id, region in enumerate(image.regions, start=1):
        ids[region.window][region.mask] = segment_id
    return Image.fromarray(np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8))
