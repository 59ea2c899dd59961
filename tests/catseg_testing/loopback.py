"""A server on the loopback interface for a test."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import Self


class LoopbackServer:
    """
    Answers requests while its `with` block runs.

    Args:
        handler (`type[BaseHTTPRequestHandler]`): What answers them.
        attributes: What the handler finds in its `server`.

    Attributes:
        url: Where it listens, without a slash at the end.
    """

    def __init__(self, handler: type[BaseHTTPRequestHandler], /, **attributes: Any):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        vars(self._server).update(attributes)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
