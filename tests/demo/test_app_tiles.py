"""Tiles in the interactive demo."""

import numpy as np
import pytest
import torch
from PIL import Image

from catseg_app.downloads import python_code, summarize
from catseg_app.segmentation import load_model, segment
from catseg_hf import EMBEDDED_MODEL
from catseg_hf.errors import UserError
from catseg_hf.visualization import draw_segmentation
from conftest import ROOT


SCENE = ROOT / "demo" / "scene.png"
LABELS = ["snow", "balloon", "water", "broccoli"]


@pytest.fixture(scope="module")
def segmenter():
    return load_model(EMBEDDED_MODEL)


def test_tiles(segmenter, tmp_path, monkeypatch):
    image, progress = Image.open(SCENE).convert("RGB"), []
    result = segment(
        segmenter, image, LABELS, tile_size=300, tile_overlap=0.4, on_tiles=lambda *numbers: progress.append(numbers)
    )
    options = {"tile_size": 300, "tile_overlap": 0.4, "return_segmentation_map": True}
    expected = segmenter(image, candidate_labels=LABELS, **options)["segmentation"]
    assert torch.equal(result.segmentation.long(), expected)
    assert progress == [(done, 9) for done in range(1, 10)]
    summary = summarize(result)
    assert (summary["tile_size"], summary["tile_overlap"]) == (300, 0.4)
    image.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    exec(python_code(result, opacity=0.4).replace("image.jpg", "image.png"), {})
    drawn = draw_segmentation(image, expected, LABELS, 0.4)
    assert np.array_equal(np.array(Image.open("overlay.png")), np.array(drawn))


def test_without_tiles(segmenter):
    result = segment(segmenter, Image.open(SCENE), LABELS)
    summary = summarize(result)
    assert summary["tile_size"] is summary["tile_overlap"] is None
    assert "tile" not in python_code(result, opacity=0.4)


def test_tiles_that_are_refused(segmenter):
    with pytest.raises(UserError, match="512 x 512 pixels .*`tile_size` is 513"):
        segment(segmenter, Image.open(SCENE), LABELS, tile_size=513)
