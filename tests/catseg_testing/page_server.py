"""Serves the browser demo's page as `make web-serve` does, counts what it sends, and breaks on request."""

import threading
from io import BytesIO
from pathlib import Path
from typing import Any

from serve_web import PageHandler

from .loopback import LoopbackServer


class PageServer(LoopbackServer):
    """
    Runs while its `with` block does.

    Attributes:
        url: Where it listens.
        sent: Bytes that it sent so far, headers included.
        requests: How many it answered.
        damage: For a part of a path, what is sent in place of such a file's contents.
        headers: Whether browsers are told to keep the page apart from others.
        is_down: Whether connections are closed without an answer.
    """

    def __init__(self, folder: Path):
        self.sent, self.requests, self.headers, self.is_down = 0, 0, True, False
        self.damage: dict[str, Any] = {}
        super().__init__(_Handler, page=self, folder=folder, lock=threading.Lock())
        self.url += "/"


class _Handler(PageHandler):
    def __init__(self, request, address, server):
        super().__init__(request, address, server, directory=server.folder)

    def log_message(self, *arguments: Any):
        pass

    def setup(self):
        super().setup()
        write = self.wfile.write

        def counted(data: bytes) -> int:
            with self.server.lock:
                self.server.page.sent += len(data)
            return write(data)

        self.wfile.write = counted

    def send_header(self, name: str, value: str):
        if self.server.page.headers or not name.startswith("Cross-Origin"):
            super().send_header(name, value)

    def do_GET(self):
        page = self.server.page
        if page.is_down:
            self.close_connection = True
            return
        page.requests += 1
        for part, change in page.damage.items():
            if part in self.path:
                return self._send(change(Path(self.translate_path(self.path)).read_bytes()))
        super().do_GET()

    def _send(self, data: bytes):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.copyfile(BytesIO(data), self.wfile)
