"""Guided upsampling in the pipeline, in commands and in videos, and what it gains on scenes."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from catseg_hf import EMBEDDED_MODEL, cli
from catseg_hf.errors import UserError
from catseg_hf.guided_upsampling_catseg import UPSAMPLINGS
from catseg_hf.video import FrameSegmenter
from catseg_training.world.evaluation import boundary_ious, mean_ious, read_scenes
from catseg_training.world.words import classes
from conftest import FIXTURES, ROOT


SCENE = ROOT / "demo" / "scene.png"
LABELS = ["snow", "balloon", "water", "broccoli"]
ALL = {"return_segmentation_map": True, "return_probabilities": True}


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def plain(segmenter):
    return segmenter(str(SCENE), LABELS, **ALL)


@pytest.fixture(scope="module")
def guided(segmenter):
    return segmenter(str(SCENE), LABELS, upsampling="guided", **ALL)


def share_of_differences(maps: torch.Tensor, others: torch.Tensor) -> float:
    return (maps != others).float().mean().item()


@pytest.fixture(scope="module")
def gains(segmenter):
    images, labels = read_scenes(FIXTURES / "emoji_world", "gate", 12)
    scores = {}
    for upsampling in UPSAMPLINGS:
        results = segmenter(
            [Image.fromarray(image) for image in images],
            list(classes()),
            upsampling=upsampling,
            return_segmentation_map=True,
        )
        maps = np.stack([result["segmentation"].numpy() for result in results])
        scores[upsampling] = {**mean_ious(maps, labels), **boundary_ious(maps, labels)}
    return {name: scores["guided"][name] - scores["bilinear"][name] for name in scores["guided"]}


@pytest.mark.parametrize("name, least", [("seen", 0.03), ("boundary_seen", 0.05)])
def test_gain(gains, name, least):
    assert gains[name] > least, gains


def test_only_borders_move(plain, guided):
    assert 0.001 < share_of_differences(plain["segmentation"], guided["segmentation"]) < 0.1
    assert [segment["label"] for segment in plain["segments"]] == [segment["label"] for segment in guided["segments"]]


def test_it_is_the_processors(segmenter, guided):
    image = Image.open(SCENE)
    inputs = segmenter.processor(images=image, text=LABELS)
    with torch.inference_mode():
        outputs = segmenter.model(**inputs)
    (expected,) = segmenter.processor.post_process_semantic_segmentation(
        outputs, [image.size[::-1]], upsampling="guided", images=[image]
    )
    assert torch.equal(guided["segmentation"], expected)


def test_probabilities_that_are_returned_stay_the_models(plain, guided):
    assert torch.equal(plain["probabilities"], guided["probabilities"])


def test_off_changes_no_bit(segmenter, plain):
    off = segmenter(str(SCENE), LABELS, upsampling="bilinear", **ALL)
    for name in ("segmentation", "probabilities"):
        assert torch.equal(off[name], plain[name])
    assert [segment["score"] for segment in off["segments"]] == [segment["score"] for segment in plain["segments"]]


def test_as_a_default_that_a_call_changes(plain, guided):
    segmenter = pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL, upsampling="guided")
    assert torch.equal(segmenter(str(SCENE), LABELS, **ALL)["segmentation"], guided["segmentation"])
    off = segmenter(str(SCENE), LABELS, upsampling="bilinear", **ALL)
    assert torch.equal(off["segmentation"], plain["segmentation"])


def test_batches_and_sizes(segmenter):
    """Every image is its own guide."""
    image = Image.open(SCENE)
    images = [image, image.rotate(180), image.resize((150, 90))]
    together = segmenter(images, LABELS, upsampling="guided", batch_size=3, return_segmentation_map=True)
    for one, result in zip(images, together, strict=True):
        alone = segmenter(one, LABELS, upsampling="guided", return_segmentation_map=True)["segmentation"]
        assert result["segmentation"].shape == one.size[::-1]
        assert share_of_differences(result["segmentation"], alone) < 0.001


@pytest.mark.parametrize("options, is_kept", [({}, False), ({"upsampling": "guided"}, True)])
def test_the_image_is_kept_if_it_is_needed(segmenter, options, is_kept):
    assert ("image" in segmenter.preprocess(SCENE, **segmenter._sanitize_parameters(**options)[0])) == is_kept


def test_threshold_and_scores(segmenter, guided):
    """Pixels count with the probability that they have after it."""
    cut = segmenter(str(SCENE), LABELS, upsampling="guided", threshold=0.9, return_segmentation_map=True)
    kept = cut["segmentation"] >= 0
    assert torch.equal(cut["segmentation"][kept], guided["segmentation"][kept]) and 0.3 < kept.float().mean() < 0.999
    assert all(segment["score"] >= 0.9 for segment in cut["segments"])
    bilinear = segmenter(str(SCENE), LABELS, threshold=0.9, return_segmentation_map=True)
    assert share_of_differences(cut["segmentation"], bilinear["segmentation"]) > 0.001


def test_words_and_background(segmenter, guided):
    merged = segmenter(str(SCENE), ["snow|balloon", "water|broccoli"], upsampling="guided", **ALL)
    assert torch.equal(merged["segmentation"], guided["segmentation"] // 2)
    beside = segmenter(str(SCENE), LABELS[:2], background_labels=LABELS[2:], upsampling="guided", **ALL)
    expected = torch.where(guided["segmentation"] < 2, guided["segmentation"], -1)
    assert torch.equal(beside["segmentation"], expected)


def test_masks_come_first(segmenter, plain, guided):
    """Under a mask its class counts, which is the model's; elsewhere borders follow the image."""
    mask = np.zeros((1, *guided["segmentation"].shape), bool)
    mask[:, :64, :50] = True
    options = {"mask_generator": lambda image: mask, "return_segmentation_map": True}
    both = segmenter(str(SCENE), LABELS, upsampling="guided", **options)["segmentation"]
    masked = segmenter(str(SCENE), LABELS, **options)["segmentation"]
    assert torch.equal(both[mask[0]], masked[mask[0]]) and len(both[mask[0]].unique()) == 1
    assert torch.equal(both[~mask[0]], guided["segmentation"][~mask[0]])
    assert not torch.equal(both[~mask[0]], plain["segmentation"][~mask[0]])


