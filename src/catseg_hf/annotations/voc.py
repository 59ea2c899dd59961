"""PASCAL VOC: palette PNGs, with labelmap.txt also CVAT's segmentation mask 1.1."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images.origins import is_url
from ..utils.files import link_file, replaced_folder
from .segmented_images import SegmentedImage, read_results


FOLDER, SPLIT = "voc", "train"
BACKGROUND = "background"
MAX_CLASSES = 254  # 0 is the background, 255 is left out


def to_voc(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> list[Image.Image]:
    """
    Results of the pipeline as images of mode "P" in PASCAL VOC's colours, one for each: 0 is the background, classes
    begin at 1.

    Args:
        results, labels, names, instances, min_area: As [`read_results`] takes them.

    Raises:
        UserError: As [`read_results`] does, and for more than 254 labels.
    """
    check_labels(labels)
    images = read_results(results, labels, names, instances=instances, min_area=min_area)
    return [_draw(image) for image in images]


def check_labels(labels: Sequence[str]):
    """
    Raises:
        UserError: If there are too many labels, or one is the background's.
    """
    if len(labels) > MAX_CLASSES:
        raise UserError(
            f"There are {len(labels)} labels, but PASCAL VOC's images hold at most {MAX_CLASSES}: choose another "
            "format."
        )
    if unwritable := [label for label in labels if set(label) & set(":#\n\r") or label == BACKGROUND]:
        raise UserError(
            f"The label {unwritable[0]!r} cannot be written to labelmap.txt, where {BACKGROUND!r} is taken and ':' "
            "and '#' separate: choose another word or another format."
        )


def write(images: Iterable[SegmentedImage], labels: Sequence[str], output: Path):
    """Writes voc/ with SegmentationClass, links to the images in JPEGImages, ImageSets and labelmap.txt."""
    check_labels(labels)
    with replaced_folder(output / FOLDER) as folder:
        for name in ("SegmentationClass", "JPEGImages", "ImageSets/Segmentation"):
            (folder / name).mkdir(parents=True)
        stems = []
        for image in images:
            stems.append(image.stem)
            _draw(image).save(folder / "SegmentationClass" / f"{image.stem}.png")
            if not is_url(image.path):
                name = image.stem + PurePath(image.path).suffix
                link_file(folder / image.path, folder / "JPEGImages" / name)
        lines = "".join(f"{stem}\n" for stem in stems)
        (folder / "ImageSets" / "Segmentation" / f"{SPLIT}.txt").write_text(lines, encoding="utf-8")
        colors = [
            f"{name}:{','.join(map(str, color))}::\n"
            for name, color in zip([BACKGROUND, *labels], _palette(), strict=False)
        ]
        (folder / "labelmap.txt").write_text("".join(["# label:color_rgb:parts:actions\n", *colors]), encoding="utf-8")


def _draw(image: SegmentedImage) -> Image.Image:
    ids = np.zeros(image.size, np.uint8)
    for region in image.regions:
        ids[region.window][region.mask] = region.index + 1
    drawing = Image.fromarray(ids)
    drawing.putpalette(_palette().ravel().tolist())
    return drawing


def _palette() -> np.ndarray:
    """PASCAL VOC's 256 colours: the bits of an index go to red, green and blue in turn, the lowest to the
    highest places."""
    indices = np.arange(256)
    bits = indices[:, None] >> np.arange(8) & 1  # (256, 8)
    places = 7 - np.arange(8) // 3
    return np.stack([(bits << places)[:, channel::3].sum(axis=1) for channel in range(3)], axis=1).astype(np.uint8)
