"""The demonstration's output: what is in the image, and which words had no masks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from catseg_hf import EMBEDDED_MODEL
from conftest import ROOT


LINE = re.compile(r" *(.+?)  score ([01]\.\d\d)  +(\d+\.\d)%(?:  (seen|never shown a mask of it))?")


def segment_photo(output: Path, *arguments: object) -> list[tuple[str, ...]]:
    """What it prints of each segment: label, score, share and note."""
    command = [sys.executable, ROOT / "demo" / "segment_photo.py", "--output_dir", output, *arguments]
    printed = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    *lines, last = printed.splitlines()
    assert last == f"Wrote {output / 'segmentation.png'}"
    return [LINE.fullmatch(line).groups() for line in lines]


def test_demo(tmp_path):
    words = json.loads((Path(EMBEDDED_MODEL) / "words.json").read_text())
    segments = segment_photo(tmp_path)
    assert {note for *_, note in segments} == {"seen", "never shown a mask of it"}
    for label, _, _, note in segments:
        assert label in words["seen" if note == "seen" else "unseen"]
    assert sum(float(share) for _, _, share, _ in segments) > 90
    assert all(float(score) > 0.5 for _, score, _, _ in segments)
    assert Image.open(tmp_path / "segmentation.png").height >= 300


@pytest.mark.slow
def test_an_image_and_labels_of_ones_own(tmp_path):
    """A photo that is stored on its side, a word that the model does not know, and its folder by another name."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    scene = Image.open(ROOT / "demo" / "scene.png").convert("RGB")
    scene.crop((0, 0, 512, 400)).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.jpg", exif=turned)
    model = Path(EMBEDDED_MODEL).parent / "." / "embedded_model" / ".." / "embedded_model"
    arguments = ["--image", tmp_path / "photo.jpg", "--labels", "snow", "water", "lorry", "--model", model]
    notes = {label: note for label, *_, note in segment_photo(tmp_path, *arguments)}
    assert notes["snow"] == "never shown a mask of it" and notes["water"] == "seen"
    assert notes.get("lorry") is None
    drawn = Image.open(tmp_path / "segmentation.png")
    assert drawn.width >= 512 and drawn.height < drawn.width
