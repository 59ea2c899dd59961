"""`catseg-hf video`: a video into classes named in words."""

import argparse
import sys
from pathlib import Path

from ..errors import printable
from .model_options import add_model_options, load_model, probability


def add_parser(commands: argparse._SubParsersAction):
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "video",
        help="segment a video into classes named in words",
        description="Writes the video in the colours of its classes, with its audio, and the legend of the colours, "
        "NAME_legend.png. HDR (PQ, HLG) becomes ordinary video, and times begin at 0.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("video", metavar="VIDEO", help="file of any kind that FFmpeg reads")
    parser.add_argument("--output", required=True, type=Path, help="file to write: .mp4, .mov or .mkv")
    add_model_options(parser)
    parser.add_argument(
        "--sliding_window",
        action=argparse.BooleanOptionalAction,
        help="average overlapping windows of every frame (default: as the checkpoint says)",
    )
    parser.add_argument(
        "--smoothing",
        type=float,
        default=0.2,
        metavar="SECONDS",
        help="time over which probabilities are averaged, between cuts (default: %(default)s; 0: not at all)",
    )
    parser.add_argument(
        "--opacity", type=probability, default=0.6, help="of the colours, 0 to 1 (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Segments the video; returns the exit status."""
    from ..images.results import list_largest
    from ..video import (
        DamagedVideoError,
        VideoReader,
        check_audio_output,
        check_video_output,
        legend_path,
        segment_video,
    )
    from ..visualization import describe_numbers

    try:
        check_video_output(arguments.output)
        with VideoReader(arguments.video) as video:
            check_audio_output(video, arguments.output)
            segmenter, classes = load_model(arguments)
            summary = segment_video(
                segmenter,
                video,
                arguments.output,
                classes,
                sliding_window=arguments.sliding_window,
                threshold=arguments.threshold,
                smoothing=arguments.smoothing,
                opacity=arguments.opacity,
                upsampling=arguments.upsampling,
            )
    except DamagedVideoError as error:
        print(f"catseg-hf: error: {printable(str(error))}", file=sys.stderr)
        return 1
    shares = {classes.names[index]: share for index, share in summary.shares.items() if index >= 0}
    print(printable(f"{arguments.video}: {list_largest(shares)}"))
    print(
        f"Segmented {summary.num_frames} frame{'s' * (summary.num_frames != 1)} into {arguments.output}, "
        f"with the colours of the classes in {legend_path(arguments.output)}"
    )
    if numbers := describe_numbers({index: classes.names[index] for index in sorted(summary.shares) if index >= 0}):
        print(numbers)
    return 0
