"""Prepares a source for training: images, label maps of ids, the classes' names, and a page to look at."""

import json
import math
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import UserError, did_you_mean, is_text
from ..utils.files import built_aside, check_output_folder
from .dataset import (
    DAMAGED_FILE,
    MISSING_IMAGE,
    SAME_NAME,
    AnnotatedImage,
    Canvas,
    ClassTable,
    Dataset,
    Report,
    ShapeError,
)
from .orientation import frame_of, read_header, turned_upright
from .page import write_page
from .registry import FORMATS, Format, find_format, recognise
from .sources import IMAGE_SUFFIXES, checked_class_list, read_class_list


TRAIN, VALIDATION = "train", "validation"
VALIDATION_SHARE = 0.1
IGNORE = "ignore"
CLASSES = "classes.json"
MAX_CLASSES = 65535


@dataclass
class Prepared:
    """
    What was written.

    Attributes:
        source_format ([`Format`]): What the source was taken for.
        classes (`tuple[str, ...]`): Names in the order of their ids.
        no_class (`int`): Value of pixels of no class, 255 or 65535.
        num_images (`dict[str, int]`): By split.
        pixels (`np.ndarray` of shape (C,)): Of each class, int64.
        images (`np.ndarray` of shape (C,)): In how many images each class is, int64.
        report ([`Report`]): What was lost or done on the way.
        pictures (`dict[int, tuple[int, str, str]]`): For each class the most pixels that an image has of it, with the
            image's and the label map's path in the folder.
    """

    source_format: Format
    classes: tuple[str, ...]
    no_class: int
    report: Report
    num_images: dict[str, int] = field(default_factory=dict)
    pixels: np.ndarray = field(init=False)
    images: np.ndarray = field(init=False)
    pictures: dict[int, tuple[int, str, str]] = field(default_factory=dict)

    def __post_init__(self):
        self.pixels, self.images = (np.zeros(len(self.classes), np.int64) for _ in range(2))

    def count(self, split: str, labels: Image.Image, image_path: str, label_path: str):
        """Adds an image with its label map."""
        self.num_images[split] = self.num_images.get(split, 0) + 1
        if labels.mode == "L":
            counts = np.array(labels.histogram())[: len(self.classes)]
        else:
            counts = np.bincount(np.asarray(labels).ravel(), minlength=len(self.classes))[: len(self.classes)]
        self.pixels += counts
        self.images += counts > 0
        for index in np.flatnonzero(counts).tolist():
            if counts[index] > self.pictures.get(index, (0,))[0]:
                self.pictures[index] = (int(counts[index]), image_path, label_path)


