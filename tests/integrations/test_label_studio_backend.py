"""The ML backend for Label Studio, asked as the server asks (with a real one: peers/try_label_studio.py)."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from huggingface_hub.utils import httpx

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.annotations.label_studio import MODEL_VERSION, labeling_config, to_label_studio
from catseg_hf.annotations.rle import decode_label_studio
from catseg_hf.errors import UserError
from catseg_hf.integrations.label_studio import LabelStudioBackend, make_server
from catseg_hf.integrations.labeling_config import LabelingConfig, check_prediction
from catseg_hf.loading import load_segmenter
from catseg_testing.hard_masks import LABELS, SIZE, hard_result
from conftest import ROOT


SCENE = ROOT / "tests" / "fixtures" / "emoji_world" / "images" / "gate" / "000.jpg"
CONFIG = """
<View>
  <Header value="Scenes"/>
  <Image name="picture" value="$url"/>
  <RectangleLabels name="boxes" toName="picture"><Label value="Box"/></RectangleLabels>
  <BrushLabels name="brush" toName="picture">
    <Label value="Winter" predicted_values="snow,ice"/>
    <Label value="Balloon" alias="balloon-1" predicted_values="balloon"/>
    <Label value="water"/>
  </BrushLabels>
</View>
"""


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter(EMBEDDED_MODEL, "cpu")


@pytest.fixture
def studio() -> Iterator[str]:
    """A server that has a scene for who shows a token, of either kind."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            is_known = self.headers.get("Authorization") in ("Token secret", "Bearer short")
            self.send_response(200 if is_known else 401)
            self.end_headers()
            self.wfile.write(SCENE.read_bytes() if is_known else b"")

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if (self.path, body) == ("/api/token/refresh", {"refresh": "a.b.c"}) else 401)
            self.end_headers()
            self.wfile.write(b'{"access": "short"}')

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def task(**data: str) -> dict:
    return {"id": 1, "data": data}


@pytest.mark.parametrize("key", ["secret", "a.b.c"])
def test_predictions_are_of_the_projects_labels(segmenter, studio, key):
    backend = LabelStudioBackend(segmenter, studio, key)
    tasks = [task(url="/data/upload/1/000.jpg"), task(picture="/data/upload/1/000.jpg")]
    (prediction, none) = backend.answer("/predict", {"tasks": tasks, "label_config": CONFIG})["results"]
    assert none == []  # the image is not where the configuration says
    result = segmenter(str(SCENE), ["snow|ice", "balloon", "water"], return_segmentation_map=True)
    expected = result["segmentation"].numpy()
    names, ids = ["Winter", "balloon-1", "water"], np.full(expected.shape, -1)
    for region in prediction["result"]:
        assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "picture", "brushlabels")
        assert (region["original_height"], region["original_width"]) == expected.shape
        ids[decode_label_studio(region["value"]["rle"], expected.shape)] = names.index(
            region["value"]["brushlabels"][0]
        )
    assert np.array_equal(ids, expected) and len(prediction["result"]) > 1
    assert prediction["model_version"] == MODEL_VERSION and 0 < prediction["score"] < 1


def test_images_that_are_not_loaded(segmenter, studio, capsys):
    backend, config = LabelStudioBackend(segmenter, studio, "wrong"), LabelingConfig.parse(CONFIG)
    for source, message in (
        ("/data/upload/1/000.jpg", "could not be loaded from Label Studio: Client error '401 Unauthorized'"),
        ("s3://bucket/1.jpg", "is at no URL"),
        ("file:///etc/hostname", "is at no URL"),
        ("", "The task has no image under 'url', but"),
    ):
        with pytest.raises(UserError, match=message):
            backend.predict(task(url=source), config)
    assert backend.answer("/predict", {"tasks": [task(url="x")], "label_config": CONFIG}) == {"results": [[]]}
    assert "Task 1 has no prediction" in capsys.readouterr().err


def test_the_token_goes_to_label_studio_only(segmenter, studio, monkeypatch):
    asked = []
    monkeypatch.setattr(httpx, "get", lambda url, headers=None, **options: asked.append((url, headers)) or 1 / 0)
    for url in ("https://elsewhere/a.jpg", f"{studio}.elsewhere/a.jpg"):
        with pytest.raises(ZeroDivisionError):
            LabelStudioBackend(segmenter, studio, "secret").predict(task(url=url), LabelingConfig.parse(CONFIG))
    assert [headers for _, headers in asked] == [None, None]


def test_over_http(segmenter, studio):
    backend = LabelStudioBackend(segmenter, studio, "secret", threshold=0.5, instances=True, min_area=20)
    with make_server(backend, port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert httpx.get(f"{url}/health").json()["status"] == "UP"
        assert httpx.post(f"{url}/setup", json={"schema": CONFIG}).json() == {"model_version": MODEL_VERSION}
        refused = httpx.post(f"{url}/setup", json={"schema": "<View/>"})
        assert refused.status_code == 400 and "has 0 BrushLabels" in refused.json()["error"]
        assert httpx.post(f"{url}/webhook", json={"action": "PROJECT_UPDATED"}).json() == {}
        assert httpx.post(f"{url}/predict", content=b"[").status_code == 400
        assert httpx.post(f"{url}/elsewhere", json={}).status_code == 400
        request = {"tasks": [task(url=f"{studio}/data/000.jpg")], "label_config": CONFIG}
        (prediction,) = httpx.post(f"{url}/predict", json=request, timeout=60).json()["results"]
        for region in prediction["result"]:
            mask = decode_label_studio(region["value"]["rle"], (region["original_height"], region["original_width"]))
            assert mask.sum() >= 20 and region["score"] >= 0.5
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<View>", "no XML that can be read"),
        ("<View><Image name='i' value='$i'/></View>", "has 0 BrushLabels whose toName is an Image"),
        ("<View><Image name='i' value='$i'/><BrushLabels name='b' toName='j'/></View>", "has 0 BrushLabels"),
        ("<View><Image name='i' value='$i'/><BrushLabels name='b' toName='i'/></View>", "has no <Label>"),
    ],
)
def test_configurations_without_a_brush(text, message):
    with pytest.raises(UserError, match=message):
        LabelingConfig.parse(text)


def change(value: object, *keys: str | int):
    def changed(prediction: dict):
        for key in keys[:-1]:
            prediction = prediction[key]
        prediction[keys[-1]] = value

    return changed


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (change("tag", "result", 0, "from_name"), "Region 1 of the prediction has from_name 'tag', but .* 'label'"),
        (change("polygonlabels", "result", 1, "type"), "Region 2 of the prediction has type 'polygonlabels'"),
        (change(60, "result", 0, "original_width"), "has original_width 60, but the project needs 61"),
        (change(["Grass"], "result", 0, "value", "brushlabels"), r"has the labels \['Grass'\], but the project has"),
        (change(80, "score"), "The prediction has the score 80"),
        (change(None, "result", 0, "score"), "Region 1 of the prediction has the score None"),
        (change([0, 1, 2], "result", 0, "value", "rle"), "it was cut off"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(broken, message):
    (written,) = to_label_studio(hard_result(), LABELS, "a.png")
    (prediction,) = written["predictions"]
    config = LabelingConfig.parse(labeling_config(LABELS))
    check_prediction(prediction, config, SIZE)
    broken(prediction)
    with pytest.raises(UserError, match=message):
        check_prediction(prediction, config, SIZE)
