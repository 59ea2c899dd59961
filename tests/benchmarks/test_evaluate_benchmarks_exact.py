"""evaluate_benchmarks.py in several processes, and killed."""

import json
from pathlib import Path

import pytest

from catseg_testing.benchmark_folders import write_own_benchmark
from catseg_testing.tiny_training import TrainingDriver, save_checkpoint


SCORES = ("mean_iou", "mean_iou_present", "overall_accuracy", "per_category_iou", "num_images", "num_pixels")
SCORES += ("mean_boundary_iou", "mean_boundary_iou_present", "per_category_boundary_iou")


@pytest.fixture(scope="module")
def driver():
    with TrainingDriver() as driver:
        yield driver


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list:
    """Seven images of several sizes with four classes."""
    folder = tmp_path_factory.mktemp("own")
    file = write_own_benchmark(folder)
    model = save_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    command = ["--model", model, "--data_root", folder, "--benchmarks", file, "--save_seconds", 0]
    return [*command, "--batch_size", 1, "--dataloader_num_workers", 0, "--no-sliding_window"]


def scores(folder: Path) -> dict:
    result = json.loads((folder / "results.json").read_text())["own"]
    return {key: result[key] for key in SCORES}


def counts(folder: Path) -> dict:
    """Pixels by label and prediction, of all parts together."""
    total = {}
    for path in (folder / "own" / "tally").glob("part-*.json"):
        for label, prediction, pixels in json.loads(path.read_text())["counts"]:
            total[label, prediction] = total.get((label, prediction), 0) + pixels
    return total


@pytest.fixture(scope="module")
def complete(driver, command, tmp_path_factory) -> tuple[Path, int]:
    """The folder of a run in one process, and how many changes of the file system it needed."""
    folder = tmp_path_factory.mktemp("complete")
    result = driver.run(*command, "--output_dir", folder, script="evaluate_benchmarks")
    assert result["status"] == [0], result["stderr"]
    return folder, result["changes"]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_two_processes(batch_size, driver, command, complete, tmp_path):
    arguments = [*command, "--batch_size", batch_size, "--output_dir", tmp_path]
    result = driver.run(*arguments, script="evaluate_benchmarks", world_size=2)
    assert result["status"] == [0, 0], result["stderr"]
    assert scores(tmp_path) == scores(complete[0])
    assert counts(tmp_path) == counts(complete[0])
    assert len(list((tmp_path / "own" / "tally").glob("part-*.json"))) == (7 if batch_size == 1 else 4)


@pytest.mark.slow
def test_killed_and_resumed(driver, command, complete, tmp_path):
    """Before any of several changes of the file system, one run after the other."""
    arguments = [*command, "--output_dir", tmp_path, "--resume"]
    for killed_at in (1, 4, 9, 14):
        result = driver.run(*arguments, script="evaluate_benchmarks", killed_at=killed_at)
        assert result["status"] == [-9], result["stderr"]
    done = len(list((tmp_path / "own" / "tally").glob("part-*.json")))
    assert 0 < done < 7
    result = driver.run(*arguments, script="evaluate_benchmarks", world_size=2)
    assert result["status"] == [0, 0], result["stderr"]
    assert scores(tmp_path) == scores(complete[0])
    assert counts(tmp_path) == counts(complete[0])
