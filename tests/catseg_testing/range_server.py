"""Serves a folder, and the parts of its files that are asked for. Prints its port. A process of its own, since
rasterio.open waits for some of the answers without letting other threads of Python work."""

import re
import sys
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path


class RangeRequests(SimpleHTTPRequestHandler):
    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(last, int(asked[2] or last))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


if __name__ == "__main__":
    with HTTPServer(("127.0.0.1", 0), partial(RangeRequests, directory=sys.argv[1])) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
