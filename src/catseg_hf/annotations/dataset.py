"""What a reader makes of a source: its classes and images, and how the labels of each are drawn."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError, first_line, printable


# Kinds of what a reader finds, as they are counted.
MISSING_IMAGE = "images that are missing or cannot be read, left out"
OTHER_SIZE = "images of another size than their labels, left out"
WITHOUT_LABELS = "images without labels, left out"
DAMAGED_FILE = "files that are damaged or of another format, left out"
DAMAGED_SHAPE = "damaged shapes, left out"
WITHOUT_AREA = "shapes with fewer points than an area needs, left out"
OUTSIDE = "shapes outside their image, which have no pixel in it"
CLIPPED = "shapes that reach out of their image, cut at its border"
UNKNOWN_CLASS = "shapes of a class that is not in the list, now of no class"
UNNAMED_COLOR = "colours and ids that are not named, now of no class"
SAME_NAME = "images of one name in different folders, told apart by the folder's name"
NOT_DRAWN = "regions that have no area by their kind, left out"
REPEATED = "further annotations of the same image, of which only one is used"
NOT_CHOSEN = "shapes and ids of classes that were not chosen, now of no class"

# What malformed data of somebody else's raises where it is used.
_MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


class ShapeError(UserError):
    """A shape that cannot be drawn; `kind` is how it is counted."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass
class Report:
    """
    What is said of a source, each with its file and shape.

    Attributes:
        problems (`dict[str, list[str]]`): By their kind, what labels were lost of.
        remarks (`dict[str, list[str]]`): By their kind, what was done as it has to be.
    """

    problems: dict[str, list[str]] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def problem(self, kind: str, what: str):
        self.problems.setdefault(kind, []).append(printable(what))

    def remark(self, kind: str, what: str):
        self.remarks.setdefault(kind, []).append(printable(what))


@dataclass(frozen=True)
class ClassTable:
    """
    What the pixels of each class become.

    Attributes:
        names (`tuple[str, ...]`): In the order of their ids.
        values (`Mapping[str, int]`): Id of each name, that of no class included.
        not_chosen (`frozenset[str]`): Names of the source that were left out by choice.
        unpainted (`int`): Of pixels under no shape.
        no_class (`int`): 255, or 65535 for more classes than go into 8 bits.
    """

    names: tuple[str, ...]
    values: Mapping[str, int]
    not_chosen: frozenset[str]
    unpainted: int
    no_class: int

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        return np.uint8 if self.no_class == 255 else np.uint16


