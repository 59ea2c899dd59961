"""Label Studio's JSON: polygons, rectangles and ellipses in percent of the image, and brushes."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlparse
from xml.etree import ElementTree

import numpy as np

from ..errors import UserError
from ..images.origins import is_url
from ..version import __version__
from ..visualization import class_color
from .coco import describe_json
from .dataset import (
    DAMAGED_FILE,
    MISSING_IMAGE,
    NOT_DRAWN,
    REPEATED,
    UNKNOWN_CLASS,
    WITHOUT_LABELS,
    AnnotatedImage,
    Canvas,
    Dataset,
    Report,
    ShapeError,
)
from .own_folders import replaced_own_folder
from .polygons import checked_points, ellipse, pycocotools_mask, rectangle, remark_clipped, rotated
from .rle import decode_label_studio, encode_label_studio
from .segmented_images import SegmentedImage, read_results
from .sources import ImageFiles, json_below, load_json, split_of, try_json


DRAWN = ("polygon", "rectangle", "ellipse", "brush")
# What the server puts before the name of an uploaded file.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
FOLDER, FILE_NAME, CONFIG_NAME = "label_studio", "tasks.json", "config.xml"
LOCAL_FILES = "/data/local-files/?d="  # and a path from the folder that the server may read
BRUSH_TAG, IMAGE_TAG = "label", "image"  # in config.xml
MODEL_VERSION = f"catseg_hf {__version__}"


def recognises(source: Path) -> bool:
    return any(_is_label_studio(try_json(path)) for path in json_below(source))


def _is_label_studio(data: Any) -> bool:
    return (
        isinstance(data, list)
        and len(data) > 0
        and isinstance(data[0], dict)
        and isinstance(data[0].get("data"), dict)
        and any(key in data[0] for key in ("annotations", "completions", "predictions"))
    )


def read(source: Path, images: Path | None) -> Dataset:
    """Regions in the order of the task, later ones over earlier ones. Label Studio shows images upright."""
    report, annotated, names = Report(), [], set()
    root = source.parent if source.is_file() else source
    image_files = ImageFiles([images] if images else [root])
    files = [path for path in json_below(source) if _is_label_studio(load_json(path))]
    if not files:
        found = f": this one {describe_json(load_json(source))}" if source.is_file() else ""
        raise UserError(
            f"There is no JSON of Label Studio in {source}, a list of tasks with data and annotations{found}. Export "
            "it as JSON, not as JSON-MIN or CSV."
        )
    for path in files:
        for number, task in enumerate(load_json(path)):
            described = f"{path}, task {task.get('id', number) if isinstance(task, dict) else number}"
            try:
                name = _image_name(task["data"])
                annotations = task.get("annotations") or task.get("completions") or []
                chosen = _choose(annotations)
                results = [] if chosen is None else list(chosen["result"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                report.problem(DAMAGED_FILE, f"{described}: it has no image or no result ({error})")
                continue
            if chosen is None:
                report.problem(WITHOUT_LABELS, f"{described}: it has no annotation")
                continue
            if len(annotations) > 1:
                report.remark(REPEATED, f"{described}: {len(annotations)} annotations")
            try:
                file = _find(name, image_files)
            except UserError as error:
                report.problem(MISSING_IMAGE, f"{described}: {error}")
                continue
            names.update(label for region in _regions(results) for label in region.labels)
            sizes = {size for region in results if isinstance(region, dict) and (size := _original_size(region))}
            size = sizes.pop() if len(sizes) == 1 else None
            draw = partial(_draw_all, results)
            annotated.append(AnnotatedImage(file, file.name, draw, split_of(path.stem), size))
    return Dataset(sorted(names), annotated, report)


class _Region:
    """A result of the JSON with the labels that it has, or that another result of the same id gives it."""

    def __init__(self, kind: str, value: Mapping[str, Any], labels: list[str], image_rotation: float):
        self.kind, self.value, self.labels, self.image_rotation = kind, value, labels, image_rotation


def _regions(results: Sequence[Any]) -> list[_Region]:
    values = [result for result in results if isinstance(result, dict) and isinstance(result.get("value"), dict)]
    identities = [number if result.get("id") is None else str(result["id"]) for number, result in enumerate(values)]
    labels: dict[int | str, list[str]] = {}
    for identity, result in zip(identities, values, strict=True):
        for key, value in result["value"].items():
            if key.endswith("labels") and isinstance(value, list):
                labels.setdefault(identity, []).extend(map(str, value))
    regions: dict[int | str, _Region] = {}
    for identity, result in zip(identities, values, strict=True):
        kind = str(result.get("type", "")).removesuffix("labels")
        if kind and identity not in regions:
            turned = result.get("image_rotation") or 0
            regions[identity] = _Region(kind, result["value"], labels.get(identity, []), turned)
    return list(regions.values())


def _choose(annotations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The ground truth among a task's annotations, or the first that was not cancelled."""
    kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    return next((annotation for annotation in kept if annotation.get("ground_truth")), kept[0] if kept else None)


