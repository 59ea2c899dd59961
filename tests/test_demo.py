"""The demonstration's output: what is in the scene, and which words had no masks."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from catseg_hf import EMBEDDED_MODEL


ROOT = Path(__file__).parent.parent


def test_demo(tmp_path):
    command = [sys.executable, ROOT / "demo" / "segment_photo.py", "--output_dir", tmp_path]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    unseen = json.loads((Path(EMBEDDED_MODEL) / "words.json").read_text())["unseen"]
    noted = [line for line in output.splitlines() if "never shown a mask" in line]
    assert noted and all(any(word in line for word in unseen) for line in noted)
    assert Image.open(tmp_path / "segmentation.png").height >= 300