def test_sliding_window(segmenter):
    maps = [
        segmenter(str(SCENE), LABELS, upsampling=name, sliding_window=True, return_segmentation_map=True)
        for name in UPSAMPLINGS
    ]
    assert 0.001 < share_of_differences(*(result["segmentation"] for result in maps)) < 0.1


@pytest.mark.parametrize("upsampling", ["cubic", "Guided", True, ""])
def test_unknown_names_are_refused_before_the_model_runs(segmenter, monkeypatch, upsampling):
    monkeypatch.setattr(segmenter.model, "forward", lambda **inputs: pytest.fail("the model ran"))
    message = re.escape(f"`upsampling` is {upsampling!r}, but 'bilinear' or 'guided' is accepted")
    with pytest.raises(UserError, match=message):
        segmenter(str(SCENE), LABELS, upsampling=upsampling)
    with pytest.raises(UserError, match=message):
        FrameSegmenter(segmenter, LABELS, upsampling=upsampling)


def test_frames_of_videos(segmenter, guided):
    segment = FrameSegmenter(segmenter, LABELS, upsampling="guided")
    found = segment(Image.open(SCENE).convert("RGB"), 0.0)
    assert share_of_differences(found, guided["segmentation"]) < 0.001


def test_command(tmp_path, guided, capsys):
    command = ["segment", str(SCENE), "--labels", ", ".join(LABELS), "--device=cpu", f"--output={tmp_path}"]
    assert cli.main([*command, "--upsampling=guided"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["upsampling"] == "guided"
    with Image.open(tmp_path / "scene_labels.png") as label_map:
        assert np.array_equal(np.asarray(label_map), guided["segmentation"].numpy())
    assert cli.main([*command, "--upsampling=guided", "--resume"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--resume"]) == 2
    assert "results with another upsampling" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["upsampling"] == "bilinear"


@pytest.mark.parametrize("command", [["segment", "photos"], ["video", "clip.mp4"]])
def test_commands_offer_what_there_is(command, capsys):
    parser = cli.build_parser()
    for upsampling in UPSAMPLINGS:
        options = parser.parse_args([*command, "--output=out", "--upsampling", upsampling])
        assert options.upsampling == upsampling
    assert parser.parse_args([*command, "--output=out"]).upsampling == "bilinear"
    with pytest.raises(SystemExit):
        parser.parse_args([*command, "--output=out", "--upsampling=cubic"])
    error = capsys.readouterr().err
    assert all(name in error for name in ("'cubic'", *UPSAMPLINGS))
