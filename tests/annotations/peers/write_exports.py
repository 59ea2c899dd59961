"""Writes the label map of `catseg_testing.hard_masks` in every format, with and without --instances: what the other
scripts here read with the tools' own code."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from catseg_hf.annotations.registry import FORMATS
from catseg_hf.annotations.writing import AnnotationFiles
from catseg_testing.hard_masks import LABELS, SCORES, SIZE, hard_label_map


def write_exports(folder: Path, instances: bool):
    folder.mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(folder / "hard.png")
    ids = hard_label_map()
    Image.fromarray(np.where(ids < 0, 255, ids).astype(np.uint8)).save(folder / "hard_labels.png")
    segments = [{"index": index, "label": LABELS[index], "score": score} for index, score in SCORES.items()]
    record = {"image": str(folder / "hard.png"), "labels": "hard_labels.png", "segments": segments}
    formats = [known.name for known in FORMATS if known.writes]
    AnnotationFiles(formats, instances).write(folder, [record], LABELS)


if __name__ == "__main__":
    for instances in (False, True):
        write_exports(Path(sys.argv[1]) / ("instances" if instances else "classes"), instances)
