"""CVAT for images 1.1: one XML file of shapes for all images."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..images.origins import is_url
from ..utils.files import link_file, replaced_folder
from ..visualization import class_color
from .rle import encode_cvat
from .segmented_images import SegmentedImage, read_results


FOLDER, FILE_NAME = "cvat", "annotations.xml"


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
    with replaced_folder(output / FOLDER) as folder:

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
