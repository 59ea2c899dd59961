"""Benchmarks by their names: those of the paper's table, COCO-Stuff, and those of MESS."""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from catseg_hf import load_vocabulary
from catseg_hf.annotations.registry import refuse_unprepared
from catseg_hf.errors import UserError

from ..data.coco_stuff import IMAGE_FOLDERS, LABEL_FOLDERS, NUM_PAIRS, RAW_TO_CONTIGUOUS, SPLIT_FOLDERS
from .description import Benchmark, read_description
from .mess import MEMBERS, TABLES


DATA = Path(__file__).with_name("data")

# Category of `trainval_merged.json` for each of the 59 classes. 0 is unlabelled.
CONTEXT_59_IDS = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159),
    *(162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368),
    *(397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)

_VOC = {
    "roots": ("VOCdevkit/VOC2012", "VOC2012", ""),
    "images": ("JPEGImages",),
    "labels": ("SegmentationClassAug", "SegmentationClass"),
    "id_list": "ImageSets/Segmentation/val.txt",
    "ignore_index": 255,
    "skips_unlabelled": True,
    "num_images": 1449,
    "source": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar); SegmentationClassAug "
    "comes with the augmented annotations of SBD, and SegmentationClass, which the first file holds, does as well",
    "licence": "annotations free for research, images under Flickr's terms",
}
_CONTEXT = {
    "roots": ("VOCdevkit/VOC2010", "VOC2010", ""),
    "images": ("JPEGImages",),
    "licence": "annotations free for research, images under Flickr's terms",
}
_VOC_2010 = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ (VOCtrainval_03-May-2010.tar)"


def _ids_from_one(num_classes: int) -> dict[int, int]:
    return {index + 1: index for index in range(num_classes)}


def _vocabulary(name: str) -> tuple[str, ...]:
    return tuple(load_vocabulary(name))


def _raw_ids(ids: list[int] | tuple[int, ...]) -> dict[int, int]:
    return {raw: index for index, raw in enumerate(ids)}


PUBLISHED = (
    Benchmark(
        name="ade20k_847",
        title="ADE20K-847",
        vocabulary=_vocabulary("ade20k_847"),
        roots=("ADE20K_2021_17_01", ""),
        images=("images/ADE/validation",),
        labels=("images/ADE/validation",),
        label_suffix="_seg.png",
        label_format="ade20k_full",
        ignore_index=65535,
        label_map=_raw_ids(json.loads((DATA / "ade20k_847_ids.json").read_text())),
        ignores_other_ids=True,
        max_shortest_edge=512,
        num_images=2000,
        source="https://groups.csail.mit.edu/vision/datasets/ADE20K/ (the full release of 2021_17_01, on request)",
        licence="non-commercial research and education",
        published={"base": 12.0, "large": 16.0},
    ),
    Benchmark(
        name="pascal_context_459",
        title="PASCAL Context 459",
        vocabulary=_vocabulary("pascal_context_459"),
        labels=("trainval",),
        label_suffix=".mat",
        label_format="matlab",
        own_id_list="pascal_context_val.txt",
        ignore_index=459,
        label_map=_ids_from_one(459) | {0: 459},
        num_images=5104,
        source=f"{_VOC_2010}, and trainval.tar.gz of https://cs.stanford.edu/~roozbeh/pascal-context/",
        published={"base": 19.0, "large": 23.8},
        **_CONTEXT,
    ),
    Benchmark(
        name="ade20k_150",
        title="ADE20K-150",
        vocabulary=_vocabulary("ade20k_150"),
        roots=("ADEChallengeData2016", ""),
        images=("images/validation",),
        labels=("annotations/validation",),
        ignore_index=255,
        label_map=_ids_from_one(150) | {0: 255},
        num_images=2000,
        source="http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
        licence="non-commercial research and education",
        published={"base": 31.8, "large": 37.9},
    ),
    Benchmark(
        name="pascal_context_59",
        title="PASCAL Context 59",
        vocabulary=_vocabulary("pascal_context_59"),
        labels=("trainval_merged.json",),
        label_format="context_json",
        ignore_index=255,
        label_map=_raw_ids(CONTEXT_59_IDS) | {0: 255},
        source=f"{_VOC_2010}, and https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
        published={"base": 57.5, "large": 63.3},
        **_CONTEXT,
    ),
    Benchmark(
        name="pascal_voc_20",
        title="PASCAL VOC 20",
        vocabulary=_vocabulary("pascal_voc_20"),
        label_map=_ids_from_one(20) | {0: 255, 255: 255},
        published={"base": 94.6, "large": 97.0},
        **_VOC,
    ),
    Benchmark(
        name="pascal_voc_20b",
        title="PASCAL VOC 20b",
        vocabulary=_vocabulary("pascal_voc_20b"),
        background="background",
        label_map=_ids_from_one(20) | {0: 20, 255: 255},
        published={"base": 77.3, "large": 82.5},
        **_VOC,
    ),
    Benchmark(
        name="coco_stuff",
        title="COCO-Stuff",
        vocabulary=_vocabulary("coco_stuff_171"),
        roots=("coco-stuff", "coco_stuff", "cocostuff", "coco", ""),
        images=tuple(f"{folder}/{SPLIT_FOLDERS['val']}".lstrip("/") for folder in IMAGE_FOLDERS),
        labels=tuple(f"{folder}/{SPLIT_FOLDERS['val']}" for folder in LABEL_FOLDERS),
        ignore_index=255,
        label_map={raw: int(index) for raw, index in enumerate(RAW_TO_CONTIGUOUS) if index != 255} | {255: 255},
        num_images=NUM_PAIRS["validation"],
        source="https://cocodataset.org (val2017.zip) and https://github.com/nightrome/cocostuff "
        "(stuffthingmaps_trainval2017.zip)",
        licence="annotations CC BY 4.0, images under Flickr's terms",
    ),
)


def find_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """
    The benchmarks of names as of [`find_benchmark`], or of "mess", which stands for all that count in MESS's tables.
    Each is there once.

    Raises:
        UserError: If a name is none of these, or two of the benchmarks have the same name.
    """
    expanded = [member for name in names for member in (TABLES if name == "mess" else [name])]
    benchmarks = [find_benchmark(name) for name in dict.fromkeys(expanded)]
    if len({benchmark.name for benchmark in benchmarks}) < len(benchmarks):
        raise UserError("Two of the benchmarks have the same name: give them different ones.")
    return benchmarks


def find_benchmark(name: str) -> Benchmark:
    """
    A published benchmark by its name, one of MESS by that which it is registered by, or one that a JSON file describes
    (see [`read_description`]).

    Raises:
        UserError: If it is none of these.
    """
    by_name = {benchmark.name: benchmark for benchmark in (*PUBLISHED, *MEMBERS)}
    if name in by_name:
        return by_name[name]
    refuse_unprepared(Path(name))
    if not name.endswith(".json"):
        alike = get_close_matches(name, [member.name for member in MEMBERS]) or ["cub_200_sem_seg_test"]
        raise UserError(
            f"There is no benchmark {name!r}: choose among {', '.join(benchmark.name for benchmark in PUBLISHED)}, "
            f"mess, or a dataset of it, such as {', '.join(alike)}, or give a JSON file that describes one."
        )
    benchmark = read_description(Path(name))
    if benchmark.name in {*by_name, "mess"}:
        raise UserError(f"{name} calls itself {benchmark.name!r}, as a published benchmark: choose another name.")
    return benchmark
