"""How `catseg-hf segment` goes on with what is there, and what it does at the same time."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from catseg_hf import EMBEDDED_MODEL, OpenVocabularySegmentationPipeline, cli
from catseg_hf.errors import UserError
from catseg_hf.images import segmentation
from catseg_hf.images.results import list_segments
from catseg_hf.images.sources import choose_names
from catseg_hf.utils import processes


SECONDS = 60  # for what happens at once if it happens at all


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(6):
        pixels = generator.integers(256, size=(3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + index, 30)).save(folder / f"{index}.bmp")
    return folder


@pytest.fixture
def segment(images, tmp_path, capsys):
    """Runs the command; returns its exit code and the names of the images that it printed lines of."""

    def segment(*arguments, labels="grass, water") -> tuple[int, list[str]]:
        command = ["segment", str(images), "--labels", labels, "--device=cpu", f"--output={tmp_path / 'output'}"]
        code = cli.main([*command, *map(str, arguments)])
        printed = capsys.readouterr()
        segment.errors = [line for line in printed.err.splitlines() if line.startswith("catseg-hf:")]
        return code, [Path(line.partition(": ")[0]).stem for line in printed.out.splitlines() if ": " in line]

    return segment


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_resume_segments_what_is_not_there(segment, images, tmp_path):
    output = tmp_path / "output"
    assert segment("--resume") == (0, list("012345"))
    complete = contents(output)
    assert segment("--resume") == (0, []) and contents(output) == complete

    (output / "0_overlay.png").unlink()
    (output / "1_labels.png").unlink()
    (output / "2_labels.png").write_bytes(complete["2_labels.png"][:100])
    Image.open(output / "3_labels.png").save(output / "3_labels.png")  # without what is written beside its pixels
    (output / "summary.json").unlink()
    assert segment("--resume") == (0, list("0123")) and contents(output) == complete

    assert segment() == (0, list("012345"))


def test_resume_segments_whole_batches(segment, tmp_path):
    assert segment("--batch_size=3")[0] == 0
    complete = contents(tmp_path / "output")
    (tmp_path / "output" / "4_labels.png").unlink()
    assert segment("--batch_size=3", "--resume") == (0, list("345"))
    assert contents(tmp_path / "output") == complete


def test_resume_segments_images_that_have_changed(segment, images, tmp_path):
    segment()
    before = contents(tmp_path / "output")
    Image.open(images / "1.bmp").rotate(180).save(images / "1.bmp")
    os.utime(images / "2.bmp", ns=(1, 1))
    (images / "3.bmp").replace(images / "2b.bmp")
    assert segment("--resume") == (0, ["1", "2", "2b"])
    after = contents(tmp_path / "output")
    assert after["1_labels.png"] != before["1_labels.png"] and after["0_labels.png"] == before["0_labels.png"]


@pytest.mark.parametrize(
    ("labels", "options", "names"),
    [
        ("water, grass", [], "labels"),
        ("grass", ["--threshold=0.5"], "labels, threshold"),
        ("grass, water", ["--model=MODEL"], "model"),
        ("grass, water", ["--dtype=bfloat16"], "dtype"),
    ],
)
def test_resume_refuses_other_settings(segment, tmp_path, monkeypatch, labels, options, names):
    segment()
    before = contents(tmp_path / "output")
    (tmp_path / "MODEL").mkdir()
    for path in Path(EMBEDDED_MODEL).iterdir():
        (tmp_path / "MODEL" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    code, lines = segment("--resume", *options, labels=labels)
    assert (code, lines) == (2, [])
    (error,) = segment.errors
    assert f"holds results with another {names}, 0 among them" in error
    assert contents(tmp_path / "output") == before


def test_reading_and_writing_go_on_while_the_model_runs(segment, monkeypatch):
    read, written, model_called = threading.Event(), threading.Event(), threading.Event()

    def read_pixels(source, *arguments, **options):
        if source.endswith("1.bmp"):
            read.set()
        return original_read(source, *arguments, **options)

    def write_result(path, *arguments):
        if path.name == "0":
            assert model_called.wait(SECONDS)
            written.set()
        return original_write(path, *arguments)

    def forward(self, *arguments, **kwargs):
        calls.append(arguments)
        if len(calls) == 1:
            assert read.wait(SECONDS)
        else:
            model_called.set()
            assert written.wait(SECONDS)
        return original_forward(self, *arguments, **kwargs)

    calls = []
    original_read, original_write = segmentation.read_pixels, segmentation.write_result
    original_forward = OpenVocabularySegmentationPipeline._forward
    monkeypatch.setattr(segmentation, "read_pixels", read_pixels)
    monkeypatch.setattr(segmentation, "write_result", write_result)
    monkeypatch.setattr(OpenVocabularySegmentationPipeline, "_forward", forward)
    assert segment() == (0, list("012345"))


def test_lines_keep_the_order_of_the_images(segment, monkeypatch):
    def write_result(path, *arguments):
        if path.name == "0":
            assert last.wait(SECONDS)
        record = original(path, *arguments)
        if path.name == "3":
            last.set()
        return record

    original, last = segmentation.write_result, threading.Event()
    monkeypatch.setattr(segmentation, "write_result", write_result)
    assert segment() == (0, list("012345"))


def test_not_more_is_read_than_is_needed_soon():
    taken = []
    with ThreadPoolExecutor(1) as threads:
        results = segmentation.map_ahead(threads, str, map(taken.append, range(10)), 2)
        next(results)
        assert len(taken) == 3
        assert len(list(results)) == 9


def test_not_more_waits_to_be_written_than_there_is_memory_for():
    third_is_asked_for = threading.Event()

    def images():
        for index in range(4):
            if index == 2:
                third_is_asked_for.set()
            yield segmentation.ImageInWork(index, {}, num_pixels=10)

    def write(image):
        if image.index == 0:
            assert not third_is_asked_for.wait(0.2)
        return image

    with ThreadPoolExecutor(1) as threads:
        results = segmentation._map_behind(threads, write, images(), max_pixels=19)
        assert [image.index for image in results] == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stage", ["model", "writing"])
def test_interrupted(segment, tmp_path, monkeypatch, capsys, error, stage):
    def interrupted(*arguments, **kwargs):
        calls.append(arguments)
        if len(calls) == 4:
            raise error
        return original(*arguments, **kwargs)

    calls = []
    owner, name = {
        "model": (OpenVocabularySegmentationPipeline, "_forward"),
        "writing": (segmentation, "write_result"),
    }[stage]
    original = getattr(owner, name)
    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(owner, name, interrupted)
        segment()
    capsys.readouterr()
    written = {path.name for path in (tmp_path / "output").iterdir()}
    names = {name.partition("_")[0] for name in written}
    assert names and written == {f"{name}_{kind}.png" for name in names for kind in ("overlay", "labels")}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
    code, lines = segment("--resume")
    assert code == 0 and set(lines) == set("012345") - names


def test_names():
    images = ["a/x.png", "b/x.jpg", "c/X.png", "out/x_2_labels.png", "d/x.png", "http://host/x.png?y"]
    assert choose_names(images, Path("out")) == ["x", "x_3", "X_2", "x_2_labels", "x_4", "x_5"]


def test_processes_share_until_one_fails(monkeypatch):
    store = torch.distributed.HashStore()
    first, second = (processes.Processes(rank, 2, store) for rank in range(2))
    monkeypatch.setattr(processes.Processes, "gather", lambda self, value: [value])

    def share(until: int) -> tuple[list[int], list[int]]:
        taken = [], []
        for place, process in zip(range(until), (first, second) * until, strict=False):
            taken[place % 2].append(next(process.take(range(5)), None))
        return taken

    def fail():
        share(2)
        raise UserError("the disk is full")

    for process in (first, second):
        process.each(lambda: None)
    assert share(6) == ([0, 2, 4], [1, 3, None])
    with pytest.raises(UserError, match="disk"):
        first.each(fail)
    assert second.each(lambda: list(second.take(range(5)))) == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, None),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}, "cuda:1"),
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}, "cuda:1"),
    ],
)
def test_every_process_has_its_accelerator(environment, expected, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert processes.own_accelerator() == (expected and torch.device(expected))


def test_segments_are_listed_with_their_shares():
    segments = [{"label": "sky", "score": 0.7}, {"label": "cat", "score": 0.12345678}]
    result = {"segmentation": torch.tensor([[2, 2], [0, -1]]), "segments": segments}
    assert list_segments(result) == [
        {"index": 2, "label": "sky", "area": 0.5, "score": 0.7},
        {"index": 0, "label": "cat", "area": 0.25, "score": 0.123457},
    ]
