"""Label maps in colours that a list beside them names, in the folders of CamVid, Roboflow and plain pairs."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from ..errors import UserError
from .dataset import MISSING_IMAGE, WITHOUT_LABELS, AnnotatedImage, Canvas, Dataset, Report
from .label_images import VOID_NAMES, fill_colors, header_mode, read_color_list, read_id_list, read_ids
from .sources import IMAGE_SUFFIXES, ImageFiles, split_of


COLOR_LISTS, ID_LIST = ("label_colors.txt", "labelmap.txt"), "_classes.csv"
LABEL_FOLDERS = ("labels", "masks", "annotations", "SegmentationClass")
LABEL_ENDINGS = ("_mask", "_label", "_labels", "_L", "_gt")
CAMVID_ENDING = "annot"
# Of the CamVid database (Brostow et al., PRL 2009), where its folders lie without a list.
CAMVID_COLORS = {
    **{(0, 0, 0): "Void", (64, 128, 64): "Animal", (192, 0, 128): "Archway", (0, 128, 192): "Bicyclist"},
    **{(0, 128, 64): "Bridge", (128, 0, 0): "Building", (64, 0, 128): "Car", (64, 0, 192): "CartLuggagePram"},
    **{(192, 128, 64): "Child", (192, 192, 128): "Column_Pole", (64, 64, 128): "Fence"},
    **{(128, 0, 192): "LaneMkgsDriv", (192, 0, 64): "LaneMkgsNonDriv", (128, 128, 64): "Misc_Text"},
    **{(192, 0, 192): "MotorcycleScooter", (128, 64, 64): "OtherMoving", (64, 192, 128): "ParkingBlock"},
    **{(64, 64, 0): "Pedestrian", (128, 64, 128): "Road", (128, 128, 192): "RoadShoulder"},
    **{(0, 0, 192): "Sidewalk", (192, 128, 128): "SignSymbol", (128, 128, 128): "Sky"},
    **{(64, 128, 192): "SUVPickupTruck", (0, 0, 64): "TrafficCone", (0, 64, 64): "TrafficLight"},
    **{(192, 64, 128): "Train", (128, 128, 0): "Tree", (192, 128, 192): "Truck_Bus", (64, 0, 64): "Tunnel"},
    **{(192, 192, 0): "VegetationMisc", (64, 192, 0): "Wall"},
}


def recognises(source: Path) -> bool:
    if not source.is_dir():
        return False
    if _id_lists(source):
        return True
    has_list = _color_list(source) is not None or any(_camvid_folders(source))
    # Maps of one channel hold ids, which training reads as they are.
    return has_list and any(header_mode(label) in ("RGB", "RGBA", "P") for _, label, _ in list(_pairs(source))[:1])


def _color_list(source: Path) -> Path | None:
    return next((source / name for name in COLOR_LISTS if (source / name).is_file()), None)


def _id_lists(source: Path) -> list[Path]:
    """Roboflow's lists: one for each split, or one of all."""
    return [path for path in (source / ID_LIST, *sorted(source.glob(f"*/{ID_LIST}"))) if path.is_file()]


def _camvid_folders(source: Path) -> Iterator[tuple[Path, Path]]:
    for labels in sorted(source.glob(f"*{CAMVID_ENDING}")):
        if (images := source / labels.name.removesuffix(CAMVID_ENDING)).is_dir() and images != source:
            yield images, labels


def read(source: Path, images: Path | None) -> Dataset:
    """Every pixel has the class of its colour, or of its id where the list is of ids."""
    report, annotated = Report(), []
    color_list, id_lists = _color_list(source), _id_lists(source)
    if color_list is not None:
        colors = read_color_list(color_list)
        names = list(colors.values())
        draw, arguments = fill_colors, colors
    elif id_lists:
        arguments = read_id_list(id_lists[0])
        for other in id_lists[1:]:
            if read_id_list(other) != arguments:
                raise UserError(f"{id_lists[0]} and {other} name other classes: prepare their folders one by one.")
        names, draw = list(arguments.values()), _fill_ids
    elif any(_camvid_folders(source)):
        names, draw, arguments = list(CAMVID_COLORS.values()), fill_colors, CAMVID_COLORS
    else:
        raise UserError(f"There is no {', '.join(COLOR_LISTS)} or {ID_LIST} in {source} that names colours or ids.")
    known = ImageFiles([images]).stems() if images else {}
    for image, label, split in _pairs(source):
        file = known.get(label.stem, image)
        if file is None:
            report.problem(MISSING_IMAGE, f"{label}: there is no image of this name (--images)")
            continue
        annotated.append(AnnotatedImage(file, file.name, partial(draw, label, arguments), split, label))
    with_labels = {image.file for image in annotated}
    for folder, _, _ in _folders(source):
        for path in _images(folder).values():
            if path not in with_labels:
                report.problem(WITHOUT_LABELS, f"{path}: there is no label map of this name")
    void = {name for name in names if name.lower() in VOID_NAMES}
    classes = [name for name in dict.fromkeys(names) if name not in void]
    background = next((name for name in classes if name.lower() == "background"), None)
    return Dataset(classes, annotated, report, background, frozenset(void))


def _fill_ids(path: Path, names: Mapping[int, str], canvas: Canvas):
    canvas.fill(read_ids(path, canvas.size), names, lambda number: f"id {number}")


def _folders(source: Path) -> Iterator[tuple[Path, Path, str | None]]:
    """Folders of images and of their label maps, which may be the same, and their split."""
    found = False
    for images, labels in _camvid_folders(source):
        found = True
        yield images, labels, split_of(images.name) or images.name
    labels = next((source / name for name in LABEL_FOLDERS if (source / name).is_dir()), None)
    if not found and labels is not None and (source / "images").is_dir():
        found = True
        folders = [folder for folder in sorted(labels.iterdir()) if folder.is_dir()]
        for folder in folders or [labels]:
            name = folder.name if folders else ""
            yield source / "images" / name, folder, (split_of(name) or name or None)
    if not found:
        folders = [folder for folder in sorted(source.iterdir()) if folder.is_dir() and split_of(folder.name)]
        for folder in folders or [source]:
            yield folder, folder, split_of(folder.name) if folders else None


def _images(folder: Path) -> dict[str, Path]:
    """The images of a folder that are no label maps, by their name without the suffix."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    return {path.stem: path for path in files if not path.stem.endswith(LABEL_ENDINGS)}


def _pairs(source: Path) -> Iterator[tuple[Path | None, Path, str | None]]:
    """Each label map with its image, if there is one, and its split."""
    for images, labels, split in _folders(source):
        by_name = _images(images)
        for label in sorted(labels.glob("*.png")):
            stem = label.stem
            for ending in LABEL_ENDINGS:
                stem = stem.removesuffix(ending)
            if images == labels and stem == label.stem:
                continue
            yield by_name.get(label.stem if images != labels and label.stem in by_name else stem), label, split
