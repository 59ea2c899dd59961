"""`catseg-hf segment` with tiles."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf import EMBEDDED_MODEL, cli
from catseg_hf.images import batches
from catseg_hf.loading import load_segmenter
from conftest import ROOT


LABELS = "snow, balloon, water, broccoli"


@pytest.fixture
def images(tmp_path) -> Path:
    """One image that is larger than the tiles, and one that is smaller."""
    scene = Image.open(ROOT / "demo" / "scene.png").convert("RGB")
    folder = tmp_path / "images"
    folder.mkdir()
    scene.crop((0, 0, 300, 200)).save(folder / "large.png")
    scene.crop((0, 0, 90, 80)).save(folder / "small.png")
    return folder


@pytest.fixture
def segment(tmp_path, capsys):
    """Runs the command; returns its exit code, the summary and what it printed for people to mend."""

    def segment(*arguments):
        output = tmp_path / "output"
        code = cli.main(["segment", *map(str, arguments), "--labels", LABELS, "--device=cpu", f"--output={output}"])
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("catseg-hf: error:")]
        summary = output / "summary.json"
        return code, json.loads(summary.read_text()) if summary.exists() else None, errors

    return segment


def test_images_in_tiles(segment, images, tmp_path):
    code, summary, _ = segment(images, "--tile_size", 128, "--tile_overlap", 0.3, "--batch_size", 4)
    assert code == 0 and (summary["tile_size"], summary["tile_overlap"]) == (128, 0.3)
    segmenter = load_segmenter(EMBEDDED_MODEL, "cpu")
    for name, options in (("large", {"tile_size": 128, "tile_overlap": 0.3}), ("small", {})):
        image = Image.open(images / f"{name}.png")
        expected = segmenter(image, LABELS, return_segmentation_map=True, **options)["segmentation"].numpy()
        written = np.asarray(Image.open(tmp_path / "output" / f"{name}_labels.png"))
        assert (written == expected).mean() > 0.999
    whole = segmenter(Image.open(images / "large.png"), LABELS, return_segmentation_map=True)["segmentation"].numpy()
    assert (np.asarray(Image.open(tmp_path / "output" / "large_labels.png")) != whole).any()


def test_images_smaller_than_a_patch_are_segmented_as_a_whole(segment, images):
    Image.new("RGB", (3, 2)).save(images / "tiny.png")
    code, summary, errors = segment(images, "--tile_size", 128)
    assert (code, errors) == (0, []) and [record["width"] for record in summary["images"]] == [300, 90, 3]


def test_without_tiles_the_summary_says_so(segment, images):
    code, summary, _ = segment(images)
    assert code == 0 and summary["tile_size"] is summary["tile_overlap"] is None


def test_resuming_takes_the_same_tiles(segment, images, tmp_path):
    tiles = ("--tile_size", 128)
    assert segment(images, *tiles)[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "output").glob("*.png")}
    assert segment(images, *tiles, "--resume")[0] == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "output").glob("*.png")} == before
    for other, names in ((("--tile_size", 100), "tile_size"), ((*tiles, "--tile_overlap", 0.5), "tile_overlap")):
        code, _, (error,) = segment(images, *other, "--resume")
        assert code == 2 and f"holds results with another {names}," in error
    code, _, (error,) = segment(images, "--resume")
    assert code == 2 and "holds results with another tile_size, tile_overlap," in error


def test_progress_over_tiles(segment, images, monkeypatch):
    bars = []

    class Bar(batches.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "disable": False, "delay": 0})
            if options["unit"] == "tile":
                bars.append(self)

        def close(self):
            self.finished = self.n, self.total
            super().close()

    monkeypatch.setattr(batches, "tqdm", Bar)
    segment(images / "large.png", "--tile_size", 128, "--batch_size", 3)
    assert [bar.finished for bar in bars] == [(6, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tile_size", 7), "`tile_size` is 7, but a number of pixels of at least 8, the model's patch"),
        (
            ("--tile_size", 301),
            "large.png' has 300 x 200 pixels (width x height), but `tile_size` is 301: give at most",
        ),
        (("--tile_size", 100, "--tile_overlap", 0.9), "`tile_overlap` is 0.9, but a share of a tile from 0 to 0.5"),
        (("--tile_overlap", 0.3), "--tile_overlap is 0.3, but there are no tiles: give --tile_size too."),
    ],
)
def test_tiles_that_are_refused(segment, images, options, message):
    code, summary, (error,) = segment(images / "large.png", *options)
    assert code == 2 and summary is None and message in error
