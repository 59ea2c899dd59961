"""`train.py` and `evaluate_benchmarks.py`, given what an annotation tool wrote, say how it is prepared."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf.errors import UserError
from catseg_training.benchmarks.published import find_benchmark
from catseg_training.data.sources import load_segmentation_data


SOURCES = Path(__file__).parents[1] / "fixtures" / "annotations" / "sources"


@pytest.mark.parametrize(
    ("source", "name"),
    [("coco", "coco"), ("coco/annotations/instances_train2017.json", "coco"), ("yolo", "yolo"), ("cvat_masks", "voc")],
)
@pytest.mark.parametrize("read", [lambda source: load_segmentation_data(source, "train"), find_benchmark])
def test_sources_of_tools_are_named(source, name, read):
    path = str(SOURCES / source)
    with pytest.raises(UserError, match=f"format {name}.*`catseg-hf prepare {path} --format {name} --output DIR`"):
        read(path)


def test_label_maps_of_ids_are_read_whatever_lies_beside_them(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name / "train").mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / "train" / "a.png")
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')
    assert len(load_segmentation_data(tmp_path, "train")) == 1
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "labels" / "train" / "a.png")
    (tmp_path / "annotations.json").unlink()
    (tmp_path / "label_colors.txt").write_text("0 0 0 road\n")
    with pytest.raises(UserError, match="format colors"):
        load_segmentation_data(tmp_path, "train")
