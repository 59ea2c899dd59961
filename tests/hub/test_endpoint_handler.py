"""A checkpoint as an Inference Endpoint: `handler.py`, asked as Hugging Face's client and other programs ask it."""

import base64
import configparser
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient, constants
from huggingface_hub.utils import httpx
from PIL import Image
from transformers import pipeline

from catseg_hf.conversion.converter import convert
from catseg_hf.hub.endpoint import REQUIREMENTS, write_endpoint_handler
from catseg_testing.endpoint_server import EndpointServer
from catseg_testing.tokenizer import TOKENIZER
from conftest import FIXTURES, ROOT


PICTURE = FIXTURES / "picture.png"
LABELS = ["cat", "sofa"]
# Asks for a segmentation in an environment without the package.
STRANGER = """
import json, sys
from pathlib import Path
from PIL import Image
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
segments = EndpointHandler(sys.argv[1])({"inputs": Image.open(sys.argv[2]), "parameters": {"labels": ["cat", "sofa"]}})
assert "catseg_hf" not in sys.modules
print(json.dumps([[segment["label"], segment["score"]] for segment in segments]))
"""


@pytest.fixture(scope="module", autouse=True)
def limit_of_pillow():
    """A handler sets it for its process."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture(scope="module")
def folder(small_checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("endpoint") / "checkpoint"
    shutil.copytree(small_checkpoint, folder)
    write_endpoint_handler(folder)
    return folder


@pytest.fixture(scope="module")
def handler(folder):
    specification = importlib.util.spec_from_file_location("endpoint_handler_of_a_checkpoint", folder / "handler.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


@pytest.fixture
def server(handler, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with EndpointServer(handler) as server:
        yield server


@pytest.fixture(scope="module")
def segmenter(small_checkpoint):
    return pipeline("zero-shot-image-segmentation", model=str(small_checkpoint))


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def ask(server: EndpointServer, request: dict) -> httpx.Response:
    return httpx.post(server.url, json=request)


def assert_same_segments(found, expected):
    """Those of an answer, by their `label`, `score` and `mask`, and the pipeline's."""
    assert [(label, score) for label, score, _ in found] == [
        (segment["label"], pytest.approx(segment["score"], abs=1e-6)) for segment in expected
    ]
    for (_, _, mask), segment in zip(found, expected, strict=True):
        assert np.array_equal(np.asarray(mask), np.asarray(segment["mask"]))


def segments_of(response: httpx.Response) -> list[tuple]:
    assert response.status_code == 200, response.text
    return [
        (segment["label"], segment["score"], Image.open(io.BytesIO(base64.b64decode(segment["mask"]))))
        for segment in response.json()
    ]


def test_inference_client(server, segmenter):
    client = InferenceClient(model=server.url)
    answers = [client.image_segmentation(PICTURE.read_bytes()), client.image_segmentation(PICTURE, threshold=0.5)]
    assert server.content_types == [None, "application/json"]
    expected = [segmenter(PICTURE), segmenter(PICTURE, threshold=0.5)]
    assert len(expected[0]) > 1 and expected[0] != expected[1]
    for answer, segments in zip(answers, expected, strict=True):
        assert_same_segments([(found.label, found.score, found.mask) for found in answer], segments)


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ({"labels": LABELS}, {"candidate_labels": LABELS}),
        ({"candidate_labels": "cat, sofa"}, {"candidate_labels": LABELS}),
        (
            {"labels": ["cat"], "background": ["sofa"], "threshold": None},
            {"candidate_labels": ["cat"], "background_labels": ["sofa"]},
        ),
        ({"sliding_window": True, "top_k": 1}, {"sliding_window": True, "top_k": 1}),
        ({"upsampling": "guided"}, {"upsampling": "guided"}),
    ],
)
def test_parameters(server, segmenter, parameters, arguments):
    expected = segmenter(PICTURE, **arguments)
    plain = segmenter(PICTURE)
    assert [segment["score"] for segment in expected] != [segment["score"] for segment in plain]
    for prefix in ("", "data:image/png;base64,"):
        image = prefix + base64.b64encode(PICTURE.read_bytes()).decode()
        found = segments_of(ask(server, {"inputs": image, "parameters": parameters}))
        assert_same_segments(found, expected)


