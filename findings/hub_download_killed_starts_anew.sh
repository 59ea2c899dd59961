#!/usr/bin/env bash
# huggingface_hub 2.4.0: a call of `hf_hub_download` that is killed (SIGKILL, a lost terminal, a batch system's limit) is
# not resumed by the next one, which asks for the whole file without a Range. What the first one had fetched stays in
# the cache's blobs/ as ETAG.RANDOM.incomplete, beside the complete blob, and no later download of the file removes it.
# Only within one call is a broken connection resumed. Seen: "second call's Range: None", and a rest of some 15 MB.
#
# Exits with 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet huggingface_hub==2.4.0

cat > "$folder/hub.py" <<'PYTHON'
"""A Hub with one file of 64 MB, whose first download is slow; writes its port and the ranges that are asked for."""
import hashlib
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(64_000_000)
BLOCK = 1_000_000
log = open(sys.argv[1], "w")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.command == "GET":
            print(self.headers.get("Range"), file=log, flush=True)
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
        self.send_header("X-Repo-Commit", 40 * "a")
        self.end_headers()
        if self.command == "HEAD":
            return
        slow = open(sys.argv[1]).read().count("\n") == 1
        for position in range(start, len(CONTENT), BLOCK):
            self.wfile.write(CONTENT[position : position + BLOCK])
            time.sleep(0.1 * slow)

    do_HEAD = do_GET


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
PYTHON
"$folder/venv/bin/python" "$folder/hub.py" "$folder/ranges" > "$folder/port" 2> "$folder/server_errors" &
server=$!
while [ ! -s "$folder/port" ]; do sleep 0.2; done

export HF_HOME="$folder/home" HF_ENDPOINT="http://127.0.0.1:$(cat "$folder/port")" HF_HUB_OFFLINE=0 HF_HUB_DISABLE_XET=1
download='from huggingface_hub import hf_hub_download
hf_hub_download("owner/model", "weights.bin")'
blobs="$HF_HOME/hub/models--owner--model/blobs"
"$folder/venv/bin/python" -c "$download" 2> /dev/null &
first=$!
until [ -n "$(find "$blobs" -name '*.incomplete' -size +10M 2> /dev/null)" ]; do sleep 0.1; done
kill -KILL "$first"
wait "$first" 2> /dev/null || true

"$folder/venv/bin/python" -c "$download" 2> /dev/null
echo "second call's Range: $(sed -n 2p "$folder/ranges")"
ls -l "$blobs"
[ "$(sed -n 2p "$folder/ranges")" = None ]
[ "$(find "$blobs" -name '*.incomplete' -size +10M | wc -l)" = 1 ]
[ "$(find "$blobs" -type f ! -name '*.incomplete' | wc -l)" = 1 ]
