#!/usr/bin/env bash
# ray 2.60.0 (Ray Data) with pyarrow 26.0.1, read_binary_files and its siblings with `file_extensions`.
# A file that is named explicitly is left out without an error: "what?.jpg", since a local path ends for Ray at its
# question mark as a URL would. Of a list of paths one whose file system is not known by its scheme is left out with a
# line in the log, and the others are read: a dataset of fewer images. Each alone is an error.
# Output: "of a.jpg and what?.jpg: a.jpg; of a.jpg and memory://b.jpg: a.jpg".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "ray[data]==2.60.0" "pyarrow==26.0.1"
cd "$folder"
venv/bin/python - 2> log <<'PYTHON'
from pathlib import Path

import ray


for name in ("a.jpg", "what?.jpg"):
    Path(name).write_bytes(b"image")
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
found = []
for other in (str(Path("what?.jpg").absolute()), "memory://b.jpg"):
    paths = [str(Path("a.jpg").absolute()), other]
    rows = ray.data.read_binary_files(paths, include_paths=True, file_extensions=["jpg"]).take_all()
    found.append([Path(row["path"]).name for row in rows])
print(f"of a.jpg and what?.jpg: {', '.join(found[0])}; of a.jpg and memory://b.jpg: {', '.join(found[1])}")
assert found == [["a.jpg"], ["a.jpg"]]
PYTHON
