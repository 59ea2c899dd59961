"""Label Studio: an ML backend, which labels tasks with brush masks of the classes that the project's own configuration
names.

LABEL_STUDIO_API_KEY=... python -m catseg_hf.integrations.label_studio --model base --port 9090
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import urljoin, urlparse

from huggingface_hub.utils import httpx

from ..annotations.label_studio import MODEL_VERSION, to_prediction
from ..annotations.segmented_images import read_results
from ..class_words_catseg import read_classes
from ..errors import UserError, first_line, printable, reports_errors
from ..loading import load_segmenter
from ..pipeline_catseg import OpenVocabularySegmentationPipeline
from .labeling_config import LabelingConfig, check_prediction


SECONDS = 30.0  # that Label Studio may take to answer
MAX_BODY = 2**27  # bytes of a request


class LabelStudioBackend:
    """
    Answers the requests that Label Studio makes of an ML backend.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        url (`str`): Where Label Studio is, from which images are loaded that tasks name by a path.
        api_key (`str`, *optional*): A legacy token or a personal access token of a user there, which goes to this
            `url` only.
        background_labels, threshold: As the pipeline takes them.
        instances (`bool`): Whether every 8-connected part of a class is a region of its own.
        min_area (`int`): Regions of fewer pixels are left out.
    """

    def __init__(
        self,
        segmenter: OpenVocabularySegmentationPipeline,
        url: str = "http://localhost:8080",
        api_key: str | None = None,
        *,
        background_labels: str | list[str] | None = None,
        threshold: float | None = None,
        instances: bool = False,
        min_area: int = 1,
    ):
        self.segmenter, self.url, self.api_key = segmenter, url.rstrip("/") + "/", api_key
        self.background_labels, self.threshold = background_labels, threshold
        self.instances, self.min_area = instances, min_area
        self._lock = Lock()  # the model takes a request at a time

    def answer(self, path: str, request: Mapping[str, Any]) -> dict[str, Any] | list[Any]:
        """
        What a request is answered with.

        Args:
            path (`str`): Such as "/predict".
            request (`dict`): Its JSON; empty for what is only asked for.

        Raises:
            UserError: If the project's configuration cannot be used, or there is no such path.
        """
        if path in ("/", "/health"):
            return {"status": "UP", "model_class": "CATSegForSemanticSegmentation"}
        if path == "/setup":
            LabelingConfig.parse(request.get("schema", ""))
            return {"model_version": MODEL_VERSION}
        if path == "/validate":
            LabelingConfig.parse(request.get("config", ""))
            return {}
        if path == "/versions":
            return {"versions": [MODEL_VERSION], "message": "success"}
        if path in ("/webhook", "/train"):  # which tell of what changes there
            return {}
        if path != "/predict":
            raise UserError(f"There is no {path!r} here: tasks are labelled at /predict.")
        config = LabelingConfig.parse(request.get("label_config", ""))
        with self._lock:
            return {"results": [self._predict_or_report(task, config) for task in request.get("tasks", [])]}

    def predict(self, task: Mapping[str, Any], config: LabelingConfig) -> dict[str, Any]:
        """
        The prediction for a task.

        Raises:
            UserError: If its image cannot be read, or the prediction is none for this project.
        """
        classes = read_classes(list(config.words.values()), self.background_labels)
        result = self.segmenter(
            self._load(task, config), classes, threshold=self.threshold, return_segmentation_map=True
        )
        (image,) = read_results(
            result, classes.names, config.data_key, instances=self.instances, min_area=self.min_area
        )
        labels = list(config.words)
        regions = [replace(region, label=labels[region.index]) for region in image.regions]
        prediction = to_prediction(replace(image, regions=regions), config.from_name, config.to_name)
        check_prediction(prediction, config, image.size)
        return prediction

    def _predict_or_report(self, task: Mapping[str, Any], config: LabelingConfig) -> dict[str, Any] | list[Any]:
        try:
            return self.predict(task, config)
        except UserError as error:
            print(f"Task {task.get('id')} has no prediction: {printable(str(error))}", file=sys.stderr)
            return []  # which is taken for no prediction, while an error would be one for all tasks

    def _load(self, task: Mapping[str, Any], config: LabelingConfig) -> str | bytes:
        """An image's URL, or the bytes that Label Studio has of it."""
        source = task.get("data", {}).get(config.data_key)
        if not isinstance(source, str) or not source:
            raise UserError(f"The task has no image under {config.data_key!r}, but {sorted(task.get('data', {}))}.")
        if source.startswith("data:image/"):
            return source
        url = urljoin(self.url, source)
        if urlparse(url).scheme not in ("http", "https"):
            raise UserError(f"The image {source!r} is at no URL: add a storage to the project, or upload it there.")
        if not url.startswith(self.url):
            return url
        try:
            response = httpx.get(url, headers=self._headers(), timeout=SECONDS, follow_redirects=True)
            return response.raise_for_status().content
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(
                f"The image {source!r} could not be loaded from Label Studio: {first_line(error)}. It needs a user's "
                "token (LABEL_STUDIO_API_KEY)."
            ) from error

    def _headers(self) -> dict[str, str]:
        if self.api_key is None:
            return {}
        if self.api_key.count(".") != 2:
            return {"Authorization": f"Token {self.api_key}"}
        # A personal access token, which is exchanged for one of five minutes.
        response = httpx.post(urljoin(self.url, "api/token/refresh"), json={"refresh": self.api_key}, timeout=SECONDS)
        return {"Authorization": f"Bearer {response.raise_for_status().json()['access']}"}