def _original_size(region: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the image that a region was drawn on, if it tells them."""
    size = region.get("original_height"), region.get("original_width")
    return size if all(isinstance(length, int) for length in size) else None


def _image_name(data: Mapping[str, Any]) -> str:
    value = data.get("image") or next((value for value in data.values() if isinstance(value, str)), None)
    if value is None:
        raise KeyError("image")
    url = urlparse(value)
    local = parse_qs(url.query).get("d")  # of files that the server reads from a folder
    return local[0] if local else unquote(url.path if url.scheme else value)


def _find(name: str, image_files: ImageFiles) -> Path:
    """An image by the path of its URL, or the name that it had before it was uploaded."""
    try:
        return image_files.find(name.lstrip("/"))
    except UserError:
        folder, _, file = name.rpartition("/")
        if not _UPLOAD.match(file):
            raise
    return image_files.find(_UPLOAD.sub("", file))


def _draw_all(results: Sequence[Any], canvas: Canvas):
    for number, region in enumerate(_regions(results)):
        described = f"region {number} ({region.kind} {', '.join(map(repr, region.labels))})"
        with canvas.shape(described):
            if region.kind not in DRAWN:
                canvas.remark(NOT_DRAWN, described)
            elif not region.labels:
                raise ShapeError(UNKNOWN_CLASS, "it has no label")
            elif region.image_rotation:
                turn = f"{region.image_rotation} degrees"
                raise UserError(f"it was drawn on the image turned by {turn}: turn the file instead, and draw it anew")
            else:
                canvas.paint(region.labels[0], _mask(region, described, canvas), described)


def _mask(region: _Region, described: str, canvas: Canvas) -> np.ndarray:
    value, size = region.value, canvas.size
    if region.kind == "brush":
        return decode_label_studio(value["rle"], size)
    if region.kind == "polygon":
        points = _pixels_of(value["points"], size).reshape(-1, 2)
    else:
        place = _pixels_of([value["x"], value["y"]], size)
        if region.kind == "rectangle":
            extent = _pixels_of([value["width"], value["height"]], size)
            corners, about = rectangle(*place, *(place + extent)), place
        else:
            radii = _pixels_of([value["radiusX"], value["radiusY"]], size)
            corners, about = ellipse(tuple(place), tuple(radii)), place
        points = rotated(corners, float(value.get("rotation") or 0), about)
    points = checked_points(points, size, 3)
    remark_clipped(canvas, points, described)
    return pycocotools_mask([points], size)


def _pixels_of(percent: Any, size: tuple[int, int]) -> np.ndarray:
    """Columns and rows (..., 2) in pixels, of those in percent of the image."""
    return np.asarray(percent, np.float64) / 100 * np.array(size[::-1])


def to_label_studio(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> list[dict[str, Any]]:
    """
    Results of the pipeline as tasks for Label Studio, one for each image, with its predictions.

    Args:
        results, labels, names, instances, min_area: As [`read_results`] takes them.

    Raises:
        UserError: As [`read_results`] does.
    """
    images = read_results(results, labels, names, instances=instances, min_area=min_area)
    return [_to_task(image) for image in images]


def write(images: Iterable[SegmentedImage], labels: Sequence[str], output: Path):
    """Writes label_studio/ with tasks.json, and config.xml for the project."""
    with replaced_own_folder(output / FOLDER) as folder:
        (folder / CONFIG_NAME).write_text(labeling_config(labels), encoding="utf-8")
        with open(folder / FILE_NAME, "w", encoding="utf-8") as file:
            separator = "[\n"
            for image in images:
                file.write(separator + json.dumps(_to_task(image)))
                separator = ",\n"
            file.write("\n]\n" if separator.startswith(",") else "[]\n")


def labeling_config(labels: Sequence[str]) -> str:
    """The labelling configuration of a project in which these labels are painted."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE_TAG, value="$image", zoom="true")
    brush = ElementTree.SubElement(view, "BrushLabels", name=BRUSH_TAG, toName=IMAGE_TAG)
    for index, label in enumerate(labels):
        ElementTree.SubElement(
            brush, "Label", value=label, background="#{:02x}{:02x}{:02x}".format(*class_color(index))
        )
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def to_prediction(image: SegmentedImage, from_name: str = BRUSH_TAG, to_name: str = IMAGE_TAG) -> dict[str, Any]:
    """
    An image's regions as a prediction: a brush mask of each, and the mean probability over all of their pixels.

    Args:
        image ([`SegmentedImage`]): The image.
        from_name, to_name (`str`): What the project's configuration calls its BrushLabels and its Image.
    """
    height, width = image.size
    result = [
        {
            "id": f"region-{number}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_label_studio(region.draw(image.size)),
                "brushlabels": [region.label],
            },
            "score": region.score,
        }
        for number, region in enumerate(image.regions, start=1)
    ]
    area = sum(region.area for region in image.regions)
    score = sum(region.area * region.score for region in image.regions) / area if area else 0.0
    return {"model_version": MODEL_VERSION, "score": round(score, 6), "result": result}


def _to_task(image: SegmentedImage) -> dict[str, Any]:
    source = image.path if is_url(image.path) else LOCAL_FILES + quote(image.name)
    return {"data": {"image": source, "path": image.path}, "predictions": [to_prediction(image)]}
