"""Cuts georeferenced rasters and their labels into folders to train on.

  python training/prepare_rasters.py orthophoto.tif --labels landuse.gpkg --class_column landuse --output my_data
  python training/prepare_rasters.py a.tif b.tif --labels a_ids.tif b_ids.tif --classes classes.json --output my_data

Labels are a raster of ids on the same pixels, or a layer of polygons with a column of class names. A pixel belongs to
the last polygon that its centre lies in (as rasterio's `rasterize` decides); pixels in none, and those of the raster
that hold nothing, have no class. Tiles lie side by side; tiles without a class are left out. Validation takes whole
areas of neighbouring tiles, so that it shows other places than training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from catseg_hf.commands.model_options import positive
from catseg_hf.errors import UserError, printable, reports_errors
from catseg_hf.utils.files import read_json
from catseg_training.data.raster_tiles import SPLITS, TilingSettings, prepare_rasters


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rasters", nargs="+", metavar="RASTER", help="file or URL of any kind that GDAL reads")
    parser.add_argument("--labels", nargs="+", required=True, metavar="FILE", help="of each raster, in their order")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--class_column", metavar="NAME", help="the labels are polygons with the class in this column")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="JSON list of the classes, in the order of their ids"
    )
    parser.add_argument(
        "--tile_size", type=positive, default=512, metavar="PIXELS", help="side of a tile (default: %(default)s)"
    )
    parser.add_argument(
        "--validation_share", type=float, default=0.1, metavar="SHARE", help="of the tiles (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the areas for validation (default: %(default)s)")
    parser.add_argument(
        "--bands", type=positive, nargs="+", metavar="BAND", help="red, green and blue, from 1 (default: the file's)"
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        dest="value_range",
        help="stored values that are black and white (default: as `catseg-hf raster` takes them)",
    )
    return parser.parse_args(arguments)


def read_class_names(path: Path) -> list[str]:
    """
    Raises:
        UserError: If a file does not hold a JSON list of names.
    """
    try:
        names = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--classes is {str(path)!r}, but a JSON list of names is needed: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'--classes is {str(path)!r}, but a JSON list of names is needed, such as ["water"].')
    return names


@reports_errors
def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    settings = TilingSettings(
        tile_size=options.tile_size,
        validation_share=options.validation_share,
        seed=options.seed,
        bands=options.bands,
        value_range=options.value_range,
        class_column=options.class_column,
        classes=None if options.classes is None else read_class_names(options.classes),
    )
    prepared = prepare_rasters(options.rasters, options.labels, options.output, settings)
    for remark in prepared.remarks:
        print(printable(f"{remark}."), file=sys.stderr)
    for index, name in enumerate(prepared.classes):
        counts = ", ".join(f"{prepared.num_pixels[split][index]:,} pixels in {split}" for split in SPLITS)
        print(printable(f"{name}: {counts}"))
    tiles = ", ".join(f"{prepared.num_tiles[split]} tiles for {split}" for split in SPLITS)
    print(f"Prepared {tiles} with {len(prepared.classes)} classes in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
