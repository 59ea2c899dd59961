"""The check of a COCO-Stuff download, and the dataset for the Hub that is written from it."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import prepare_coco_stuff
from catseg_hf import load_vocabulary
from catseg_testing.coco_stuff_folder import write_coco_stuff_folder
from catseg_training.data import coco_stuff_parquet
from catseg_training.data.examples import read_example
from catseg_training.data.sources import load_segmentation_data


SCRIPT = Path(prepare_coco_stuff.__file__)


@pytest.fixture
def download(tmp_path) -> Path:
    return write_coco_stuff_folder(tmp_path / "coco_stuff", num_train=4, num_val=2)


@pytest.fixture
def small_release(monkeypatch):
    """As if the whole download were no larger than the synthetic one."""
    monkeypatch.setattr(prepare_coco_stuff, "NUM_PAIRS", {"train": 4, "validation": 2})


@pytest.fixture
def prepare(download, capsys):
    """Runs the script on the download; returns exit status, output and errors."""

    def run(*arguments, num_workers: int = 0) -> tuple[int, str, str]:
        options = ["--data_dir", download, "--num_workers", num_workers, *arguments]
        status = prepare_coco_stuff.main([str(option) for option in options])
        return status, *capsys.readouterr()

    return run


def files(root: Path, kind: str, split: str) -> list[Path]:
    return sorted((root / kind / split).iterdir())


def test_whole_download(prepare, small_release, download):
    before = sorted(download.rglob("*"))
    status, output, _ = prepare()
    assert status == 0 and "problem" not in output and "note" not in output
    assert "train: 4 pairs, all readable" in output and "validation: 2 pairs, all readable" in output
    assert f"--dataset_name {download} --vocabulary coco_stuff_171" in output
    assert sorted(download.rglob("*")) == before
    assert prepare("--splits", "validation")[1].count("pairs") == 1


def test_a_part_of_the_download_has_to_be_wanted(prepare, download):
    status, output, _ = prepare()
    assert status == 1 and "4 pairs instead of 118,287" in output and "2 pairs instead of 5,000" in output
    assert "--allow_partial" in output and "accelerate launch" not in output
    status, output, _ = prepare("--allow_partial")
    assert status == 0 and "note: 4 pairs instead of 118,287" in output

    shutil.rmtree(download / "stuffthingmaps" / "val2017")
    files(download, "images", "train2017")[0].unlink()
    status, output, _ = prepare("--allow_partial")
    assert status == 0 and "note: The labels of split 'validation' are missing" in output
    assert "1 of 4 labels have no image" in output
    files(download, "stuffthingmaps", "train2017")[-1].unlink()
    status, output, _ = prepare("--allow_partial")
    assert status == 1 and "1 of 3 images have no label" in output


def damage(root: Path) -> dict[str, Path]:
    """One problem of each kind, with the file that has it."""
    images = files(root, "images", "train2017")
    labels = files(root, "stuffthingmaps", "train2017")
    images[0].write_bytes(images[0].read_bytes()[:-200])
    Image.fromarray(np.full((61, 80), 181, np.uint8)).save(labels[2])
    ids = np.asarray(Image.open(labels[3])).copy()
    ids[0, 0] = 90
    Image.fromarray(ids).save(labels[3])
    labels[1].unlink()
    unused = root / "stuffthingmaps" / "val2017" / "unused.png"
    Image.fromarray(ids).save(unused)
    (root / "images" / "val2017" / "notes.txt").write_text("no image")
    return {
        "is truncated": images[0],
        "differ in size": labels[2],
        "holds the id 90": labels[3],
        "images have no label": images[1],
        "labels have no image": unused,
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_problem_is_reported(prepare, small_release, download, num_workers, start_method):
    problems = damage(download)
    status, output, _ = prepare(num_workers=num_workers)
    assert status == 1
    for problem, path in problems.items():
        assert problem in output and str(path) in output
    assert "3 of 3 pairs cannot be used" in output and "3 pairs instead of 4" in output
    assert "validation: problem: 1 of 3 labels have no image" in output and "notes.txt" not in output


def test_long_lists_are_cut(prepare, download):
    for path in files(download, "images", "train2017"):
        path.write_bytes(b"")
    _, output, _ = prepare("--max_listed", 1)
    assert output.count("could not be read") == 1 and "and 3 more (--max_listed)" in output


def test_folders_that_are_not_the_download(prepare, download, tmp_path, capsys):
    assert prepare_coco_stuff.main(["--data_dir", str(tmp_path / "missing")]) == 1
    assert "There is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert prepare_coco_stuff.main(["--data_dir", str(tmp_path / "empty")]) == 1
    output = capsys.readouterr().out
    for split in ("train2017", "val2017"):
        assert f"none of {tmp_path / 'empty' / 'images' / split}, {tmp_path / 'empty' / split} is a folder" in output
    assert prepare_coco_stuff.main(["--data_dir", str(tmp_path / "empty"), "--allow_partial"]) == 1
    assert "There is no pair" in capsys.readouterr().err


def test_help_can_be_understood(capsys):
    with pytest.raises(SystemExit) as end:
        prepare_coco_stuff.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "stuffthingmaps_trainval2017.zip" in text and "--allow_partial" in text and "exit status" in text


@pytest.mark.slow
def test_script_writes_a_data_set_for_the_hub(download, tmp_path):
    output = tmp_path / "new" / "parquet"
    command = [sys.executable, SCRIPT, "--data_dir", download, "--parquet_dir", output, "--allow_partial"]
    finished = subprocess.run([*command, "--num_workers", "2"], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert f"Written: {output}" in finished.stdout
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.*")) == [
        "README.md",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
        "id2label.json",
    ]
    assert sorted(output.parent.iterdir()) == [output]

    id2label = json.loads((output / "id2label.json").read_text())
    assert [id2label[str(index)] for index in range(171)] == load_vocabulary("coco_stuff_171")
    for split, folder, count in (("train", "train2017", 4), ("validation", "val2017", 2)):
        plain = datasets.load_dataset(str(output), split=split, cache_dir=str(tmp_path / "cache"))
        assert plain.features == coco_stuff_parquet.FEATURES and len(plain) == count
        assert plain[0]["image"].format == "JPEG" and plain[0]["label"].mode == "L"
        written = load_segmentation_data(output, split, cache_dir=str(tmp_path / "cache"))
        original = load_segmentation_data(download, split)
        assert written["label_ids"] == ["contiguous"] * count
        for row, original_row, path in zip(written, original, files(download, "images", folder), strict=True):
            assert row["image"] == {"bytes": path.read_bytes(), "path": path.name}
            np.testing.assert_array_equal(read_example(row, 171)[1], read_example(original_row, 171)[1])


def test_large_splits_are_written_in_several_files(download, tmp_path, monkeypatch):
    sizes = [
        path.stat().st_size for kind in ("images", "stuffthingmaps") for path in files(download, kind, "train2017")
    ]
    monkeypatch.setattr(coco_stuff_parquet, "SHARD_BYTES", sum(sizes) // 2 - 1)
    pairs = prepare_coco_stuff.check_split(download, "train", allow_partial=True).pairs
    coco_stuff_parquet.write_parquet({"train": pairs}, tmp_path / "parquet", load_vocabulary("coco_stuff_171"))
    names = sorted(path.name for path in (tmp_path / "parquet" / "data").iterdir())
    assert names == [f"train-{index:05d}-of-00003.parquet" for index in range(3)]
    written = load_segmentation_data(tmp_path / "parquet", "train", cache_dir=str(tmp_path / "cache"))
    assert [row["image"]["path"] for row in written] == [path.name for path in files(download, "images", "train2017")]


def test_nothing_half_written_stays_behind(prepare, small_release, download, tmp_path, monkeypatch):
    output = tmp_path / "new" / "parquet"
    before = sorted(tmp_path.rglob("*"))
    rows = coco_stuff_parquet._row
    last = files(download, "images", "val2017")[-1]

    def row_until_the_disk_is_full(pair):
        if pair[0] == last:
            raise OSError(28, "No space left on device")
        return rows(pair)

    monkeypatch.setattr(coco_stuff_parquet, "_row", row_until_the_disk_is_full)
    status, _, errors = prepare("--parquet_dir", output)
    assert status == 1 and "No space left" in errors
    assert sorted(tmp_path.rglob("*")) == before

    monkeypatch.setattr(coco_stuff_parquet, "_row", rows)
    disk_usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk_usage(10**9, 10**9 - 1000, 1000))
    status, _, errors = prepare("--parquet_dir", output)
    assert status == 1 and "GB left" in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_from_a_bad_download_or_over_other_files(prepare, small_release, download, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    status, _, errors = prepare("--parquet_dir", tmp_path / "used")
    assert status == 1 and "used is in use" in errors and "--parquet_dir" in errors
    damage(download)
    status, output, _ = prepare("--parquet_dir", tmp_path / "parquet")
    assert status == 1 and not (tmp_path / "parquet").exists() and "Nothing was written" in output
