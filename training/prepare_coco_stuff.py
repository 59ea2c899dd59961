"""Checks a COCO-Stuff download before it is trained on, and can write it as parquet files for the Hub.

  python training/prepare_coco_stuff.py --data_dir coco_stuff
  python training/prepare_coco_stuff.py --data_dir coco_stuff --parquet_dir coco_stuff_parquet

Unzip the files of cocodataset.org and of the COCO-Stuff project (github.com/nightrome/cocostuff) like this:

  coco_stuff/images/          train2017.zip (118,287 images), val2017.zip (5,000)
  coco_stuff/stuffthingmaps/  stuffthingmaps_trainval2017.zip (the label maps of both)

Every image and label is read: all must be there and in pairs, undamaged, of one size, with the ids of COCO-Stuff.
The exit status is 0 if all is well and 1 otherwise. Training reads the folder as it is: nothing has to be converted.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from catseg_hf import load_vocabulary
from catseg_hf.errors import UserError, reports_errors
from catseg_hf.utils.threads import available_cpus
from catseg_training.data.coco_stuff import NUM_CLASSES, NUM_PAIRS, UNLABELLED, coco_stuff_folders
from catseg_training.data.coco_stuff_parquet import write_parquet
from catseg_training.data.examples import read_example
from catseg_training.data.paired_folders import IMAGE_SUFFIXES, Pair, files_by_name, label_files


VOCABULARY = "coco_stuff_171"


@dataclass
class SplitReport:
    """
    What was found in a split.

    Args:
        split (`str`): "train" or "validation".
        pairs (`list[Pair]`): Images and labels of the same name.
        problems (`dict[str, list[str]]`): Each kind of problem, in words, with what it concerns.
        remarks (`list[str]`): What is not as in the whole download, but accepted.
    """

    split: str
    pairs: list[Pair] = field(default_factory=list)
    problems: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def check_split(root: Path, split: str, allow_partial: bool = False, num_workers: int = 0) -> SplitReport:
    """
    Looks for everything that may be wrong with a split of a download.

    Args:
        root (`Path`): The folder with `images/` and `stuffthingmaps/`.
        split (`str`): "train" or "validation".
        allow_partial (`bool`): Whether fewer pairs than in the whole download and labels without an image are fine.
        num_workers (`int`): Processes that read files; 0 for this one alone.
    """
    report = SplitReport(split)
    try:
        image_folder, label_folder = coco_stuff_folders(root, split)
        images, labels = files_by_name(image_folder, IMAGE_SUFFIXES), label_files(label_folder)
    except UserError as error:
        if allow_partial:
            report.remarks.append(str(error))
        else:
            report.problems[str(error)] = []
        return report
    report.pairs = [(images[name], labels[name]) for name in sorted(images.keys() & labels.keys())]

    without_label = [str(images[name]) for name in sorted(images.keys() - labels.keys())]
    if without_label:
        report.problems[f"{len(without_label):,} of {len(images):,} images have no label in {label_folder}"] = (
            without_label
        )
    without_image = [str(labels[name]) for name in sorted(labels.keys() - images.keys())]
    if without_image:
        remark = f"{len(without_image):,} of {len(labels):,} labels have no image in {image_folder}"
        if allow_partial:
            report.remarks.append(f"{remark}; training does not use them")
        else:
            report.problems[remark] = without_image
    if len(report.pairs) != NUM_PAIRS[split]:
        remark = f"{len(report.pairs):,} pairs instead of {NUM_PAIRS[split]:,}"
        if allow_partial and report.pairs:
            report.remarks.append(remark)
        else:
            report.problems[f"{remark} (use --allow_partial if only a part is wanted)"] = []
    broken = [message for message in _messages(report.pairs, split, num_workers) if message]
    if broken:
        report.problems[f"{len(broken):,} of {len(report.pairs):,} pairs cannot be used"] = broken
    return report


def _messages(pairs: Sequence[Pair], split: str, num_workers: int) -> list[str | None]:
    progress = {"total": len(pairs), "desc": f"Reading {split}", "unit": " pairs", "disable": not sys.stderr.isatty()}
    if num_workers == 0:
        return list(tqdm(map(_message, pairs), **progress))
    with ProcessPoolExecutor(num_workers) as executor:
        return list(tqdm(executor.map(_message, pairs, chunksize=16), **progress))


def _message(pair: Pair) -> str | None:
    """What is wrong with a pair."""
    image, label = ({"path": str(path), "bytes": None} for path in pair)
    row = {
        "image": image,
        "label": label,
        "name": None,
        "label_ids": "coco_stuff_raw",
        "reduce_labels": False,
        "value_range": None,
    }
    try:
        read_example(row, NUM_CLASSES, UNLABELLED)
    except UserError as error:
        return str(error)
    return None


def print_report(report: SplitReport, max_listed: int):
    if report.pairs and not report.problems:
        print(f"{report.split}: {len(report.pairs):,} pairs, all readable, of one size, with ids of COCO-Stuff")
    for remark in report.remarks:
        print(f"{report.split}: note: {remark}")
    for problem, items in report.problems.items():
        print(f"{report.split}: problem: {problem}")
        for item in items[:max_listed]:
            print(f"    {item}")
        if len(items) > max_listed:
            print(f"    and {len(items) - max_listed:,} more (--max_listed)")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--data_dir", type=Path, required=True, metavar="DIR", help="the download: images/ and stuffthingmaps/"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=list(NUM_PAIRS),
        default=list(NUM_PAIRS),
        help="which parts to check and write (default: both)",
    )
    parser.add_argument(
        "--allow_partial",
        action="store_true",
        help="fewer images than the whole download are fine, a missing split and labels without an image too; "
        "images without a label are not",
    )
    parser.add_argument(
        "--parquet_dir",
        type=Path,
        metavar="DIR",
        help="also write a dataset for the Hub into this new folder, if no problem was found: parquet files with "
        "image and label (contiguous ids, 255 where nothing is labelled), a README.md and the class names",
    )
    parser.add_argument(
        "--num_workers",
        type=int,
        default=available_cpus(),
        metavar="N",
        help="processes; 0 for none beside this one (default: one for every CPU that it may use, %(default)s here)",
    )
    parser.add_argument(
        "--max_listed",
        type=int,
        default=10,
        metavar="N",
        help="files to name for each problem (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Exit status of the script."""
    root = options.data_dir.expanduser()
    if not root.is_dir():
        raise UserError(f"There is no folder {options.data_dir} (--data_dir).")
    folder = None if options.parquet_dir is None else options.parquet_dir.expanduser()
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is in use: name a folder that does not exist yet (--parquet_dir).")

    reports = []
    for split in dict.fromkeys(options.splits):
        reports.append(check_split(root, split, options.allow_partial, options.num_workers))
        print_report(reports[-1], options.max_listed)
    if any(report.problems for report in reports):
        print("Nothing was written or changed. Fetch or unzip again what is missing or damaged.")
        return 1
    pairs = {report.split: report.pairs for report in reports if report.pairs}
    if not pairs:
        raise UserError(f"There is no pair of image and label in {root}.")
    if folder is not None:
        write_parquet(pairs, folder, load_vocabulary(VOCABULARY), options.num_workers)
        print(f"Written: {folder} (upload it with `hf upload REPOSITORY {folder} --repo-type dataset`)")
    print(f"Train on it: accelerate launch training/train.py --dataset_name {root} --vocabulary {VOCABULARY} ...")
    return 0


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    return run(parse_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
