"""What is written for an image, its label map and its overlay, and whether it is there already."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from ..errors import UserError
from ..utils.files import replaced_file
from ..visualization import area_shares, class_color, describe_numbers, draw_segmentation
from .origins import Settings, other_settings


LARGEST_CLASSES = 5
KINDS = ("overlay", "labels")
ORIGIN_KEY = "catseg-hf origin"
RESULT_MARK = "catseg-hf segment"  # in every result, which is thereby known from other images


def list_segments(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The segments of a result with their `index`, `label`, `area` (their share of the image) and `score`, largest
    first. Both numbers are in [0, 1]."""
    shares = {index: share for index, share in area_shares(result["segmentation"]).items() if index >= 0}
    return [
        {"index": index, "label": segment["label"], "area": round(share, 6), "score": round(segment["score"], 6)}
        for segment, (index, share) in zip(result["segments"], shares.items(), strict=True)
    ]


def write_result(
    path: Path, image: Image.Image, result: dict[str, Any], labels: list[str], has_gaps: bool, origin: dict[str, Any]
) -> dict[str, Any]:
    """
    Writes both images of one result.

    Args:
        path (`Path`): Their folder and stem.
        image (`PIL.Image.Image`): What was segmented.
        result (`dict`): Its `segmentation` and `segments`, as the pipeline returns them.
        labels (`list[str]`): All classes.
        has_gaps (`bool`): Whether pixels may be of no class.
        origin (`dict`): `settings` and `input`, digests of what the result comes from, which go into both files.

    Returns:
        `dict`: What the summary says of it, which goes into both files as well.
    """
    label_map, no_class = draw_label_map(result["segmentation"], len(labels), has_gaps)
    drawings = {"overlay": draw_segmentation(image, result["segmentation"], labels), "labels": label_map}
    files = _files(path)
    record = {
        "width": image.width,
        "height": image.height,
        **{kind: file.name for kind, file in files.items()},
        "no_class": no_class,
        "segments": list_segments(result),
    }
    information = PngImagePlugin.PngInfo()
    information.add_text("Software", RESULT_MARK)
    information.add_text(ORIGIN_KEY, json.dumps({**origin, "record": record}))
    for kind, drawing in drawings.items():
        with replaced_file(files[kind]) as file:
            drawing.save(file, format="PNG", pnginfo=information)
    return record


def read_result(path: Path, origin: dict[str, Any]) -> dict[str, Any] | None:
    """
    Looks for a result that needs not be made again.

    Args:
        path (`Path`), origin (`dict`): As for [`write_result`].

    Returns:
        What [`write_result`] returned, or `None` if there is no complete result of this input.

    Raises:
        UserError: If it was made with other settings.
    """
    written = [_read_origin(file) for file in _files(path).values()]
    for found in filter(None, written):
        if differences := other_settings(found["settings"], origin["settings"]):
            raise UserError(
                f"{path.parent} holds results with another {', '.join(differences)}, {path.name} among them: repeat "
                "what they were made with, or name another --output."
            )
    is_complete = all(found == written[0] for found in written)
    if is_complete and written[0] is not None and written[0]["input"] == origin["input"]:
        return written[0]["record"]
    return None


def write_summary(output: Path, settings: Settings, records: list[dict[str, Any]], unreadable: list[tuple[str, str]]):
    """
    Writes summary.json, and prints where the results are, and what numbers in the legends stand for.

    Args:
        output (`Path`): The folder of the results.
        settings ([`Settings`]): What they were made with.
        records (`list[dict]`): The images, each with what [`write_result`] returned.
        unreadable (`list[tuple[str, str]]`): What could not be read, each with a sentence that says why.
    """
    summary = {
        "model": settings.model,
        "sam": settings.sam,
        "labels": settings.classes.names,
        **settings.classes.described(),
        "threshold": settings.threshold,
        "range": settings.value_range,
        "upsampling": settings.upsampling,
        "tile_size": settings.tile_size,
        "tile_overlap": settings.tile_overlap,
        "images": records,
        "unreadable": [{"image": image, "error": error} for image, error in unreadable],
    }
    with replaced_file(output / "summary.json") as file:
        file.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"Segmented {len(records)} image{'s' * (len(records) != 1)} into {output}")
    found = {segment["index"]: segment["label"] for record in records for segment in record["segments"]}
    if numbers := describe_numbers(dict(sorted(found.items()))):
        print(numbers)


def _files(path: Path) -> dict[str, Path]:
    return {kind: path.with_name(f"{path.name}_{kind}.png") for kind in KINDS}


def _read_origin(path: Path) -> dict[str, Any] | None:
    """What [`write_result`] wrote into a file beside its pixels, if that is what it is."""
    try:
        with Image.open(path) as image:
            origin = json.loads(image.info[ORIGIN_KEY])
            return {name: origin[name] for name in ("settings", "input", "record")}
    except Exception:  # there is none, or it is of an older version or damaged
        return None


def draw_label_map(segmentation: torch.Tensor, num_labels: int, has_gaps: bool) -> tuple[Image.Image, int | None]:
    """
    A label map as an image.

    Args:
        segmentation (`torch.LongTensor` of shape (H, W)): Class of every pixel, -1 for none.
        num_labels (`int`): Number of classes.
        has_gaps (`bool`): Whether a value is kept for pixels of no class.

    Returns:
        `PIL.Image.Image` whose values are the classes, of mode "P" in the classes' colours, or of mode "I;16" if they
        do not go into 8 bits; and the value of pixels of no class, 255 or 65535, or `None`.
    """
    few = num_labels + has_gaps <= 256
    no_class = 255 if few else 65535
    classes = segmentation.numpy()
    pixels = np.where(classes < 0, no_class, classes).astype(np.uint8 if few else np.uint16)
    label_map = Image.fromarray(pixels)
    if few:
        colors = [class_color(index) for index in range(num_labels)] + [(0, 0, 0)] * (256 - num_labels)
        label_map.putpalette([channel for color in colors for channel in color])
    return label_map, no_class if has_gaps else None


def list_largest(shares: dict[str, float]) -> str:
    """The first few labels with their shares of the area."""
    largest = [f"{label} {share:.1%}" for label, share in shares.items()]
    if len(largest) > LARGEST_CLASSES:
        largest = [*largest[:LARGEST_CLASSES], f"and {len(largest) - LARGEST_CLASSES} more"]
    return ", ".join(largest) or "no class"


def is_result(path: str) -> bool:
    """Whether a file was written by this command."""
    if not path.endswith(tuple(f"_{kind}.png" for kind in KINDS)):
        return False
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == RESULT_MARK
    except Exception:  # whatever it is, it is reported when it is read
        return False
