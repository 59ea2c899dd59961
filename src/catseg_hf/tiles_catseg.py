"""Images larger than one view: overlapping tiles, whose probabilities are blended to those of the image.

The resize from the model's grid to a tile and the weights of the blend are linear, and work on rows and on columns
apart. Hence the smaller maps of the model are all that is kept of a tile, and only as many of their rows as later
tiles overlap; the probabilities of the image are made of them rectangle by rectangle.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from typing_extensions import Self

from .bands_catseg import Band, Window
from .guided_upsampling_catseg import apply_functions, fit_functions
from .tensor_ops_catseg import bilinear_weights


DEFAULT_TILE_OVERLAP = 0.25
# Sides of the rectangles that are worked on at once, and what the probabilities of classes in one may take.
BLOCK_SIDE = 512
MAX_CHUNK_BYTES, MAX_CPU_CHUNK_BYTES = 128 * 2**20, 24 * 2**20
# Processors are many times slower on numbers as small as the products of weights and the probabilities of classes that
# were cut away.
LEAST_PROBABILITY = 2.0**-60
# By how much, relatively, rounding may move what is blended, at most.
ROUNDING = 1e-4


@dataclass(frozen=True)
class TileAxis:
    """
    Tiles along one side of an image: evenly spread, the first from its beginning, the last to its end.

    Attributes:
        length (`int`), tile (`int`): Pixels of the side, and of each tile along it.
        starts (`tuple[int, ...]`): The first pixel of each tile, ascending.
    """

    length: int
    tile: int
    starts: tuple[int, ...]

    @classmethod
    def cover(cls, length: int, tile: int, overlap: float) -> Self:
        """As few tiles of `tile` pixels as cover `length` and overlap by a share of `overlap` of them at least; one of
        `length` pixels where that is less."""
        tile = min(tile, length)
        step = max(1, tile - math.ceil(overlap * tile))
        gaps = -(-(length - tile) // step)
        return cls(length, tile, tuple(index * (length - tile) // max(1, gaps) for index in range(gaps + 1)))

    @property
    def edges(self) -> tuple[int, ...]:
        """Where the pixels begin that no tile before this one covers further down, and the end: those between two
        edges are covered by the tiles up to the first of them."""
        return (*self.starts, self.length)

    @cached_property
    def weights(self) -> np.ndarray:
        """What each tile counts at each of its pixels, in shape (tiles, tile): less towards its ends, and at every
        pixel 1 in sum over the tiles."""
        places = np.arange(self.tile) + 0.5
        ramp = np.minimum(places, self.tile - places)
        total = np.zeros(self.length)
        for start in self.starts:
            total[start : start + self.tile] += ramp
        return np.stack([ramp / total[start : start + self.tile] for start in self.starts])


@dataclass(frozen=True)
class TileGrid:
    """The tiles of an image, row by row; `rows` and `columns` are the [`TileAxis`] of its height and of its width."""

    rows: TileAxis
    columns: TileAxis

    @classmethod
    def cover(cls, size: tuple[int, int], tile_size: int, overlap: float = DEFAULT_TILE_OVERLAP) -> Self:
        """
        Args:
            size (`tuple[int, int]`): Height and width of the image in pixels.
            tile_size (`int`): Height and width of a tile; where the image is less, so is the tile.
            overlap (`float`): Of neighbouring tiles, at least, as a share of a tile in 0..0.5.
        """
        return cls(*(TileAxis.cover(length, tile_size, overlap) for length in size))

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Self:
        """The grid of one tile."""
        return cls.cover(size, max(size), 0.0)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column of every tile."""
        return [(row, column) for row in range(len(self.rows.starts)) for column in range(len(self.columns.starts))]

    def window(self, row: int, column: int) -> Window:
        """Where a tile lies."""
        return Window(self.rows.starts[row], self.columns.starts[column], self.rows.tile, self.columns.tile)


@dataclass
class _Tile:
    """Maps (N, T, h - `first_row`, w) of a tile, those of the model's rows from `first_row` on: probabilities, and
    what `fit_functions` adds to them where borders follow the image's."""

    maps: torch.Tensor
    first_row: int = 0


