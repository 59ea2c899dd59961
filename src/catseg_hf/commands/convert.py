"""`catseg-hf convert`: an original checkpoint of CAT-Seg (Cho et al., CVPR 2024) into a folder for transformers."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ..conversion import TOKENIZER
from ..errors import UserError, reports_errors
from ..hub.released_weights import RELEASE, VARIANTS, download_checkpoint


DESCRIPTION = """\
Converts an original CAT-Seg checkpoint into a folder for transformers, ready for the Hub. The two released models,
downloaded from the authors' Space on the Hub:

  {command} --variant base  --output_dir catseg-base
  {command} --variant large --output_dir catseg-large

They need about 1.3 GB and 3.5 GB of disk (download and result), 1.3 GB and 2.5 GB of memory, and after the download
less than a minute on two cores. The architecture is read off the tensors, and the result is loaded again and compared
with a literal implementation before it appears under its name. If anything is wrong, nothing is written.
"""


def add_parser(commands: argparse._SubParsersAction):
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "convert",
        help="convert the authors' checkpoints for transformers",
        description=DESCRIPTION.format(command="catseg-hf convert"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, check=lambda options: check_options(parser, options))
    add_options(parser)


def add_options(parser: argparse.ArgumentParser):
    """Adds the command's options."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint_path", metavar="FILE", help="the authors' .pth file, or the same tensors as .safetensors"
    )
    source.add_argument(
        "--variant",
        choices=sorted(VARIANTS),
        help=f"download a released model from the Space {RELEASE} (or the cache)",
    )
    parser.add_argument("--output_dir", metavar="DIR", help="folder to write; it must not exist yet or be empty")
    parser.add_argument(
        "--config_path",
        metavar="JSON",
        help="a CATSegConfig's JSON, instead of reading the architecture off the tensors",
    )
    parser.add_argument(
        "--tokenizer",
        default=TOKENIZER,
        metavar="NAME_OR_PATH",
        help="CLIP's tokenizer: a model on the Hub, a folder, or OpenAI's bpe_simple_vocab_16e6.txt.gz "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--prompt_templates",
        nargs="+",
        metavar="SENTENCE",
        help='the sentences with {} that the model was trained with (default: "A photo of a {} in the scene")',
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float16", "float32"],
        default="float32",
        help="of the weights (default: %(default)s)",
    )
    parser.add_argument(
        "--endpoint_handler",
        action="store_true",
        help="write handler.py and requirements.txt too, with which the folder is a Hugging Face Inference Endpoint",
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="upload the folder there, once it is complete")
    parser.add_argument("--private", action="store_true", help="make that repository private when it is created")
    parser.add_argument(
        "--verify_only",
        metavar="DIR",
        help="write nothing: compare a converted folder with the literal implementation on its own weights",
    )


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """Ends the program for options that do not go together."""
    if options.verify_only is None:
        if options.checkpoint_path is None and options.variant is None:
            parser.error("one of --checkpoint_path, --variant and --verify_only is required")
        if options.output_dir is None:
            parser.error("--output_dir is required")
    elif any(
        (options.checkpoint_path, options.variant, options.output_dir, options.push_to_hub, options.endpoint_handler)
    ):
        parser.error("--verify_only stands alone: it converts nothing")
    if options.private and options.push_to_hub is None:
        parser.error("--private needs --push_to_hub")


def run(options: argparse.Namespace) -> int:
    """Converts, and uploads if that is asked for; returns the exit status."""
    from ..conversion.converter import say, verify

    start = time.monotonic()
    if options.verify_only is None:
        _convert(options)
    else:
        if not Path(options.verify_only).is_dir():
            raise UserError(f"There is no folder {options.verify_only}.")
        verify(Path(options.verify_only))
    say(f"Done in {time.monotonic() - start:.0f} s")
    return 0


def _convert(options: argparse.Namespace):
    import torch

    from ..conversion.converter import convert, push, say
    from ..utils.files import check_output_folder

    check_output_folder(options.output_dir)
    checkpoint_path = options.checkpoint_path
    if options.variant is not None:
        say(f"Fetching {VARIANTS[options.variant]} of the Space {RELEASE}")
        checkpoint_path = download_checkpoint(options.variant)
    folder = convert(
        checkpoint_path,
        options.output_dir,
        config_path=options.config_path,
        tokenizer=options.tokenizer,
        prompt_templates=options.prompt_templates,
        dtype=getattr(torch, options.dtype),
        repo_id=options.push_to_hub,
        endpoint_handler=options.endpoint_handler,
    )
    if options.push_to_hub is not None:
        push(folder, options.push_to_hub, options.private)


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
