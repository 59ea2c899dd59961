"""Tells what of the benchmarks' data is there, what is missing and where to get it.

  python training/check_benchmark_data.py --data_root DIR
  python training/check_benchmark_data.py --data_root DIR --benchmarks ade20k_150 my_domain.json --read_all

DIR holds the downloads as they were unpacked: nothing is converted or copied. A page of images with their labels in
colour is drawn for each benchmark, which shows a wrong mapping at once. Exit status: 0 if all that was asked for is
complete, 1 otherwise.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Subset
from tqdm import tqdm

from catseg_hf.errors import UserError, reports_errors
from catseg_training.benchmarks.description import Benchmark
from catseg_training.benchmarks.files import find_files
from catseg_training.benchmarks.images import BenchmarkImages
from catseg_training.benchmarks.published import PUBLISHED, find_benchmarks
from catseg_training.report.results import prediction_grid
from catseg_training.workers import DEFAULT_NUM_WORKERS, LoadedBatches, explained_ends_of_workers, open_loader


# Of a page, and of missing and damaged files that are listed.
NUM_SHOWN, MAX_LISTED = 6, 10


@dataclass
class Check:
    """What was found of a benchmark, and what is wrong, both in lines for the user."""

    benchmark: Benchmark
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.benchmark.name}: {'incomplete' if self.problems else 'complete'}"]
        problems = self.problems[:MAX_LISTED]
        if len(self.problems) > MAX_LISTED:
            problems.append(f"and {len(self.problems) - MAX_LISTED:,} more")
        return "\n  ".join([*lines, *self.lines, *problems])


def check_benchmark(benchmark: Benchmark, data_root: Path, page: Path, read_all: bool, num_workers: int) -> Check:
    """
    Looks for a benchmark's files and draws a page of them.

    Args:
        benchmark ([`Benchmark`]), data_root (`Path`): What to look for, and where.
        page (`Path`): File for the page.
        read_all (`bool`): Whether to read every image and label and not only those of the page.
        num_workers (`int`): Processes that read.
    """
    check = Check(benchmark)
    try:
        found = find_files(benchmark, data_root)
    except UserError as error:
        check.problems.append(str(error))
        return check
    check.lines.append(f"images: {found.images}")
    check.lines.append(f"labels: {found.labels}")
    count = f"{len(found.files):,} images"
    if benchmark.num_images is None:
        check.lines.append(count)
    elif len(found.files) == benchmark.num_images:
        check.lines.append(f"{count}, as published")
    else:
        check.problems.append(f"{count}, but {benchmark.num_images:,} are published. Source: {benchmark.source}")
    check.problems += [f"{path} is missing" for path in found.missing()]

    images = BenchmarkImages(benchmark, found.files)
    shown = range(0, len(images), -(-len(images) // NUM_SHOWN))
    # One by one, since sizes differ.
    loader = open_loader(images if read_all else Subset(images, shown), num_workers, batch_size=None)
    examples = []
    for example in tqdm(LoadedBatches(loader), desc=benchmark.name, total=len(loader), leave=False):
        if "problem" not in example:
            examples += [example] if example["index"] in shown else []
        elif "does not exist" not in example["problem"]:  # those are listed already
            check.problems.append(example["problem"])
    if examples:
        page.parent.mkdir(parents=True, exist_ok=True)
        prediction_grid(examples, benchmark.class_names, benchmark.ignore_index).save(page)
        check.lines.append(f"images with their labels: {page}")
    return check


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True, help="folder of the downloads")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        default=[benchmark.name for benchmark in PUBLISHED],
        metavar="NAME_OR_JSON",
        help="what to look for: published benchmarks (default: %(default)s), mess or members of it, or files that "
        "describe others",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("benchmark_data"), help="for the pages (%(default)s)")
    parser.add_argument("--read_all", action="store_true", help="read every image and label")
    parser.add_argument(
        "--dataloader_num_workers",
        type=int,
        default=DEFAULT_NUM_WORKERS,
        help="processes that read (2, or 1 where there is one CPU)",
    )
    args = parser.parse_args(arguments)
    benchmarks = find_benchmarks(args.benchmarks)
    is_complete = True
    for benchmark in benchmarks:
        page = args.output_dir / f"{benchmark.name}.png"
        with explained_ends_of_workers():
            check = check_benchmark(benchmark, args.data_root, page, args.read_all, args.dataloader_num_workers)
        print(check)
        is_complete &= not check.problems
    return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
