"""One binary mask for each class of an image: `masks/CLASS/NAME.png`, or `masks/NAME/CLASS.png`."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ..errors import UserError
from .dataset import MISSING_IMAGE, WITHOUT_LABELS, AnnotatedImage, Canvas, Dataset, Report
from .label_images import header_mode, read_colors
from .sources import ImageFiles, split_of


IMAGE_FOLDER, MASK_FOLDER = "images", "masks"


def recognises(source: Path) -> bool:
    folders = _folders(source)
    return bool(folders) and all(any(folder.glob("*.png")) for folder in folders)


def _folders(source: Path) -> list[Path]:
    masks = source / MASK_FOLDER
    if not masks.is_dir() or not (source / IMAGE_FOLDER).is_dir():
        return []
    folders = [folder for folder in sorted(masks.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    return [] if any(split_of(folder.name) == folder.name for folder in folders) else folders


def read(source: Path, images: Path | None) -> Dataset:
    """Pixels that are not 0 are of the class. Where masks overlap, the class that comes later counts: classes are in
    the order of their names."""
    folders = _folders(source)
    if not folders:
        raise UserError(f"{source} has no {IMAGE_FOLDER}/ with {MASK_FOLDER}/CLASS/NAME.png or NAME/CLASS.png.")
    report, annotated = Report(), []
    found = ImageFiles([images or source / IMAGE_FOLDER]).stems()
    masks: dict[str, dict[str, Path]] = {}
    is_by_image = all(folder.name in found for folder in folders)
    for folder in folders:
        for path in sorted(folder.glob("*.png")):
            stem, name = (folder.name, path.stem) if is_by_image else (path.stem, folder.name)
            masks.setdefault(stem, {})[name] = path
    for stem, by_class in sorted(masks.items()):
        if stem not in found:
            first = next(iter(by_class.values()))
            report.problem(MISSING_IMAGE, f"{first}: there is no image {stem} in {images or source / IMAGE_FOLDER}")
            continue
        annotated.append(
            AnnotatedImage(found[stem], found[stem].name, partial(_draw, by_class), None, _first(by_class))
        )
    for stem in found.keys() - masks.keys():
        report.problem(WITHOUT_LABELS, f"{found[stem]}: there is no mask of this name")
    return Dataset(sorted({name for by_class in masks.values() for name in by_class}), annotated, report)


def _first(by_class: Mapping[str, Path]) -> Path:
    """A mask that tells their size."""
    return next((path for path in by_class.values() if header_mode(path)), next(iter(by_class.values())))


def _draw(by_class: Mapping[str, Path], canvas: Canvas):
    for name, path in sorted(by_class.items()):
        with canvas.shape(str(path)):
            mask = read_colors(path, canvas.size).any(axis=-1)
            if mask.any():  # an empty one says that the class is not there
                canvas.paint(name, mask, str(path))
