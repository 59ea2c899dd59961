"""CVAT's XML "for images 1.1": polygons, masks, boxes and ellipses, the higher z_order over the lower."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..errors import UserError, first_line
from ..images.origins import is_url
from ..utils.files import link_file
from ..visualization import class_color
from .dataset import (
    DAMAGED_FILE,
    DAMAGED_SHAPE,
    MISSING_IMAGE,
    NOT_DRAWN,
    AnnotatedImage,
    Canvas,
    Dataset,
    Report,
    ShapeError,
)
from .own_folders import replaced_own_folder
from .polygons import checked_points, pycocotools_mask, rectangle, remark_clipped, rotated
from .rle import decode_cvat, encode_cvat
from .segmented_images import SegmentedImage, read_results
from .sources import ImageFiles, files_below, split_of


# Decimals of coordinates to which the server rounds them before it draws.
DIGITS = 2
DRAWN = ("box", "polygon", "ellipse", "mask")
# Words that CVAT's projects have where they mean no part of the data.
_NO_SPLIT = ("default", "none", "")
# Of encodings that are not known as well.
_UNREADABLE_XML = (ElementTree.ParseError, LookupError, ValueError)
FOLDER, FILE_NAME = "cvat", "annotations.xml"


def recognises(source: Path) -> bool:
    return any(_is_cvat(path) for path in files_below(source, ".xml"))


def _is_cvat(path: Path) -> bool:
    """Whether the file's first elements are those of CVAT."""
    try:
        for _, element in ElementTree.iterparse(path, ["start"]):
            if element.tag not in ("annotations", "version"):
                return element.tag in ("meta", "image", "track")
            if element.tag == "version":
                return True
    except (*_UNREADABLE_XML, OSError):
        pass
    return False


def read(source: Path, images: Path | None) -> Dataset:
    """Shapes by their z_order, and those of the same in the order of the file. Coordinates are those of the upright
    image, as CVAT shows it."""
    report, annotated, classes = Report(), [], {}
    root = source.parent if source.is_file() else source
    image_files = ImageFiles([images] if images else [root])
    files = [path for path in files_below(source, ".xml") if source.is_file() or _is_cvat(path)]
    if not files:
        raise UserError(f"There is no XML of CVAT in {source}: it begins with <annotations><version>1.1.")
    for path in files:
        try:
            document = ElementTree.parse(path).getroot()
        except _UNREADABLE_XML as error:
            message = f"{path} is no XML that can be read: {first_line(error)}"
            if source.is_file():
                raise UserError(f"{message}.") from error
            report.problem(DAMAGED_FILE, message)
            continue
        if document.find("track") is not None:
            raise UserError(
                f'{path} is of "CVAT for video", with tracks: export the task again as "CVAT for images 1.1".'
            )
        if document.tag != "annotations" or document.find("image") is None:
            raise UserError(f"{path} is an XML of another format: CVAT's has <annotations> with <image>.")
        labels = [label.findtext("name", "") for label in document.iter("label")]
        used = [shape.get("label", "") for image in document.iter("image") for shape in image]
        classes.update(dict.fromkeys(name for name in labels or sorted(set(used)) if name))
        several = len(files) > 1
        for image in document.iter("image"):
            name, subset = image.get("name", ""), image.get("subset", "")
            split = split_of(subset) or (None if subset.lower() in _NO_SPLIT else _folder_name(subset))
            split = split or (split_of(path.stem) if several or not subset else None)
            try:
                size = int(image.attrib["height"]), int(image.attrib["width"])
                # A project's export has folders for its subsets.
                near = [parent / "images" / subset for parent in (path.parent, root)] if subset else []
                near += [folder for parent in (path.parent, root) for folder in (parent, parent / "images")]
                file = image_files.find(name, () if images and not subset else near)
            except (KeyError, ValueError) as error:
                kind = MISSING_IMAGE if isinstance(error, UserError) else DAMAGED_FILE
                report.problem(kind, f"{path}, image {image.get('id')}: {first_line(error)}")
                continue
            annotated.append(
                AnnotatedImage(file, f"{subset}/{name}".lstrip("/"), partial(_draw_all, list(image)), split, size)
            )
    return Dataset(list(classes), annotated, report)


def _folder_name(subset: str) -> str | None:
    """A subset's name as that of one folder, if anything of it can be."""
    return re.sub(r"[/\\]", "_", subset).strip(".") or None


def _draw_all(shapes: Sequence[ElementTree.Element], canvas: Canvas):
    numbered = list(enumerate(shapes))
    for number, shape in sorted(numbered, key=lambda item: _order(item[1])):
        name = shape.get("label", "")
        described = f"shape {number} ({shape.tag} {name!r})"
        with canvas.shape(described):
            if shape.tag not in DRAWN:
                canvas.remark(NOT_DRAWN, described)
            elif shape.tag == "mask":
                mask, corner = _mask(shape.attrib)
                canvas.paint(name, mask, described, corner)
            else:
                canvas.paint(name, _pixels(shape, described, canvas), described)


