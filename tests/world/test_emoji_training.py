"""A short run of the second stage on committed scenes learns to segment, words without masks as well."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor
from catseg_training.world.evaluation import Segmenter, evaluate_all_words, read_scenes
from catseg_training.world.folders import NO_CLASS
from catseg_training.world.words import classes, seen_words, unseen_words
from conftest import FIXTURES, ROOT


SCENES = FIXTURES / "emoji_world"
NUM_TRAINING_SCENES = 80
# Chance is less than 1 in 135.
FLOOR = 0.5


def write_training_scenes(folder: Path):
    hidden = [classes().index(word) for word in unseen_words()]
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    for image in sorted((SCENES / "images" / "gate").iterdir())[:NUM_TRAINING_SCENES]:
        shutil.copy(image, folder / "images" / "train")
        labels = np.asarray(Image.open(SCENES / "labels" / "gate" / f"{image.stem}.png"))
        masked = np.where(np.isin(labels, hidden), NO_CLASS, labels).astype(np.uint8)
        Image.fromarray(masked).save(folder / "labels" / "train" / f"{image.stem}.png")
    (folder / "classes.json").write_text(json.dumps(classes()))
    (folder / "seen.json").write_text(json.dumps(seen_words()))


@pytest.mark.slow
def test_short_training(tmp_path):
    """An aggregator and a decoder with random weights, on the CLIP of the shipped model."""
    clip, scenes, output = tmp_path / "clip", tmp_path / "scenes", tmp_path / "catseg"
    CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).catseg.clip.save_pretrained(clip)
    CATSegProcessor.from_pretrained(EMBEDDED_MODEL).tokenizer.save_pretrained(clip)
    write_training_scenes(scenes)
    command = [sys.executable, ROOT / "training" / "train.py", "--clip_model_name_or_path", clip]
    command += ["--config_overrides", ROOT / "training" / "catseg_training" / "world" / "catseg.json"]
    command += ["--dataset_name", scenes, "--vocabulary", scenes / "classes.json"]
    command += ["--training_vocabulary", scenes / "seen.json", "--classes_per_step", "20", "--crop_size", "128"]
    command += ["--no-color_jitter", "--prior_probability", "0.05", "--learning_rate", "2e-3"]
    command += ["--per_device_train_batch_size", "4", "--max_train_steps", "60", "--num_warmup_steps", "10"]
    command += ["--skip_evaluation", "--no-gradient_checkpointing", "--seed", "1", "--output_dir", output]
    subprocess.run(command, check=True)
    images, labels = read_scenes(SCENES, "gate")
    held_out = slice(NUM_TRAINING_SCENES, None)
    scores = evaluate_all_words(Segmenter(output), images[held_out], labels[held_out])
    assert scores["seen"] > FLOOR and scores["unseen"] > FLOOR, scores