class TileBlender:
    """
    Probabilities of an image, of those of its tiles that have been added.

    Args:
        grid ([`TileGrid`]): The tiles.
        guide (`Callable`, *optional*): Returns the image's pixels (3, height, width) in a [`Window`], in RGB, on the
            device of the probabilities, whose borders then follow the image's (see
            [`~guided_upsampling_catseg.most_probable_guided_class`]).
    """

    def __init__(self, grid: TileGrid, guide: Callable[[Window], torch.Tensor] | None = None):
        self.grid, self.guide = grid, guide
        self._tiles: dict[tuple[int, int], _Tile] = {}
        self._source = (0, 0)

    def add(self, row: int, column: int, probabilities: torch.Tensor):
        """Takes the probabilities (T, h, w), in 0..1, of a tile, of any size but the same for all. It keeps them, and
        raises those of float32 that are next to nothing."""
        maps = probabilities.float().clamp_(min=LEAST_PROBABILITY)[None]
        if self.guide is not None:
            maps = fit_functions(maps[0], self.guide(self.grid.window(row, column)))
        self._tiles[row, column] = _Tile(maps)
        self._source = tuple(maps.shape[-2:])

    def blend(self, window: Window, classes: "slice | torch.Tensor" = slice(None)) -> torch.Tensor:
        """The probabilities (T, height, width) of some classes in a rectangle, all of whose tiles are there."""
        return self._blend(self._factors(window), classes, self._guide(window))

    def most_probable(self, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """The most probable class of every pixel of a rectangle, the first one of several, and its probability: two
        tensors of shape (height, width). Works on a few classes at a time."""
        factors, guide = self._factors(window), self._guide(window)
        num_maps, num_classes = factors[1].shape[:2]
        device = factors[1].device
        on_cpu = device.type == "cpu"
        max_bytes = MAX_CPU_CHUNK_BYTES if on_cpu else MAX_CHUNK_BYTES
        max_classes = max(1, max_bytes // (4 * num_maps * window.height * window.width))

        def best_of(candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            segmentation, best = None, None
            for indices in candidates.split(max_classes):
                scores, places = self._blend(factors, indices, guide).max(dim=0)
                found = indices[places]
                if best is None:
                    segmentation, best = found, scores
                else:
                    segmentation = torch.where(scores > best, found, segmentation)
                    best = torch.maximum(scores, best)
            return segmentation, best

        candidates = torch.arange(num_classes, dtype=torch.int32, device=device)
        # Elsewhere it would have to be waited for.
        if on_cpu and guide is not None:
            candidates = self._winners(window)
        elif on_cpu and num_classes > max_classes:
            (probabilities,) = factors[1]
            winners = probabilities.argmax(dim=0).unique().int()
            least = best_of(winners)[1].min() * (1 - ROUNDING)
            candidates = candidates[probabilities.flatten(1).amax(dim=1) >= least]
        return best_of(candidates)

    def _guide(self, window: Window) -> torch.Tensor | None:
        return None if self.guide is None else self.guide(window)

    def _blend(
        self,
        factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        classes: "slice | torch.Tensor",
        guide: torch.Tensor | None,
    ) -> torch.Tensor:
        rows, maps, columns = factors
        if guide is None:
            return rows @ (maps[0, classes] @ columns)
        return apply_functions(rows @ (maps[1:, classes] @ columns), guide).clamp_(0, 1)

    def _winners(self, window: Window) -> torch.Tensor:
        """The classes that are the most probable ones somewhere in the tiles of a rectangle."""
        grid = self.grid
        indices = [
            [index for index, *_ in _parts(axis, 1, start, start + length)]
            for axis, start, length in (
                (grid.rows, window.top, window.height),
                (grid.columns, window.left, window.width),
            )
        ]
        winners = [self._tiles[place].maps[0].argmax(dim=0).flatten() for place in product(*indices)]
        return torch.cat(winners).unique().int()

    def forget(self, row: int, column: int):
        """Gives up what no rectangle needs that begins below or right of cell (`row`, `column`): of the tiles that end
        there all but the rows that those of the next row overlap."""
        next_top, next_left = self.grid.rows.edges[row + 1], self.grid.columns.edges[column + 1]
        for place in list(self._tiles):
            window, tile = self.grid.window(*place), self._tiles[place]
            if window.left + window.width > next_left:
                continue
            if window.top + window.height <= next_top:
                del self._tiles[place]
                continue
            first = _first_source(self._source[0], window.height, next_top - window.top)
            if first > tile.first_row:
                self._tiles[place] = _Tile(tile.maps[:, :, first - tile.first_row :].clone(), first)

    def _factors(self, window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three factors whose product is the maps of a rectangle: what its rows take, (height, n), the maps of the
        tiles, (N, T, n, m), and what its columns take, (m, width)."""
        grid = self.grid
        row_parts = _parts(grid.rows, self._source[0], window.top, window.top + window.height)
        column_parts = _parts(grid.columns, self._source[1], window.left, window.left + window.width)
        strips = []
        for row, first_row, rows in row_parts:
            strip = []
            for column, first_column, columns in column_parts:
                tile = self._tiles[row, column]
                top = first_row - tile.first_row
                part = tile.maps[..., top : top + rows.shape[1], first_column : first_column + columns.shape[1]]
                strip.append(part)
            strips.append(torch.cat(strip, dim=-1))
        maps = torch.cat(strips, dim=-2)
        rows, columns = (
            torch.from_numpy(np.concatenate([matrix for _, _, matrix in parts], axis=1))
            .to(maps.dtype)
            .to(maps.device, non_blocking=True)
            for parts in (row_parts, column_parts)
        )
        return rows, maps, columns.T


def blend_tiles(
    grid: TileGrid,
    predict: Callable[[Sequence[Window]], torch.Tensor],
    batch_size: int = 1,
    on_tiles: Callable[[int, int], None] | None = None,
    average: "GridAverage | None" = None,
    guide: Callable[[Window], torch.Tensor] | None = None,
    first_row: int = 0,
    on_cell: Callable[[TileBlender, Window], None] | None = None,
) -> Iterator[Band]:
    """
    Segments an image tile by tile. What is held at a time does not depend on its height.

    Args:
        grid ([`TileGrid`]): Its tiles.
        predict (`Callable`): Returns the probabilities `(B, T, h, w)`, in 0..1, of the B tiles that lie in some
            windows, on any device. It is called for row after row of tiles, from the left to the right.
        batch_size (`int`, *optional*, defaults to 1): How many windows it gets at a time.
        on_tiles (`Callable`, *optional*): Is called after each batch with how many tiles it has been called for, and
            how many there are.
        average ([`GridAverage`], *optional*): What to add every tile to as well.
        guide (`Callable`, *optional*): As [`TileBlender`] takes it.
        first_row (`int`, *optional*, defaults to 0): The row of tiles whose band is the first to be made, to go on
            where an earlier call was stopped. Tiles above it that reach into the band are predicted again, in the
            same batches.
        on_cell (`Callable`, *optional*): Is called for every rectangle of a band, from the left to the right, with
            the blender, whose tiles are those that the rectangle needs, and the [`Window`].

    Returns:
        An iterator of [`Band`], from top to bottom, on the CPU. The next tiles are begun before a band is waited for.
    """
    blender = TileBlender(grid, guide)
    finished: list[Band] = []
    band = None
    places, least_row = grid.places, _first_needed(grid.rows, first_row)
    first = places.index((least_row, 0))
    for start in range(first - first % batch_size, len(places), batch_size):
        batch = places[start : start + batch_size]
        probabilities = predict([grid.window(*place) for place in batch])
        yield from _to_host(finished)
        finished = []
        for (row, column), of_tile in zip(batch, probabilities, strict=True):
            if row < least_row:
                continue
            blender.add(row, column, of_tile)
            if average is not None:
                average.add(row, column, of_tile)
            if row < first_row:
                blender.forget(row, column)
                continue
            cell = _cell(grid, row, column)
            if on_cell is not None:
                on_cell(blender, cell)
            if band is None:
                shape, device = (cell.height, grid.columns.length), of_tile.device
                band = Band(
                    cell.top, torch.empty(shape, dtype=torch.int32, device=device), torch.empty(shape, device=device)
                )
            _fill(band, blender, cell)
            blender.forget(row, column)
            if column + 1 == len(grid.columns.starts):
                finished.append(band)
                band = None
        del probabilities, of_tile
        if on_tiles is not None:
            on_tiles(start + len(batch), len(places))
    yield from _to_host(finished)


def most_probable_in_bands(probabilities: torch.Tensor, size: tuple[int, int]) -> Iterator[Band]:
    """The arg max over T of probabilities (T, h, w), in 0..1, resized to `size` (height, width) in pixels with
    bilinear, row by row of an image that is too large to be held at once. On the device of the probabilities."""
    blender = TileBlender(TileGrid.whole(size))
    blender.add(0, 0, probabilities)
    for top, height in _split(0, size[0]):
        parts = [blender.most_probable(Window(top, left, height, width)) for left, width in _split(0, size[1])]
        yield Band(top, *(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


class GridAverage:
    """
    The image's probabilities at a resolution of their own: means over its pixels.

    Args:
        grid ([`TileGrid`]): The tiles.
        max_numel (`int`): How many probabilities there are at most. Up to that, their resolution is the one that the
            model gives a tile.
    """

    def __init__(self, grid: TileGrid, max_numel: int):
        self.grid, self.max_numel = grid, max_numel
        self.probabilities: torch.Tensor | None = None

    def add(self, row: int, column: int, probabilities: torch.Tensor):
        """Takes the probabilities (T, h, w), in 0..1, of a tile."""
        if self.probabilities is None:
            self.probabilities = probabilities.new_zeros(*self._shape(probabilities), dtype=torch.float32)
        parts, factors = [], []
        for axis, index, source, cells in zip(
            (self.grid.rows, self.grid.columns),
            (row, column),
            probabilities.shape[1:],
            self.probabilities.shape[1:],
            strict=True,
        ):
            start = axis.starts[index]
            first_cell, means = _means(axis.length, cells, start, start + axis.tile)
            first, resized = bilinear_weights(source, axis.tile, 0, axis.tile)
            matrix = torch.from_numpy(means @ (resized * axis.weights[index, :, None])).float()
            parts.append((slice(first_cell, first_cell + len(means)), slice(first, first + resized.shape[1])))
            factors.append(matrix.to(probabilities.device, non_blocking=True))
        (own_rows, source_rows), (own_columns, source_columns) = parts
        rows, columns = factors
        resized = rows @ (probabilities[:, source_rows, source_columns].float() @ columns.T)
        self.probabilities[:, own_rows, own_columns] += resized

    def _shape(self, probabilities: torch.Tensor) -> tuple[int, int, int]:
        num_classes, *source = probabilities.shape
        axes = (self.grid.rows, self.grid.columns)
        sides = [axis.length * side / axis.tile for axis, side in zip(axes, source, strict=True)]
        scale = min(1.0, (self.max_numel / (num_classes * sides[0] * sides[1])) ** 0.5)
        height, width = (max(1, int(side * scale)) for side in sides)
        return num_classes, height, width


def _to_host(bands: Sequence[Band]) -> Iterator[Band]:
    for top, segmentation, probability in bands:
        yield Band(top, segmentation.cpu(), probability.cpu())


def _fill(band: Band, blender: TileBlender, cell: Window):
    """Writes what [`TileBlender.most_probable`] gives for a rectangle into the band that it lies in."""
    for block in blocks(cell):
        top = block.top - band.top
        place = slice(top, top + block.height), slice(block.left, block.left + block.width)
        band.segmentation[place], band.probability[place] = blender.most_probable(block)


def blocks(window: Window) -> Iterator[Window]:
    """The parts of a rectangle, of at most `BLOCK_SIDE` pixels a side, row by row."""
    for top, height in _split(window.top, window.top + window.height):
        for left, width in _split(window.left, window.left + window.width):
            yield Window(top, left, height, width)


def _cell(grid: TileGrid, row: int, column: int) -> Window:
    """Where the pixels lie from the beginning of a tile to those of the next ones, which no later tile covers."""
    (top, bottom), (left, right) = (
        axis.edges[index : index + 2] for axis, index in ((grid.rows, row), (grid.columns, column))
    )
    return Window(top, left, bottom - top, right - left)


def _first_needed(axis: TileAxis, index: int) -> int:
    """The first tile that reaches beyond where tile `index` begins."""
    return next(place for place, start in enumerate(axis.starts) if start + axis.tile > axis.starts[index])


def _split(start: int, stop: int) -> list[tuple[int, int]]:
    """Beginnings and lengths of parts of at most `BLOCK_SIDE`."""
    return [(first, min(BLOCK_SIDE, stop - first)) for first in range(start, stop, BLOCK_SIDE)]


def _parts(axis: TileAxis, source: int, start: int, stop: int) -> list[tuple[int, int, np.ndarray]]:
    """For every tile that covers some of the pixels from `start` to `stop`: its index, the first of its `source`
    values that count there, and what each pixel takes of these and those after it, in shape (pixels, values)."""
    parts = []
    for index, tile_start in enumerate(axis.starts):
        low, high = max(start, tile_start), min(stop, tile_start + axis.tile)
        if low < high:
            own = slice(low - tile_start, high - tile_start)
            first, matrix = bilinear_weights(source, axis.tile, own.start, own.stop)
            weighted = np.zeros((stop - start, matrix.shape[1]))
            weighted[low - start : high - start] = matrix * axis.weights[index, own, None]
            parts.append((index, first, weighted))
    return parts


def _first_source(source: int, size: int, place: int) -> int:
    """The first of `source` values that a resize to `size` uses from `place` on."""
    return max(0, int((place + 0.5) * source / size - 0.5))


def _means(length: int, cells: int, start: int, stop: int) -> tuple[int, np.ndarray]:
    """What the pixels from `start` to `stop` add to means over `cells` equal parts of `length` pixels: the first part
    that they lie in, and a matrix of shape (parts, stop - start)."""
    size = length / cells
    first, last = int(start / size), min(cells, math.ceil(stop / size))
    lows = np.arange(first, last)[:, None] * size
    pixels = np.arange(start, stop)
    covered = np.minimum(lows + size, pixels + 1) - np.maximum(lows, pixels)
    return first, np.maximum(covered, 0) / size
