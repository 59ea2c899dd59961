"""select_classes.py: margins of `max_classes_per_image="auto"` by images with labels, stored with the model."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import select_classes
from catseg_hf import CATSegForSemanticSegmentation
from catseg_hf.sliding_window_catseg import split_windows
from catseg_testing.tiny_training import CLASSES, save_checkpoint, write_pairs
from catseg_training import class_selection
from catseg_training.class_selection import (
    Row,
    choose,
    least_margins,
    margins_by_share,
    measure_shares,
    selection_of,
    table,
    winners_shortfalls,
)
from catseg_training.data.examples import EvaluationImages
from catseg_training.data.sources import load_segmentation_data
from catseg_training.model import load_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"), num_train=0, num_validation=3)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run(*arguments: object) -> int:
    try:
        return select_classes.main([str(argument) for argument in arguments])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def test_least_margins():
    """Nine pixels in ten are of classes that miss nothing, the last ones of a class that misses 3."""
    missing, pixels = np.array([3.0, 0.0, 0.5]), np.array([10, 60, 30])
    assert least_margins(missing, pixels, [0.5, 0.6, 0.61, 0.9, 0.91, 1.0]) == [0.0, 0.0, 0.5, 0.5, 3.0, 3.0]


@torch.no_grad()
def test_margins_of_all_pixels_keep_every_winner(checkpoint, folder):
    """At the decoder, whose input does not change: the prediction is that of all classes, pixel by pixel."""
    model, processor = load_checkpoint(str(checkpoint))
    model.eval()
    images = EvaluationImages(load_segmentation_data(folder, "validation"), len(CLASSES))
    (margins,) = margins_by_share(model, processor, images, [1.0], sliding_window=False)
    model.config.class_selection = selection_of(model, {"cost": 1e9, "layers": 1e9, "decoder": margins["decoder"]})
    for index in range(len(images)):
        pixel_values = processor(images=images[index]["image"], sliding_window=False).pixel_values
        exact = model(pixel_values, sliding_window=False).logits
        selected = model(pixel_values, sliding_window=False, max_classes_per_image="auto").logits
        assert torch.equal(selected.argmax(dim=1), exact.argmax(dim=1))


def test_shortfalls_are_those_of_the_classes_that_win(checkpoint):
    model, _ = load_checkpoint(str(checkpoint))
    model.eval()
    view = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        missing, pixels = winners_shortfalls(model, view, model.catseg.encode_vocabulary())
        counts = model(view, sliding_window=False).logits.argmax(dim=1).unique(return_counts=True)[1]
    assert pixels.tolist() == counts.tolist() and set(missing) == {"cost", "layers", "decoder"}
    assert all(len(values) == len(counts) and (values >= 0).all() for values in missing.values())
    assert (missing["layers"] == 0).all()  # it has one layer, so none is cut between


def test_rows(checkpoint, folder, accelerator, monkeypatch):
    """Seconds are the model's alone: here one for each call."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(class_selection, "_now", lambda: next(ticks))
    model, processor = load_checkpoint(str(checkpoint))
    images = EvaluationImages(load_segmentation_data(folder, "validation", max_samples=2), len(CLASSES))
    exact, tight, loose = measure_shares(model, processor, images, accelerator, [0.01, 1.0], sliding_window=False)
    assert (exact.share, tight.share, loose.share) == (None, 0.01, 1.0)
    assert exact.num_classes == {"cost": 5.0, "decoder": 5.0} and exact.seconds == tight.seconds == 1
    assert tight.num_classes["decoder"] <= loose.num_classes["decoder"] <= 5
    assert tight.margins["decoder"] <= loose.margins["decoder"]
    assert model.config.class_selection == selection_of(model, loose.margins)
    lines = table([exact, tight, loose], len(CLASSES)).splitlines()
    assert len(lines) == 5 and "5.0 / 5.0" in lines[2] and "1.00%" in lines[3]


def test_views_are_those_of_the_sliding_window(checkpoint, folder, monkeypatch):
    model, processor = load_checkpoint(str(checkpoint))
    seen = []

    def record(model, view, text_embeds):
        seen.append(view)
        return {stage: np.zeros(1) for stage in ("cost", "layers", "decoder")}, np.ones(1, int)

    monkeypatch.setattr(class_selection, "winners_shortfalls", record)
    images = EvaluationImages(load_segmentation_data(folder, "validation", max_samples=1), len(CLASSES))
    margins_by_share(model, processor, images, [1.0], sliding_window=True)
    inputs = processor(images=images[0]["image"], sliding_window=True)
    expected = [*split_windows(inputs.pixel_values, model.config), inputs.global_pixel_values]
    assert len(seen) == 5 and all(map(torch.equal, seen, expected))


def test_choice():
    exact = Row(None, {}, 1.0, 0.500)
    rows = [exact, Row(0.9, {}, 0.2, 0.490), Row(0.99, {}, 0.4, 0.4985), Row(0.999, {}, 0.6, 0.501)]
    assert choose(rows, 0.2) is rows[2] and choose(rows, 2) is rows[1] and choose(rows, 0.0) is rows[3]
    assert choose([exact, Row(0.9, {}, 1.1, 0.6)], 0.2) is None


def test_the_choice_is_stored_with_the_model(checkpoint, folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(select_classes, "choose", lambda rows, tolerance: rows[-1])
    before = json.loads((checkpoint / "config.json").read_text())
    results = tmp_path / "rows.json"
    options = ["--model", checkpoint, "--dataset_name", folder, "--no-sliding_window", "--shares", 0.5, 1.0]
    options += ["--max_samples", 1]
    assert run(*options, "--no-store", "--json", results) == 0
    assert json.loads((checkpoint / "config.json").read_text()) == before
    assert [row["share"] for row in json.loads(results.read_text())["rows"]] == [None, 0.5, 1.0]
    assert run(*options) == 0
    assert "100.00% of the pixels" in capsys.readouterr().out
    after = json.loads((checkpoint / "config.json").read_text())
    assert after.pop("class_selection") is not None and before.pop("class_selection") is None and after == before
    model = CATSegForSemanticSegmentation.from_pretrained(checkpoint)
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 32, 32), sliding_window=False, max_classes_per_image="auto").logits
    assert logits.shape[1] == len(CLASSES)


def test_nothing_is_stored_that_is_too_slow_or_too_bad(checkpoint, folder, monkeypatch, capsys):
    monkeypatch.setattr(select_classes, "choose", lambda rows, tolerance: None)
    before = (checkpoint / "config.json").read_bytes()
    assert run("--model", checkpoint, "--dataset_name", folder, "--no-sliding_window", "--shares", 1.0) == 1
    assert "nothing is stored: give larger --shares or --tolerance" in capsys.readouterr().err
    assert (checkpoint / "config.json").read_bytes() == before


def test_several_processes_are_refused(checkpoint, folder, monkeypatch, capsys):
    config = (checkpoint / "config.json").read_text()
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    assert run("--model", checkpoint, "--dataset_name", folder) == 1
    assert "one of 2 processes" in capsys.readouterr().err
    assert (checkpoint / "config.json").read_text() == config


def test_a_model_that_is_no_folder_is_refused(folder, capsys):
    assert run("--model", "base", "--dataset_name", folder) == 1
    assert "--model base is no folder of a model" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(value, capsys):
    with pytest.raises(SystemExit):
        run("--model", "model", "--dataset_name", "data", "--shares", value)
    assert f"{value} is not above 0 and at most 1" in capsys.readouterr().err
