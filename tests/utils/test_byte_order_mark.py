"""Files that users write are UTF-8, with a byte order mark or without."""

import json
from pathlib import Path

import pytest

from catseg_hf import CATSegConfig
from catseg_hf.conversion.converter import read_config
from catseg_training.arguments import json_object
from catseg_training.benchmarks.context_annotations import ContextAnnotations
from catseg_training.benchmarks.description import read_description
from catseg_training.benchmarks.files import find_files
from catseg_training.benchmarks.published import find_benchmark
from catseg_training.model import read_vocabulary


DESCRIPTION = {"name": "own", "vocabulary": ["Käfer"], "images": "images", "labels": "labels"}
ANNOTATIONS = {"images": [{"file_name": "é.jpg", "phase": "val", "image_id": 1}], "annos_segmentation": []}
READERS = {
    "configuration overrides": (json_object, {"hidden_size": 64}),
    "vocabulary": (lambda path: read_vocabulary(str(path)), ["Käfer", "sofa"]),
    "benchmark": (read_description, DESCRIPTION),
    "annotations": (lambda path: ContextAnnotations(path).names, ANNOTATIONS),
    "configuration": (lambda path: read_config(path).to_dict(), CATSegConfig(id2label={0: "Käfer"}).to_dict()),
}


@pytest.mark.parametrize(("read", "content"), READERS.values(), ids=READERS)
def test_json(read, content, tmp_path):
    values = {}
    for encoding in ("utf-8", "utf-8-sig"):
        path = tmp_path / "file.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
        values[encoding] = read(path)
    assert values["utf-8"] == values["utf-8-sig"]


def test_lists_of_images(tmp_path):
    benchmark = find_benchmark("pascal_voc_20")
    root = tmp_path / benchmark.roots[0]
    for place in (benchmark.images[0], benchmark.labels[0], Path(benchmark.id_list).parent):
        (root / place).mkdir(parents=True)
    (root / benchmark.id_list).write_text("2007_000033\n", encoding="utf-8-sig")
    assert [file.name for file in find_files(benchmark, tmp_path).files] == ["2007_000033"]
