#!/usr/bin/env bash
# PyAV 17.1.0 and 18.1.0 (both with FFmpeg's libswscale 9.5), dst_color_trc of VideoFrame.reformat.
# The documentation of dst_color_trc in both: "This sets frame metadata only; it does not perform a pixel-level
# transfer function conversion." 17.1.0 does so. In 18.1.0 the same call converts the pixels, the transfer and the
# primaries: grey of 100 cd/m2 in PQ goes from 130 to 187, sRGB for 100 / 203. There is no tone curve: 250 and 1000
# cd/m2 are both white.
# Output: "17.1.0: grey of 100 cd/m2: 130, 130 with dst_color_trc", "18.1.0: grey of 100 cd/m2: 130, 187 with
# dst_color_trc".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 17.1.0 18.1.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "av==$version" "numpy==2.3.5"
  "$folder/$version/bin/python" - "$version" <<'PYTHON'
import sys

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter

version = sys.argv[1]
assert "sets frame metadata only" in " ".join(VideoReformatter.reformat.__doc__.split())


def pq(luminance):
    power = (luminance / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


signal = pq(np.array([100, 250, 1000]))
pixels = np.repeat((65535 * signal).round().astype(np.uint16), 16)[None, :, None].repeat(16, 0).repeat(3, 2)
hdr = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le")
hdr.color_trc, hdr.color_primaries = ColorTrc.SMPTE2084, ColorPrimaries.BT2020
plain = hdr.reformat(format="rgb24").to_ndarray()[8, 8::16, 0].tolist()
tagged = hdr.reformat(
    format="rgb24", dst_color_trc=ColorTrc.IEC61966_2_1, dst_color_primaries=ColorPrimaries.BT709
).to_ndarray()[8, 8::16, 0].tolist()
print(f"{version}: grey of 100 cd/m2: {plain[0]}, {tagged[0]} with dst_color_trc")
if version == "17.1.0":
    assert plain == tagged
else:
    assert abs(plain[0] - 130) < 2 and abs(tagged[0] - 186) < 3 and min(tagged[1:]) >= 254
PYTHON
done
