"""What `catseg_hf.export.runtime` makes of images and words, with a hand-made graph in place of a model."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from catseg_hf import EMBEDDED_MODEL, CATSegProcessor
from catseg_hf.errors import UserError
from catseg_hf.export import runtime
from conftest import ROOT


onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

SIDE = 8
NAMES = ["red", "green", "blue"]
SETTINGS = {
    "image_size": SIDE,
    "sliding_window": False,
    "window_image_size": 2 * SIDE - 4,
    "sliding_window_size": SIDE,
    "size": {"shortest_edge": 2 * SIDE - 4, "longest_edge": 64},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "rescale_factor": 1 / 255,
}


def write_graph(path: Path, metadata: dict[str, object]) -> Path:
    """A fixed artefact whose probabilities are the sigmoids of the three channels."""
    from onnx import TensorProto, helper

    pixel_values = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    node = helper.make_node("Sigmoid", ["pixel_values"], ["probabilities"])
    graph = helper.make_graph([node], "colours", [pixel_values], [probabilities])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    props = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    helper.set_model_props(model, props)
    onnx.save(model, path)
    return path


@pytest.fixture
def fixed(tmp_path) -> Path:
    return write_graph(tmp_path / "model.onnx", {"class_names": NAMES, "preprocessor_config": SETTINGS})


@pytest.fixture
def open_folder(fixed, tmp_path) -> Path:
    """An open artefact with the tokenizer of the model in the package and graphs that load but are none of its."""
    folder = tmp_path / "open"
    folder.mkdir()
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(EMBEDDED_MODEL) / name, folder)
    for name in ("text_encoder.onnx", "segmenter.onnx"):
        shutil.copy(fixed, folder / name)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    (folder / "vocabulary.json").write_text(json.dumps(NAMES))
    np.save(folder / "text_embeds.npy", np.zeros((len(NAMES), 1, 4), np.float32))
    return folder


@pytest.fixture
def image() -> Image.Image:
    """A red, a green and a blue third, wider than high."""
    pixels = np.zeros((30, 60, 3), np.uint8)
    for index in range(3):
        pixels[:, 20 * index : 20 * index + 20, index] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("sliding_window", [False, True])
def test_a_fixed_artefact_segments(sliding_window, tmp_path, image):
    settings = {**SETTINGS, "sliding_window": sliding_window}
    write_graph(tmp_path / "model.onnx", {"class_names": NAMES, "preprocessor_config": settings})
    for model in (tmp_path, tmp_path / "model.onnx"):
        result = runtime.load_segmenter(model)(image)
        assert result.class_map.shape == (30, 60) and result.class_map.dtype == np.uint16
        for index in range(3):  # away from the borders, which a coarse grid blurs
            assert (result.class_map[:, 20 * index + 6 : 20 * index + 14] == index).all()
        assert {name for name, _ in result.shares()} == set(NAMES)
        assert sum(share for _, share in result.shares()) == pytest.approx(1)
    side = 2 * SIDE - 4 if sliding_window else SIDE
    assert result.probabilities.shape == (3, side, side)


def test_logits_of_saturated_probabilities_are_finite(fixed):
    segmenter = runtime.FixedSegmenter(fixed)
    view = np.full((3, SIDE, SIDE), 1000, np.float32)
    view[0] = -1000
    view[1] = 1.5
    (logits,) = segmenter.logits([view])
    assert np.isfinite(logits).all() and (logits[0] < -80).all() and (logits[2] > 15).all()
    np.testing.assert_allclose(logits[1], 1.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"labels": ["red", "green", "blue", "cat"]}, r"has 3 classes in it .red, green, blue. .* 4 were asked for"),
        ({"labels": ["cat", "green", "blue"]}, "takes no others, but 3 were asked for .cat, green, blue.: export one"),
        ({"background": ["sky"]}, "4 were asked for .*sky"),
        ({"labels": [f"word {index}" for index in range(100)]}, r"100 were asked for .*word 7, \.\.\."),
    ],
)
def test_other_words_than_the_graphs(words, message, fixed, image):
    segmenter = runtime.load_segmenter(fixed)
    with pytest.raises(UserError, match=message):
        segmenter(image, **words)
    assert segmenter(image, labels=NAMES).names == NAMES


@pytest.mark.parametrize(
    "labels", [["red|crimson", "green", "blue| navy"], ["red", "green", "blue|navy"], ["red", "green", "blue"], None]
)
def test_a_graphs_own_words(labels, tmp_path, image):
    metadata = {"class_names": NAMES, "words": [["red", "crimson"], ["green"], ["blue", "navy"]]}
    path = write_graph(tmp_path / "model.onnx", {**metadata, "preprocessor_config": SETTINGS})
    segmenter = runtime.load_segmenter(path)
    assert segmenter(image, labels=labels).names == NAMES
    for others in (["red|navy", "green", "blue"], ["crimson", "green", "blue"], ["red|crimson|rose", "green", "blue"]):
        with pytest.raises(UserError, match=re.escape("(red|crimson, green, blue|navy) and takes no others")):
            segmenter(image, labels=others)


def test_both_kinds_are_called_alike():
    kinds = (runtime.FixedSegmenter, runtime.OpenSegmenter)
    assert all(kind.__call__ is runtime.ExportedSegmenter.__call__ for kind in kinds)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"preprocessor_config": '{"image_size": 8'}, "its metadata are no JSON"),
        ({"preprocessor_config": {**SETTINGS, "size": {"shortest_edge": 8}}}, "it has no longest_edge"),
        ({"preprocessor_config": {"image_size": 8}}, "it has no sliding_window"),
        ({"class_names": 3}, "its class_names are no list of strings"),
        ({"words": [["red"]]}, "its words are not those of its classes"),
    ],
)
def test_metadata_that_are_not_whole(metadata, reason, tmp_path):
    whole = {"class_names": NAMES, "preprocessor_config": SETTINGS}
    path = write_graph(tmp_path / "model.onnx", {**whole, **metadata})
    with pytest.raises(UserError, match=f"model.onnx is damaged or incomplete .{reason}.*: copy or export it again"):
        runtime.load_segmenter(path)


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [Path.unlink, cut])
@pytest.mark.parametrize(
    "name",
    [
        "preprocessor_config.json",
        "processor_config.json",
        "vocabulary.json",
        "text_embeds.npy",
        "text_encoder.onnx",
        "tokenizer_config.json",
        "tokenizer.json",
    ],
)
def test_folders_that_are_not_whole(name, harm: Callable[[Path], None], open_folder, image):
    (open_folder / "vocabulary.json").write_text(json.dumps(NAMES, indent=50))
    runtime.load_segmenter(open_folder)
    harm(open_folder / name)
    with pytest.raises(UserError, match=f"{name} is damaged or incomplete .+: copy or export it again"):
        runtime.load_segmenter(open_folder)(image, labels=["cat"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("processor_config.json", {"prompt_templates": None}, "its prompt_templates are no list of strings"),
        ("vocabulary.json", [], "its labels are no list of strings"),
        ("vocabulary.json", ["red"], "it has features of shape .3, 1, 4. for 1 labels"),
        ("tokenizer_config.json", {"pad_token": "<|endoftext|>"}, "it has no model_max_length"),
    ],
)
def test_files_of_other_content(name, content, reason, open_folder, image):
    (open_folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"is damaged or incomplete .{reason}"):
        runtime.load_segmenter(open_folder)(image, labels=["cat"])


@pytest.mark.parametrize("model_max_length", [77, int(1e30)])
def test_labels_of_more_tokens_than_the_text_encoder_takes(model_max_length, open_folder, image):
    path = open_folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": model_max_length}))
    segmenter = runtime.load_segmenter(open_folder)
    lengths = []
    segmenter.text_encoder = SimpleNamespace(run=lambda _, inputs: [lengths.append(inputs["input_ids"].shape[-1])])
    spare = 77 - CATSegProcessor.from_pretrained(EMBEDDED_MODEL)(text=["1"]).input_ids.shape[-1]
    segmenter.encode(["cat", "1 " * (spare + 1)])
    assert lengths == [77]
    label = "1 " * (spare + 2)
    sentence = f"The prompt for label '{label}' has 78 tokens, but at most 77 are accepted: shorten the label"
    for words in ({"labels": ["cat", label]}, {"background": [label]}):
        with pytest.raises(UserError, match=sentence):
            segmenter(image, **words)


def test_without_tokenizers(open_folder, image, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    segmenter = runtime.load_segmenter(open_folder)
    with pytest.raises(UserError, match="tokenizers, .* is not installed here: `pip install tokenizers`"):
        segmenter(image, labels=["cat"])


def test_files_that_are_no_model(fixed, tmp_path):
    with pytest.raises(UserError, match="is no exported model: name the folder"):
        runtime.load_segmenter(tmp_path / "nothing.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no exported model"):
        runtime.load_segmenter(tmp_path / "empty")
    data = fixed.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cut.onnx is damaged or incomplete .*: copy or export it again"):
        runtime.load_segmenter(cut)
    with pytest.raises(UserError, match="or was made for a GIS"):
        runtime.load_segmenter(write_graph(tmp_path / "gis.onnx", {"class_names": {"0": "red"}}))


def test_without_onnx_runtime(fixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="ONNX Runtime is not installed here: `pip install onnxruntime`"):
        runtime.load_segmenter(fixed)


def test_files_that_are_no_image(fixed, image, tmp_path):
    image.save(tmp_path / "image.png")
    (tmp_path / "note.png").write_text("no image")
    data = (tmp_path / "image.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name in ("note.png", "cut.png", "missing.png"):
        with pytest.raises(UserError, match=f"The image .*{name} could not be read"):
            runtime.read_image(tmp_path / name)


@pytest.mark.parametrize("is_warning", [True, False])
def test_images_beyond_pillows_limit(is_warning, image, tmp_path, monkeypatch):
    image.save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 if is_warning else 100)
    with (
        warnings.catch_warnings(),
        pytest.raises(UserError, match="image.png is very large .*1800 pixels.*MAX_"),
    ):
        warnings.simplefilter("error")
        runtime.read_image(tmp_path / "image.png")


WITHOUT = """
import sys
for name in ("torch", "transformers", "safetensors", "huggingface_hub", "tokenizers"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv.pop(1))
"""


def run_without(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Python code on a machine that has numpy, Pillow and ONNX Runtime only."""
    command = [sys.executable, "-c", WITHOUT + code, *map(str, arguments)]
    return subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True)


def test_the_demo_needs_neither_torch_nor_words(fixed, image, tmp_path):
    image.save(tmp_path / "image.png")
    code = "import runpy; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    options = [f"--model={fixed}", f"--image={tmp_path / 'image.png'}", f"--output={tmp_path / 'map.png'}"]
    done = run_without(code, ROOT / "src", ROOT / "demo" / "segment_onnx.py", *options)
    assert done.returncode == 0, done.stderr
    expected = runtime.load_segmenter(fixed)(image).class_map
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "map.png")), expected)
    assert "red" in done.stdout and f"Wrote {tmp_path / 'map.png'}" in done.stdout

    done = run_without(code, ROOT / "src", ROOT / "demo" / "segment_onnx.py", *options, "--labels", "cat")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "has 3 classes in it" in done.stderr


def test_an_application_takes_the_file_over(fixed, tmp_path):
    shutil.copyfile(runtime.__file__, tmp_path / "taken_over.py")
    code = """
import taken_over
segmenter = taken_over.load_segmenter(sys.argv[1])
try:
    taken_over.load_segmenter("nothing")
except ValueError as error:
    print(segmenter.names, error)
"""
    done = run_without(code, tmp_path, fixed)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{NAMES} nothing is no exported model")
