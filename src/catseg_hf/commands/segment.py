"""`catseg-hf segment`: images into classes named in words."""

import argparse
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..annotations.registry import FORMATS
from ..errors import UserError, printable
from .model_options import add_model_options, load_model, positive


if TYPE_CHECKING:
    from ..images.segmentation import Engine, FileSegmenter


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
    parser.add_argument(
        "--engine",
        choices=["processes", "ray"],
        default="processes",
        help="what shares the images: the processes of a launcher, or Ray's actors, on one machine or several "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--ray_address",
        metavar="HOST:PORT",
        help="with --engine ray: a cluster (default: what RAY_ADDRESS "
        "says, or else the cluster that this machine is in, or else this machine alone)",
    )
    parser.add_argument(
        "--actors", type=positive, metavar="N", help="with --engine ray: how many (default: one for a GPU, or a CPU)"
    )
    parser.add_argument(
        "--actor_cpus",
        type=float,
        metavar="CPUS",
        help="with --engine ray: CPUs of each (default: 1, or less where CPUs have to stay free)",
    )
    parser.add_argument(
        "--actor_gpus", type=float, metavar="GPUS", help="with --engine ray: GPUs of each, such as 0.5 (default: 1)"
    )


def _check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace):
    if arguments.engine != "ray":
        for name in ("ray_address", "actors", "actor_cpus", "actor_gpus"):
            if getattr(arguments, name) is not None:
                parser.error(f"--{name} goes with --engine ray")
    if not arguments.formats and (arguments.instances or arguments.min_area is not None):
        option = "--instances" if arguments.instances else "--min_area"
        parser.error(f"{option} goes with --format, since label maps have all pixels of a class")


def run(arguments: argparse.Namespace) -> int:
    """Segments the images, in one of the processes that share them or alone; returns the exit status."""
    from ..image_io_catseg import raise_pixel_limit
    from ..images.sources import find_images
    from ..utils.files import locked_folder
    from ..utils.processes import join_processes

    if arguments.max_image_pixels is not None:
        raise_pixel_limit(arguments.max_image_pixels)
    with join_processes() as processes:
        if arguments.engine == "ray" and processes.size > 1:
            raise UserError(
                f"--engine ray shares the images itself, but there are {processes.size} processes: start the command "
                "without a launcher."
            )
        images, failures = processes.first(lambda: find_images(arguments.images))
        if images:
            engine = None
            if arguments.engine == "ray":
                job, engine = _prepare_for_ray(arguments, images)
            else:
                job = processes.each(lambda: _prepare(arguments, images))
            with ExitStack() as lock:
                processes.first(lambda: lock.enter_context(locked_folder(arguments.output)))
                failures += job.run(processes, failures, arguments.resume, engine)
        if processes.is_first:
            for _, error in failures:
                print(f"catseg-hf: {printable(error)}", file=sys.stderr)
    return 1 if failures else 0


def _prepare_for_ray(arguments: argparse.Namespace, images: list[str]) -> "tuple[FileSegmenter, Engine]":
    try:
        from ..integrations.ray_data import choose_actors, connect, ray
        from ..integrations.ray_files import make_engine
    except ImportError as error:
        raise UserError(f"--engine ray is asked for. {error}") from error

    connect(arguments.ray_address)
    actors = choose_actors(ray.nodes(), arguments.actors, arguments.actor_cpus, arguments.actor_gpus)
    device, arguments.device = arguments.device or actors.device, "cpu"
    job = _prepare(arguments, images)
    # What does not go with a job to another process.
    left_out = {"run", "check", "require", "images"}
    options = {name: value for name, value in vars(arguments).items() if name not in left_out}
    options |= {"device": device, "dtype": job.settings.dtype.removeprefix("torch."), "formats": []}
    return job, make_engine(job, partial(_prepare_in_actor, argparse.Namespace(**options)), actors)


def _prepare_in_actor(arguments: argparse.Namespace) -> "FileSegmenter":
    from ..image_io_catseg import raise_pixel_limit

    if arguments.max_image_pixels is not None:
        raise_pixel_limit(arguments.max_image_pixels)
    return _prepare(arguments, [], is_quiet=True)


def _prepare(arguments: argparse.Namespace, images: list[str], is_quiet: bool = False) -> "FileSegmenter":
    from ..annotations.writing import AnnotationFiles
    from ..images.batches import check_settings
    from ..images.segmentation import FileSegmenter, check_output
    from ..loading import load_mask_generator
    from ..utils.processes import own_accelerator

    check_output(arguments.output)
    arguments.device = arguments.device or own_accelerator()
    annotation_files = AnnotationFiles(arguments.formats, arguments.instances, arguments.min_area or 1)
    segmenter, classes = load_model(arguments, is_quiet)
    annotation_files.check(classes.names, arguments.output, images)
    settings = check_settings(
        segmenter.model.config,
        segmenter.model.name_or_path,  # where weights by name lie
        classes,
        str(segmenter.model.dtype),
        sam=arguments.sam,
        threshold=arguments.threshold,
        value_range=arguments.value_range,
        upsampling=arguments.upsampling,
        tile_size=arguments.tile_size,
        tile_overlap=arguments.tile_overlap,
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
