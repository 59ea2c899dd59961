"""COCO panoptic (Kirillov et al., CVPR 2019): a PNG of segment ids for each image, whose classes a JSON tells."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..visualization import class_color
from .coco import (
    KEYS,
    category_names,
    describe_image,
    describe_json,
    image_folders,
    list_categories,
    named_by,
    place_of,
)
from .dataset import DAMAGED_FILE, MISSING_IMAGE, WITHOUT_AREA, AnnotatedImage, Canvas, Dataset, Report
from .label_images import read_colors
from .own_folders import replaced_own_folder
from .segmented_images import SegmentedImage, read_results
from .sources import ImageFiles, json_below, load_json, split_of, try_json


VOID = 0
_NO_CLASS = "void"
FOLDER, FILE_NAME, PNG_FOLDER = "coco_panoptic", "panoptic.json", "panoptic"


def recognises(source: Path) -> bool:
    return any(_is_panoptic(try_json(path)) for path in json_below(source))


def _is_panoptic(data: Any) -> bool:
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in KEYS):
        return False
    return any(isinstance(item, dict) and "segments_info" in item for item in data["annotations"][:1])


def read(source: Path, images: Path | None) -> Dataset:
    """Every pixel has the class of its segment; id 0 is of no class."""
    report = Report()
    files = [path for path in json_below(source) if _is_panoptic(load_json(path))]
    if not files:
        found = f": this one {describe_json(load_json(source))}" if source.is_file() else ""
        raise UserError(f'There is no JSON with "segments_info", as COCO panoptic has it, in {source}{found}.')
    root = source.parent if source.is_file() else source
    image_files, classes, annotated = ImageFiles([images] if images else [root]), {}, []
    for path in files:
        data = load_json(path)
        names = category_names(path, data["categories"])
        classes.update(dict.fromkeys(names.values()))
        split = split_of(path.stem, path.parent.name)
        records = {}
        for record in data["images"]:
            try:
                records[record["id"]] = record
            except (KeyError, TypeError):
                report.problem(DAMAGED_FILE, f"{path}, image {str(record)[:80]}: it has no id")
        near = image_folders(path, root, split)
        map_folders = (path.with_suffix(""), path.parent, path.parent / path.stem.removesuffix("_annotations"))
        map_files = ImageFiles([path.parent])
        for annotation in data["annotations"]:
            try:
                record, map_name = records[annotation["image_id"]], str(annotation["file_name"])
                name, size = str(record["file_name"]), (int(record["height"]), int(record["width"]))
                segments = {int(segment["id"]): segment for segment in annotation["segments_info"]}
            except (KeyError, OverflowError, TypeError, ValueError):
                report.problem(DAMAGED_FILE, f"{path}, annotation of image {str(annotation)[:80]}: keys are missing")
                continue
            try:
                label_map = map_files.find(map_name, map_folders, (".png",))
                # Not where the label maps are, which may have the same names.
                beside = () if images else [folder for folder in near if folder != label_map.parent]
                file = image_files.find(name if images else place_of(record), beside)
                if file == label_map:
                    raise UserError(
                        f"{name!r} is only there as its label map, {label_map}: name its folder (--images)"
                    )
            except UserError as error:
                report.problem(MISSING_IMAGE, f"{path}, {error}")
                continue
            draw = partial(_draw, label_map, segments, names)
            annotated.append(AnnotatedImage(file, name, draw, split, size))
    return Dataset(list(classes), annotated, report, ignored=frozenset({_NO_CLASS} - classes.keys()))


def _draw(label_map: Path, segments: Mapping[int, Mapping[str, Any]], names: Mapping[Any, str], canvas: Canvas):
    colors = read_colors(label_map, canvas.size).astype(np.int64)
    ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
    classes = {number: named_by(names, segment.get("category_id")) for number, segment in segments.items()}
    for number in segments.keys() - set(np.unique(ids).tolist()):
        canvas.report.problem(WITHOUT_AREA, f"{label_map}, segment {number}: it has no pixel")
    canvas.fill(ids, {VOID: _NO_CLASS, **classes}, lambda number: f"segment {number}")


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
    with replaced_own_folder(output / FOLDER) as folder:
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
