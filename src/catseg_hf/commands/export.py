"""`catseg-hf export`: a model to other runtimes."""

import argparse
from collections.abc import Sequence

from ..errors import reports_errors
from ..export.formats import FORMATS
from .model_options import MODEL_HELP


DESCRIPTION = """\
Exports a CAT-Seg model to other runtimes: ONNX, OpenVINO, ExecuTorch, or a program of torch.export.

  {command} --model base --format onnx --output catseg-base-onnx
  {command} --model base --format onnx --quantize int8 --output catseg-base-int8

Writes two graphs: text_encoder computes the text features of prompts, once for a vocabulary, and segmenter the logits
of images, any number of them and of classes at a time (with ExecuTorch as many as --batch_size and --num_classes say).
Beside them are the settings of the image processor, the tokenizer, and the model's own vocabulary with its text
features. demo/segment_onnx.py segments an image with such a folder and ONNX Runtime alone. The graphs are run and
compared with the model before they appear under their name. If anything is wrong, nothing is written.
"""


def add_parser(commands: argparse._SubParsersAction):
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "export",
        help="export a model to other runtimes",
        description=DESCRIPTION.format(command="catseg-hf export"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, check=lambda options: check_options(parser, options))
    add_options(parser)


def add_options(parser: argparse.ArgumentParser):
    """Adds the command's options."""
    parser.add_argument("--model", required=True, metavar="NAME_OR_DIR", help=MODEL_HELP)
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="what to export to")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write; it must not exist yet or be empty"
    )
    parser.add_argument("--quantize", choices=["int8"], help="smaller weights, with --format onnx")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=1,
        metavar="N",
        help="images, with --format executorch (default: %(default)s)",
    )
    parser.add_argument(
        "--num_classes",
        type=int,
        metavar="N",
        help="classes, with --format executorch (default: as many as the model's own vocabulary has)",
    )


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """Ends the program for options that do not go together."""
    if options.quantize and options.format != "onnx":
        parser.error(f"--quantize goes with --format onnx, not with {options.format}")
    if options.batch_size < 1 or (options.num_classes is not None and options.num_classes < 1):
        parser.error("--batch_size and --num_classes must be at least 1")


def run(options: argparse.Namespace) -> int:
    """Exports the model; returns the exit status."""
    from ..export.graphs import export

    export(
        options.model,
        options.output,
        options.format,
        quantize=options.quantize,
        batch_size=options.batch_size,
        num_classes=options.num_classes,
    )
    return 0


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """The command as a script of its own; returns its exit status."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = DESCRIPTION.format(command=f"python convert/{parser.prog}")
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    from ..utils.threads import limit_threads

    limit_threads()
    return run(options)
