"""The shipped model on committed scenes: the quality of everything together.

    python training/emoji_world.py --output scenes --num_scenes 100 --seed 1004 --split gate

drew the scenes, whose images were then saved as JPEG; `training/evaluate_world.py` wrote their scores.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, pipeline

from catseg_hf import EMBEDDED_MODEL
from catseg_training.world.evaluation import Segmenter, evaluate_all_words, evaluate_catseg, mean_ious, read_scenes
from catseg_training.world.words import classes, seen_words, unseen_words
from conftest import FIXTURES


SCENES = FIXTURES / "emoji_world"
SCORES = json.loads((SCENES / "scores.json").read_text())
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def scenes():
    return read_scenes(SCENES, "gate")


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


def test_committed_scores_are_those_of_a_model_that_works():
    assert SCORES["catseg"]["num_scenes"] == 100
    assert SCORES["catseg"]["all_words"]["seen"] > 0.8 and SCORES["catseg"]["all_words"]["unseen"] > 0.6
    assert SCORES["catseg"]["absent_share"] < 0.02


@pytest.mark.slow
def test_model(scenes):
    scores = evaluate_catseg(Segmenter(Path(EMBEDDED_MODEL)), *scenes)
    assert_scores(scores["all_words"], SCORES["catseg"]["all_words"])
    assert_scores(scores["own_words"], SCORES["catseg"]["own_words"])
    assert scores["absent_share"] < 0.02


def test_pipeline(scenes):
    segmenter = pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL)
    predictions = []
    for image, label in zip(*scenes, strict=True):
        own = np.unique(label)
        names = [classes()[index] for index in own]
        result = segmenter(Image.fromarray(image), candidate_labels=names, return_segmentation_map=True)
        predictions.append(own[result["segmentation"].numpy()])
    assert_scores(mean_ious(np.stack(predictions), scenes[1]), SCORES["catseg"]["own_words"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sliding_window", {"sliding_window": True}),
        ("bfloat16", {"dtype": torch.bfloat16}),
        ("compiled", {"compiled": True}),
    ],
)
def test_other_ways_to_run_it(scenes, name, settings):
    scores = evaluate_all_words(Segmenter(Path(EMBEDDED_MODEL), **settings), *scenes)
    assert_scores(scores, SCORES[name]["all_words"])
