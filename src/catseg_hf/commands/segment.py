"""`catseg-hf segment`: images into classes named in words."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..annotations.registry import FORMATS
from ..errors import UserError, printable
from .model_options import add_model_options, load_model, positive


if TYPE_CHECKING:
    from ..images.segmentation import FileSegmenter


def add_parser(commands: argparse._SubParsersAction):
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "segment",
        help="segment images into classes named in words",
        description="For every image NAME writes NAME_overlay.png (the image in the colours of its classes, with "
        "a legend) and NAME_labels.png (the class of every pixel), and summary.json for all of them; with --format "
        "also annotations for other tools.",
    )
    parser.set_defaults(run=run, check=lambda arguments: _check_options(parser, arguments))
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, glob pattern or URL")
    parser.add_argument("--output", required=True, type=Path, help="folder for the results")
    add_model_options(parser)
    parser.add_argument(
        "--sam", metavar="MODEL", help="folder or Hub id of a Segment Anything model, whose masks the classes follow"
    )
    parser.add_argument(
        "--tile_size",
        type=positive,
        metavar="PIXELS",
        help="segment images in overlapping tiles of this side, each of which is seen as an image (default: whole "
        "images; of several, those that are smaller than a tile)",
    )
    parser.add_argument(
        "--tile_overlap",
        type=float,
        metavar="SHARE",
        help="what neighbouring tiles have in common, 0 to 0.5 of a tile (default: 0.25)",
    )
    parser.add_argument("--batch_size", type=positive, default=1, help="images, or tiles, at a time (default: 1)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out images whose results an earlier run with the same settings has written",
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=[known.name for known in FORMATS if known.writes],
        default=[],
        dest="formats",
        help="annotations to write as well, for a tool to correct them in; may be repeated",
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="with --format: every 8-connected part of a class is an annotation of its own",
    )
    parser.add_argument(
        "--min_area",
        type=positive,
        metavar="PIXELS",
        help="with --format: annotations of fewer pixels are left out",
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        dest="value_range",
        help="stored values that are black and white, of images that use another part of their type's range, such as "
        "0 3000 (default: as the checkpoint's processor says, else 0 255 of 8 bits and 0 65535 of 16)",
    )
    parser.add_argument(
        "--max_image_pixels",
        type=positive,
        help="the largest image that is read (default: Pillow's limit, 178956970)",
    )


def _check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace):
    if not arguments.formats and (arguments.instances or arguments.min_area is not None):
        option = "--instances" if arguments.instances else "--min_area"
        parser.error(f"{option} goes with --format, since label maps have all pixels of a class")


def run(arguments: argparse.Namespace) -> int:
    """Segments the images, in one of the processes that share them or alone; returns the exit status."""
    from ..image_io_catseg import raise_pixel_limit
    from ..images.sources import find_images
    from ..utils.processes import join_processes

    if arguments.max_image_pixels is not None:
        raise_pixel_limit(arguments.max_image_pixels)
    with join_processes() as processes:
        images, failures = processes.first(lambda: find_images(arguments.images))
        if images:
            job = processes.each(lambda: _prepare(arguments, images))
            failures += job.run(processes, failures, arguments.resume)
        if processes.is_first:
            for _, error in failures:
                print(f"catseg-hf: {printable(error)}", file=sys.stderr)
    return 1 if failures else 0


def _prepare(arguments: argparse.Namespace, images: list[str]) -> "FileSegmenter":
    from ..annotations.writing import AnnotationFiles
    from ..image_pixels_catseg import check_value_range
    from ..images.origins import Settings
    from ..images.segmentation import FileSegmenter, check_output
    from ..loading import load_mask_generator
    from ..tiled_image_catseg import check_tile_overlap, check_tile_size
    from ..tiles_catseg import DEFAULT_TILE_OVERLAP
    from ..utils.processes import own_accelerator

    tile_size, tile_overlap = arguments.tile_size, arguments.tile_overlap
    if tile_overlap is not None and tile_size is None:
        raise UserError(f"--tile_overlap is {tile_overlap}, but there are no tiles: give --tile_size too.")
    check_output(arguments.output)
    arguments.device = arguments.device or own_accelerator()
    annotation_files = AnnotationFiles(arguments.formats, arguments.instances, arguments.min_area or 1)
    segmenter, classes = load_model(arguments)
    annotation_files.check(classes.names, arguments.output, images)
    value_range = None if arguments.value_range is None else check_value_range(arguments.value_range)
    dtype = str(segmenter.model.dtype)
    model = segmenter.model.name_or_path  # where weights by name lie
    if tile_size is not None:
        check_tile_size(tile_size, segmenter.model.config)
        tile_overlap = check_tile_overlap(DEFAULT_TILE_OVERLAP if tile_overlap is None else tile_overlap)
    settings = Settings(
        model,
        arguments.sam,
        classes,
        arguments.threshold,
        value_range,
        dtype,
        arguments.upsampling,
        tile_size,
        tile_overlap,
    )
    return FileSegmenter(
        segmenter,
        images,
        arguments.output,
        settings,
        own_vocabulary=arguments.labels is arguments.vocabulary is arguments.background is None,
        mask_generator=load_mask_generator(arguments.sam, segmenter.device) if arguments.sam else None,
        batch_size=arguments.batch_size,
        annotation_files=annotation_files,
    )
