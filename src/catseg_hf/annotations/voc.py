"""PASCAL VOC's label maps in colour (Everingham et al., IJCV 2010), and CVAT's "Segmentation mask 1.1" in the same
folders with a labelmap.txt."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..images.origins import is_url
from ..utils.files import link_file
from .dataset import MISSING_IMAGE, WITHOUT_LABELS, AnnotatedImage, Dataset, Report
from .label_images import VOID_NAMES, fill_colors, read_color_list
from .own_folders import replaced_own_folder
from .segmented_images import SegmentedImage, read_results
from .sources import ImageFiles, read_text, split_of


LABEL_FOLDER, IMAGE_FOLDER, SPLIT_FOLDER, COLOR_LIST = "SegmentationClass", "JPEGImages", "ImageSets", "labelmap.txt"
BACKGROUND, VOID = "background", "void"
CLASSES = (
    *(BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOID_COLOR = (224, 224, 192)
FOLDER, SPLIT = "voc", "train"
MAX_CLASSES = 254  # 0 is the background, 255 is left out


def recognises(source: Path) -> bool:
    return (source / LABEL_FOLDER).is_dir()


def palette_color(index: int) -> tuple[int, int, int]:
    """The colour at an index of VOC's palette: its bits in threes, spread from the highest bit of each channel."""
    color = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            color[channel] |= (index >> (3 * place + channel) & 1) << (7 - place)
    return tuple(color)


def read(source: Path, images: Path | None) -> Dataset:
    """Every pixel has the class of its colour, which labelmap.txt tells, or else VOC's own 21 classes."""
    if not recognises(source):
        boxes = ": it has boxes only (Annotations/)" if (source / "Annotations").is_dir() else ""
        raise UserError(f"There is no folder {LABEL_FOLDER} in {source}{boxes}. VOC's label maps lie there.")
    color_list = source / COLOR_LIST
    if color_list.is_file():
        colors = read_color_list(color_list)
    else:
        colors = {palette_color(index): name for index, name in enumerate(CLASSES)} | {VOID_COLOR: VOID}
    report, annotated = Report(), []
    image_files = ImageFiles([images] if images else [source / IMAGE_FOLDER, source])
    stems = {path.stem: path for path in sorted((source / LABEL_FOLDER).rglob("*.png"))}
    splits = _splits(source)
    for stem in splits.keys() - stems.keys():
        report.problem(WITHOUT_LABELS, f"{source / SPLIT_FOLDER} lists {stem}, but {LABEL_FOLDER} has no {stem}.png")
    found = ImageFiles([images or source / IMAGE_FOLDER]).stems()
    for stem, label_map in stems.items():
        if stem not in found:
            report.problem(
                MISSING_IMAGE, f"{label_map}: there is no image {stem} in {image_files.folders[0]} (--images)"
            )
            continue
        draw = partial(fill_colors, label_map, colors)
        annotated.append(AnnotatedImage(found[stem], found[stem].name, draw, splits.get(stem), label_map))
    void = {name for name in colors.values() if name.lower() in VOID_NAMES}
    classes = [name for name in dict.fromkeys(colors.values()) if name not in void]
    return Dataset(classes, annotated, report, BACKGROUND if BACKGROUND in classes else None, frozenset(void))


def _splits(source: Path) -> dict[str, str | None]:
    """The split of each name that the lists of segmentation have, the more special lists first."""
    splits: dict[str, str | None] = {}
    for path in sorted((source / SPLIT_FOLDER / "Segmentation").glob("*.txt"), key=lambda path: -len(path.stem)):
        for line in read_text(path).splitlines():
            if name := line.strip():
                splits[Path(name).name if "trainval" not in path.stem else name] = split_of(path.stem) or (
                    None if path.stem == "default" else path.stem
                )
    return splits


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
    with replaced_own_folder(output / FOLDER) as folder:
        for name in (LABEL_FOLDER, IMAGE_FOLDER, f"{SPLIT_FOLDER}/Segmentation"):
            (folder / name).mkdir(parents=True)
        stems = []
        for image in images:
            stems.append(image.stem)
            _draw(image).save(folder / LABEL_FOLDER / f"{image.stem}.png")
            if not is_url(image.path):
                name = image.stem + PurePath(image.path).suffix
                link_file(folder / image.path, folder / IMAGE_FOLDER / name)
        lines = "".join(f"{stem}\n" for stem in stems)
        (folder / SPLIT_FOLDER / "Segmentation" / f"{SPLIT}.txt").write_text(lines, encoding="utf-8")
        colors = [
            f"{name}:{','.join(map(str, palette_color(index)))}::\n"
            for index, name in enumerate([BACKGROUND, *labels])
        ]
        (folder / COLOR_LIST).write_text("".join(["# label:color_rgb:parts:actions\n", *colors]), encoding="utf-8")


def _draw(image: SegmentedImage) -> Image.Image:
    ids = np.zeros(image.size, np.uint8)
    for region in image.regions:
        ids[region.window][region.mask] = region.index + 1
    drawing = Image.fromarray(ids)
    drawing.putpalette([channel for index in range(256) for channel in palette_color(index)])
    return drawing
