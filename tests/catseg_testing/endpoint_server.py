"""A small stand-in for the server of Hugging Face's Inference Endpoints, on the loopback interface.

`inputs` is an image in RGB, of a body that is JSON or an image's bytes, with a Content-Type or without, since that is
how `InferenceClient` sends them; images in the answer become base64 of PNG, and what the handler raises status 400.
"""

import base64
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any

from PIL import Image

from .loopback import LoopbackServer


class EndpointServer(LoopbackServer):
    """
    Runs while its `with` block does.

    Attributes:
        url: Where it listens.
        content_types: Of every request, in order.
    """

    def __init__(self, handler: Callable[[dict[str, Any]], Any]):
        self.content_types: list[str | None] = []
        super().__init__(_Handler, endpoint=self, handler=handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any):
        pass

    def do_POST(self):
        content_type = self.headers.get("Content-Type")
        self.server.endpoint.content_types.append(content_type)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, answer = 200, self.server.handler(_read_request(body, content_type))
        except Exception as error:
            status, answer = 400, {"error": str(error)}
        answer = json.dumps(answer, default=_encode_image).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def _read_request(body: bytes, content_type: str | None) -> dict[str, Any]:
    if content_type == "application/json":
        return json.loads(body)
    return {"inputs": Image.open(BytesIO(body)).convert("RGB")}


def _encode_image(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
