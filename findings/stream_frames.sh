#!/usr/bin/env bash
# FFmpeg 8 in PyAV 18.1.0, what stream.frames counts in whole files.
# AVI: a clip of 10 frames whose clock begins at 100 s (as the second part that the segment muxer cuts) has 510: the
# muxer puts the offset between the first frame and the second, as 500 empty chunks, which the demuxer counts and
# never gives. The first frame is shown for 100 s. MP4: the same 10 frames, of which an edit list shows the last 4,
# are 10 in stream.frames, and 4 are decoded. In Matroska stream.frames is 0.
# Output: "avi: frames 510, packets 10, second frame at 100.2 s; mp4: frames 10, decoded 4; matroska: frames 0".
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


def write(path, codec, first):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=5, width=96, height=64, pix_fmt="yuv420p", options={"bf": "0"})
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = first + index, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def look(path):
    with av.open(path) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        container.seek(0)
        return stream.frames, packets, [frame.time for frame in container.decode(stream)]


write("clip.avi", "mpeg4", 500)
write("clip.mp4", "libx264", -6)
write("clip.mkv", "libx264", 0)
avi, mp4, matroska = (look(f"clip.{suffix}") for suffix in ("avi", "mp4", "mkv"))
print(
    f"avi: frames {avi[0]}, packets {len(avi[1])}, second frame at {avi[2][1]} s; "
    f"mp4: frames {mp4[0]}, decoded {len(mp4[2])}; matroska: frames {matroska[0]}"
)
assert avi[0] == 510 and len(avi[1]) == 10 and abs(avi[2][1] - 100.2) < 1e-6
assert mp4[0] == 10 and len(mp4[2]) == 4 and matroska[0] == 0 and len(matroska[1]) == 10
PYTHON
