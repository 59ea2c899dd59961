"""YOLO segmentation as Ultralytics reads it: data.yaml, and a text file of polygons for each image."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from ..images.origins import is_url
from ..utils.files import link_file
from .contours import trace_pixels
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
from .instances import import_cv2, split_parts
from .own_folders import replaced_own_folder
from .polygons import checked_points, opencv_mask, remark_clipped
from .segmented_images import SegmentedImage, read_results
from .sources import IMAGE_SUFFIXES, read_text, split_of


SPLITS = ("train", "val", "test")
FOLDER, SPLIT = "yolo", "train"


def recognises(source: Path) -> bool:
    return _description(source) is not None


def _description(source: Path) -> Path | None:
    """The YAML file with the names of the classes."""
    if source.is_file():
        candidates = [source] if source.suffix.lower() in (".yaml", ".yml") else []
    else:
        candidates = [source / "data.yaml", *sorted(source.glob("*.y*ml"))] if source.is_dir() else []
    for path in candidates:
        if path.is_file() and isinstance(_load(path), dict) and {"names"} <= _load(path).keys():
            return path
    return None


def _load(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def read(source: Path, images: Path | None) -> Dataset:
    """Large polygons below small ones, as Ultralytics draws them, in the image as its EXIF orientation says."""
    path = _description(source)
    if path is None:
        raise UserError(f"There is no data.yaml with the names of the classes in {source}.")
    data = _load(path)
    names = data["names"]
    names = dict(names) if isinstance(names, dict) else dict(enumerate(names if isinstance(names, list) else []))
    try:
        names = dict(sorted((int(number), str(name)) for number, name in names.items()))
    except (TypeError, ValueError):
        names = {}
    if not names:
        found = str(data["names"])[:80]
        raise UserError(f"{path} names no classes: `names` is a list, or a mapping from ids to names, got {found}.")
    report, annotated = Report(), []
    for split in SPLITS:
        for folder in _folders(path, data, split):
            if not folder.exists():
                report.problem(MISSING_IMAGE, f"{path}, {split}: there is no {folder}")
                continue
            for file in _images(folder):
                annotated.append(
                    AnnotatedImage(
                        file,
                        file.name,
                        partial(_draw_all, _label_file(file), names),
                        split_of(split),
                    )
                )
    known = {_label_file(image.file) for image in annotated}
    for folder in {path.parent for path in known}:
        for label in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            if label not in known and label.name != "classes.txt":
                report.problem(MISSING_IMAGE, f"{label}: there is no image of this name")
    return Dataset(list(dict.fromkeys(names.values())), annotated, report)


def _folders(path: Path, data: Mapping[str, Any], split: str) -> list[Path]:
    """Folders or lists of a split, relative to `path` in the file, or to the file itself."""
    value = data.get(split)
    if split == "val" and value is None:
        value = data.get("valid")
    values = value if isinstance(value, list) else [value] if value else []
    found = []
    for name in map(str, values):
        candidates = [path.parent / str(data.get("path") or "") / name, path.parent / name]
        # Roboflow's exports say ../train/images of a folder that lies beside the file.
        candidates += [path.parent / name.removeprefix("../"), path.parent / name.removeprefix("../") / "images"]
        found.append(next((candidate for candidate in candidates if candidate.exists()), candidates[0]))
    return found


def _images(folder: Path) -> list[Path]:
    if folder.is_file():
        lines = [line.strip() for line in read_text(folder).splitlines() if line.strip()]
        return [folder.parent / line for line in lines]
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _label_file(image: Path) -> Path:
    """`.../labels/...NAME.txt` of `.../images/...NAME.jpg`, by the last such folder."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _draw_all(path: Path, names: Mapping[int, str], canvas: Canvas):
    if not path.is_file():  # an image of nothing but background, by the format
        return
    drawn = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        canvas.report.problem(DAMAGED_FILE, f"{path}: {first_line(error)}")
        return
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        described = f"line {number} of {path.name}"
        with canvas.shape(described):
            name = names.get(int(float(words[0])), f"class {words[0]}")
            described = f"{described} ({name})"
            drawn.append((name, described, _polygon(words[1:], described, canvas)))
    areas = np.array([mask.sum() for *_, mask in drawn])
    for place in np.argsort(-areas).tolist():
        name, described, mask = drawn[place]
        with canvas.shape(described):
            canvas.paint(name, mask, described)


def _polygon(words: Sequence[str], described: str, canvas: Canvas) -> np.ndarray:
    """The pixels (H, W), bool, of corners in shares of the image's width and height."""
    if len(words) in (4, 5):
        raise ShapeError(WITHOUT_AREA, "it is a box, of object detection")
    shares = np.array(words, np.float64)
    if shares.size % 2:
        raise ShapeError(DAMAGED_SHAPE, f"it has an odd number of coordinates, {shares.size}")
    points = shares.reshape(-1, 2).astype(np.float32) * np.array(canvas.size[::-1], np.float32)
    points = checked_points(points, canvas.size, 3).astype(np.float32)
    remark_clipped(canvas, points, described)
    return opencv_mask(points, canvas.size)


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
    with replaced_own_folder(output / FOLDER) as folder:
        for kind in ("images", "labels"):
            (folder / kind / SPLIT).mkdir(parents=True)
        for image in images:
            (folder / "labels" / SPLIT / f"{image.stem}.txt").write_text(_to_lines(image))
            if not is_url(image.path):
                name = image.stem + PurePath(image.path).suffix
                link_file(folder / image.path, folder / "images" / SPLIT / name)
        names = [f"  {index}: {json.dumps(label)}\n" for index, label in enumerate(labels)]
        lines = [
            "path: .\n",
            f"train: images/{SPLIT}\n",
            "val:  # to be chosen, which training needs\n",
            "names:\n",
            *names,
        ]
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
