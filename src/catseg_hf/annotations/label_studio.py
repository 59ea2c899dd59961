"""Label Studio: JSON, a list of tasks, whose predictions are brush masks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from ..images.origins import is_url
from ..utils.files import replaced_folder
from ..version import __version__
from ..visualization import class_color
from .rle import encode_label_studio
from .segmented_images import SegmentedImage, read_results


FOLDER, FILE_NAME, CONFIG_NAME = "label_studio", "tasks.json", "config.xml"
LOCAL_FILES = "/data/local-files/?d="  # and a path from the folder that the server may read
BRUSH_TAG, IMAGE_TAG = "label", "image"  # in config.xml


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
    with replaced_folder(output / FOLDER) as folder:
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
    return {"model_version": f"catseg_hf {__version__}", "score": round(score, 6), "result": result}


def _to_task(image: SegmentedImage) -> dict[str, Any]:
    source = image.path if is_url(image.path) else LOCAL_FILES + quote(image.name)
    return {"data": {"image": source, "path": image.path}, "predictions": [to_prediction(image)]}
