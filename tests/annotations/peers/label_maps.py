"""What the scripts beside this one write: EXPECTED/SPLIT/NAME.png of a tool's own ids, 255 for no class, and
EXPECTED/classes.json with the name of each id."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


NO_CLASS = 255
SPLITS = {"training": "train", "val": "validation", "valid": "validation", "default": "any"}


def write(output: Path, split: str, name: str, labels: np.ndarray):
    """Writes a label map (H, W) of ids, with -1 or 255 for no class."""
    split = SPLITS.get(split.lower(), split.lower())
    path = output / split / f"{Path(name).stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(labels < 0, NO_CLASS, labels).astype(np.uint8)).save(path)


def write_classes(output: Path, names: Mapping[int, str]):
    """Writes the names of the ids."""
    (output / "classes.json").write_text(json.dumps({str(number): name for number, name in names.items()}) + "\n")
