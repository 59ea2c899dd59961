"""The shipped model on committed scenes: the quality of everything together."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, pipeline

from catseg_hf import EMBEDDED_MODEL
from catseg_training.world.evaluation import evaluate_catseg, mean_ious, read_scenes
from catseg_training.world.words import classes, seen_words, unseen_words


SCENES = Path(__file__).parent / "fixtures" / "emoji_world"
SCORES = json.loads((SCENES / "scores.json").read_text())
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def few_scenes():
    return read_scenes(SCENES, "gate", SCORES["few"]["num_scenes"])


def assert_scores(scores: dict, committed: dict):
    for kind in ("seen", "unseen"):
        assert scores[kind] == pytest.approx(committed[kind], abs=TOLERANCE), (scores, committed)


def test_folder():
    words = json.loads((Path(EMBEDDED_MODEL) / "words.json").read_text())
    assert words == {"seen": list(seen_words()), "unseen": list(unseen_words())}
    assert sum(path.stat().st_size for path in Path(EMBEDDED_MODEL).iterdir()) < 12 * 2**20
    model = AutoModelForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL)
    assert model.dtype == torch.float32
    assert [model.config.id2label[index] for index in range(model.config.num_labels)] == list(classes())


def test_auto_classes(few_scenes):
    images, labels = few_scenes
    scores = evaluate_catseg(Path(EMBEDDED_MODEL), images, labels)
    assert_scores(scores["all_words"], SCORES["few"]["catseg"]["all_words"])
    assert_scores(scores["own_words"], SCORES["few"]["catseg"]["own_words"])


def test_pipeline_finds_words_without_masks(few_scenes):
    images, labels = few_scenes
    segmenter = pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL)
    predictions = []
    for image, label in zip(images, labels, strict=True):
        own = np.unique(label)
        names = [classes()[index] for index in own]
        result = segmenter(Image.fromarray(image), candidate_labels=names, return_segmentation_map=True)
        predictions.append(own[result["segmentation"].numpy()])
    assert_scores(mean_ious(np.stack(predictions), labels), SCORES["few"]["catseg"]["own_words"])


def test_bfloat16(few_scenes):
    images, labels = few_scenes
    model = AutoModelForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).eval()
    processor = AutoProcessor.from_pretrained(EMBEDDED_MODEL)
    half = AutoModelForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL, dtype=torch.bfloat16).eval()
    inputs = processor(images=[Image.fromarray(image) for image in images[:4]], sliding_window=False)
    with torch.no_grad():
        expected = model(inputs.pixel_values, sliding_window=False).logits.argmax(dim=1)
        found = half(inputs.pixel_values.bfloat16(), sliding_window=False).logits.argmax(dim=1)
    assert (expected == found).float().mean() > 0.9


@pytest.mark.slow
def test_all_scenes():
    images, labels = read_scenes(SCENES, "gate")
    scores = evaluate_catseg(Path(EMBEDDED_MODEL), images, labels)
    assert_scores(scores["all_words"], SCORES["all"]["catseg"]["all_words"])
