"""The function for CVAT and the model for FiftyOne. Where these are not installed, with stand-ins for the little that
is used of them (with the real ones: tests/annotations/peers/judge_integrations.sh)."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.annotations import to_supervision
from catseg_hf.annotations.rle import decode_cvat
from catseg_hf.errors import UserError
from catseg_hf.loading import load_segmenter
from catseg_testing.hard_masks import LABELS, SIZE, hard_label_map, hard_result
from conftest import ROOT


SCENE = ROOT / "tests" / "fixtures" / "emoji_world" / "images" / "gate" / "000.jpg"
WORDS = ["snow|ice", "balloon", "water"]
JUDGED = Path(__file__).parents[1] / "annotations" / "peers" / "integrations"


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter(EMBEDDED_MODEL, "cpu")


@pytest.fixture
def import_with(monkeypatch):
    """Imports a module of ours beside modules with these contents."""

    def import_with(name: str, **contents: dict):
        for module, values in contents.items():
            stand_in = ModuleType(module.replace("__", "."))
            vars(stand_in).update(values)
            monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
            parent, _, child = stand_in.__name__.rpartition(".")
            if parent:
                monkeypatch.setattr(sys.modules[parent], child, stand_in, raising=False)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return import_module(name)

    return import_with


def make(kind: str):
    return lambda *arguments, **options: SimpleNamespace(kind=kind, arguments=arguments, **options)


@pytest.fixture
def function(import_with, segmenter):
    sdk = {"label_spec": make("label"), "DetectionFunctionSpec": make("spec"), "DetectionFunctionContext": object}
    sdk |= {"mask": make("mask"), "polygon": make("polygon")}
    module = import_with("catseg_hf.integrations.cvat", cvat_sdk={}, cvat_sdk__auto_annotation=sdk)
    return module.CATSegFunction(segmenter, WORDS)


def context(threshold: float | None = None, polygons: bool = False) -> SimpleNamespace:
    return SimpleNamespace(frame_name="000.jpg", conf_threshold=threshold, conv_mask_to_poly=polygons)


def test_cvat_labels(function):
    labels = [(*label.arguments, label.type) for label in function.spec.labels]
    assert labels == [("snow", 0, "mask"), ("balloon", 1, "mask"), ("water", 2, "mask")]


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_cvat_masks(function, segmenter, threshold):
    expected = segmenter(str(SCENE), WORDS, threshold=threshold, return_segmentation_map=True)["segmentation"].numpy()
    ids = np.full(expected.shape, -1)
    for shape in function.detect(context(threshold), Image.open(SCENE)):
        index, points = shape.arguments
        left, top, right, bottom = (int(value) for value in points[-4:])
        window = ids[top : bottom + 1, left : right + 1]
        window[decode_cvat([int(length) for length in points[:-4]], window.shape)] = index
        assert shape.kind == "mask" and shape.z_order == 0 and shape.score >= (threshold or 0)
        assert all(isinstance(value, float) for value in points)
    assert np.array_equal(ids, expected) and (threshold is None or (expected < 0).any())


def test_cvat_polygons(function):
    shapes = function.detect(context(polygons=True), Image.open(SCENE))
    assert {shape.kind for shape in shapes} == {"polygon"} and len(shapes) >= 3
    assert all(len(shape.arguments[1]) >= 6 for shape in shapes)


class _Model:
    """As FiftyOne's, of which attributes without a value raise."""


@pytest.fixture
def fiftyone(import_with):
    contents = {"Segmentation": make("segmentation"), "Detections": make("detections"), "Detection": make("detection")}
    return import_with(
        "catseg_hf.integrations.fiftyone",
        fiftyone=contents,
        fiftyone__core={},
        fiftyone__core__models={"Model": _Model},
    )


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_fiftyone(fiftyone, segmenter, threshold):
    result = segmenter(str(SCENE), WORDS, threshold=threshold, return_segmentation_map=True)
    expected = result["segmentation"].numpy()
    image = np.asarray(Image.open(SCENE))
    model = fiftyone.CATSegFiftyOneModel(segmenter, WORDS)
    model.config.confidence_thresh = threshold
    assert model.mask_targets == {1: "snow", 2: "balloon", 3: "water"} and model.media_type == "image"
    mask = model.predict(image).mask
    assert mask.dtype == np.uint8 and np.array_equal(mask.astype(int) - 1, expected)
    model.instances, drawn = True, np.full(expected.shape, -1)
    for detection in model.predict(image).detections:
        height, width = expected.shape
        left, top, box_width, box_height = detection.bounding_box
        assert detection.mask.shape == (round(box_height * height), round(box_width * width))
        x, y = round(left * width), round(top * height)
        window = drawn[y : y + detection.mask.shape[0], x : x + detection.mask.shape[1]]
        window[detection.mask] = [*model.mask_targets.values()].index(detection.label)
    assert np.array_equal(drawn, expected)


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("cvat", "cvat_sdk", "cvat"), ("fiftyone", "fiftyone", "fiftyone")]
)
def test_without_the_tools_package(monkeypatch, name, package, extra):
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"catseg_hf.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install \"catseg_hf\[{extra}\]\""):
        import_module(f"catseg_hf.integrations.{name}")


class _Detections(SimpleNamespace):
    @classmethod
    def empty(cls):
        return cls(mask=None)


@pytest.mark.parametrize("instances", [False, True])
def test_supervision(monkeypatch, instances):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=_Detections))
    found = to_supervision(hard_result(), LABELS, instances=instances)
    ids = np.full(SIZE, -1)
    for mask, index, box, name in zip(found.mask, found.class_id, found.xyxy, found.data["class_name"], strict=True):
        ids[mask] = index
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert name == LABELS[index]
    assert np.array_equal(ids, hard_label_map())
    alone = to_supervision(hard_result()["segments"])
    assert alone.class_id.tolist() == [0, 2, 1]  # by the alphabet: grass, snow & ice, water
    assert to_supervision({"segments": []}).mask is None
    assert to_supervision(hard_result(), LABELS, min_area=10_000).mask is None


def test_without_supervision(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        to_supervision(hard_result(), LABELS)


@pytest.mark.parametrize("name", ["cvat", "fiftyone", "supervision", "label_studio"])
def test_what_the_tools_have_taken(name):
    """Of the real ones no pixel differs."""
    text = json.dumps(json.loads((JUDGED / f"{name}.json").read_text()))
    assert "differ" in text and set(re.findall(r'differ": (\d+)', text)) == {"0"}
