"""`catseg-hf raster`: georeferenced rasters into maps of classes named in words."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, printable
from .model_options import add_model_options, load_model, positive


if TYPE_CHECKING:
    from ..class_words_catseg import ClassWords
    from ..rasters import Outputs, RasterSegmenter


def add_parser(commands: argparse._SubParsersAction):
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "raster",
        help="segment orthophotos and other georeferenced rasters",
        description="Writes a GeoTIFF of the class of every pixel, with the raster's CRS, size and transform, the "
        "classes' colours and, in OUT.tif.aux.xml, their names. Pixels that hold nothing (nodata, masks, "
        "transparency, NaN) get no class.",
    )
    parser.set_defaults(run=run, check=lambda arguments: _check_options(parser, arguments))
    parser.add_argument("rasters", nargs="+", metavar="RASTER", help="file or URL of any kind that GDAL reads")
    parser.add_argument(
        "--output", required=True, type=Path, help="GeoTIFF to write; of several rasters the folder for theirs"
    )
    add_model_options(parser)
    parser.add_argument(
        "--tile_size",
        type=positive,
        default=640,
        metavar="PIXELS",
        help="side of the overlapping tiles that the model sees (default: %(default)s)",
    )
    parser.add_argument(
        "--tile_overlap",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="what neighbouring tiles have in common, 0 to 0.5 of a tile (default: %(default)s)",
    )
    parser.add_argument("--batch_size", type=positive, default=1, help="tiles at a time (default: %(default)s)")
    parser.add_argument(
        "--bands",
        type=positive,
        nargs="+",
        metavar="BAND",
        help="numbers of the red, the green and the blue band, from 1, or of one band (default: as the file says)",
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        dest="value_range",
        help="stored values that are black and white (default: 0 255 of 8 bits, else the 2nd and 98th percentile of "
        "an overview)",
    )
    parser.add_argument(
        "--resolution", type=float, metavar="UNITS", help="units of the CRS per pixel to resample to, such as 0.3"
    )
    parser.add_argument(
        "--vector", type=Path, metavar="FILE", help="polygons to write as well: .gpkg, .geojson or .fgb"
    )
    parser.add_argument(
        "--min_area", type=positive, metavar="PIXELS", help="with --vector: smaller polygons are left out"
    )
    parser.add_argument(
        "--simplify",
        type=float,
        metavar="PIXELS",
        help="with --vector: borders get fewer corners, common ones the same, and move by about so much",
    )
    parser.add_argument(
        "--probabilities", type=Path, metavar="FILE", help="GeoTIFF of probabilities to write as well, in 8 bits"
    )
    parser.add_argument(
        "--probabilities_of", metavar="LABELS", help="with --probabilities: only those of these classes"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where a run with the same settings was stopped; the result is the same",
    )


def _check_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace):
    if arguments.vector is None and (arguments.min_area is not None or arguments.simplify is not None):
        option = "--simplify" if arguments.min_area is None else "--min_area"
        parser.error(f"{option} goes with --vector")
    if arguments.probabilities is None and arguments.probabilities_of is not None:
        parser.error("--probabilities_of goes with --probabilities")
    if len(arguments.rasters) > 1 and (arguments.vector is not None or arguments.probabilities is not None):
        parser.error("--vector and --probabilities name one file: give one raster at a time")


def run(arguments: argparse.Namespace) -> int:
    """Segments the rasters, in one of the processes that share them or alone; returns the exit status."""
    from ..utils.processes import join_processes

    with join_processes() as processes:
        targets = processes.first(lambda: _targets(arguments))
        processes.each(lambda: _check_rasters(arguments, targets))

        def segment_own():
            segmenter = None
            for source in processes.take(list(targets)):
                segmenter = segmenter or _prepare(arguments)
                _segment(arguments, segmenter, source, targets[source])

        processes.each(segment_own)
    return 0


def _targets(arguments: argparse.Namespace) -> dict[str, Path]:
    """The map of each raster."""
    if len(arguments.rasters) == 1:
        return {arguments.rasters[0]: arguments.output}
    targets = {source: arguments.output / f"{Path(source).stem}.tif" for source in arguments.rasters}
    if len(set(targets.values())) < len(arguments.rasters):
        raise UserError("Two of the rasters have the same name, and so would their maps: segment them one by one.")
    return targets


def _check_rasters(arguments: argparse.Namespace, targets: dict[str, Path]):
    """Refuses what can be refused before a model is loaded."""
    from ..image_pixels_catseg import check_value_range
    from ..rasters import Outputs, RasterReader
    from ..tiled_image_catseg import check_tile_overlap

    check_tile_overlap(arguments.tile_overlap)
    value_range = None if arguments.value_range is None else check_value_range(arguments.value_range)
    if arguments.resolution is not None and not 0 < arguments.resolution < float("inf"):
        raise UserError(f"--resolution is {arguments.resolution}, but units per pixel above 0 are needed.")
    for source, target in targets.items():
        Outputs(target, arguments.vector, simplify=arguments.simplify, probabilities=arguments.probabilities)
        RasterReader(source, arguments.bands, value_range, arguments.resolution).close()


def _prepare(arguments: argparse.Namespace) -> "RasterSegmenter":
    from ..images.origins import Settings
    from ..rasters import RasterSegmenter, RasterSettings
    from ..tiled_image_catseg import check_tile_size
    from ..utils.processes import own_accelerator

    arguments.device = arguments.device or own_accelerator()
    segmenter, classes = load_model(arguments)
    check_tile_size(arguments.tile_size, segmenter.model.config)
    common = Settings(
        segmenter.model.name_or_path,
        None,
        classes,
        arguments.threshold,
        None if arguments.value_range is None else tuple(arguments.value_range),
        str(segmenter.model.dtype),
        arguments.upsampling,
        arguments.tile_size,
        arguments.tile_overlap,
    )
    own_vocabulary = arguments.labels is arguments.vocabulary is arguments.background is None
    bands = None if arguments.bands is None else tuple(arguments.bands)
    return RasterSegmenter(
        segmenter, RasterSettings(common, own_vocabulary, bands, arguments.resolution, arguments.batch_size)
    )


def _segment(arguments: argparse.Namespace, segmenter: "RasterSegmenter", source: str, target: Path):
    from tqdm.auto import tqdm

    from ..images.results import list_largest

    outputs = _outputs(arguments, segmenter.classes, target)
    with segmenter.settings.open(source) as raster, tqdm(unit="tile", disable=None) as progress:
        for remark in raster.remarks:
            progress.write(printable(f"{source}: {remark}."), file=sys.stderr)

        def show(done: int, total: int):
            if progress.total is None:  # what an earlier run has done takes no time now
                progress.reset(total)
                progress.initial = max(0, done - segmenter.settings.batch_size)
                progress.n = progress.initial
            progress.update(done - progress.n)

        shares = segmenter.segment(raster, outputs, arguments.resume, show)
    print(printable(f"{source}: {list_largest(shares)}"))
    print(printable(f"Written: {', '.join(map(str, outputs.paths))}"), flush=True)


def _outputs(arguments: argparse.Namespace, classes: "ClassWords", target: Path) -> "Outputs":
    from ..class_words_catseg import split_labels
    from ..rasters import Outputs

    chosen = ()
    if arguments.probabilities is not None:
        names = classes.names if arguments.probabilities_of is None else split_labels(arguments.probabilities_of)
        if others := [name for name in names if name not in classes.names]:
            raise UserError(
                f"--probabilities_of names {others[0]!r}, but the classes are {', '.join(classes.names)}: choose from "
                "these."
            )
        chosen = tuple(classes.names.index(name) for name in names)
    return Outputs(
        target, arguments.vector, arguments.min_area or 1, arguments.simplify, arguments.probabilities, chosen
    )
