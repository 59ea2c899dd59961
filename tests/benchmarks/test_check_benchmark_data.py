"""check_benchmark_data.py, as a user runs it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import check_benchmark_data
from catseg_hf.visualization import class_color
from catseg_testing.benchmark_folders import LABELS, stored_maps, write_benchmark
from catseg_training.benchmarks import published


@pytest.fixture
def three_images(monkeypatch):
    """As if three images had been published of every benchmark."""
    small = tuple(replace(benchmark, num_images=3) for benchmark in published.PUBLISHED)
    monkeypatch.setattr(published, "PUBLISHED", small)


def run(tmp_path, *arguments, workers=0):
    fixed = [
        "--data_root",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "pages"),
        "--dataloader_num_workers",
        str(workers),
    ]
    return check_benchmark_data.main([*fixed, *arguments])


def test_complete(three_images, tmp_path, capsys):
    for name in LABELS:
        write_benchmark(name, tmp_path, stored_maps(name)) if name != "pascal_voc_20b" else None
    assert run(tmp_path) == 0
    output = capsys.readouterr().out
    for name in LABELS:
        assert f"{name}: complete" in output
        assert (tmp_path / "pages" / f"{name}.png").is_file()
    assert str(tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClassAug") in output
    assert output.count("3 images, as published") == 7


def test_fewer_images_than_published(tmp_path, capsys):
    write_benchmark("ade20k_150", tmp_path, stored_maps("ade20k_150"))
    assert run(tmp_path, "--benchmarks", "ade20k_150") == 1
    output = capsys.readouterr().out
    assert "ade20k_150: incomplete" in output and "3 images, but 2,000 are published" in output
    assert "sceneparsing.csail.mit.edu" in output


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_and_damaged_files(three_images, workers, start_method, tmp_path, capsys):
    write_benchmark("ade20k_150", tmp_path, stored_maps("ade20k_150"))
    labels = tmp_path / "ADEChallengeData2016" / "annotations" / "validation"
    (labels / "ADE_val_00000001.png").unlink()
    damaged = labels / "ADE_val_00000003.png"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert run(tmp_path, "--benchmarks", "ade20k_150", "--read_all", workers=workers) == 1
    output = capsys.readouterr().out
    assert output.count("ADE_val_00000001") == 1 and "is missing" in output
    assert f"{damaged} could not be read" in output


def test_nothing_there(tmp_path, capsys):
    assert run(tmp_path, "--benchmarks", "coco_stuff", "pascal_context_59") == 1
    output = capsys.readouterr().out
    for expected in ("images/val2017", "val2017.zip", "trainval_merged.json", "VOCtrainval_03-May-2010"):
        assert expected in output
    assert not (tmp_path / "pages").exists()


def test_page_shows_the_labels(tmp_path):
    """In the classes' colours, and ignored pixels in none."""
    file = tmp_path / "mine.json"
    description = {"name": "mine", "vocabulary": ["cat", "dog"], "images": "a", "labels": "b", "image_suffix": ".png"}
    file.write_text(json.dumps(description))
    for folder in "ab":
        (tmp_path / folder).mkdir()
    Image.new("RGB", (30, 30)).save(tmp_path / "a" / "x.png")
    Image.fromarray(np.repeat(np.array([[0], [1], [255]], np.uint8), [30], axis=1).repeat(10, axis=0)).save(
        tmp_path / "b" / "x.png"
    )
    assert run(tmp_path, "--benchmarks", str(file)) == 0
    page = np.asarray(Image.open(tmp_path / "pages" / "mine.png").convert("RGB"))
    for index in range(2):  # over black, at 60 %
        color = np.array(class_color(index)) * 0.6
        assert (np.abs(page - color).max(axis=-1) < 1.5).sum() > 20_000
    assert (page == 0).all(axis=-1).sum() > 100_000


def test_unknown_benchmark(tmp_path, capsys):
    assert run(tmp_path, "--benchmarks", "ade") == 1
    assert "ade20k_150" in capsys.readouterr().err
