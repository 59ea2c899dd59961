"""The options of all commands that segment, and what they stand for."""

import argparse
import sys
from typing import TYPE_CHECKING

from .. import EMBEDDED_MODEL
from ..hub.released_weights import VARIANTS
from ..vocabularies import VOCABULARIES, load_vocabulary


if TYPE_CHECKING:
    from ..class_words_catseg import ClassWords
    from ..pipeline_catseg import OpenVocabularySegmentationPipeline


MODEL_HELP = (
    f"{' or '.join(VARIANTS)} (the authors' weights, downloaded and converted once), or the folder or Hub id of a "
    f"CAT-Seg checkpoint; a folder that has such a name is given as ./{next(iter(VARIANTS))}"
)
"""What options that take a model say of it."""


def add_model_options(parser: argparse.ArgumentParser):
    """Adds the options that choose the model, the classes, and how they are looked for."""
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--labels",
        help='classes to look for, separated by commas; bars separate several words for one: "cat, sofa|couch"',
    )
    vocabulary.add_argument("--vocabulary", choices=VOCABULARIES, help="the classes of a benchmark")
    parser.add_argument(
        "--model",
        default=EMBEDDED_MODEL,
        help=f"{MODEL_HELP} (default: a small one that comes with the package and knows drawings of emoji only)",
    )
    parser.add_argument(
        "--background", help='what else there is, in the same form: its pixels get no class: "wall, floor"'
    )
    parser.add_argument("--threshold", type=probability, help="pixels less probable than this get no class")
    parser.add_argument(
        "--upsampling",
        choices=["bilinear", "guided"],
        default="bilinear",
        help="guided: the borders of classes follow those in the image (default: %(default)s)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: an accelerator, if any)")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")


def load_model(
    arguments: argparse.Namespace, is_quiet: bool = False
) -> "tuple[OpenVocabularySegmentationPipeline, ClassWords]":
    """
    The model that the options name, with its processor, and the classes to look for. Unless it is quiet, it is said
    if that is the embedded model.

    Raises:
        UserError: If there is no such device, the model cannot be loaded, or the labels are not accepted.
    """
    from ..class_words_catseg import read_classes
    from ..loading import load_segmenter
    from ..utils.processes import speaks_for_all

    if arguments.model == EMBEDDED_MODEL and speaks_for_all() and not is_quiet:
        print(
            "Using the small model that comes with catseg_hf, which knows 135 words for emoji and textures and "
            "nothing of photographs: --model base is for these.",
            file=sys.stderr,
        )
    segmenter = load_segmenter(arguments.model, arguments.device, arguments.dtype)
    labels = arguments.labels
    if arguments.vocabulary is not None:
        labels = load_vocabulary(arguments.vocabulary)
    if labels is None:
        labels = segmenter.model.config.label_names
    return segmenter, read_classes(labels, arguments.background)


def positive(text: str) -> int:
    """An integer of at least 1, as an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def probability(text: str) -> float:
    """A number in [0, 1], as an argument."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
