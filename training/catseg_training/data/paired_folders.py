"""Images in one folder and their label maps, under the same names, in another."""

import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from catseg_hf.annotations.label_images import header_mode
from catseg_hf.errors import UserError


logger = logging.getLogger(__name__)

Pair = tuple[Path, Path]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")
# Some tools write a second label beside the first, which is none of any image.
DERIVED_LABEL_ENDING = "_labelTrainIds"
LABEL_FOLDERS = ("labels", "annotations")
SHORT_NAMES = {"validation": "val", "val": "validation"}
# What file servers, archives and recycle bins leave between the data. Names that begin with a dot are left out anyway.
TOOL_FOLDERS = frozenset({"@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX"})


def is_paired_folder(root: Path) -> bool:
    """Whether a folder holds `images/` and `labels/` (or `annotations/`)."""
    return (root / "images").is_dir() and any((root / name).is_dir() for name in LABEL_FOLDERS)


def has_label_maps(root: Path) -> bool:
    """Whether a folder of pairs has a label map that is not in colour, so that it is what training reads."""
    files = (path for name in LABEL_FOLDERS for path in (root / name).rglob("*") if is_paired_folder(root))
    label = next((path for path in files if path.suffix.lower() in LABEL_SUFFIXES), None)
    return label is not None and header_mode(label) not in ("RGB", "RGBA")


def folder_pairs(root: Path, split: str) -> list[Pair]:
    """
    Images of `root/images/SPLIT` and their labels of `root/labels/SPLIT` (or `root/annotations/SPLIT`), sorted by
    name. "validation" and "val" stand for each other.

    Raises:
        UserError: If there is no such split, nothing in it, or images have no label.
    """
    labels = next(root / name for name in LABEL_FOLDERS if (root / name).is_dir())
    return matched_pairs(_split_folder(root / "images", split), _split_folder(labels, split))


def _split_folder(parent: Path, split: str) -> Path:
    for name in (split, SHORT_NAMES.get(split)):
        if name and (parent / name).is_dir():
            return parent / name
    names = sorted(path.name for path in parent.iterdir() if path.is_dir() and not _is_of_tools(path.name))
    raise UserError(
        f"{parent} has no folder for the split {split!r}: "
        + (f"it has {', '.join(map(printable, names))}." if names else f"move its files into {parent / split}.")
    )


def matched_pairs(image_folder: Path, label_folder: Path) -> list[Pair]:
    """
    Images and labels of the same name (in the same subfolder, if there are any), sorted by name. Labels without a
    image are left out with a warning.

    Raises:
        UserError: If there is no image, images have no label, a name is not text, or a folder cannot be read.
    """
    images, labels = files_by_name(image_folder, IMAGE_SUFFIXES), label_files(label_folder)
    if not images:
        raise UserError(f"There are no images in {image_folder}: accepted are {', '.join(IMAGE_SUFFIXES)}.")
    without_label = sorted(images.keys() - labels.keys())
    if without_label:
        files = [str(images[name].relative_to(image_folder)) for name in without_label]
        raise UserError(
            f"{len(files):,} of {len(images):,} images in {image_folder} have no label of the same name in "
            f"{label_folder}: {first_names(files)}. Add the labels or take these images out. Labels are files of "
            f"{', '.join(LABEL_SUFFIXES)}."
        )
    without_image = sorted(labels.keys() - images.keys())
    if without_image:
        files = [str(labels[name].relative_to(label_folder)) for name in without_image]
        logger.warning(
            f"{len(files):,} of {len(labels):,} labels in {label_folder} have no image in {image_folder} and are "
            f"not used: {first_names(files)}. Images are files of {', '.join(IMAGE_SUFFIXES)}."
        )
    pairs = [(images[name], labels[name]) for name in sorted(images)]
    no_text = [str(path) for pair in pairs for path in pair if printable(path) != str(path)]
    if no_text:
        raise UserError(f"The names of {len(no_text):,} files are not UTF-8: rename {first_names(no_text)}.")
    return pairs


def label_files(folder: Path) -> dict[str, Path]:
    """Label maps of a folder by name."""
    files = files_by_name(folder, LABEL_SUFFIXES)
    return {name: path for name, path in files.items() if not name.endswith(DERIVED_LABEL_ENDING)}


def files_by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """
    Files of a folder and its subfolders by their name in it without the suffix, in Unicode's normal form C. Hidden
    ones, folders of tools and links back to a folder they lie in are left out.

    Raises:
        UserError: If two files differ in nothing but the suffix or the Unicode normal form, or a folder cannot be
            read.
    """
    files: dict[str, Path] = {}
    for parent, file in _walk(str(folder), ()):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() not in suffixes:
            continue
        path = Path(parent, file)
        name = stem if parent == str(folder) else str(path.relative_to(folder).with_suffix(""))
        # One tool writes an accented letter as one character, another one as two.
        name = unicodedata.normalize("NFC", name)
        if name in files:
            raise UserError(f"{printable(files[name])} and {printable(path)} have the same name: keep one of them.")
        files[name] = path
    return files


def _walk(folder: str, ancestors: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    """Every file below a folder, as its folder and its name."""
    place = Path(os.path.realpath(folder))
    if any(ancestor.is_relative_to(place) for ancestor in ancestors):
        return
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not _is_of_tools(entry.name)]
    except OSError as error:
        raise UserError(
            f"The folder {printable(folder)} cannot be read ({error.strerror}): make it readable or take it out."
        ) from None
    for entry in kept:
        if entry.is_dir():
            yield from _walk(entry.path, (*ancestors, place))
        else:
            yield folder, entry.name


def _is_of_tools(name: str) -> bool:
    return name.startswith(".") or name in TOOL_FOLDERS


def first_names(names: list[str], count: int = 5) -> str:
    """The first few of sorted names, for messages."""
    return ", ".join(map(printable, names[:count])) + (", ..." if len(names) > count else "")


def printable(path: str | os.PathLike) -> str:
    """A file's name in which bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