def _order(shape: ElementTree.Element) -> tuple[int, bool]:
    """Where a shape lies: turned boxes are above the others of their z_order, as the server's export has it."""
    try:
        return int(shape.get("z_order", 0)), shape.tag == "box" and float(shape.get("rotation", 0)) != 0
    except ValueError:
        return 0, False


def _mask(attributes: Mapping[str, str]) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels (h, w) of a mask in its box, and the column and row of the box."""
    left, top, width, height = (int(float(attributes[key])) for key in ("left", "top", "width", "height"))
    lengths = [int(length) for length in attributes["rle"].split(",")]
    return decode_cvat(lengths, (height, width)), (left, top)


def _pixels(shape: ElementTree.Element, described: str, canvas: Canvas) -> np.ndarray:
    rotation = float(shape.get("rotation", 0))
    if shape.tag == "ellipse":
        center, radii = (tuple(float(shape.attrib[key]) for key in keys) for keys in (("cx", "cy"), ("rx", "ry")))
        return _ellipse(center, radii, rotation, canvas.size)
    if shape.tag == "box":
        corners = np.array([[float(shape.attrib[key]) for key in keys] for keys in (("xtl", "ytl"), ("xbr", "ybr"))])
        place, corner = np.around(corners, DIGITS)
        corners = rectangle(*place, *(place + (corner - place)))  # to the last bit as in the server
        if rotation:
            corners = rotated(corners, rotation, corners.mean(axis=0))
    else:
        corners = [[float(number) for number in pair.split(",")] for pair in shape.attrib["points"].split(";")]
    points = np.around(checked_points(corners, canvas.size, 3), DIGITS)
    remark_clipped(canvas, points, described)
    return pycocotools_mask([points], canvas.size)


def _ellipse(
    center: tuple[float, float], radii: tuple[float, float], rotation: float, size: tuple[int, int]
) -> np.ndarray:
    """The pixels (H, W) of an ellipse as the server's export draws it, with OpenCV and whole numbers."""
    import cv2

    corners = np.array([center]) + np.array([[-1, -1], [1, 1]]) * max(radii)
    checked_points(corners, size, 2)
    if min(radii) < 0:
        raise ShapeError(DAMAGED_SHAPE, f"radii of {radii}")
    mask = np.zeros(size, np.uint8)
    whole = [tuple(round(number) for number in pair) for pair in (center, radii)]
    cv2.ellipse(mask, *whole, rotation, 0, 360, 1, thickness=-1)
    return mask.view(bool)


def to_cvat(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> str:
    """
    Results of the pipeline as XML in CVAT's format for images, version 1.1, with masks as shapes.

    Args:
        results, labels, names, instances, min_area: As [`read_results`] takes them.

    Raises:
        UserError: As [`read_results`] does.
    """
    return "".join(_to_xml(read_results(results, labels, names, instances=instances, min_area=min_area), labels))


def write(images: Iterable[SegmentedImage], labels: Sequence[str], output: Path):
    """Writes cvat/ with annotations.xml, and links to the images in images/."""
    with replaced_own_folder(output / FOLDER) as folder:

        def linked() -> Iterable[SegmentedImage]:
            for image in images:
                if not is_url(image.path):
                    link = folder / "images" / image.name
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link_file(folder / image.path, link)
                yield image

        with open(folder / FILE_NAME, "w", encoding="utf-8") as file:
            file.writelines(_to_xml(linked(), labels))


def _to_xml(images: Iterable[SegmentedImage], labels: Sequence[str]) -> Iterable[str]:
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    yield _to_text(_describe_labels(labels))
    for image_id, image in enumerate(images):
        yield _to_text(_describe(image, image_id))
    yield "</annotations>\n"


def _to_text(element: ElementTree.Element) -> str:
    ElementTree.indent(element)
    return ElementTree.tostring(element, encoding="unicode") + "\n"


def _describe_labels(labels: Sequence[str]) -> ElementTree.Element:
    meta = ElementTree.Element("meta")
    parent = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
    for index, label in enumerate(labels):
        element = ElementTree.SubElement(parent, "label")
        ElementTree.SubElement(element, "name").text = label
        ElementTree.SubElement(element, "color").text = "#{:02x}{:02x}{:02x}".format(*class_color(index))
        ElementTree.SubElement(element, "type").text = "mask"
        ElementTree.SubElement(element, "attributes")
    return meta


def _describe(image: SegmentedImage, image_id: int) -> ElementTree.Element:
    height, width = image.size
    element = ElementTree.Element("image", id=str(image_id), name=image.name, width=str(width), height=str(height))
    for region in image.regions:
        left, top, width, height = region.box
        ElementTree.SubElement(
            element,
            "mask",
            label=region.label,
            source="auto",
            occluded="0",
            rle=", ".join(map(str, encode_cvat(region.mask))),
            left=str(left),
            top=str(top),
            width=str(width),
            height=str(height),
            z_order="0",
        )
    return element
