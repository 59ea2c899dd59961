"""PASCAL VOC's label maps in colour (Everingham et al., IJCV 2010), and CVAT's "Segmentation mask 1.1" in the same
folders with a labelmap.txt."""

from functools import partial
from pathlib import Path

from ..errors import UserError
from .dataset import MISSING_IMAGE, WITHOUT_LABELS, AnnotatedImage, Dataset, Report
from .label_images import VOID_NAMES, fill_colors, read_color_list
from .sources import ImageFiles, split_of


LABEL_FOLDER, IMAGE_FOLDER, SPLIT_FOLDER, COLOR_LIST = "SegmentationClass", "JPEGImages", "ImageSets", "labelmap.txt"
BACKGROUND, VOID = "background", "void"
CLASSES = (
    *(BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOID_COLOR = (224, 224, 192)


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
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            if name := line.strip():
                splits[Path(name).name if "trainval" not in path.stem else name] = split_of(path.stem) or (
                    None if path.stem == "default" else path.stem
                )
    return splits
