"""The formats of the tools that people annotate with, as data: nothing heavy is imported to tell what there is."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..errors import UserError, did_you_mean


# Names under which packages of the extra are imported.
_PACKAGES = {"opencv-python-headless": "cv2", "pycocotools": "pycocotools"}


@dataclass(frozen=True)
class Format:
    """
    A format that labels are read from or written in.

    A module that reads has `recognises(source) -> bool`, for a file or folder, and `read(source, images) -> Dataset`,
    with the folder of images if it is another one;
    one that writes has functions whose names begin with `write`.

    Attributes:
        name (`str`): As on the command line.
        title (`str`): What messages call it.
        module (`str`): Of this package: reader and writer side by side.
        contents (`str`): What a source holds by which it is recognised.
        reads, writes (`bool`): Which of the two there is.
        needs (`tuple[str, ...]`): Packages of the extra "annotations" that reading takes.
    """

    name: str
    title: str
    module: str
    contents: str
    reads: bool = True
    writes: bool = False
    needs: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """
        The format's module, to read with.

        Raises:
            UserError: If a package that it needs is not installed.
        """
        if missing := [name for name in self.needs if find_spec(_PACKAGES[name]) is None]:
            raise UserError(
                f"Reading {self.title} needs {' and '.join(missing)}: `pip install {' '.join(missing)}`, or "
                '`pip install "catseg_hf[annotations]"`.'
            )
        return self.load_unchecked()

    def load_unchecked(self) -> ModuleType:
        """The format's module, whatever is installed."""
        return import_module(f".{self.module}", __package__)


_COCO_POLYGONS = ("pycocotools",)
# In the order in which a source is compared with them.
FORMATS = (
    Format(
        "cvat",
        "CVAT for images 1.1",
        "cvat",
        "an XML file of <annotations> with <image>",
        writes=True,
        needs=("opencv-python-headless", "pycocotools"),
    ),
    Format(
        "coco_panoptic",
        "COCO panoptic",
        "coco_panoptic",
        'JSON with "segments_info", beside a folder of PNGs',
        writes=True,
    ),
    Format(
        "coco",
        "COCO",
        "coco",
        'JSON with "images", "annotations" and "categories"',
        writes=True,
        needs=_COCO_POLYGONS,
    ),
    Format(
        "label_studio",
        "Label Studio",
        "label_studio",
        'JSON, a list of tasks with "data" and "annotations"',
        writes=True,
        needs=_COCO_POLYGONS,
    ),
    Format("labelme", "Labelme", "labelme", 'JSON files with "shapes" and "imagePath"', writes=True),
    Format(
        "yolo",
        "YOLO segmentation",
        "yolo",
        "data.yaml, and labels/ with a text file for each image",
        writes=True,
        needs=("opencv-python-headless",),
    ),
    Format("cityscapes", "Cityscapes", "cityscapes", "leftImg8bit/ and gtFine/ (or gtCoarse/)"),
    Format(
        "voc",
        "PASCAL VOC or CVAT's segmentation mask 1.1",
        "voc",
        "SegmentationClass/, with JPEGImages/ or labelmap.txt",
        writes=True,
    ),
    Format("colors", "label maps in colour", "colors", "PNGs with label_colors.txt, labelmap.txt or _classes.csv"),
    Format(
        "binary_masks", "one binary mask for each class", "binary_masks", "images/, and binary PNGs in masks/CLASS/"
    ),
)


def find_format(name: str) -> Format:
    """
    The format of a name.

    Raises:
        UserError: If there is none.
    """
    names = [known.name for known in FORMATS]
    if name not in names:
        raise UserError(f"There is no format {name!r}{did_you_mean(name, names)}: choose one of {', '.join(names)}.")
    return FORMATS[names.index(name)]


def refuse_unprepared(source: Path):
    """
    Raises:
        UserError: If a file or folder is of an annotation tool: which one, and what to do with it.
    """
    if source.exists() and (found := recognise(source)) is not None:
        raise UserError(
            f"{source} holds labels of the format {found.name}, {found.title}, which are not read here: prepare them "
            f"with `catseg-hf prepare {source} --format {found.name} --output DIR`, and go on with DIR."
        )


def recognise(source: Path) -> Format | None:
    """The first format that a file or folder is of, or `None`."""
    for known in FORMATS:
        if known.reads and known.load_unchecked().recognises(source):
            return known
    return None
