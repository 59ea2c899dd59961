"""What is written for an image in any format: regions with a class, a mask and a score."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from ..errors import UserError
from ..images.sources import numbered
from .instances import crop_mask, split_parts


@dataclass(frozen=True)
class Region:
    """
    Pixels of one class in an image.

    Attributes:
        index (`int`): The class's place among all.
        label (`str`): Its name.
        score (`float`): The mean probability of the class over its pixels in the image, in [0, 1].
        left, top (`int`): Where the mask lies in the image.
        mask (`np.ndarray` of shape (h, w), bool): The pixels in their bounding box.
    """

    index: int
    label: str
    score: float
    left: int
    top: int
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height, in pixels."""
        return self.left, self.top, self.mask.shape[1], self.mask.shape[0]

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the box in the image."""
        left, top, width, height = self.box
        return slice(top, top + height), slice(left, left + width)

    def draw(self, size: tuple[int, int]) -> np.ndarray:
        """The mask in an image of this height and width, (H, W) bool."""
        image = np.zeros(size, bool)
        image[self.window] = self.mask
        return image


@dataclass(frozen=True)
class SegmentedImage:
    """
    An image as formats describe it.

    Attributes:
        name (`str`): Its file name, in the folder of all images, with slashes.
        path (`str`): Where it lies, from the folder of the file that names it, or its URL.
        stem (`str`): What files that are written for it are called; each image has another.
        size (`tuple[int, int]`): Height and width.
        regions (`list[Region]`): No two of them share a pixel.
        are_instances (`bool`): Whether these are the parts of the classes.
    """

    name: str
    path: str
    stem: str
    size: tuple[int, int]
    regions: list[Region]
    are_instances: bool = False


def find_regions(
    label_map: np.ndarray, segments: Iterable[Mapping[str, Any]], *, instances: bool = False, min_area: int = 1
) -> list[Region]:
    """
    The regions of a label map.

    Args:
        label_map (`np.ndarray` of shape (H, W)): The class of every pixel.
        segments (`Iterable[dict]`): The classes in it, each with `index`, `label` and `score`.
        instances (`bool`): Whether every 8-connected part of a class is a region of its own.
        min_area (`int`): Regions of fewer pixels are left out.
    """
    regions = []
    for segment in segments:
        mask = label_map == segment["index"]
        for left, top, part in split_parts(mask) if instances else crop_mask(mask):
            region = Region(segment["index"], segment["label"], segment["score"], left, top, part)
            if region.area >= min_area:
                regions.append(region)
    return regions


def read_results(
    results: Any, labels: Sequence[str], names: str | Sequence[str], *, instances: bool = False, min_area: int = 1
) -> list[SegmentedImage]:
    """
    What the pipeline has returned, for the functions that turn it into a format.

    Args:
        results: A result of [`OpenVocabularySegmentationPipeline`], or a list of them, one for each image.
        labels (`list[str]`): All classes, in the order of their indices.
        names (`str` or `list[str]`): The images' file names.
        instances, min_area: As [`find_regions`] takes them.

    Raises:
        UserError: If there are more or fewer names than results, or a segment is of no class in `labels`.
    """
    if _is_result(results):
        results, names = [results], [names] if isinstance(names, str) else names
    if isinstance(names, str) or len(names) != len(results):
        raise UserError(f"There are {len(results)} results, but the names are {names!r}: give one for each result.")
    images, stems = [], set()
    for result, name in zip(results, names, strict=True):
        segments = result["segments"] if isinstance(result, Mapping) else result
        if unknown := [segment["label"] for segment in segments if segment["label"] not in labels]:
            raise UserError(f"The result of {name} has {unknown[0]!r}, but the labels are {', '.join(labels)}.")
        regions = []
        for segment in segments:
            mask, index = np.asarray(segment["mask"]) > 0, list(labels).index(segment["label"])
            regions += find_regions(
                np.where(mask, index, -1), [{**segment, "index": index}], instances=instances, min_area=min_area
            )
        stem = next(stem for stem in numbered(PurePath(name).stem) if stem not in stems)
        stems.add(stem)
        images.append(SegmentedImage(name, name, stem, _size(result, name), regions, instances))
    return images


def _is_result(results: Any) -> bool:
    return isinstance(results, Mapping) or (
        len(results) > 0 and isinstance(results[0], Mapping) and "mask" in results[0]
    )


def _size(result: Any, name: str) -> tuple[int, int]:
    if isinstance(result, Mapping) and "segmentation" in result:
        return tuple(result["segmentation"].shape)
    segments = result["segments"] if isinstance(result, Mapping) else result
    if not segments:
        raise UserError(
            f"The result of {name} has no segments, which tell its size: ask for return_segmentation_map=True."
        )
    width, height = segments[0]["mask"].size
    return height, width
