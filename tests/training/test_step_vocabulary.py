"""Vocabularies drawn for each training step, and fresh aggregators of other architectures."""

import json

import pytest
import torch

from catseg_hf.errors import UserError
from catseg_testing.tiny_training import CLASSES, QUICK, history, run_train, save_checkpoint, save_clip, write_pairs
from catseg_training.model import build_from_clip, load_checkpoint
from catseg_training.step_vocabulary import StepVocabulary


OVERRIDES = {
    "image_size": 32,
    "window_size": 4,
    "guidance_layers": [0, 1],
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "decoder_sizes": [16, 16],
    "decoder_guidance_channels": [8, 8],
    "decoder_guidance_sizes": [8, 8],
    "sliding_window_size": 32,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    names = [f"class {index}" for index in range(20)]
    model, _ = load_checkpoint(str(save_checkpoint(tmp_path_factory.mktemp("checkpoint"), names)))
    return model


@pytest.fixture
def batch():
    labels = torch.full((2, 32, 32), 255)
    labels[0, :10], labels[1, 20:] = 7, 3
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixel_values, "labels": labels}


def test_labels_count_in_the_drawn_vocabulary(model, batch):
    candidates = [index for index in range(20) if index not in (5, 6)]
    vocabulary = StepVocabulary(candidates, 8, seed=0, ignore_index=255)
    drawn = vocabulary.draw(model, batch, (4, 0, 0))
    all_ids = model.catseg.vocabulary.input_ids
    chosen = [next(index for index in range(20) if torch.equal(all_ids[index], ids)) for ids in drawn["input_ids"]]
    assert len(chosen) == 8 and chosen == sorted(chosen) and {3, 7} <= set(chosen) and not {5, 6} & set(chosen)
    for class_id in (3, 7):
        assert torch.equal(drawn["labels"] == chosen.index(class_id), batch["labels"] == class_id)
    assert torch.equal(drawn["labels"] == 255, batch["labels"] == 255)
    assert model(**drawn, sliding_window=False).loss.isfinite()

    again = vocabulary.draw(model, batch, (4, 0, 0))
    assert torch.equal(again["input_ids"], drawn["input_ids"])
    others = [vocabulary.draw(model, batch, (step, 0, 0))["input_ids"] for step in range(5)]
    assert any(not torch.equal(other, drawn["input_ids"]) for other in others)


def test_two_thirds_of_the_others_are_the_most_similar(model, batch):
    vocabulary = StepVocabulary(range(20), 11, seed=0, ignore_index=255)
    others = [index for index in range(20) if index not in (3, 7)]
    with torch.no_grad():
        cost = model.eval().catseg(batch["pixel_values"]).cost_volume.amax(dim=(0, 1, 3, 4))
    hardest = sorted(others, key=lambda index: -cost[index])[:6]
    all_ids = model.catseg.vocabulary.input_ids
    drawn = vocabulary.draw(model, batch, (0, 0, 0))["input_ids"].tolist()
    assert all(all_ids[index].tolist() in drawn for index in hardest)


def test_labels_outside_the_training_vocabulary(model, batch):
    with pytest.raises(UserError, match="class 7.*--training_vocabulary"):
        StepVocabulary([3, 4], 2, seed=0, ignore_index=255).draw(model, batch, (0,))


def test_architecture_of_a_fresh_aggregator(tmp_path):
    clip = str(save_clip(tmp_path / "clip"))
    model, processor = build_from_clip(clip, config_overrides=OVERRIDES, prior_probability=0.1)
    assert {name: getattr(model.config, name) for name in OVERRIDES} == OVERRIDES
    assert model.decoder.head.bias.sigmoid().item() == pytest.approx(0.1)
    assert processor.image_processor.image_size == 32
    with pytest.raises(UserError, match="hidden_sise.*CATSegConfig"):
        build_from_clip(clip, config_overrides={"hidden_sise": 1})


def test_training_with_a_drawn_vocabulary(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(OVERRIDES))
    (tmp_path / "classes.json").write_text(json.dumps([*CLASSES, "never labelled"]))
    (tmp_path / "seen.json").write_text(json.dumps(CLASSES))
    status = run_train(
        *("--clip_model_name_or_path", save_clip(tmp_path / "clip"), "--config_overrides", tmp_path / "model.json"),
        *("--dataset_name", write_pairs(tmp_path / "data"), "--vocabulary", tmp_path / "classes.json"),
        *("--training_vocabulary", tmp_path / "seen.json", "--classes_per_step", 5, "--prior_probability", 0.1),
        *("--output_dir", tmp_path / "out", "--max_train_steps", 2, "--skip_evaluation", *QUICK),
    )
    assert status == 0
    assert len(history(tmp_path / "out")) == 2
    assert load_checkpoint(str(tmp_path / "out"))[0].config.num_labels == len(CLASSES) + 1