class Canvas:
    """
    The label map of one image, which shapes are painted on.

    Args:
        size (`tuple[int, int]`): Height and width.
        table ([`ClassTable`]): Ids of the classes.
        report ([`Report`]): Where shapes are named that cannot be painted.
        where (`str`): What messages call the image or the file of its labels.

    Attributes:
        labels (`np.ndarray` of shape (H, W)): Ids, uint8 or uint16.
    """

    def __init__(self, size: tuple[int, int], table: ClassTable, report: Report, where: str):
        self.size, self.table, self.report, self.where = size, table, report, where
        # By columns, as masks of COCO are: over these, painting is several times faster.
        self.labels = np.full(size, table.unpainted, table.dtype, order="F")

    @contextmanager
    def shape(self, described: str) -> Iterator[None]:
        """Names a shape that turns out damaged in the block, and goes on behind it."""
        try:
            yield
        except ShapeError as error:
            self.report.problem(error.kind, f"{self.where}, {described}: {error}")
        except UserError as error:
            self.report.problem(DAMAGED_SHAPE, f"{self.where}, {described}: {error}")
        except _MALFORMED as error:
            self.report.problem(
                DAMAGED_SHAPE,
                f"{self.where}, {described}: it is malformed ({type(error).__name__}: {first_line(error)})",
            )

    def remark(self, kind: str, described: str):
        self.report.remark(kind, f"{self.where}, {described}")

    def paint(self, name: str, mask: np.ndarray, described: str, corner: tuple[int, int] = (0, 0)):
        """
        Gives the pixels of a mask to a class, over what was painted before.

        Args:
            name (`str`): Of the class.
            mask (`np.ndarray` of shape (h, w)): Bool.
            described (`str`): What messages call the shape.
            corner (`tuple[int, int]`): Column and row of the image at which the mask's upper left pixel lies.

        Raises:
            ShapeError: If it has no pixel in the image, or the class is in no list; its pixels are then of no class.
        """
        left, top = corner
        height, width = self.size
        bottom, right = top + mask.shape[0], left + mask.shape[1]
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        inside = (
            mask[max(-top, 0) : height - top, max(-left, 0) : width - left]
            if left < width and top < height
            else mask[:0]
        )
        if inside.size == 0 or not inside.any():
            raise ShapeError(OUTSIDE if mask.any() else WITHOUT_AREA, "it has no pixel in the image")
        value = self.table.values.get(name, self.table.no_class)
        np.copyto(self.labels[rows, columns], value, where=inside)
        self._check_class(name, described)
        if inside.shape != mask.shape and mask.sum() != inside.sum():
            self.remark(CLIPPED, described)

    def _check_class(self, name: str, described: str):
        if name in self.table.not_chosen:
            self.remark(NOT_CHOSEN, described)
        elif name not in self.table.values:
            raise ShapeError(UNKNOWN_CLASS, f"its class {name!r} is not in the list")

    def fill(self, ids: np.ndarray, names: Mapping[int, str], described: Callable[[int], str]):
        """
        Takes over a whole map of ids.

        Args:
            ids (`np.ndarray` of shape (H, W)): Integers.
            names (`Mapping[int, str]`): Class of each id.
            described (`Callable[[int], str]`): What messages call an id, such as its colour.
        """
        found, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
        values = np.full(len(found), self.table.no_class, self.table.dtype)
        for place, (stored, count) in enumerate(zip(found.tolist(), counts.tolist(), strict=True)):
            pixels = f"{described(stored)}, {count:,} pixel{'s' * (count != 1)}"
            name = names.get(stored)
            if name is None:
                self.report.problem(UNNAMED_COLOR, f"{self.where}, {pixels}")
                continue
            values[place] = self.table.values.get(name, self.table.no_class)
            with self.shape(pixels):
                self._check_class(name, pixels)
        self.labels = values[inverse].reshape(ids.shape)


@dataclass(frozen=True)
class AnnotatedImage:
    """
    An image, and how its labels are drawn.

    Attributes:
        file (`Path` or `bytes`): Where it lies, or what its file contains.
        name (`str`): Its path in the source, for messages and for the name under which it is written.
        draw (`Callable[[Canvas], None]`): Paints the shapes.
        split (`str`, *optional*): "train", "validation", "test" or the source's own word.
        size (`tuple[int, int]` or `Path`, *optional*): Height and width that the labels are meant for, or the file of
            a label map, which has them; the image's own by default.
        is_upright (`bool`): Whether coordinates are those of the image as its EXIF orientation says, where the size
            does not tell. Otherwise they are those of the pixels as they are stored.
    """

    file: Path | bytes
    name: str
    draw: Callable[[Canvas], None]
    split: str | None = None
    size: tuple[int, int] | Path | None = None
    is_upright: bool = True


@dataclass
class Dataset:
    """
    A source of images with labels.

    Attributes:
        classes (`list[str]`): Names in their order.
        images (`list[AnnotatedImage]`): What can be drawn.
        report ([`Report`]): What was found while reading; drawing adds to it.
        background (`str`, *optional*): The class, among the others, that the format has for pixels under no shape.
        ignored (`frozenset[str]`): Names that stand for no class.
        optional (`Sequence[str]`): Further names of the format that are no class unless they are chosen.
    """

    classes: list[str]
    images: list[AnnotatedImage]
    report: Report
    background: str | None = None
    ignored: frozenset[str] = frozenset()
    optional: Sequence[str] = ()
