"""`catseg-hf prepare`: labels of annotation tools into folders for training."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..annotations.registry import FORMATS
from ..errors import printable, reports_errors


if TYPE_CHECKING:
    from ..annotations.dataset import Report


DESCRIPTION = """\
Writes images/SPLIT, labels/SPLIT (the class of every pixel, in PNGs), classes.json and index.html, a page of pictures
with their labels in colour and counts of each class. What is lost of the labels is named, and the exit status is then
1. Nothing is written if nothing can be used.

  {command} my_labels --output my_data
  {command} annotations.json --images photos --classes classes.json --background ignore --output my_data
"""
# Of each kind, how many are printed; the page has all.
MAX_LISTED = 10


def add_parser(commands: argparse._SubParsersAction):
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "prepare",
        help="prepare labels of annotation tools for training",
        description=DESCRIPTION.format(command="catseg-hf prepare"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add_options(parser)


def add_options(parser: argparse.ArgumentParser):
    """Adds the command's options."""
    names = [known.name for known in FORMATS if known.reads]
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder of labels")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument(
        "--format",
        choices=["auto", *names],
        default="auto",
        metavar="NAME",
        help=f"auto (default: the format is recognised and said), {', '.join(names)}",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="JSON list of the classes to keep, in the order of their ids (default: all of the source)",
    )
    parser.add_argument(
        "--validation_share",
        type=float,
        metavar="SHARE",
        help="share of the images that become the split validation, where the source has no splits (default: 0.1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of which images these are (default: 0)")
    parser.add_argument(
        "--background",
        metavar="NAME",
        help="class of pixels under no shape, or `ignore` for none (default: the format's own, where it has one)",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, if it is another one")
    parser.add_argument("--copy", action="store_true", help="copy the images instead of linking to them")


def run(options: argparse.Namespace) -> int:
    """Prepares the source; returns the exit status."""
    from ..annotations.page import PAGE, describe_splits
    from ..annotations.preparation import chosen_format, prepare

    if options.format == "auto" and options.source.exists():
        found = chosen_format(options.source)
        print(f"Recognised {options.source} as {found.title} (--format {found.name})")
    prepared = prepare(
        options.source,
        options.output,
        format=options.format,
        classes=options.classes,
        validation_share=options.validation_share,
        seed=options.seed,
        background=options.background,
        images=options.images,
        copy=options.copy,
    )
    _print_report(prepared.report)
    print(f"Prepared {describe_splits(prepared)} with {len(prepared.classes)} classes in {options.output}")
    print(f"Look at {options.output / PAGE} before you train.")
    return 1 if prepared.report.problems else 0


def _print_report(report: "Report"):
    for title, kinds in (("note", report.remarks), ("problem", report.problems)):
        for kind, items in kinds.items():
            print(f"{title}: {len(items):,} {printable(kind)}", file=sys.stderr)
            for item in items[:MAX_LISTED]:
                print(f"    {item}", file=sys.stderr)
            if len(items) > MAX_LISTED:
                print(f"    and {len(items) - MAX_LISTED:,} more, all of them in index.html", file=sys.stderr)


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command as a script of its own; returns its exit status."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = DESCRIPTION.format(command=f"python training/{parser.prog}")
    add_options(parser)
    return run(parser.parse_args(arguments))
