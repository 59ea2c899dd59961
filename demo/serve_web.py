"""Serves the page that `make web` built, with the headers that let it compute on several threads.

python demo/serve_web.py build/web --port 8000
"""

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


# Without the first two browsers allow a page no memory that threads share.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
}


class PageHandler(SimpleHTTPRequestHandler):
    """Serves a folder's files."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".js": "text/javascript"}

    def end_headers(self):
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `make web` wrote")
    parser.add_argument("--port", type=int, default=8000, help="on this machine (%(default)s)")
    arguments = parser.parse_args()
    if not (arguments.folder / "index.html").is_file():
        parser.error(f"{arguments.folder} has no index.html: run `make web` first")
    handler = partial(PageHandler, directory=arguments.folder)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", arguments.port), handler)
    except (OSError, OverflowError) as error:
        parser.error(f"port {arguments.port} cannot be used ({error}): give another one, or 0 for any (--port)")
    with server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
