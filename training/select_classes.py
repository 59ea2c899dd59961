"""Chooses the margins of `max_classes_per_image="auto"` for a model, by images with labels, and stores them with it.

  python training/select_classes.py --model DIR --dataset_name DATA

The data are a folder of pairs (`images/SPLIT`, `labels/SPLIT`) or whatever else train.py reads. Every row of the table
is one margin for each stage, so large that a share of the pixels keeps the class that wins them when all classes are
aggregated. The fastest row that costs no more mean IoU than --tolerance is written into the model's config.json.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from catseg_hf.errors import UserError, reports_errors
from catseg_training.arguments import positive
from catseg_training.class_selection import (
    SHARES,
    choose,
    measure_shares,
    selection_of,
    store_selection,
    table,
)
from catseg_training.data.examples import EvaluationImages
from catseg_training.data.sources import load_segmentation_data
from catseg_training.model import load_checkpoint, read_vocabulary, set_classes
from catseg_training.processes import build_accelerator
from catseg_training.report.results import write_json


def share(text: str) -> float:
    """A share in (0, 1], as an argument."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


@reports_errors
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="folder of the model, which is changed"
    )
    parser.add_argument(
        "--dataset_name", required=True, metavar="DATA", help="images with labels, as train.py takes them"
    )
    parser.add_argument("--split", default="validation", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--max_samples", type=positive(int), metavar="N", help="the first N images only")
    parser.add_argument(
        "--vocabulary", help="what the ids stand for, as in train.py (default: the model's own classes)"
    )
    parser.add_argument("--ignore_index", type=int, help="label of pixels of no class (default: the model's)")
    parser.add_argument(
        "--sliding_window",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="average windows and a global view (default: as the model says)",
    )
    parser.add_argument(
        "--shares",
        type=share,
        nargs="+",
        default=SHARES,
        metavar="S",
        help="of the pixels whose class is kept at each stage, a row each (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.2,
        metavar="POINTS",
        help="mean IoU in per cent that the choice may cost (default: %(default)s)",
    )
    parser.add_argument(
        "--store", action=argparse.BooleanOptionalAction, default=True, help="write the choice (default: --store)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    options = parser.parse_args(arguments)
    if not (options.model / "config.json").is_file():
        raise UserError(f"--model {options.model} is no folder of a model: the margins are stored in its config.json.")
    accelerator = build_accelerator()
    if accelerator.num_processes > 1:
        raise UserError(
            f"This is one of {accelerator.num_processes} processes, which would choose and time by themselves: start "
            "select_classes.py without a launcher."
        )
    model, processor = load_checkpoint(str(options.model), option="--model")
    labels = None if options.vocabulary is None else read_vocabulary(options.vocabulary)
    set_classes(model, processor, labels, options.ignore_index)
    dataset = load_segmentation_data(options.dataset_name, options.split, max_samples=options.max_samples)
    images = EvaluationImages(dataset, model.config.num_labels, model.config.semantic_loss_ignore_index)
    model.to(accelerator.device).eval()
    sliding_window = model.config.sliding_window if options.sliding_window is None else options.sliding_window
    rows = measure_shares(model, processor, images, accelerator, sorted(options.shares), sliding_window)
    print(table(rows, model.config.num_labels))
    chosen = choose(rows, options.tolerance)
    if options.json is not None:
        write_json(
            options.json, {"rows": [asdict(row) for row in rows], "chosen": None if chosen is None else chosen.share}
        )
    if chosen is None:
        raise UserError(
            f"No row is faster than all classes and within {options.tolerance} points of them, so nothing is stored: "
            "give larger --shares or --tolerance."
        )
    print(f"Chosen: {chosen.share:.2%} of the pixels at each stage.")
    if options.store:
        store_selection(options.model, selection_of(model, chosen.margins))
        print(f"Stored in {options.model / 'config.json'}: max_classes_per_image='auto' takes it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
