import subprocess
import sys
from pathlib import Path

from PIL import Image


ROOT = Path(__file__).parent.parent


def test_demo(tmp_path):
    command = [sys.executable, ROOT / "demo" / "segment_photo.py", "--output_dir", tmp_path, "--labels", "cat", "wall"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "cat" in output and "wall" in output
    assert "random weights" in output
    picture = Image.open(tmp_path / "segmentation.png")
    assert picture.height >= 300 and picture.width > 451
