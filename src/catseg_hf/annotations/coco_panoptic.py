"""COCO panoptic (Kirillov et al., CVPR 2019): a PNG of segment ids for each image, whose classes a JSON tells."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .coco import KEYS, category_names, describe_json, image_folders
from .dataset import DAMAGED_FILE, MISSING_IMAGE, WITHOUT_AREA, AnnotatedImage, Canvas, Dataset, Report
from .label_images import read_colors
from .sources import ImageFiles, json_below, load_json, split_of, try_json


VOID = 0
_NO_CLASS = "void"


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
        names = category_names(data["categories"])
        classes.update(dict.fromkeys(names.values()))
        split = split_of(path.stem, path.parent.name)
        records = {record.get("id"): record for record in data["images"]}
        near = image_folders(path, root, split)
        map_folders = (path.with_suffix(""), path.parent, path.parent / path.stem.removesuffix("_annotations"))
        map_files = ImageFiles([path.parent])
        for annotation in data["annotations"]:
            try:
                record, map_name = records[annotation["image_id"]], annotation["file_name"]
                name, size = str(record["file_name"]), (int(record["height"]), int(record["width"]))
                segments = {int(segment["id"]): segment for segment in annotation["segments_info"]}
            except (KeyError, TypeError, ValueError):
                report.problem(DAMAGED_FILE, f"{path}, annotation of image {str(annotation)[:80]}: keys are missing")
                continue
            try:
                label_map = map_files.find(map_name, map_folders, (".png",))
                file = image_files.find(name, () if images else near)
            except UserError as error:
                report.problem(MISSING_IMAGE, f"{path}, {error}")
                continue
            draw = partial(_draw, label_map, segments, names)
            annotated.append(AnnotatedImage(file, name, draw, split, size))
    return Dataset(list(classes), annotated, report, ignored=frozenset({_NO_CLASS} - classes.keys()))


def _draw(label_map: Path, segments: Mapping[int, Mapping[str, Any]], names: Mapping[Any, str], canvas: Canvas):
    colors = read_colors(label_map, canvas.size).astype(np.int64)
    ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
    classes = {number: names.get(segment.get("category_id")) for number, segment in segments.items()}
    for number in segments.keys() - set(np.unique(ids).tolist()):
        canvas.report.problem(WITHOUT_AREA, f"{label_map}, segment {number}: it has no pixel")
    canvas.fill(ids, {VOID: _NO_CLASS, **classes}, lambda number: f"segment {number}")