def prepare(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    format: str = "auto",
    classes: str | os.PathLike | Sequence[str] | None = None,
    validation_share: float | None = None,
    seed: int = 0,
    background: str | None = None,
    images: str | os.PathLike | None = None,
    copy: bool = False,
) -> Prepared:
    """
    Writes `images/SPLIT`, `labels/SPLIT`, `classes.json` and a page of pictures, all of it or nothing.

    Args:
        source (`str` or `os.PathLike`): File or folder of labels.
        output (`str` or `os.PathLike`): Folder to write, which does not exist yet or is empty.
        format (`str`, *optional*, defaults to `"auto"`): A name of [`FORMATS`], or "auto" to recognise it.
        classes (`str`, `os.PathLike` or `Sequence[str]`, *optional*): The classes to keep in the order of their ids,
            or a JSON file with them; the source's own by default.
        validation_share (`float`, *optional*): Share in [0, 1) of the images that becomes the split "validation" where
            the source has no splits; by default 0.1.
        seed (`int`, *optional*, defaults to 0): Of which ones.
        background (`str`, *optional*): The class of pixels under no shape, or "ignore" for none; by default what the
            format itself has.
        images (`str` or `os.PathLike`, *optional*): Folder of the images where they do not lie in the source.
        copy (`bool`, *optional*, defaults to `False`): Whether to copy images instead of linking to them.

    Returns:
        [`Prepared`]

    Raises:
        UserError: If the source is of no known format, or not of the one that is named, if nothing in it can be used,
            for arguments that do not fit, and if the folder cannot be written.
    """
    source, output = Path(source).expanduser(), check_output_folder(output, "--output")
    if not source.exists():
        raise UserError(f"There is no file or folder {source}.")
    source_format = chosen_format(source, format)
    image_folder = None if images is None else Path(images).expanduser()
    if image_folder is not None and not image_folder.is_dir():
        raise UserError(f"There is no folder {images} (--images).")
    dataset = source_format.load().read(source, image_folder)
    if isinstance(classes, str | os.PathLike):
        classes = read_class_list(Path(classes).expanduser())
    elif classes is not None:
        classes = checked_class_list(classes, "`classes`")
    table = class_table(dataset, classes, background)
    _assign_splits(dataset, validation_share, seed)
    prepared = Prepared(source_format, table.names, table.no_class, dataset.report)
    with built_aside(output) as folder:
        names = _OutputNames(dataset.report)
        for image in tqdm(dataset.images, "Preparing", unit=" images", disable=not sys.stderr.isatty()):
            _write(image, folder, names, table, prepared, copy)
        if not prepared.num_images:
            raise UserError(f"No image of {source} can be used. {_first_problem(dataset.report)}")
        (folder / CLASSES).write_text(json.dumps(table.names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_page(folder, source, prepared)
    return prepared


def chosen_format(source: Path, name: str = "auto") -> Format:
    """
    The format of a name, or the one that a source is recognised to be of.

    Raises:
        UserError: If there is none.
    """
    if name != "auto":
        return find_format(name)
    found = recognise(source)
    if found is None:
        known = "".join(f"\n  {known.name}: {known.title} ({known.contents})" for known in FORMATS if known.reads)
        raise UserError(f"{source} is of no format that is recognised; --format names one of these:{known}")
    return found


def class_table(dataset: Dataset, chosen: Sequence[str] | None, background: str | None) -> ClassTable:
    """
    What each class's pixels become.

    Args:
        dataset ([`Dataset`]): With the classes of the source.
        chosen (`Sequence[str]` or `None`): Those to keep, in their order.
        background (`str` or `None`): As [`prepare`] takes it.

    Raises:
        UserError: If the background is none of the chosen classes, or there are too many or none.
    """
    own = dataset.background
    names = list(dataset.classes)
    if background == IGNORE:
        names = [name for name in names if name != own]
    elif background is not None and own is not None:
        names = list(dict.fromkeys(background if name == own else name for name in names))
    elif background is not None and background not in names:
        names.insert(0, background)
    if chosen is not None:
        if background not in (None, IGNORE) and background not in chosen:
            raise UserError(
                f"The background {background!r} is not among the classes{did_you_mean(background, chosen)}: add it to "
                "--classes, or leave it out of --background."
            )
        known = {*names, *dataset.optional}
        for name in chosen:
            if name not in known:
                dataset.report.remark("classes that were chosen and are not in the source", name)
        left_out = frozenset(known - set(chosen) - set(dataset.optional))
        names = list(chosen)
    else:
        left_out = frozenset()
    if not names:
        raise UserError(f"The source names no class, but one at least is needed. {_first_problem(dataset.report)}")
    if len(names) > MAX_CLASSES:
        raise UserError(
            f"There are {len(names)} classes, but {MAX_CLASSES} at most can be written: choose (--classes)."
        )
    if unwritable := [name for name in names if not is_text(name)]:
        raise UserError(f"The class {unwritable[0]!r} is no text that can be written: rename it in the source.")
    no_class = 255 if len(names) <= 255 else 65535
    values = {name: index for index, name in enumerate(names)}
    unpainted = no_class
    if background != IGNORE:
        unpainted = values.get(background or own, no_class)
    elif own is not None:
        values[own] = no_class
    if own is not None and background not in (None, IGNORE):
        values[own] = unpainted
    for name in dataset.ignored.union(dataset.optional):
        values.setdefault(name, no_class)
    return ClassTable(tuple(names), values, left_out, unpainted, no_class)


def _assign_splits(dataset: Dataset, share: float | None, seed: int):
    """Gives a split to each image that has none: some are for validation, unless the source itself has splits."""
    if share is not None and not (isinstance(share, Real) and 0 <= share < 1):
        raise UserError(f"--validation_share is a share of the images from 0 to below 1, got {share!r}.")
    without = [index for index, image in enumerate(dataset.images) if image.split is None]
    if len(without) < len(dataset.images):
        if share is not None:
            splits = ", ".join(sorted({image.split for image in dataset.images if image.split}))
            raise UserError(f"The source has splits of its own ({splits}): leave --validation_share out.")
        share = 0
    share = VALIDATION_SHARE if share is None else share
    drawn = set(random.Random(seed).sample(without, math.floor(share * len(without))))
    for index in without:
        image = dataset.images[index]
        split = VALIDATION if index in drawn else TRAIN
        dataset.images[index] = AnnotatedImage(**{**vars(image), "split": split})


class _OutputNames:
    """Chooses the names under which images are written: each another, whatever the case of its letters."""

    def __init__(self, report: Report):
        self.report, self.taken = report, set()

    def choose(self, image: AnnotatedImage) -> str:
        """The stem of an image's path, with its folders before it where the stem alone is taken."""
        path = PurePosixPath(image.name.replace("\\", "/"))
        folders = [part for part in path.parent.parts if part not in ("/", "..", ".")]
        stem = path.stem.replace("\0", "") or "image"
        candidates = [stem, *("_".join([*folders[-count:], stem]) for count in range(1, len(folders) + 1))]
        candidates += [f"{stem}_{number}" for number in range(2, len(self.taken) + 3)]
        name = next(name for name in candidates if (image.split, name.casefold()) not in self.taken)
        self.taken.add((image.split, name.casefold()))
        if name != stem:
            self.report.remark(SAME_NAME, f"{image.name}, written as {name}")
        return name


def _write(
    image: AnnotatedImage, folder: Path, names: _OutputNames, table: ClassTable, prepared: Prepared, copy: bool
):
    """One image and its labels, unless they do not fit each other."""
    where = str(image.file) if isinstance(image.file, Path) else image.name
    report = prepared.report
    try:
        header = read_header(image.file, where)
        size = image.size
        if isinstance(size, Path):
            size = read_header(size, f"The label map {size}").upright_size
        frame, is_upright = frame_of(header, size, image.is_upright)
        canvas = Canvas(frame, table, report, where)
        image.draw(canvas)
    except ShapeError as error:
        report.problem(error.kind, f"{where}: {error}")
        return
    except UserError as error:
        report.problem(MISSING_IMAGE if where in str(error) else DAMAGED_FILE, f"{where}: {error}")
        return
    labels = canvas.labels if is_upright else turned_upright(canvas.labels, header.orientation)
    name = names.choose(image)
    suffix = image.file.suffix.lower() if isinstance(image.file, Path) else header.suffix
    if suffix not in IMAGE_SUFFIXES:
        report.problem(DAMAGED_FILE, f"{where}: training takes images of {', '.join(IMAGE_SUFFIXES)}, not {suffix}")
        return
    image_path, label_path = f"images/{image.split}/{name}{suffix}", f"labels/{image.split}/{name}.png"
    for path in (image_path, label_path):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image.file, bytes):
        (folder / image_path).write_bytes(image.file)
    elif copy:
        shutil.copyfile(image.file, folder / image_path)
    else:
        (folder / image_path).symlink_to(image.file.resolve())
    label_map = Image.fromarray(labels)
    label_map.save(folder / label_path)
    prepared.count(image.split, label_map, image_path, label_path)


def _first_problem(report: Report) -> str:
    """The first of what was found, for a source of which nothing is left."""
    for kind, items in report.problems.items():
        return f"{len(items):,} {kind}: {items[0]}"
    return "It has no images with labels."
