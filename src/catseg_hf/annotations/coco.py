"""COCO: one JSON file of images, categories and annotations, whose masks are polygons or RLE."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..images.origins import is_url
from ..utils.files import replaced_file
from .rle import encode_coco
from .segmented_images import SegmentedImage, read_results


FOLDER, FILE_NAME = "", "annotations.json"


def to_coco(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> dict[str, Any]:
    """
    Results of the pipeline as a COCO data set: `images`, `annotations` with RLE, and `categories` for all labels, each
    with ids from 1.

    Args:
        results, labels, names, instances, min_area: As [`read_results`] takes them.

    Raises:
        UserError: As [`read_results`] does.
    """
    return _to_dataset(read_results(results, labels, names, instances=instances, min_area=min_area), labels)


def write(images: Iterable[SegmentedImage], labels: Sequence[str], output: Path):
    """Writes annotations.json into the output folder."""
    with replaced_file(output / FOLDER / FILE_NAME) as file:
        file.write_text(json.dumps(_to_dataset(images, labels)) + "\n")


def list_categories(labels: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's categories, with ids from 1 in the order of the labels."""
    return [{"id": index, "name": label, "supercategory": ""} for index, label in enumerate(labels, start=1)]


def describe_image(image: SegmentedImage, image_id: int) -> dict[str, Any]:
    """COCO's entry for an image. Its file lies at `path` from the folder of the JSON file."""
    height, width = image.size
    place = "coco_url" if is_url(image.path) else "path"
    return {"id": image_id, "file_name": image.name, place: image.path, "width": width, "height": height}


def _to_dataset(images: Iterable[SegmentedImage], labels: Sequence[str]) -> dict[str, Any]:
    entries, annotations = [], []
    for image_id, image in enumerate(images, start=1):
        entries.append(describe_image(image, image_id))
        annotations += _describe_regions(image, image_id, len(annotations) + 1)
    return {"images": entries, "annotations": annotations, "categories": list_categories(labels)}


def _describe_regions(image: SegmentedImage, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    for annotation_id, region in enumerate(image.regions, start=first_id):
        yield {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": region.index + 1,
            "segmentation": {"size": list(image.size), "counts": encode_coco(region.draw(image.size))},
            "area": region.area,
            "bbox": list(region.box),
            "iscrowd": 0,
            "score": region.score,
        }
