"""Writes annotations in several formats from label maps that are finished."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..errors import UserError, is_text, printable
from ..images.origins import is_url
from .instances import import_cv2
from .own_folders import check_own_file, check_own_folder
from .registry import Format, find_format
from .segmented_images import SegmentedImage, find_regions


@dataclass(frozen=True)
class AnnotationFiles:
    """
    What is written beside label maps.

    Args:
        formats (`Sequence[str]`): Names of formats that are written.
        instances (`bool`): Whether every 8-connected part of a class is an annotation of its own.
        min_area (`int`): Annotations of fewer pixels are left out.
    """

    formats: Sequence[str]
    instances: bool = False
    min_area: int = 1

    def check(self, labels: Sequence[str], output: Path, images: Sequence[str] = ()):
        """
        Raises:
            UserError: If a format cannot hold these labels or the names of these images, a package is missing, or the
                output has something in the place of what would be written.
        """
        if self.formats and (unwritable := [image for image in images if not is_text(image)]):
            raise UserError(
                f"The file name {printable(unwritable[0])} is not in UTF-8, as annotations have to be: rename the "
                "file, or leave --format out."
            )
        if self.instances:
            import_cv2()
        for known in self._formats():
            module = known.load_unchecked()
            if hasattr(module, "check_labels"):
                module.check_labels(labels)
            if module.FOLDER:
                check_own_folder(output / module.FOLDER)
            else:
                check_own_file(output / module.FILE_NAME)

    def write(self, output: Path, records: Sequence[dict[str, Any]], labels: Sequence[str]):
        """
        Writes each format, and prints where.

        Args:
            output (`Path`): The folder of the label maps.
            records (`Sequence[dict]`): The images, as summary.json has them.
            labels (`Sequence[str]`): All classes.

        Raises:
            UserError: If a file cannot be written.
        """
        names = name_images([record["image"] for record in records])
        for known in self._formats():
            module = known.load_unchecked()
            images = self._read(output, output / module.FOLDER, records, names)
            module.write(tqdm(images, known.title, len(records), unit="image", disable=None), labels, output)
            print(f"Wrote {known.title} to {output / module.FOLDER / getattr(module, 'FILE_NAME', '')}")

    def _formats(self) -> list[Format]:
        return [find_format(name) for name in dict.fromkeys(self.formats)]

    def _read(
        self, output: Path, folder: Path, records: Iterable[dict[str, Any]], names: Iterable[str]
    ) -> Iterator[SegmentedImage]:
        for record, name in zip(records, names, strict=True):
            with Image.open(output / record["labels"]) as label_map:
                ids = np.asarray(label_map)
            regions = find_regions(ids, record["segments"], instances=self.instances, min_area=self.min_area)
            path = record["image"] if is_url(record["image"]) else _relative(record["image"], folder)
            stem = record["labels"].removesuffix("_labels.png")
            yield SegmentedImage(name, path, stem, ids.shape, regions, self.instances)


def name_images(images: Sequence[str]) -> list[str]:
    """The paths of images in the folder that all of them are in, with slashes; of URLs, what their path ends in."""
    files = [os.path.abspath(image) for image in images if not is_url(image)]
    try:
        parent = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    except ValueError:  # on several drives
        parent = os.sep
    return [
        PurePosixPath(unquote(urlparse(image).path)).name or "image"
        if is_url(image)
        else Path(os.path.relpath(os.path.abspath(image), parent)).as_posix()
        for image in images
    ]


def _relative(image: str, folder: Path) -> str:
    """The path of an image from a folder, with slashes."""
    try:
        return Path(os.path.relpath(os.path.realpath(image), os.path.realpath(folder))).as_posix()
    except ValueError:  # on another drive
        return Path(image).absolute().as_posix()