def test_a_photograph_is_upright(server, segmenter):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(PICTURE).convert("RGB").resize((64, 40)).save(buffer, format="PNG", exif=exif)
    found = segments_of(ask(server, {"inputs": base64.b64encode(buffer.getvalue()).decode()}))
    assert found[0][2].size == (40, 64)
    assert_same_segments(found, segmenter(buffer.getvalue()))


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "The request has no image"),
        ({"inputs": ""}, "The request has no image"),
        ({"inputs": [1, 2]}, "`inputs` is a list"),
        ({"inputs": "/etc/hostname"}, "neither a path nor"),
        ({"inputs": "http://127.0.0.1/cat.png"}, "'http://127.0.0.1/cat.png', but only base64"),
        ({"inputs": base64.b64encode(b"no image").decode()}, "could not be read"),
        ({"parameters": {"labels": []}}, "has no labels"),
        ({"parameters": {"labels": 3}}, "The vocabulary is 3"),
        ({"parameters": {"labels": ["cat", "cat"]}}, "'cat' occurs twice"),
        ({"parameters": {"labels": ["cat"], "background": ["cat"]}}, "background labels"),
        ({"parameters": {"labels": ["cat"], "candidate_labels": ["sofa"]}}, "are the same: give one"),
        ({"parameters": {"threshold": 2}}, "between 0 and 1, got 2"),
        ({"parameters": {"sliding_window": "yes"}}, "`sliding_window` is 'yes'"),
        ({"parameters": {"subtask": "panoptic"}}, "`subtask` is 'panoptic'"),
        ({"parameters": {"lables": ["cat"]}}, "There is no parameter 'lables': labels, "),
        ({"parameters": ["cat"]}, r"`parameters` is \['cat'\]"),
    ],
)
def test_what_is_refused(server, request_, sentence):
    if "parameters" in request_:
        request_ = {"inputs": base64.b64encode(PICTURE.read_bytes()).decode(), **request_}
    response = ask(server, request_)
    assert response.status_code == 400
    assert re.search(sentence, response.json()["error"]), response.json()


def test_a_huge_image(server, handler, monkeypatch):
    monkeypatch.setattr(handler, "max_image_pixels", 9_999)
    image = Image.new("RGB", (100, 100))
    bodies = [{"json": {"inputs": encoded(image)}}, {"content": base64.b64decode(encoded(image))}]
    for body in bodies:
        response = httpx.post(server.url, **body)
        assert response.status_code == 400
        assert "100 x 100 pixels, but at most 9,999" in response.json()["error"]
    assert ask(server, {"inputs": encoded(image.crop((0, 0, 100, 99)))}).status_code == 200
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    response = ask(server, {"inputs": encoded(image)})
    assert "far more pixels, but at most 9,999" in response.json()["error"]


def test_the_limit_is_a_setting(folder, handler, monkeypatch):
    """Pillow's own, above which nothing is decoded, goes with it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("MAX_IMAGE_PIXELS", "400000000")
    assert type(handler)(str(folder)).max_image_pixels == 2 * Image.MAX_IMAGE_PIXELS == 400_000_000
    monkeypatch.setenv("MAX_IMAGE_PIXELS", "1000")
    assert type(handler)(str(folder)).max_image_pixels == 1000
    file = io.BytesIO()
    Image.new("L", (10, 101)).save(file, "png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(file)
    monkeypatch.setenv("MAX_IMAGE_PIXELS", "many")
    with pytest.raises(ValueError, match="MAX_IMAGE_PIXELS is 'many'"):
        type(handler)(str(folder))


@pytest.mark.slow
def test_nothing_but_the_folder_is_needed(folder, python_without_package, segmenter, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "PYTHONPATH": ""}
    command = [python_without_package, "-c", STRANGER, folder, PICTURE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = [[segment["label"], segment["score"]] for segment in segmenter(PICTURE, candidate_labels=LABELS)]
    assert json.loads(result.stdout) == [[label, pytest.approx(score, abs=1e-6)] for label, score in expected]


def test_convert_writes_it(tmp_path):
    folder = convert(
        FIXTURES / "original.pth", tmp_path / "converted", tokenizer=str(TOKENIZER), endpoint_handler=True
    )
    assert (folder / "handler.py").read_bytes() == (
        ROOT / "src" / "catseg_hf" / "hub" / "endpoint_handler.py"
    ).read_bytes()
    assert (folder / "requirements.txt").read_text().splitlines() == list(REQUIREMENTS)


def test_requirements_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = set(setup["options"]["install_requires"].split())
    left_out = {re.match(r"\w+", line)[0] for line in required - set(REQUIREMENTS)}
    # Torch comes with the endpoint, the others are not imported by what is saved with a model.
    assert set(REQUIREMENTS) <= required and left_out == {"filelock", "loky", "torch", "tqdm"}
