"""Weights in 8-bit integers through torchao."""

import pytest
import torch
from transformers import TorchAoConfig

from catseg_hf import (
    EMBEDDED_MODEL,
    CATSegForSemanticSegmentation,
    CATSegProcessor,
    OpenVocabularySegmentationPipeline,
)
from conftest import ROOT


torchao = pytest.importorskip("torchao.quantization", reason="the extra `quantization` is not installed")

SCENE = ROOT / "demo" / "scene.png"
LABELS = ["snow", "balloon", "water", "broccoli"]


@pytest.fixture(scope="module")
def model() -> CATSegForSemanticSegmentation:
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    return CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL, quantization_config=config)


def segment(model: CATSegForSemanticSegmentation) -> torch.LongTensor:
    processor = CATSegProcessor.from_pretrained(EMBEDDED_MODEL)
    segmenter = OpenVocabularySegmentationPipeline(model=model, processor=processor, device="cpu")
    return segmenter(SCENE, candidate_labels=LABELS, return_segmentation_map=True)["segmentation"]


def test_it_segments_as_before(model):
    expected = segment(CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL))
    assert (segment(model) == expected).float().mean() > 0.99


def test_what_is_saved_is_small_and_loads(model, tmp_path):
    model.save_pretrained(tmp_path)
    size_in_float32 = 4 * CATSegForSemanticSegmentation(model.config).num_parameters()
    assert (tmp_path / "model.safetensors").stat().st_size < 0.45 * size_in_float32
    assert torch.equal(segment(CATSegForSemanticSegmentation.from_pretrained(tmp_path)), segment(model))
