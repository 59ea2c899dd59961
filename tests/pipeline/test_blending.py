"""Tiles of an image, and the blend of their probabilities, against a literal one at full size."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from catseg_hf import tiles_catseg
from catseg_hf.tensor_ops_catseg import resize_bilinear, shrink_bilinear
from catseg_hf.tiles_catseg import (
    GridAverage,
    TileAxis,
    TileBlender,
    TileGrid,
    Window,
    blend_tiles,
    most_probable_in_bands,
)
from catseg_testing.host_waits import HostWaits


SIZES = [((301, 420), 128, 0.25), ((97, 96), 64, 0.5), ((65, 130), 64, 0.0), ((64, 200), 96, 0.3)]


@pytest.mark.parametrize("length", [8, 64, 65, 100, 127, 128, 1000])
@pytest.mark.parametrize("tile", [8, 17, 64])
@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5])
def test_tiles_of_an_axis(length, tile, overlap):
    axis = TileAxis.cover(length, tile, overlap)
    assert axis.tile == min(tile, length)
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.tile == length
    steps = [after - before for before, after in pairwise(axis.starts)]
    assert all(1 <= step <= axis.tile * (1 - overlap) for step in steps)
    assert not steps or max(steps) - min(steps) <= 1
    widest = axis.tile - int(np.ceil(overlap * axis.tile))
    assert (len(axis.starts) - 2) * widest < length - axis.tile or len(axis.starts) == 1


@pytest.mark.parametrize(("length", "tile", "overlap"), [(300, 64, 0.25), (70, 64, 0.25), (90, 64, 0.5), (64, 64, 0)])
def test_weights_fall_towards_borders_and_sum_to_one(length, tile, overlap):
    axis = TileAxis.cover(length, tile, overlap)
    total = np.zeros(length)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert (weights > 0).all()
        total[start : start + tile] += weights
    np.testing.assert_allclose(total, 1)
    assert axis.weights[0, 0] == axis.weights[-1, -1] == 1  # no other tile is there
    for before, after in pairwise(range(len(axis.starts))):
        common = axis.starts[before] + tile - axis.starts[after]
        assert (np.diff(axis.weights[before, tile - common :]) < 0).all() or len(axis.starts) > 2
        assert axis.weights[before, -1] < 0.1 and axis.weights[after, 0] < 0.1


def random_tiles(grid: TileGrid, num_classes: int = 5, side: int = 16) -> dict[tuple[int, int], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {place: torch.rand(num_classes, side, side + 1, generator=generator) for place in grid.places}


def literal_blend(grid: TileGrid, tiles: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """Every tile at its size, times its weights, in an image of all classes."""
    blended = torch.zeros(len(tiles[0, 0]), grid.rows.length, grid.columns.length, dtype=torch.float64)
    for (row, column), probabilities in tiles.items():
        top, left, height, width = grid.window(row, column)
        resized = F.interpolate(probabilities[None].double(), size=(height, width), mode="bilinear")[0]
        weights = np.outer(grid.rows.weights[row], grid.columns.weights[column])
        blended[:, top : top + height, left : left + width] += resized * torch.from_numpy(weights)
    return blended


def predictor(grid: TileGrid, tiles: dict[tuple[int, int], torch.Tensor]):
    places = {grid.window(*place): place for place in grid.places}
    return lambda windows: torch.stack([tiles[places[window]] for window in windows])


def joined(bands, size) -> tuple[torch.Tensor, torch.Tensor]:
    """What the bands hold, which must cover the image from top to bottom."""
    bands = list(bands)
    assert [band.top for band in bands] == [sum(len(b.segmentation) for b in bands[:i]) for i in range(len(bands))]
    segmentation, probability = (torch.cat([band[part] for band in bands]) for part in (1, 2))
    assert segmentation.shape == probability.shape == size
    return segmentation, probability


@pytest.mark.parametrize(("size", "tile_size", "overlap"), SIZES)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("block_side", "chunk_bytes"), [(512, 24 * 2**20), (50, 1)])
def test_the_blend_is_the_literal_one(monkeypatch, size, tile_size, overlap, batch_size, block_side, chunk_bytes):
    monkeypatch.setattr(tiles_catseg, "BLOCK_SIDE", block_side)
    monkeypatch.setattr(tiles_catseg, "MAX_CPU_CHUNK_BYTES", chunk_bytes)
    grid = TileGrid.cover(size, tile_size, overlap)
    tiles = random_tiles(grid)
    expected = literal_blend(grid, tiles)
    segmentation, probability = joined(blend_tiles(grid, predictor(grid, tiles), batch_size), size)
    best = expected.amax(dim=0)
    torch.testing.assert_close(probability.double(), best, atol=1e-6, rtol=0)
    # Another class than the literal one's is as probable.
    chosen = expected.gather(0, segmentation[None].long())[0]
    torch.testing.assert_close(chosen, best, atol=1e-6, rtol=0)
    assert (segmentation == expected.argmax(dim=0)).float().mean() > 0.999


def test_any_rectangle_can_be_asked_for():
    """Also with a margin, as a filter of the probabilities needs it."""
    grid = TileGrid.cover((200, 220), 96, 0.25)
    tiles, blender = random_tiles(grid), TileBlender(grid)
    for place, probabilities in tiles.items():
        blender.add(*place, probabilities.clone())
    expected = literal_blend(grid, tiles)[:, 60:150, 40:210].float()
    torch.testing.assert_close(blender.blend(Window(60, 40, 90, 170)), expected, atol=1e-6, rtol=0)
    chosen = torch.tensor([3, 1])
    torch.testing.assert_close(blender.blend(Window(60, 40, 90, 170), chosen), expected[chosen], atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
def test_a_class_may_win_in_the_blend_alone(monkeypatch, chunk_bytes):
    """It is second in each of two tiles, whose winners lose in the other one."""
    monkeypatch.setattr(tiles_catseg, "MAX_CPU_CHUNK_BYTES", chunk_bytes)
    grid = TileGrid.cover((64, 96), 64, 0.5)
    tiles = {place: torch.full((40, 4, 4), 0.01) for place in grid.places}
    tiles[0, 0][[3, 20]] = torch.tensor([0.9, 0.6]).view(2, 1, 1)
    tiles[0, 1][[7, 20]] = torch.tensor([0.9, 0.6]).view(2, 1, 1)
    segmentation, _ = joined(blend_tiles(grid, predictor(grid, tiles)), (64, 96))
    assert segmentation[0].unique().tolist() == [3, 7, 20]
    assert (segmentation[:, 44:52] == 20).all()


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])
def test_the_first_of_equal_classes_wins(monkeypatch, chunk_bytes):
    monkeypatch.setattr(tiles_catseg, "MAX_CPU_CHUNK_BYTES", chunk_bytes)
    grid = TileGrid.cover((70, 90), 40, 0.25)
    tiles = {place: torch.zeros(6, 4, 4) for place in grid.places}
    for probabilities in tiles.values():
        probabilities[[2, 4]] = 0.5
    segmentation, _ = joined(blend_tiles(grid, predictor(grid, tiles)), (70, 90))
    assert (segmentation == 2).all()


def held_values(blender: TileBlender) -> int:
    return sum(tile.maps.untyped_storage().nbytes() // 4 for tile in blender._tiles.values())


@pytest.mark.parametrize("rows", [3, 9])
def test_what_is_kept_does_not_grow_with_the_height(monkeypatch, rows):
    grid = TileGrid.cover((64 + 48 * (rows - 1), 64 + 48 * 7), 64, 0.25)
    tiles = random_tiles(grid)
    kept, forget = [], TileBlender.forget

    def record(self, row, column):
        forget(self, row, column)
        kept.append(held_values(self))

    monkeypatch.setattr(TileBlender, "forget", record)
    for _ in blend_tiles(grid, lambda windows: predictor(grid, tiles)(windows).clone()):
        pass
    # A row of eight tiles has 8 of these; a third of each is overlapped by the next row, and the last two are whole.
    of_a_tile = tiles[0, 0].numel()
    assert max(kept) <= (8 * 6 / 16 + 2 + 6 / 16) * of_a_tile
    assert kept[-1] == 0


def test_tiles_are_begun_before_a_band_is_waited_for():
    grid = TileGrid.cover((160, 112), 64, 0.25)
    tiles, events = random_tiles(grid), []

    def predict(windows):
        events.append(len(windows))
        return predictor(grid, tiles)(windows)

    for band in blend_tiles(grid, predict, 4, on_tiles=lambda done, total: events.append(f"{done} of {total}")):
        events.append(f"rows from {band.top}")
    assert events == [4, "4 of 6", 2, "rows from 0", "rows from 48", "6 of 6", "rows from 96"]


def test_an_accelerator_is_waited_for_once_a_band():
    grid = TileGrid.cover((160, 400), 64, 0.25)
    predict = predictor(grid, random_tiles(grid))
    with HostWaits() as host:
        num_bands = sum(1 for _ in blend_tiles(grid, predict, 2, average=GridAverage(grid, 10**6)))
    assert num_bands == 3
    assert [wait.split(":")[0] for wait in host.waits] == ["cpu", "cpu"] * num_bands, host.waits


@pytest.mark.parametrize(("size", "tile_size", "overlap"), SIZES)
def test_average(size, tile_size, overlap):
    grid = TileGrid.cover(size, tile_size, overlap)
    tiles = random_tiles(grid)
    blended = literal_blend(grid, tiles)
    for max_numel in (10**9, 500):
        average = GridAverage(grid, max_numel)
        for place, probabilities in tiles.items():
            average.add(*place, probabilities)
        shape = average.probabilities.shape
        if max_numel == 500:
            assert 100 < average.probabilities.numel() <= 500
        else:
            assert shape[1:] == (size[0] * 16 // grid.rows.tile, size[1] * 17 // grid.columns.tile)
        # Means over parts of pixels are those of rows, and of columns, each of which is repeated.
        expected = blended.repeat_interleave(shape[1], dim=1).unflatten(1, (shape[1], -1)).mean(dim=2)
        expected = expected.repeat_interleave(shape[2], dim=2).unflatten(2, (shape[2], -1)).mean(dim=3).float()
        torch.testing.assert_close(average.probabilities, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(600, 90), (33, 1100), (5, 7)])
def test_bands_of_an_image_without_tiles(size):
    probabilities = torch.rand(4, 24, 20, generator=torch.Generator().manual_seed(0))
    expected = resize_bilinear(probabilities[None], size)[0]
    segmentation, probability = joined(most_probable_in_bands(probabilities.clone(), size), size)
    torch.testing.assert_close(probability, expected.amax(dim=0), atol=1e-5, rtol=0)
    assert (segmentation == expected.argmax(dim=0)).float().mean() > 0.999


@pytest.mark.parametrize("size", [(7, 9), (50, 60), (80, 128), (200, 3)])
def test_large_images_are_made_small(size):
    pixels = torch.randint(256, (3, 80, 120), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = resize_bilinear(pixels.float()[None], size)[0]
    torch.testing.assert_close(shrink_bilinear(pixels, size), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("overlap", [0.25, 0.5])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_going_on_at_a_row_gives_the_same_bits(overlap, batch_size):
    """Of tiles in the same batches, and of no more of them than reach into its band."""
    grid = TileGrid.cover((219, 150), 64, overlap)
    tiles, batches = random_tiles(grid), []

    def predict(windows):
        batches.append(tuple(windows))
        return predictor(grid, tiles)(windows)

    whole = list(blend_tiles(grid, predict, batch_size))
    all_batches, num_rows = batches.copy(), len(grid.rows.starts)
    for row in range(num_rows):
        batches.clear()
        bands = list(blend_tiles(grid, predict, batch_size, first_row=row))
        assert [band.top for band in bands] == list(grid.rows.starts[row:])
        for band, expected in zip(bands, whole[row:], strict=True):
            assert torch.equal(band.segmentation, expected.segmentation)
            assert torch.equal(band.probability, expected.probability)
        assert batches == all_batches[-len(batches) :]
        assert any(window.top + window.height > grid.rows.starts[row] for window in batches[0])


def test_cells_are_shown_while_their_tiles_are_there():
    grid = TileGrid.cover((150, 130), 64, 0.25)
    tiles, cells = random_tiles(grid), []

    def look(blender, window):
        cells.append(window)
        torch.testing.assert_close(blender.blend(window).max(dim=0).values, blender.most_probable(window)[1])

    (*_, last) = blend_tiles(grid, predictor(grid, tiles), 4, on_cell=look, first_row=1)
    assert sum(cell.height * cell.width for cell in cells) == (150 - grid.rows.starts[1]) * 130
    assert cells[-1].top == last.top
