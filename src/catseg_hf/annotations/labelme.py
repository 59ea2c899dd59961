"""Labelme's JSON, one file for each image, drawn as its own `shapes_to_label` draws."""

import base64
import binascii
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..errors import UserError
from .coco import describe_json
from .dataset import (
    DAMAGED_FILE,
    MISSING_IMAGE,
    NOT_DRAWN,
    WITHOUT_AREA,
    AnnotatedImage,
    Canvas,
    Dataset,
    Report,
    ShapeError,
)
from .own_folders import replaced_own_folder
from .polygons import checked_points, remark_clipped
from .segmented_images import Region, SegmentedImage, read_results
from .sources import ImageFiles, files_below, json_below, load_json, read_text, split_of, try_json


KEYS = ("shapes", "imagePath")
IGNORED, BACKGROUND = "__ignore__", "_background_"
CLASS_LIST = "labels.txt"
LINE_WIDTH, POINT_RADIUS = 10, 5
# How many points each kind has: at least, and whether there may be more.
_POINTS = {
    "polygon": (3, True),
    "rectangle": (2, False),
    "oriented_rectangle": (4, False),
    "circle": (2, False),
    "line": (2, False),
    "linestrip": (2, True),
    "point": (1, False),
    "mask": (2, False),
}
FOLDER = "labelme"
VERSION = "6.3.1"  # of the program whose files these are like


def recognises(source: Path) -> bool:
    return any(_is_labelme(try_json(path)) for path in json_below(source))


def _is_labelme(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def read(source: Path, images: Path | None) -> Dataset:
    """The shapes of each file in their order, later ones over earlier ones. Classes are those of `labels.txt` in the
    folder, or else all that occur, sorted."""
    report, annotated = Report(), []
    root = source.parent if source.is_file() else source
    image_files = ImageFiles([images] if images else [root])
    names: set[str] = set()
    for path in files_below(source, ".json", depth=4):
        try:
            data = load_json(path)
            if not _is_labelme(data):
                raise UserError(
                    f"{path} is a JSON of another format: Labelme's has {' and '.join(KEYS)}, this one "
                    f"{describe_json(data)}"
                )
        except UserError as error:
            if source.is_file():
                raise
            report.problem(DAMAGED_FILE, str(error))
            continue
        names |= {shape["label"] for shape in data["shapes"] if isinstance(shape, dict) and _has_label(shape)}
        try:
            file = _image(path, data, image_files)
        except UserError as error:
            report.problem(MISSING_IMAGE, f"{path}: {error}")
            continue
        size = (data.get("imageHeight"), data.get("imageWidth"))
        annotated.append(
            AnnotatedImage(
                file,
                _name(path, data, root),
                partial(_draw_file, path),
                split_of(*path.relative_to(root).parent.parts),
                size if all(isinstance(length, int) for length in size) else None,
                is_upright=data.get("imageData") is None,
            )
        )
    class_list = source / CLASS_LIST
    if class_list.is_file():
        classes = [line.strip() for line in read_text(class_list).splitlines() if line.strip()]
        background = BACKGROUND if BACKGROUND in classes else None
    else:
        classes, background = sorted(names), None
    return Dataset([name for name in classes if name != IGNORED], annotated, report, background, frozenset({IGNORED}))


def _has_label(shape: Mapping[str, Any]) -> bool:
    return isinstance(shape.get("label"), str) and shape["label"] != ""


def _name(path: Path, data: Mapping[str, Any], root: Path) -> str:
    suffix = Path(str(data["imagePath"]).replace("\\", "/")).suffix
    return path.relative_to(root).with_suffix(suffix).as_posix()


def _image(path: Path, data: Mapping[str, Any], image_files: ImageFiles) -> Path | bytes:
    """The image that a file names, or else the one inside it."""
    try:
        return image_files.find(str(data["imagePath"]), (path.parent,))
    except UserError:
        if not data.get("imageData"):
            raise
    try:
        return base64.b64decode(data["imageData"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError(f"its imageData is damaged ({error}), and there is no image {data['imagePath']!r}") from error


def _draw_file(path: Path, canvas: Canvas):
    for number, shape in enumerate(load_json(path)["shapes"]):
        kind = "no shape"
        if isinstance(shape, dict):
            kind = shape.get("shape_type") or "polygon"
            kind = f"{kind} {shape.get('label')!r}"
        described = f"shape {number} ({kind})"
        with canvas.shape(described):
            _draw(shape, described, canvas)


def _draw(shape: Mapping[str, Any], described: str, canvas: Canvas):
    kind = shape.get("shape_type") or "polygon"
    if kind not in _POINTS:
        canvas.report.problem(NOT_DRAWN, f"{canvas.where}, {described}: Labelme itself draws no such shape")
        return
    minimum, more = _POINTS[kind]
    points = checked_points(shape["points"], canvas.size, minimum)
    if len(points) > minimum and not more:
        raise ShapeError(WITHOUT_AREA, f"it has {len(points)} points and needs {minimum}")
    name = shape["label"]
    if kind == "mask":
        (left, top), (right, bottom) = points.astype(int).tolist()
        mask = _mask(shape["mask"])
        if mask.shape != (bottom - top + 1, right - left + 1):
            raise ValueError(f"its mask is of {mask.shape} (height, width), its points of another size")
        canvas.paint(name, mask, described, (left, top))
        return
    if kind not in ("point", "circle"):
        remark_clipped(canvas, points, described)
    canvas.paint(name, shape_mask(kind, points, canvas.size), described)


def _mask(encoded: str) -> np.ndarray:
    """The pixels of a mask, a PNG inside the JSON."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            return np.asarray(image).astype(bool)
    except Exception as error:  # Pillow raises all kinds for what is damaged
        raise ValueError(f"its mask is no PNG that can be read ({error})") from error


def shape_mask(kind: str, points: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """
    The pixels (H, W), bool, of a shape as Labelme draws it with Pillow: with its border, lines 10 and points 11 wide.

    Args:
        kind (`str`): Labelme's `shape_type`, but "mask".
        points: As many pairs of column and row as the kind has.
        size (`tuple[int, int]`): Height and width.
    """
    image = Image.new("L", size[::-1])
    draw = ImageDraw.Draw(image)
    corners = [tuple(map(float, point)) for point in points]
    if kind == "circle":
        (x, y), (edge_x, edge_y) = corners
        radius = math.sqrt((x - edge_x) ** 2 + (y - edge_y) ** 2)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    elif kind == "rectangle":
        columns, rows = zip(*corners, strict=True)
        draw.rectangle((min(columns), min(rows), max(columns), max(rows)), outline=1, fill=1)
    elif kind in ("line", "linestrip"):
        draw.line(corners, fill=1, width=LINE_WIDTH)
    elif kind == "point":
        ((x, y),) = corners
        draw.ellipse((x - POINT_RADIUS, y - POINT_RADIUS, x + POINT_RADIUS, y + POINT_RADIUS), outline=1, fill=1)
    else:
        draw.polygon(corners, outline=1, fill=1)
    return np.asarray(image, dtype=bool)


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
    with replaced_own_folder(output / FOLDER) as folder:
        (folder / CLASS_LIST).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
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
