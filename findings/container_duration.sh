#!/usr/bin/env bash
# FFmpeg 8 in PyAV 18.1.0, the duration of files whose clock does not begin at 0.
# One clip of 6 seconds, muxed with times from 100 s on: container.start_time is 100 s in MP4 and in Matroska, but
# container.duration is 6 s in MP4, which is how long it is, and 106 s in Matroska, which is when it ends (FFmpeg's
# muxer writes the Duration from time 0). In FLV it is 6 s if the muxer could go back to fill it in, and 106 s for a
# file written to a pipe, where FFmpeg takes the last time stamp instead. start_time + duration as the end makes a
# whole Matroska file look as if 100 s were missing.
# Output: "mp4 6.0 matroska 106.0 flv 6.0 flv by a pipe 105.8 (all from 100 s)".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "av==18.1.0" "numpy==2.3.5"
cd "$folder"
venv/bin/python - <<'PYTHON'
from fractions import Fraction

import av
import numpy as np


class Pipe:
    def __init__(self, path):
        self.file = open(path, "wb")

    def write(self, content):
        return self.file.write(content)


def write(target, name):
    with av.open(target, "w", format=name) as container:
        stream = container.add_stream("libx264", rate=5, width=96, height=64, pix_fmt="yuv420p", options={"bf": "0"})
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 8 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 500 + index, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def seconds(path):
    with av.open(path) as container:
        assert abs(container.start_time / 1e6 - 100) < 0.01, container.start_time
        return container.duration / 1e6


for name in ("mp4", "matroska", "flv"):
    write(f"clip.{name}", name)
pipe = Pipe("pipe.flv")
write(pipe, "flv")
pipe.file.close()
durations = [seconds(path) for path in ("clip.mp4", "clip.matroska", "clip.flv", "pipe.flv")]
print("mp4 {} matroska {} flv {} flv by a pipe {} (all from 100 s)".format(*durations))
for duration, expected in zip(durations, (6, 106, 6, 106)):
    assert abs(duration - expected) < 0.3, (duration, expected)
PYTHON
