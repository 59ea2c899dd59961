#!/usr/bin/env bash
# rasterio 1.4.4: while a raster is opened by URL, Python's other threads stand still for most of the time. The first
# requests are made without the interpreter's lock; those for files that may lie beside the raster (.aux.xml, .msk, a
# folder's list and so on, nine for a plain GeoTIFF) are made with it. A progress bar, a prefetching thread or a server
# in the same process waits as long, and a server in the same process that is asked for the raster waits for ever.
# Output seen, with a server that takes half a second for each answer: "opened in 5.0 s, of which other threads stood
# still for 4.0 s at a stretch".
#
# Exits with 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "rasterio==1.4.4" "numpy==2.3.5"
cd "$folder"
mkdir served

cat > server.py <<'PYTHON'
"""Serves a folder slowly, and parts of files; writes its port to a file."""
import re
import time
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path


class Slow(SimpleHTTPRequestHandler):
    def do_HEAD(self):
        time.sleep(0.5)
        super().do_HEAD()

    def do_GET(self):
        time.sleep(0.5)
        path = Path(self.translate_path(self.path))
        part = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not part or not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        found = data[int(part[1]) : int(part[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {part[1]}-{int(part[1]) + len(found) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *arguments):
        pass


with HTTPServer(("127.0.0.1", 0), partial(Slow, directory="served")) as server:
    Path("port").write_text(str(server.server_port))
    server.serve_forever()
PYTHON
venv/bin/python server.py &
server=$!
until [ -s port ]; do sleep 0.1; done

venv/bin/python - <<'PYTHON'
import threading
import time

import numpy as np
import rasterio

profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
with rasterio.open("served/a.tif", "w", transform=rasterio.Affine(1, 0, 0, 0, -1, 0), **profile) as target:
    target.write(np.ones((1, 64, 64), np.uint8))

ticks = []


def tick():
    while True:
        ticks.append(time.perf_counter())
        time.sleep(0.02)


threading.Thread(target=tick, daemon=True).start()
start = time.perf_counter()
rasterio.open(f"http://127.0.0.1:{open('port').read()}/a.tif").close()
end = time.perf_counter()
times = [start, *(moment for moment in ticks if start < moment < end), end]
still = max(later - earlier for earlier, later in zip(times, times[1:]))
print(f"opened in {end - start:.1f} s, of which other threads stood still for {still:.1f} s at a stretch")
assert still > 2
PYTHON
