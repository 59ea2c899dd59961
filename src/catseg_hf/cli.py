"""The command line of catseg_hf.

catseg-hf segment photos/ "more/*.jpg" --labels "cat, sofa" --model base --output segmented
catseg-hf video clip.mp4 --labels "cat, sofa" --model base --output segmented.mp4
catseg-hf raster orthophoto.tif --labels "water, road, tree" --model base --output map.tif
catseg-hf prepare my_labels --output my_data
catseg-hf convert --variant base --output_dir catseg-base
catseg-hf export --model base --format onnx --output catseg-base-onnx
"""

import argparse
import gc
import sys
from collections.abc import Sequence

from .commands import convert, export, prepare, raster, segment, video
from .errors import UserError, printable
from .version import __version__


COMMANDS = (segment, video, raster, prepare, convert, export)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 1 if images or parts of a video could not be read, 2 for
    what the user has to mend: arguments, models, files."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no name or label is worth failing for
    arguments = build_parser().parse_args(argv)
    arguments.check(arguments)
    arguments.require(arguments)
    from . import registration  # noqa: F401  the console script alone has not done it yet
    from .utils.threads import limit_threads

    limit_threads()
    try:
        return arguments.run(arguments)
    except UserError as error:
        from .utils.processes import speaks_for_all

        if speaks_for_all():
            print(f"catseg-hf: error: {printable(str(error))}", file=sys.stderr)
        return 2


def console_script() -> int:
    """What `catseg-hf` calls: [`main`], after which the interpreter does not look once more for garbage among all
    objects of torch and transformers, which takes about a second."""
    try:
        return main()
    finally:
        gc.freeze()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="catseg-hf", description="Open-vocabulary segmentation with CAT-Seg.")
    parser.add_argument("--version", action="version", version=f"catseg-hf {__version__}")
    # What a command has to say of options that do not go together, and of packages that are missing.
    parser.set_defaults(check=lambda arguments: None, require=lambda arguments: None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(console_script())
