"""What GeoDeep reads of `--target gis`, as tests/export/peers/geodeep.sh wrote it down."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.class_words_catseg import read_classes
from conftest import ROOT


pytest.importorskip("transformers.exporters", reason="transformers has no exporters before 5.24")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("rasterio")
fixed = pytest.importorskip("catseg_hf.export.fixed")

from catseg_hf.export.graphs import load  # noqa: E402
from catseg_hf.export.metadata import artefact_metadata, gis_metadata  # noqa: E402
from catseg_testing.gis import RESOLUTION, scene, words  # noqa: E402


PEERS = ROOT / "tests" / "export" / "peers"


@pytest.fixture(scope="module")
def loaded():
    return load(EMBEDDED_MODEL)


def test_geodeep_reads_the_metadata(loaded):
    model, processor = loaded
    read = json.loads((PEERS / "geodeep.json").read_text())
    metadata = artefact_metadata(model, processor, read_classes(words()), "embedded", EMBEDDED_MODEL)
    written = gis_metadata(metadata, RESOLUTION)
    for name in ("model_type", "class_names", "resolution", "tiles_overlap", "seg_thresh", "seg_small_segment"):
        assert read[name] == written[name], name
    assert read["tiles_size"] == written["tile_size"] and read["input_shape"] == [1, 3, 128, 128]
    assert written["licence"] == "mit"


@torch.no_grad()
def test_geodeep_finds_the_classes(loaded):
    """It takes the arg max, and then the median of the classes around every pixel."""
    model, processor = loaded
    names = words()
    text_embeds = model.get_text_embeds(processor(text=names).input_ids)
    module = fixed.GisSegmenter(model, text_embeds, read_classes(names), processor).eval()
    probabilities = module(torch.from_numpy(scene())[None] / 255)["probabilities"]
    classes = probabilities[0].argmax(dim=0).numpy().astype(np.uint8)
    found = np.asarray(Image.open(PEERS / "geodeep.png"))
    assert len(np.unique(found)) > 2
    assert (cv2.medianBlur(classes, 5) == found).mean() > 0.999
