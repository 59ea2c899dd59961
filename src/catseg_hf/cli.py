"""The command line of catseg_hf.

catseg-hf segment photos/ "more/*.jpg" --labels "cat, sofa" --model catseg-base --output segmented
catseg-hf video clip.mp4 --labels "cat, sofa" --model catseg-base --output segmented.mp4
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from . import EMBEDDED_MODEL
from .errors import UserError, printable
from .files import replaced_file
from .image_files import find_images
from .loading import load_segmenter
from .mask_generation import load_mask_generator
from .origins import describe_settings
from .pipeline_catseg import OpenVocabularySegmentationPipeline, split_labels
from .processes import join_processes, own_accelerator, speaks_for_all
from .results import list_largest
from .segment_files import FileSegmenter
from .video import DEFAULT_SMOOTHING, DamagedVideoError, legend_path, segment_video
from .video_io import FORMATS, VideoReader, check_video_output
from .vocabularies import VOCABULARIES, load_vocabulary


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, 1 if images or parts of a video could not be read, 2 for
    wrong arguments."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no name or label is worth failing for
    arguments = build_parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except UserError as error:
        if speaks_for_all():
            print(f"catseg-hf: error: {printable(str(error))}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="catseg-hf", description="Open-vocabulary segmentation with CAT-Seg.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    segment = commands.add_parser(
        "segment",
        help="segment images into classes named in words",
        description="For every image NAME writes NAME_overlay.png (the image in the colours of its classes, with "
        "a legend) and NAME_labels.png (the class of every pixel), and summary.json for all of them.",
    )
    segment.set_defaults(command=segment_images)
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, glob pattern or URL")
    segment.add_argument("--output", required=True, type=Path, help="folder for the results")
    _add_model_options(segment)
    segment.add_argument(
        "--sam", metavar="MODEL", help="folder or Hub id of a Segment Anything model, whose masks the classes follow"
    )
    segment.add_argument("--batch_size", type=_positive, default=1, help="images at a time (default: 1)")
    segment.add_argument(
        "--resume",
        action="store_true",
        help="leave out images whose results an earlier run with the same settings has written",
    )
    segment.add_argument(
        "--max_image_pixels",
        type=_positive,
        help="the largest image that is read (default: Pillow's limit, 178956970)",
    )
    video = commands.add_parser(
        "video",
        help="segment a video into classes named in words",
        description="Writes the video in the colours of its classes, with its audio, and the legend of the colours, "
        "NAME_legend.png.",
    )
    video.set_defaults(command=segment_clip)
    video.add_argument("video", metavar="VIDEO", help="file of any kind that FFmpeg reads")
    video.add_argument("--output", required=True, type=Path, help=f"file to write: {', '.join(FORMATS)}")
    _add_model_options(video)
    video.add_argument(
        "--sliding_window",
        action=argparse.BooleanOptionalAction,
        help="average overlapping windows of every frame (default: as the checkpoint says)",
    )
    video.add_argument(
        "--smoothing",
        type=float,
        default=DEFAULT_SMOOTHING,
        metavar="SECONDS",
        help="time over which probabilities are averaged, between cuts (default: %(default)s; 0: not at all)",
    )
    video.add_argument(
        "--opacity", type=_probability, default=0.6, help="of the colours, 0 to 1 (default: %(default)s)"
    )
    return parser


def _add_model_options(command: argparse.ArgumentParser):
    vocabulary = command.add_mutually_exclusive_group()
    vocabulary.add_argument("--labels", help='classes to look for, separated by commas: "cat, sofa"')
    vocabulary.add_argument("--vocabulary", choices=VOCABULARIES, help="the classes of a benchmark")
    command.add_argument(
        "--model",
        default=EMBEDDED_MODEL,
        help="folder or Hub id of a CAT-Seg checkpoint (default: a small one that comes with the package and knows "
        "drawings of emoji only)",
    )
    command.add_argument("--threshold", type=_probability, help="pixels less probable than this get no class")
    command.add_argument("--device", type=_device, help="such as cpu or cuda:0 (default: an accelerator, if any)")
    command.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")


def segment_images(arguments: argparse.Namespace) -> int:
    """The command `segment`, in one of the processes that share the images or alone."""
    if arguments.max_image_pixels is not None:
        Image.MAX_IMAGE_PIXELS = -(-arguments.max_image_pixels // 2)  # Pillow refuses more than twice as many
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with join_processes() as processes:
        images, failures = processes.first(lambda: find_images(arguments.images))
        if images:
            segmenter, labels, mask_generator = processes.each(lambda: _load(arguments))
            dtype = str(segmenter.model.dtype)
            settings = processes.first(
                lambda: describe_settings(arguments.model, arguments.sam, labels, arguments.threshold, dtype)
            )
            job = FileSegmenter(
                segmenter,
                images,
                arguments.output,
                labels,
                settings,
                own_vocabulary=arguments.labels is None and arguments.vocabulary is None,
                threshold=arguments.threshold,
                mask_generator=mask_generator,
                batch_size=arguments.batch_size,
            )
            records, unreadable = job.run(processes, arguments.resume)
            failures += unreadable
            summary = {
                "model": arguments.model,
                "sam": arguments.sam,
                "labels": labels,
                "threshold": arguments.threshold,
                "images": records,
                "unreadable": [{"image": image, "error": error} for image, error in failures],
            }
            processes.first(lambda: _write_summary(arguments.output, summary))
        processes.first(lambda: [print(f"catseg-hf: {printable(error)}", file=sys.stderr) for _, error in failures])
    return 1 if failures else 0


def segment_clip(arguments: argparse.Namespace) -> int:
    """The command `video`."""
    try:
        check_video_output(arguments.output)
        with VideoReader(arguments.video) as video:
            segmenter = _load_segmenter(arguments.model, arguments.device, arguments.dtype)
            labels = _choose_labels(segmenter, arguments)
            summary = segment_video(
                segmenter,
                video,
                arguments.output,
                labels,
                sliding_window=arguments.sliding_window,
                threshold=arguments.threshold,
                smoothing=arguments.smoothing,
                opacity=arguments.opacity,
            )
    except DamagedVideoError as error:
        print(f"catseg-hf: error: {printable(str(error))}", file=sys.stderr)
        return 1
    shares = {labels[index]: share for index, share in summary.shares.items() if index >= 0}
    print(printable(f"{arguments.video}: {list_largest(shares)}"))
    print(
        f"Segmented {summary.num_frames} frame{'s' * (summary.num_frames != 1)} into {arguments.output}, "
        f"with the colours of the classes in {legend_path(arguments.output)}"
    )
    return 0


def _write_summary(output: Path, summary: dict[str, Any]):
    with replaced_file(output / "summary.json") as file:
        file.write_text(json.dumps(summary, indent=2) + "\n")
    count = len(summary["images"])
    print(f"Segmented {count} image{'s' * (count != 1)} into {output}")


def _load(
    arguments: argparse.Namespace,
) -> tuple[OpenVocabularySegmentationPipeline, list[str], Callable[[Image.Image], Any] | None]:
    """The model, the classes, and what makes masks for them to follow, if anything does."""
    if arguments.output.exists() and not arguments.output.is_dir():
        raise UserError(f"The output {str(arguments.output)!r} is a file, but a folder is needed.")
    device = arguments.device or own_accelerator()
    segmenter = _load_segmenter(arguments.model, device, arguments.dtype)
    labels = _choose_labels(segmenter, arguments)
    return segmenter, labels, load_mask_generator(arguments.sam, device) if arguments.sam else None


def _load_segmenter(model: str, device: torch.device | None, dtype: str) -> OpenVocabularySegmentationPipeline:
    if model == EMBEDDED_MODEL and speaks_for_all():
        print(
            "Using the small model that comes with catseg_hf, which knows 135 words for emoji and textures and "
            "nothing of photographs: give --model a converted checkpoint for these.",
            file=sys.stderr,
        )
    return load_segmenter(model, device, dtype)


def _choose_labels(segmenter: OpenVocabularySegmentationPipeline, arguments: argparse.Namespace) -> list[str]:
    if arguments.vocabulary is not None:
        return load_vocabulary(arguments.vocabulary)
    if arguments.labels is not None:
        return split_labels(arguments.labels)
    return segmenter.model.config.label_names


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except Exception as error:
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here") from error
    return device


if __name__ == "__main__":
    sys.exit(main())
