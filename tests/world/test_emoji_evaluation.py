"""Scores of the emoji world's models: a CLIP on its own, and the command that scores anything."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import evaluate_world
from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor
from catseg_hf.guided_upsampling_catseg import UPSAMPLINGS
from catseg_training.boundary_iou import BoundaryIou
from catseg_training.world.captions import PROMPT
from catseg_training.world.evaluation import boundary_ious, evaluate_clip, mean_ious, read_scenes
from catseg_training.world.folders import NO_CLASS
from catseg_training.world.pretraining import pixel_values, validate
from catseg_training.world.scenes import Scene
from catseg_training.world.scoring import word_iou
from catseg_training.world.words import classes, seen_words, unseen_words
from conftest import FIXTURES


SCENES = FIXTURES / "emoji_world"
NUM_SCENES = 20


@pytest.fixture(scope="module")
def model():
    return CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return CATSegProcessor.from_pretrained(EMBEDDED_MODEL).tokenizer


@pytest.fixture(scope="module")
def clip_folder(model, tokenizer, tmp_path_factory):
    """The shipped model's CLIP, as pretrain_clip.py would have saved it."""
    folder = tmp_path_factory.mktemp("clip")
    model.clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes():
    return read_scenes(SCENES, "gate", NUM_SCENES)


@pytest.fixture(scope="module")
def word_ids(tokenizer):
    return tokenizer([PROMPT.format(word) for word in classes()], padding=True, return_tensors="pt").input_ids


@pytest.fixture(scope="module")
def cost(model, scenes, word_ids):
    """The cost volume `(N, T, H, W)` as the whole model returns it, at the size of the scenes."""
    with torch.no_grad():
        cost = model.catseg(pixel_values(scenes[0]), input_ids=word_ids).cost_volume[:, 0]
    return interpolate(cost, size=scenes[1].shape[1:], mode="bilinear")


@pytest.mark.slow
def test_evaluate_clip(clip_folder, scenes, cost):
    labels = scenes[1]
    own_words = []
    for maps, label in zip(cost, labels, strict=True):
        absent = ~np.isin(np.arange(len(classes())), label)
        own_words.append(maps.masked_fill(torch.from_numpy(absent)[:, None, None], -1).argmax(dim=0).numpy())
    expected = {
        "all_words": mean_ious(cost.argmax(dim=1).numpy(), labels),
        "own_words": mean_ious(np.stack(own_words), labels),
    }
    scores = evaluate_clip(clip_folder, *scenes)
    for vocabulary, values in expected.items():
        assert scores[vocabulary] == pytest.approx(values, abs=1e-3)
        assert min(values.values()) > 0.4


@torch.no_grad()
def test_validation(model, tokenizer, word_ids, scenes, cost):
    captions = [", ".join(classes()[index] for index in np.unique(labels)) for labels in scenes[1]]
    # No class, words without masks and captions of other images, so that every score has something to leave out.
    labels = np.where(scenes[1] == classes().index(seen_words()[0]), NO_CLASS, scenes[1])
    captions[:2] = captions[1::-1]
    words = [[classes()[index] for index in np.unique(label)] for label in scenes[1]]
    examples = [Scene(*fields) for fields in zip(scenes[0], labels, words, captions, strict=True)]
    scores = validate(model.clip, tokenizer, word_ids, examples)
    model.clip.eval()

    ious = word_iou(cost.argmax(dim=1).numpy(), labels)
    for name, subset in (("seen_miou", seen_words()), ("unseen_miou", unseen_words())):
        assert scores[name] == pytest.approx(np.nanmean([ious[word] for word in subset]), abs=1e-3)
    assert scores["seen_miou"] != scores["unseen_miou"]
    inputs = tokenizer(captions, padding=True, return_tensors="pt")
    nearest = model.clip(pixel_values=pixel_values(scenes[0]), **inputs).logits_per_image.argmax(dim=-1)
    correct = (nearest == torch.arange(NUM_SCENES)).float().mean().item()
    assert scores["retrieval_accuracy"] == pytest.approx(correct) and 0.5 < correct < 1


def test_command(clip_folder, tmp_path, capsys):
    file = tmp_path / "results.json"
    common = ["--scenes", str(SCENES), "--split", "gate", "--num_scenes", "3", "--json", str(file)]
    assert evaluate_world.main([*common, "--name", "clip", "--clip", str(clip_folder)]) == 0
    assert evaluate_world.main([*common, "--name", "catseg", "--model", EMBEDDED_MODEL]) == 0
    assert evaluate_world.main([*common, "--name", "short", "--model", EMBEDDED_MODEL, "--all_words_only"]) == 0
    results = json.loads(file.read_text())
    assert {name: set(scores) for name, scores in results.items()} == {
        "clip": {"num_scenes", "all_words", "own_words"},
        "catseg": {"num_scenes", "all_words", "own_words", "absent_share"},
        "short": {"num_scenes", "all_words"},
    }
    assert all(scores["num_scenes"] == 3 for scores in results.values())
    assert results["short"]["all_words"] == results["catseg"]["all_words"]
    assert results["clip"] == {"num_scenes": 3, **evaluate_clip(clip_folder, *read_scenes(SCENES, "gate", 3))}
    assert set(results["catseg"]["own_words"]) == {"seen", "unseen", "boundary_seen", "boundary_unseen"}
    assert '"absent_share"' in capsys.readouterr().out


def test_guided_upsampling(tmp_path, capsys):
    file = tmp_path / "results.json"
    common = ["--scenes", str(SCENES), "--split", "gate", "--num_scenes", "3", "--json", str(file), "--all_words_only"]
    for name in UPSAMPLINGS:
        command = [*common, "--name", name, "--model", EMBEDDED_MODEL, "--upsampling", name]
        assert evaluate_world.main(command) == 0
    results = json.loads(file.read_text())
    assert results["guided"]["upsampling"] == "guided" and "upsampling" not in results["bilinear"]
    plain, guided = (results[name]["all_words"] for name in ("bilinear", "guided"))
    assert guided["seen"] > plain["seen"] + 0.02 and guided["boundary_seen"] > plain["boundary_seen"] + 0.03
    with pytest.raises(SystemExit):
        evaluate_world.main([*common, "--name", "x", "--clip", "clip", "--upsampling", "guided"])
    assert "--upsampling guided needs --model" in capsys.readouterr().err


def test_boundary_iou_of_scenes(scenes):
    """Of each word over all scenes; a word that does not occur does not count."""
    labels = scenes[1]
    assert set(boundary_ious(labels, labels).values()) == {1.0}
    moved = boundary_ious(np.roll(labels, 2, axis=2), labels)
    counts = BoundaryIou(len(classes()), NO_CLASS)
    for prediction, label in zip(np.roll(labels, 2, axis=2), labels, strict=True):
        counts.add(prediction, label)
    ious = counts.scores()["per_category_boundary_iou"]
    for name, words in (("seen", seen_words()), ("unseen", unseen_words())):
        present = [index for index in map(classes().index, words) if (labels == index).any()]
        assert moved[f"boundary_{name}"] == pytest.approx(ious[present].mean())
        assert 0.2 < moved[f"boundary_{name}"] < 0.9


def test_missing_scenes(tmp_path, capsys):
    arguments = ["--scenes", tmp_path, "--model", EMBEDDED_MODEL, "--name", "x", "--json", tmp_path / "results.json"]
    assert evaluate_world.main([str(argument) for argument in arguments]) == 1
    assert "no scenes of the split 'test'" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
