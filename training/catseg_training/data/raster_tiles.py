"""Rasters and their labels as folders of images to train on: tiles, split by area."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from catseg_hf.bands_catseg import Window
from catseg_hf.errors import UserError
from catseg_hf.rasters import RasterReader
from catseg_hf.utils.files import built_aside, check_output_folder
from catseg_training.data.raster_labels import MAX_CLASSES, NO_CLASS, Labels, open_labels


SPLITS = ("train", "validation")
# Tiles on a side of the areas of which each belongs to one split, at most, and how many areas there should be.
AREA_SIDE, LEAST_AREAS = 4, 12


@dataclass(frozen=True)
class TilingSettings:
    """
    How rasters are cut.

    Args:
        tile_size (`int`): Pixels on a side.
        validation_share (`float`): Share of the tiles that are for validation, in 0..1.
        seed (`int`): Of which areas these are in.
        bands, value_range: As [`~rasters.RasterReader`] takes them.
        class_column (`str`, *optional*): Of labels that are polygons.
        classes (`list[str]`, *optional*): The classes, in the order of their ids. By default those of the labels.
    """

    tile_size: int = 512
    validation_share: float = 0.1
    seed: int = 0
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    class_column: str | None = None
    classes: list[str] | None = None

    def __post_init__(self):
        if not 0 <= self.validation_share < 1:
            raise UserError(f"--validation_share is {self.validation_share}, but a share from 0 to below 1 is needed.")


@dataclass
class PreparedTiles:
    """
    What was written.

    Attributes:
        classes (`list[str]`): The classes, in the order of their ids.
        num_tiles (`dict[str, int]`): Of each split.
        num_pixels (`dict[str, np.ndarray]`): Of each split, how many pixels each class has.
        remarks (`list[str]`): What there is to say of the rasters.
    """

    classes: list[str]
    num_tiles: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    num_pixels: dict[str, np.ndarray] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def prepare_rasters(
    rasters: Sequence[str], labels: Sequence[str], output: Path, settings: TilingSettings
) -> PreparedTiles:
    """
    Writes `images/SPLIT`, `labels/SPLIT` (ids in the order of `classes.json`, 255 for none) and `classes.json`, all of
    it or nothing. Tiles lie side by side and have no pixel in common; one that has no pixel of a class is left out.

    Args:
        rasters (`Sequence[str]`): Paths or URLs.
        labels (`Sequence[str]`): The labels of each.
        output (`Path`): A folder that does not exist yet, or is empty.
        settings ([`TilingSettings`]): How they are cut.

    Raises:
        UserError: If something cannot be read, labels do not lie on their raster, or no tile has a class.
    """
    if len(rasters) != len(labels):
        raise UserError(
            f"There are {len(rasters)} rasters and {len(labels)} labels: give one for each, in their order."
        )
    output = check_output_folder(output, "--output")
    opened = []
    try:
        for source, path in zip(rasters, labels, strict=True):
            raster = RasterReader(source, settings.bands, settings.value_range)
            opened.append((raster, open_labels(path, raster, settings.class_column)))
        prepared = PreparedTiles(_classes_of([own for _, own in opened], settings.classes))
        prepared.num_pixels = {split: np.zeros(len(prepared.classes), dtype=np.int64) for split in SPLITS}
        with built_aside(output) as folder:
            for split in SPLITS:
                for kind in ("images", "labels"):
                    (folder / kind / split).mkdir(parents=True)
            for index, (raster, own) in enumerate(opened):
                prepared.remarks += [f"{raster.source}: {remark}" for remark in raster.remarks]
                _cut(raster, own, f"{index:03d}_{Path(raster.source).stem}", folder, settings, prepared)
            if not sum(prepared.num_tiles.values()):
                raise UserError("No tile has a pixel of a class: check that the labels lie where the rasters do.")
            (folder / "classes.json").write_text(
                json.dumps(prepared.classes, indent=2, ensure_ascii=False), encoding="utf-8"
            )
    finally:
        for raster, _ in opened:
            raster.close()
    return prepared


def _classes_of(labels: Sequence[Labels], chosen: list[str] | None) -> list[str]:
    if chosen is None:
        if any(own.classes is None for own in labels):
            raise UserError("The labels have ids but no names: give the classes in their order, --classes FILE.")
        chosen = list(dict.fromkeys(name for own in labels for name in own.classes))
    if not 1 <= len(chosen) <= MAX_CLASSES:
        raise UserError(
            f"There are {len(chosen)} classes, but 1 to {MAX_CLASSES} are accepted: choose with --classes."
        )
    return chosen


def _cut(
    raster: RasterReader, labels: Labels, name: str, folder: Path, settings: TilingSettings, prepared: PreparedTiles
):
    height, width = raster.size
    side = settings.tile_size
    places = [(row, column) for row in range(-(-height // side)) for column in range(-(-width // side))]
    held = {}
    for row, column in tqdm(places, unit="tile", disable=None):
        top, left = row * side, column * side
        window = Window(top, left, min(side, height - top), min(side, width - left))
        is_valid = raster.is_valid(window)
        if is_valid.any() and (_ids(labels, window, is_valid, prepared.classes) != NO_CLASS).any():
            held[row, column] = window
    validation = choose_areas(list(held), settings.validation_share, settings.seed)
    for place, window in tqdm(held.items(), unit="tile", disable=None):
        split = SPLITS[place in validation]
        pixels, is_valid = raster.read(window)
        ids = _ids(labels, window, is_valid, prepared.classes)
        tile = f"{name}_{window.top}_{window.left}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / "images" / split / tile)
        Image.fromarray(ids).save(folder / "labels" / split / tile)
        prepared.num_tiles[split] += 1
        prepared.num_pixels[split] += np.bincount(ids.ravel(), minlength=256)[: len(prepared.classes)]


def _ids(labels: Labels, window: Window, is_valid: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    ids = labels.read(window, classes)
    ids[~is_valid] = NO_CLASS
    return ids


def choose_areas(tiles: Sequence[tuple[int, int]], share: float, seed: int) -> set[tuple[int, int]]:
    """
    The tiles that are for validation: those of whole areas, squares of tiles, since neighbouring tiles show much the
    same.

    Args:
        tiles (`Sequence[tuple[int, int]]`): Rows and columns.
        share (`float`): Of them, about.
        seed (`int`): Of which areas are drawn.
    """
    areas: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for side in range(AREA_SIDE, 0, -1):
        areas = {}
        for row, column in tiles:
            areas.setdefault((row // side, column // side), []).append((row, column))
        if len(areas) >= LEAST_AREAS:
            break
    order = np.random.default_rng(seed).permutation(len(areas))
    chosen: set[tuple[int, int]] = set()
    names = list(areas)
    for index in order:
        if len(chosen) + len(areas[names[index]]) / 2 > share * len(tiles):
            break
        chosen |= set(areas[names[index]])
    return chosen
