"""Guided upsampling of images in tiles, and of large ones band by band."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import pipeline

from catseg_hf import EMBEDDED_MODEL, pipeline_catseg, tiles_catseg
from catseg_hf.bands_catseg import Window
from catseg_hf.guided_upsampling_catseg import as_guide, fit_functions
from catseg_hf.tiles_catseg import TileBlender, TileGrid
from catseg_training.world.evaluation import mean_ious, read_scenes
from catseg_training.world.words import classes
from conftest import FIXTURES, ROOT


SCENE = ROOT / "demo" / "scene.png"
LABELS = ["snow", "balloon", "water", "broccoli"]


@pytest.fixture(scope="module")
def segmenter():
    return partial(
        pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL),
        upsampling="guided",
        return_segmentation_map=True,
    )


@pytest.fixture(scope="module")
def image():
    return Image.open(SCENE).convert("RGB").resize((200, 150))


def crop(guide: torch.Tensor, window: Window) -> torch.Tensor:
    top, left, height, width = window
    return guide[:, top : top + height, left : left + width]


def test_functions_of_tiles_are_blended(image):
    """Each tile's linear functions, resized to it and applied to its colours, times its weights."""
    guide, grid = as_guide(image), TileGrid.cover((150, 200), 96, 0.25)
    generator = torch.Generator().manual_seed(0)
    blender, expected = TileBlender(grid, partial(crop, guide)), torch.zeros(4, 150, 200)
    for place in grid.places:
        # Soft, so that nothing is cut at 0 and 1.
        probabilities = 0.4 + 0.2 * torch.rand(4, 12, 12, generator=generator)
        window = grid.window(*place)
        blender.add(*place, probabilities.clone())
        *slopes, intercept = F.interpolate(fit_functions(probabilities, crop(guide, window))[1:], 96, mode="bilinear")
        colours = crop(guide, window) / 255 - 0.5
        values = sum(slope * colour for slope, colour in zip(slopes, colours, strict=True)) + intercept
        weights = np.outer(grid.rows.weights[place[0]], grid.columns.weights[place[1]])
        crop(expected, window).add_(values * torch.from_numpy(weights).float())
    window = Window(20, 30, 110, 140)
    torch.testing.assert_close(blender.blend(window), crop(expected, window), atol=1e-5, rtol=0)
    segmentation, probability = blender.most_probable(window)
    assert (segmentation == crop(expected, window).argmax(dim=0)).float().mean() > 0.999
    torch.testing.assert_close(probability, crop(expected, window).amax(dim=0), atol=1e-5, rtol=0)


def test_a_tile_that_covers_the_image_changes_no_bit(segmenter, image):
    expected = segmenter(image, LABELS)["segmentation"]
    assert torch.equal(segmenter(image, LABELS, tile_size=200)["segmentation"], expected)


def test_tiles_gain_at_borders(segmenter):
    scenes, labels = read_scenes(FIXTURES / "emoji_world", "gate", 4)
    mosaic, truth = (
        np.concatenate([np.concatenate(maps[:2], axis=1), np.concatenate(maps[2:], axis=1)])
        for maps in (scenes, labels)
    )
    scores = {}
    for upsampling in ("bilinear", "guided"):
        result = segmenter(Image.fromarray(mosaic), list(classes()), tile_size=128, upsampling=upsampling)
        scores[upsampling] = mean_ious(result["segmentation"].numpy()[None], truth[None])["seen"]
    assert scores["guided"] > scores["bilinear"] + 0.02, scores


@pytest.mark.parametrize("block_side", [512, 40])
def test_blocks_change_nothing(segmenter, image, block_side, monkeypatch):
    expected = segmenter(image, LABELS, tile_size=96)["segmentation"]
    monkeypatch.setattr(tiles_catseg, "BLOCK_SIDE", block_side)
    found = segmenter(image, LABELS, tile_size=96)["segmentation"]
    assert (found == expected).float().mean() > 0.999


@pytest.mark.parametrize("options", [{}, {"threshold": 0.6}, {"background_labels": "corn"}])
def test_large_images_are_counted_by_bands(segmenter, options, monkeypatch):
    expected = segmenter(str(SCENE), LABELS, **options)
    monkeypatch.setattr(pipeline_catseg, "is_large", lambda size: True)
    found = segmenter(str(SCENE), LABELS, **options)
    assert torch.equal(found["segmentation"], expected["segmentation"])
    for segment, wanted in zip(found["segments"], expected["segments"], strict=True):
        assert segment["label"] == wanted["label"] and segment["score"] == pytest.approx(wanted["score"], abs=1e-6)
