"""`catseg-hf export`: a model to other runtimes."""

import argparse
from collections.abc import Sequence
from math import inf

from ..errors import UserError, reports_errors
from ..export.formats import FORMATS, FREE_SIZES, GIS, INT8
from ..vocabularies import VOCABULARIES, load_vocabulary, read_vocabulary
from .model_options import MODEL_HELP


DESCRIPTION = """\
Exports a CAT-Seg model to other runtimes: ONNX, OpenVINO, ExecuTorch, or a program of torch.export.

  {command} --model base --format onnx --output catseg-base-onnx
  {command} --model base --format onnx --quantize int8 --output catseg-base-int8

  {command} --model base --format onnx --labels "cat, sofa|couch, wall" --output cats-onnx
  {command} --model base --format onnx --labels "road, water, tree" --target gis --output land-onnx

Without words it writes two graphs: text_encoder computes the text features of prompts, once for a vocabulary, and
segmenter the logits of images, any number of them and of classes at a time (with ExecuTorch as many as --batch_size
and --num_classes say). Beside them are the settings of the image processor, the tokenizer, and the model's own
vocabulary with its text features. With --labels or --vocabulary it writes one graph with the words in it, for one
image at a time; names, colours and all that an application needs are in its metadata. demo/segment_onnx.py segments an
image with either and ONNX Runtime alone. The graphs are run and compared with the model before they appear under their
name. If anything is wrong, nothing is written.
"""


def add_parser(commands: argparse._SubParsersAction):
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "export",
        help="export a model to other runtimes",
        description=DESCRIPTION.format(command="catseg-hf export"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(
        run=run,
        check=lambda options: check_options(parser, options),
        require=lambda options: require_packages(parser, options),
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser):
    """Adds the command's options."""
    parser.add_argument("--model", required=True, metavar="NAME_OR_DIR", help=MODEL_HELP)
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="what to export to")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write; it must not exist yet or be empty"
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--labels",
        help='the classes, for one graph with the words in it, in commas; bars separate several words for one: "cat, '
        'sofa|couch"',
    )
    words.add_argument(
        "--vocabulary",
        metavar="NAME_OR_FILE",
        help=f"the same from a file with a label on each line or a JSON list, or of a benchmark: "
        f"{', '.join(VOCABULARIES)}",
    )
    parser.add_argument(
        "--target",
        choices=[GIS],
        help="with --labels or --vocabulary: a graph that QGIS Deepness and GeoDeep read, from RGB in 0..1 to "
        "probabilities at the same size",
    )
    parser.add_argument(
        "--resolution",
        type=positive_number,
        metavar="CM",
        help="with --target gis: centimetres on the ground for each pixel of the graph's input (default: 10)",
    )
    parser.add_argument("--quantize", choices=[INT8], help="smaller weights, with --format onnx")
    parser.add_argument(
        "--batch_size",
        type=int,
        metavar="N",
        help="images, with --format executorch (default: 1)",
    )
    parser.add_argument(
        "--num_classes",
        type=int,
        metavar="N",
        help="classes, with --format executorch (default: as many as the model's own vocabulary has)",
    )


def positive_number(text: str) -> float:
    """A number above 0, as an argument."""
    value = float(text)
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """Ends the program for options that do not go together."""
    chosen, has_words = FORMATS[options.format], options.labels is not None or options.vocabulary is not None
    sizes = {"--batch_size": options.batch_size, "--num_classes": options.num_classes}
    given = [name for name, value in sizes.items() if value is not None]
    if any(value is not None and value < 1 for value in sizes.values()):
        parser.error("--batch_size and --num_classes must be at least 1")
    if given and has_words:
        parser.error(f"{given[0]} does not go with words: their graph takes one image, and as many classes as words")
    if given and FREE_SIZES not in chosen.cannot:
        parser.error(f"{given[0]} does not go with --format {chosen.name}, whose graphs take any number: leave it out")
    if options.target and not has_words:
        parser.error(f"--target {options.target} needs the words: name them with --labels or --vocabulary")
    if options.resolution is not None and options.target != GIS:
        parser.error("--resolution goes with --target gis")
    try:
        if options.quantize:
            chosen.check_can(INT8, "--quantize")
        if options.target:
            chosen.check_can(options.target, f"--target {options.target}")
    except UserError as error:
        parser.error(str(error))


def require_packages(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """Ends the program for a format whose packages are missing."""
    try:
        FORMATS[options.format].check_installed()
    except UserError as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> int:
    """Exports the model; returns the exit status."""
    if options.labels is None and options.vocabulary is None:
        from ..export.graphs import export

        export(
            options.model,
            options.output,
            options.format,
            quantize=options.quantize,
            batch_size=options.batch_size or 1,
            num_classes=options.num_classes,
        )
        return 0
    labels = options.labels
    if options.vocabulary is not None:
        is_name = options.vocabulary in VOCABULARIES
        labels = load_vocabulary(options.vocabulary) if is_name else read_vocabulary(options.vocabulary)
    from ..export.fixed import export_fixed

    export_fixed(
        options.model,
        options.output,
        options.format,
        labels,
        target=options.target,
        quantize=options.quantize,
        resolution=options.resolution or 10.0,
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
    require_packages(parser, options)
    from ..utils.threads import limit_threads

    limit_threads()
    return run(options)