def make_server(backend: LabelStudioBackend, host: str = "127.0.0.1", port: int = 9090) -> ThreadingHTTPServer:
    """A server of a backend, to be started with `serve_forever`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer({})

        def do_POST(self):
            try:
                length = int(self.headers.get("Content-Length", 0))
                if length > MAX_BODY:
                    raise ValueError(f"a request of {length} bytes, of at most {MAX_BODY}")
                request = json.loads(self.rfile.read(length) or "{}")
                if not isinstance(request, dict):
                    raise ValueError("a JSON object is needed")
            except ValueError as error:
                self._send(400, {"error": first_line(error)})
            else:
                self._answer(request)

        def _answer(self, request: dict[str, Any]):
            try:
                self._send(200, backend.answer(urlparse(self.path).path.rstrip("/") or "/", request))
            except UserError as error:
                print(printable(str(error)), file=sys.stderr)
                self._send(400, {"error": str(error)})

        def _send(self, status: int, content: Any):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any):
            print(printable(format % arguments), file=sys.stderr)

    return ThreadingHTTPServer((host, port), Handler)


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m catseg_hf.integrations.label_studio", description=__doc__)
    parser.add_argument("--model", required=True, help="base, large, or the folder or Hub id of a CAT-Seg checkpoint")
    parser.add_argument("--background", help="what else there is: its pixels are in no region")
    parser.add_argument("--threshold", type=float, help="pixels less probable than this are in no region")
    parser.add_argument("--instances", action="store_true", help="every 8-connected part is a region of its own")
    parser.add_argument("--min_area", type=int, default=1, help="regions of fewer pixels are left out (default: 1)")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: an accelerator, if any)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9090, help="default: %(default)s")
    parser.add_argument(
        "--label_studio_url",
        default=os.environ.get("LABEL_STUDIO_URL", "http://localhost:8080"),
        help="where Label Studio is (default: LABEL_STUDIO_URL, or http://localhost:8080); the token of a user there "
        "is read from LABEL_STUDIO_API_KEY",
    )
    options = parser.parse_args(argv)
    backend = LabelStudioBackend(
        load_segmenter(options.model, options.device),
        options.label_studio_url,
        os.environ.get("LABEL_STUDIO_API_KEY"),
        background_labels=options.background,
        threshold=options.threshold,
        instances=options.instances,
        min_area=options.min_area,
    )
    with make_server(backend, options.host, options.port) as server:
        print(f"ML backend at http://{options.host}:{server.server_port}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
