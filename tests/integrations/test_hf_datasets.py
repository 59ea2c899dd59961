"""Datasets of `datasets` with a segmentation of every image."""

import io
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage

from catseg_hf.errors import UserError
from catseg_hf.images.rows import RESULT_COLUMNS, RowOptions, RowSegmenter
from catseg_hf.integrations.hf_datasets import MapSegmenter, device_of_rank, segment_dataset
from catseg_testing.mixed_images import WORDS, mixed_images, save_quick_model


NUM_IMAGES = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_quick_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def dataset() -> Dataset:
    rows = {"id": range(NUM_IMAGES), "image": [{"bytes": file} for file in mixed_images(NUM_IMAGES).values()]}
    return Dataset.from_dict(rows, Features({"id": Value("int32"), "image": Image()}))


@pytest.fixture(scope="module")
def expected(model) -> list[dict]:
    return RowSegmenter(RowOptions(model, WORDS), "cpu").segment(mixed_images(NUM_IMAGES).values())


def as_array(class_map: bytes | PilImage.Image) -> np.ndarray:
    return np.asarray(PilImage.open(io.BytesIO(class_map)) if isinstance(class_map, bytes) else class_map)


def check(segmented, expected: list[dict]):
    rows = list(segmented.cast_column("image", Image(decode=False)))
    assert [row["id"] for row in rows] == list(range(NUM_IMAGES))
    for row, own in zip(rows, expected, strict=True):
        if own["class_map"] is None:
            assert row["class_map"] is None and row["error"]
        else:
            assert np.array_equal(as_array(row["class_map"]), as_array(own["class_map"]))
        assert {name: row[name] for name in RESULT_COLUMNS[1:]} == {name: own[name] for name in RESULT_COLUMNS[1:]}


def test_a_dataset(dataset, model, expected):
    segmented = segment_dataset(dataset, model=model, labels=WORDS, device="cpu")
    check(segmented, expected)
    assert segmented.column_names == ["id", "image", *RESULT_COLUMNS]
    assert segmented.features["image"] == Image() and segmented[3]["image"].mode == "L"


def test_a_stream(dataset, model, expected):
    stream = dataset.to_iterable_dataset(num_shards=2)
    segmented = segment_dataset(stream, model=model, labels=WORDS, device="cpu")
    check(segmented, expected)
    assert segmented.features["class_map"] == Value("binary")
    assert segmented.features["image"] == Image(decode=False)
    with pytest.raises(UserError, match="`num_proc` is 2, but an IterableDataset is read by one process"):
        segment_dataset(stream, model=model, labels=WORDS, num_proc=2)


@pytest.mark.slow
def test_several_processes(dataset, model, expected):
    check(segment_dataset(dataset, model=model, labels=WORDS, device="cpu", num_proc=2), expected)


def test_addresses_of_a_stream(model, expected):
    """As a folder of images on the Hub has them, with `hf://`."""
    files = fsspec.filesystem("memory")
    files.pipe("/images/0.png", [*mixed_images(1).values()][0])
    paths = ["memory://images/0.png", "memory://images/1.png"]
    batch = {"image": [{"bytes": None, "path": path} for path in paths]}
    columns = MapSegmenter(RowOptions(model, WORDS), device="cpu")(batch)
    assert columns["class_map"] == [expected[0]["class_map"], None]
    assert columns["error"][1]


def test_processes_take_one_gpu_after_another(model, monkeypatch):
    devices = []

    class Segmenter(RowSegmenter):
        def __init__(self, options, device):
            devices.append(device)
            super().__init__(options, "cpu")

    monkeypatch.setattr("catseg_hf.integrations.hf_datasets.RowSegmenter", Segmenter)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for rank in (0, 3):
        MapSegmenter(RowOptions(model, WORDS))({"image": []}, rank)
    assert devices == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert device_of_rank(None) is None


def test_ranks_of_a_map(dataset, model, monkeypatch):
    """`map` hands the rank on where there are processes; a device that is named is that of all."""
    calls = []
    monkeypatch.setattr(Dataset, "map", lambda dataset, function, **options: calls.append(options) or dataset)
    for num_proc in (None, 1, 4):
        segment_dataset(dataset, model=model, labels=WORDS, num_proc=num_proc)
    assert [(call["num_proc"], call["with_rank"]) for call in calls] == [(None, False), (1, True), (4, True)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", torch.cuda.device_count)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert [device_of_rank(rank).index for rank in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    devices = []
    monkeypatch.setattr(
        "catseg_hf.integrations.hf_datasets.RowSegmenter",
        lambda options, device: devices.append(device) or SimpleNamespace(segment=lambda images: []),
    )
    for rank in (1, 2):
        MapSegmenter(RowOptions(model, WORDS), device="cuda:0")({"image": []}, rank)
    MapSegmenter(RowOptions(model, WORDS))({"image": []})
    assert devices == ["cuda:0", "cuda:0", None]


def test_the_cache_knows_the_model_and_the_labels(dataset, model, tmp_path):
    def fingerprint(labels=WORDS, model=model) -> str:
        return segment_dataset(dataset.select([0]), model=model, labels=labels, device="cpu")._fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(labels=WORDS[::-1]) != first
    config = save_quick_model(tmp_path / "model") / "config.json"
    other = fingerprint(model=str(config.parent))
    config.write_text(config.read_text() + "\n")
    assert fingerprint(model=str(config.parent)) not in (first, other)


def test_columns_are_refused(dataset, model):
    with pytest.raises(UserError, match="no column 'photo', but 'id', 'image'"):
        segment_dataset(dataset, model=model, image_column="photo")
    with pytest.raises(UserError, match="has a column 'error', which is what results are called"):
        segment_dataset(dataset.rename_column("id", "error"), model=model)
