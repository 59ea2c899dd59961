"""`catseg-hf segment` in several processes, and killed."""

import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_testing.tiny_training import TrainingDriver


NUM_IMAGES = 7


@pytest.fixture(scope="module")
def driver():
    with TrainingDriver() as driver:
        yield driver


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of several sizes, two of one name, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        pixels = generator.integers(256, size=(3 + index, 4, 3), dtype=np.uint8)
        name = "5" if index == NUM_IMAGES - 1 else str(index)
        Image.fromarray(pixels).resize((60 + 4 * index, 50)).save(folder / f"{name}{'.png' if index % 2 else '.bmp'}")
    (folder / "3b.jpg").write_text("not an image")
    return folder


@pytest.fixture
def segment(driver, images):
    """Runs the command."""

    def segment(output: Path, *arguments: object, **options: object) -> dict:
        command = ["segment", images, "--labels", "grass, water, snow", "--output", output, *arguments]
        return driver.run(*command, script="catseg-hf", **options)

    return segment


@pytest.fixture(scope="module")
def complete(driver, images, tmp_path_factory) -> dict[str, bytes]:
    """What one process writes that is not disturbed."""
    folder = tmp_path_factory.mktemp("complete")
    command = ["segment", images, "--labels", "grass, water, snow", "--output", folder]
    result = driver.run(*command, script="catseg-hf")
    assert result["status"] == [1], result["stderr"]
    return {"files": contents(folder), "stdout": result["stdout"].replace(str(folder), "")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes(segment, complete, tmp_path):
    result = segment(tmp_path, world_size=2)
    assert result["status"] == [1, 1]
    assert contents(tmp_path) == complete["files"]
    printed = result["stdout"].replace(str(tmp_path), "")
    assert sorted(printed.splitlines()) == sorted(complete["stdout"].splitlines())
    assert printed.splitlines()[-1] == f"Segmented {NUM_IMAGES} images into "
    errors = [line for line in result["stderr"].splitlines() if line.startswith("catseg-hf:")]
    assert len(errors) == 1 and "3b.jpg" in errors[0]
    assert result["stderr"].count("Using the small model") == 1


def test_batches_do_not_depend_on_processes(segment, tmp_path):
    for name, options in (("one", {}), ("two", {"world_size": 2})):
        assert set(segment(tmp_path / name, "--batch_size", 3, **options)["status"]) == {1}
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_annotations_of_two_processes(segment, tmp_path):
    for name, options in (("one", {}), ("two", {"world_size": 2})):
        result = segment(tmp_path / name, "--format", "coco", "--format", "labelme", **options)
        assert set(result["status"]) == {1} and result["stdout"].count("Wrote COCO to") == 1
    for file in ("annotations.json", "labelme/5_2.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_error_in_one_process_ends_all(segment, world_size, tmp_path):
    (tmp_path / "2_overlay.png").mkdir()  # in the place of a file, so that writing it fails
    result = segment(tmp_path, world_size=world_size)
    assert result["status"] == [2] * world_size
    errors = [line for line in result["stderr"].splitlines() if line.startswith("catseg-hf:")]
    assert len(errors) == 1 and "Could not write" in errors[0]
    assert not [name for name in tmp_path.iterdir() if name.suffix == ".incomplete" or name.suffix == ".json"]


def test_a_model_that_cannot_be_loaded(segment, tmp_path):
    result = segment(tmp_path, "--model", "no/such/folder", world_size=2)
    assert result["status"] == [2, 2]
    assert result["stderr"].count("'no/such/folder' could not be loaded") == 1


def check_resumed(segment, complete, output, killed_at, world_size=1):
    result = segment(output, world_size=world_size, killed_at=killed_at)
    assert -signal.SIGKILL in result["status"]
    num_written = len(list(output.glob("*_labels.png"))) if output.exists() else 0
    result = segment(output, "--resume", world_size=world_size)
    assert result["status"] == [1] * world_size, result["stderr"]
    assert contents(output) == complete["files"]
    lines = result["stdout"].splitlines()
    assert len(lines) == NUM_IMAGES - num_written + 1
    assert lines[-1].startswith(f"Segmented {NUM_IMAGES} images into ")


@pytest.mark.parametrize("killed_at", [3, 12, 30])
def test_killed_and_resumed(segment, complete, killed_at, tmp_path):
    check_resumed(segment, complete, tmp_path, killed_at)


@pytest.mark.slow
def test_killed_and_resumed_in_two_processes(segment, complete, tmp_path):
    check_resumed(segment, complete, tmp_path, killed_at=10, world_size=2)


@pytest.mark.slow
def test_killed_anywhere_and_resumed(segment, complete, tmp_path):
    changes = segment(tmp_path / "whole")["changes"]
    for killed_at in range(1, changes + 1, 3):  # of the five that every file takes each in turn
        check_resumed(segment, complete, tmp_path / str(killed_at), killed_at)
