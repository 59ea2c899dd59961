"""COCO's JSON (Lin et al., ECCV 2014): things and stuff, as polygons and run lengths, in the folders of
cocodataset.org, Roboflow, mmdetection and datumaro."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import UserError
from ..images.origins import is_url
from ..utils.files import replaced_file
from .dataset import (
    DAMAGED_FILE,
    DAMAGED_SHAPE,
    MISSING_IMAGE,
    WITHOUT_AREA,
    AnnotatedImage,
    Canvas,
    Dataset,
    Report,
    ShapeError,
)
from .own_folders import CONTRIBUTOR, check_own_file
from .polygons import checked_points, pycocotools_mask, remark_clipped
from .rle import decode_coco, encode_coco
from .segmented_images import SegmentedImage, read_results
from .sources import ImageFiles, json_below, load_json, split_of, try_json


KEYS = ("images", "annotations", "categories")
Item = TypeVar("Item")
_NO_CLASS = ""  # of an id that no category has
FOLDER, FILE_NAME = "", "annotations.json"


def recognises(source: Path) -> bool:
    return any(_is_coco(try_json(path)) for path in json_below(source))


def _is_coco(data: Any) -> bool:
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in KEYS):
        return False
    first = next(iter(data["annotations"]), None)
    return first is None or (isinstance(first, dict) and "segments_info" not in first)


def read(source: Path, images: Path | None) -> Dataset:
    """The shapes of each image in the order of the file, stuff below things, later ones over earlier ones."""
    report = Report()
    files = []
    for path in json_below(source):
        data = load_json(path)
        if _is_coco(data):
            files.append(path)
        elif source.is_file():
            raise UserError(
                f"{path} is a JSON of another format: COCO's has lists of {', '.join(KEYS)}, this one "
                f"{describe_json(data)}."
            )
    if not files:
        raise UserError(f"There is no COCO JSON in {source}: it has lists of {', '.join(KEYS)}.")
    # Keypoints are of the persons that the instances have already.
    instances = [path for path in files if "keypoints" not in path.stem] or files
    for path in files:
        if path not in instances:
            report.remark("files of keypoints beside the instances, not read", str(path))
    classes: dict[str, None] = {}
    found: dict[tuple[str | None, str], _Listed] = {}
    for path in sorted(instances, key=lambda path: not path.stem.startswith("stuff")):
        data = load_json(path)
        names = category_names(path, data["categories"], data["annotations"])
        classes.update(dict.fromkeys(names.values()))
        split = split_of(path.stem, path.parent.name)
        listed = {}
        for record in data["images"]:
            try:
                name, size, number = str(record["file_name"]), _size(record), record["id"]
                is_taken = number in listed and listed[number] is not found.get((split, name))
            except (KeyError, OverflowError, TypeError, ValueError):
                report.problem(DAMAGED_FILE, f"{path}, image {str(record)[:80]}: it has no file_name, id or size")
                continue
            if is_taken:
                report.problem(DAMAGED_FILE, f"{path}, image {name}: its id {number} is that of another image")
                continue
            listed[number] = found.setdefault((split, name), _Listed(path, size, [], place_of(record)))
        without_image = []
        for annotation in data["annotations"]:
            entry = named_by(listed, annotation.get("image_id")) if isinstance(annotation, dict) else None
            if entry is None:
                without_image.append(annotation)
            else:
                entry.shapes.append((annotation, names))
        for annotation in without_image:
            report.problem(MISSING_IMAGE, f"{path}, {describe(annotation)}: there is no image of its image_id")
    root = source.parent if source.is_file() else source
    image_files = ImageFiles([images] if images else [root])
    annotated = []
    for (split, name), entry in found.items():
        near = () if images else image_folders(entry.file, root, split)
        try:
            file = image_files.find(name if images else entry.place, near)
        except UserError as error:
            report.problem(MISSING_IMAGE, f"{entry.file}, {error}")
            continue
        annotated.append(AnnotatedImage(file, name, partial(_draw, entry.shapes), split, entry.size))
    return Dataset(list(classes), annotated, report)


class _Listed:
    """An image of a JSON: the file that lists it first, its size, its annotations with their categories, and where it
    lies."""

    def __init__(self, file: Path, size: tuple[int, int], shapes: list[tuple[Any, Mapping[Any, str]]], place: str):
        self.file, self.size, self.shapes, self.place = file, size, shapes, place


def place_of(record: Mapping[str, Any]) -> str:
    """An image's path from the JSON's folder, which `catseg-hf segment` writes, or its name."""
    return str(record.get("path") or record["file_name"])


def category_names(path: Path, categories: Sequence[Any], annotations: Sequence[Any] = ()) -> dict[Any, str]:
    """
    The name of each category's id, in the order of the ids; without the one that Roboflow writes as a heading.

    Raises:
        UserError: If the categories of the file `path` are not of this form.
    """
    try:
        names = {category["id"]: str(category["name"]) for category in sorted(categories, key=lambda item: item["id"])}
        is_damaged = any(names[category["id"]] != str(category["name"]) for category in categories)
    except (KeyError, TypeError):
        is_damaged = True
    if is_damaged:
        raise UserError(
            f"{path} has the categories {str(categories)[:80]}: each needs an id of its own, all of them numbers or "
            "all of them text, and a name."
        )
    parents = [category.get("supercategory") for category in categories]
    used = [annotation.get("category_id") for annotation in annotations if isinstance(annotation, dict)]
    headings = [
        category["id"]
        for category in categories
        if category.get("supercategory") == "none" and category["name"] in parents and category["id"] not in used
    ]
    return {number: name for number, name in names.items() if number not in headings}


def named_by(entries: Mapping[Any, Item], number: Any) -> Item | None:
    """The entry of an id, or `None` if there is none, or it is nothing that an id can be."""
    return entries.get(number) if isinstance(number, Hashable) else None


def _size(record: Mapping[str, Any]) -> tuple[int, int]:
    return int(record["height"]), int(record["width"])


def image_folders(file: Path, root: Path, split: str | None) -> list[Path]:
    """Where images of a JSON lie: beside it, or in a folder that is called as its split."""
    parents = dict.fromkeys((file.parent, file.parent.parent, root)) if file.parent != root else {root: None}
    near = []
    for parent in parents:
        near += [parent, parent / "images"]
        near += [
            folder
            for holder in (parent, parent / "images")
            if holder.is_dir()
            for folder in sorted(holder.iterdir())
            if folder.is_dir() and split is not None and split_of(folder.name) == split
        ]
    return near


def describe(annotation: Any) -> str:
    if not isinstance(annotation, dict):
        return f"annotation {str(annotation)[:80]}"
    return f"annotation {annotation.get('id', 'without an id')}"


def describe_json(data: Any) -> str:
    """What a JSON of another format has."""
    if isinstance(data, dict):
        return f"has {', '.join(map(repr, list(data)[:8])) or 'nothing'}"
    return f"is a list of {len(data)}" if isinstance(data, list) else f"is {type(data).__name__}"


def _draw(shapes: Sequence[tuple[dict[str, Any], Mapping[Any, str]]], canvas: Canvas):
    for annotation, names in shapes:
        number = annotation.get("category_id")
        name = named_by(names, number) or _NO_CLASS
        described = f"{describe(annotation)} ({name or f'category {number}'})"
        with canvas.shape(described):
            canvas.paint(name, segmentation_mask(annotation["segmentation"], canvas, described), described)


def segmentation_mask(segmentation: Any, canvas: Canvas, described: str) -> np.ndarray:
    """
    The pixels (H, W), bool, of a segmentation.

    Raises:
        ShapeError: If it has none, or is damaged.
    """
    if isinstance(segmentation, Mapping):
        size = tuple(segmentation["size"])
        if size != canvas.size:
            raise ShapeError(
                DAMAGED_SHAPE,
                f"its RLE is of {size} (height, width), its image of {canvas.size}",
            )
        return decode_coco(segmentation["counts"], size)
    if not segmentation:
        raise ShapeError(WITHOUT_AREA, "it has a box at most and no segmentation")
    parts = [checked_points(part, canvas.size, 3) for part in segmentation]
    for part in parts:
        remark_clipped(canvas, part, described)
    return pycocotools_mask(parts, canvas.size)


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
    check_own_file(output / FILE_NAME)
    with replaced_file(output / FILE_NAME) as file:
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
    return {
        "info": {"description": "Segmentations as a first draft", "contributor": CONTRIBUTOR},
        "images": entries,
        "annotations": annotations,
        "categories": list_categories(labels),
    }


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
