"""Images in tiles, and large images, in the pipeline."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import pipeline

from catseg_hf import (
    EMBEDDED_MODEL,
    image_pixels_catseg,
    image_processing_catseg,
    pipeline_catseg,
    post_processing_catseg,
)
from catseg_hf.errors import UserError
from catseg_hf.image_pixels_catseg import rgb_pixels
from catseg_hf.refinement import refine_segmentation
from catseg_hf.tiles_catseg import TileBlender, TileGrid, Window
from catseg_testing.host_waits import HostWaits
from catseg_training.world.evaluation import read_scenes
from catseg_training.world.words import classes
from conftest import FIXTURES, ROOT


TASK = "zero-shot-image-segmentation"
LABELS = ["cat", "sofa", "wall"]
BOTH = {"return_segmentation_map": True, "return_probabilities": True}


@pytest.fixture(scope="module")
def segmenter(small_checkpoint):
    """It has windows, but looks at images once unless it is asked for them."""
    return pipeline(TASK, model=str(small_checkpoint), device="cpu", sliding_window=False)


@pytest.fixture(scope="module")
def image():
    return Image.open(FIXTURES / "picture.png").convert("RGB").resize((150, 100))


def assert_equal(result, expected):
    """To the bit."""
    assert [(segment["label"], segment["score"]) for segment in result["segments"]] == [
        (segment["label"], segment["score"]) for segment in expected["segments"]
    ]
    for segment, other in zip(result["segments"], expected["segments"], strict=True):
        assert np.array_equal(np.array(segment["mask"]), np.array(other["mask"]))
    assert torch.equal(result["segmentation"], expected["segmentation"])
    assert torch.equal(result["probabilities"], expected["probabilities"])


@pytest.mark.parametrize("options", [{}, {"sliding_window": True}, {"threshold": 0.5, "background_labels": "sky"}])
def test_a_tile_that_covers_the_image_changes_nothing(segmenter, image, options):
    expected = segmenter(image, LABELS, **BOTH, **options)
    assert_equal(segmenter(image, LABELS, tile_size=150, **BOTH, **options), expected)
    results = segmenter([image, np.asarray(image)], LABELS, tile_size=150, batch_size=2, **BOTH, **options)
    for result in results:
        assert_equal(result, expected)


def blended(segmenter, image, tile_size, overlap, labels=LABELS, **options) -> torch.Tensor:
    """The probabilities (T, H, W) of an image in tiles, each segmented by the pipeline as an image of its own."""
    grid = TileGrid.cover(image.size[::-1], tile_size, overlap)
    blender = TileBlender(grid)
    for place in grid.places:
        top, left, height, width = grid.window(*place)
        tile = image.crop((left, top, left + width, top + height))
        result = segmenter(tile, labels, return_probabilities=True, **options)
        blender.add(*place, result["probabilities"])
    return blender.blend(Window(0, 0, image.height, image.width))


@pytest.mark.parametrize(
    ("options", "tile_size", "overlap"),
    [
        ({}, 64, 0.25),
        pytest.param({"sliding_window": True}, 120, 0.5, marks=pytest.mark.slow),
        ({"max_classes_per_image": 2}, 80, 0.0),
        ({"prompt_templates": "the {}"}, 120, 0.25),
    ],
)
def test_each_tile_is_what_the_model_sees_as_an_image(segmenter, image, options, tile_size, overlap):
    probabilities = blended(segmenter, image, tile_size, overlap, **options)
    best, classes = probabilities.max(dim=0)
    result = segmenter(
        image, LABELS, tile_size=tile_size, tile_overlap=overlap, return_segmentation_map=True, **options
    )
    assert result["segmentation"].dtype == torch.int64
    assert (result["segmentation"] == classes).float().mean() > 0.999
    for segment in result["segments"]:
        mask = torch.from_numpy(np.array(segment["mask"])) == 255
        assert torch.equal(mask, result["segmentation"] == LABELS.index(segment["label"]))
        assert segment["score"] == pytest.approx(float(best[mask].mean()), abs=1e-4)
    in_batches = segmenter(image, LABELS, tile_size=tile_size, tile_overlap=overlap, batch_size=4, **BOTH, **options)
    assert (in_batches["segmentation"] == classes).float().mean() > 0.999
    assert in_batches["probabilities"].mean() == pytest.approx(float(probabilities.mean()), abs=1e-4)


def test_threshold_background_and_the_largest(segmenter, image):
    labels = ["cat|sky", "sofa"]
    words = ["cat", "sky", "sofa", "wall"]
    best, found = blended(segmenter, image, 64, 0.25, words).max(dim=0)
    expected = torch.tensor([0, 0, 1, -1])[found].masked_fill(best < best.median(), -1)
    options = {"background_labels": "wall", "threshold": float(best.median()), "tile_size": 64}
    result = segmenter(image, labels, return_segmentation_map=True, **options)
    assert (result["segmentation"] == expected).float().mean() > 0.998
    (largest,) = segmenter(image, labels, top_k=1, **options)
    assert largest["label"] == ["cat", "sofa"][int(expected[expected >= 0].mode().values)]


def test_value_range(segmenter, image):
    stored = np.asarray(image).astype(np.uint16) * 12
    expected = segmenter(image, LABELS, tile_size=64, **BOTH)
    assert_equal(segmenter(stored, LABELS, tile_size=64, value_range=(0, 255 * 12), **BOTH), expected)


def test_masks_of_the_whole_image(segmenter, image):
    def generate(given):
        assert given.size == image.size
        masks = torch.zeros(2, image.height, image.width, dtype=torch.bool)
        masks[0, :, :70], masks[1, 30:60, 80:] = True, True
        return masks

    options = {"tile_size": 64, **BOTH}
    plain = segmenter(image, LABELS, **options)
    result = segmenter(image, LABELS, mask_generator=generate, **options)
    best = blended(segmenter, image, 64, 0.25).amax(dim=0)
    expected, _ = refine_segmentation(plain["segmentation"], best, plain["probabilities"], generate(image))
    assert torch.equal(result["segmentation"], expected) and not torch.equal(expected, plain["segmentation"])
    assert torch.equal(result["probabilities"], plain["probabilities"])


def test_probabilities_of_many_tiles_are_bounded(segmenter, image, monkeypatch):
    full = segmenter(image, LABELS, tile_size=64, return_probabilities=True)["probabilities"]
    monkeypatch.setattr(pipeline_catseg, "_MAX_PROBABILITIES", full.numel() // 3)
    small = segmenter(image, LABELS, tile_size=64, return_probabilities=True)["probabilities"]
    assert full.numel() // 6 < small.numel() <= full.numel() // 3
    torch.testing.assert_close(small.mean(dim=(1, 2)), full.mean(dim=(1, 2)), atol=1e-4, rtol=0)


def test_text_features_are_computed_once(small_checkpoint, image, monkeypatch):
    own = pipeline(TASK, model=str(small_checkpoint), device="cpu")
    calls = []
    original = own.model.catseg.get_text_embeds
    monkeypatch.setattr(own.model.catseg, "get_text_embeds", lambda *args: calls.append(args) or original(*args))
    progress = []
    own(image, LABELS, tile_size=40, batch_size=5, on_tiles=lambda *numbers: progress.append(numbers))
    assert len(calls) == 1
    total = len(TileGrid.cover((100, 150), 40).places)
    assert progress == [(min(done, total), total) for done in range(5, total + 5, 5)]


def test_waits_do_not_grow_with_the_tiles(segmenter):
    waits = []
    for width in (100, 400):
        inputs = segmenter.preprocess(Image.new("RGB", (width, 64)), tile_size=64)
        segmenter.forward(inputs, sliding_window=False)
        with HostWaits() as host:
            segmenter.forward(inputs, sliding_window=False)
        waits.append(host.waits)
    assert len(waits[0]) == len(waits[1]), waits


def test_images_of_several_sizes_in_workers(segmenter, image):
    images = [image, image.resize((64, 90)), image.convert("L")]
    results = segmenter(images, LABELS, tile_size=80, batch_size=2, num_workers=1, **BOTH)
    for result, alone in zip(results, images, strict=True):
        expected = segmenter(alone, LABELS, tile_size=80, **BOTH)
        assert (result["segmentation"] == expected["segmentation"]).float().mean() > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 3}, r"`tile_size` is 3, but a number of pixels of at least 4, the model's patch"),
        ({"tile_size": 64.5}, "`tile_size` is 64.5, but a number of pixels"),
        ({"tile_size": "64"}, "`tile_size` is '64', but a number of pixels"),
        ({"tile_size": 151}, "has 150 x 100 pixels .*`tile_size` is 151: give at most 150, its longer side, or leave"),
        ({"tile_size": 64, "tile_overlap": 1.0}, "`tile_overlap` is 1.0, but a share of a tile from 0 to 0.5"),
        ({"tile_size": 64, "tile_overlap": 0.51}, "`tile_overlap` is 0.51, but a share"),
        ({"tile_size": 64, "tile_overlap": -0.1}, "`tile_overlap` is -0.1, but a share"),
        ({"tile_size": 64, "tile_overlap": float("nan")}, "`tile_overlap` is nan, but a share"),
        ({"tile_size": 64, "on_tiles": 3}, "`on_tiles` is 3, but a function of two numbers"),
    ],
)
def test_tiles_that_are_refused(segmenter, image, monkeypatch, options, message):
    monkeypatch.setattr(segmenter.model, "forward", None)  # nothing may come to it
    with pytest.raises(UserError, match=message):
        segmenter(image, LABELS, **options)


@pytest.mark.parametrize("upsampling", ["bilinear", "guided"])
@pytest.mark.parametrize("size", [(150, 1), (1, 150), (150, 2)])
def test_images_of_few_pixels_on_a_side(segmenter, image, size, upsampling):
    options = {"tile_size": 64, "tile_overlap": 0.5, "upsampling": upsampling}
    result = segmenter(image.resize(size), LABELS, **BOTH, **options)
    assert tuple(result["segmentation"].shape) == size[::-1]
    assert result["probabilities"].isfinite().all()


@pytest.fixture
def as_large(monkeypatch):
    """Every image is worked on in parts, as large ones are."""
    monkeypatch.setattr(post_processing_catseg, "_MAX_PIXELS_AT_ONCE", 0)
    monkeypatch.setattr("catseg_hf.tiles_catseg.BLOCK_SIDE", 37)
    monkeypatch.setattr(image_pixels_catseg, "_ROWS_AT_ONCE", 16)


@pytest.mark.parametrize(
    "options",
    [{}, {"threshold": 0.5, "background_labels": "sky"}, {"candidate_labels": ["a|b", "c"]}],
)
def test_large_images(segmenter, image, options, request):
    options = {"candidate_labels": LABELS, **BOTH, **options}
    expected = segmenter([image, image], batch_size=2, **options)[0]
    request.getfixturevalue("as_large")
    for result in (segmenter(image, **options), *segmenter([image, image], batch_size=2, **options)):
        assert (result["segmentation"] == expected["segmentation"]).float().mean() > 0.999
        assert result["segmentation"].dtype == torch.int64
        torch.testing.assert_close(result["probabilities"], expected["probabilities"], atol=1e-4, rtol=0)
        for segment, other in zip(result["segments"], expected["segments"], strict=True):
            assert segment["label"] == other["label"]
            assert segment["score"] == pytest.approx(other["score"], abs=1e-4)


def test_parts_of_an_image_are_read_as_the_whole(image, request):
    stored = np.asarray(image).astype(np.float64) * 3
    expected = rgb_pixels(np.asarray(image)), rgb_pixels(stored, value_range=(10, 700))
    request.getfixturevalue("as_large")
    assert torch.equal(rgb_pixels(image), expected[0])
    assert torch.equal(rgb_pixels(stored, value_range=(10, 700)), expected[1])
    stored[90, 1, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        rgb_pixels(stored, value_range=(10, 700))


class LargestTensor(TorchDispatchMode):
    """Records the largest storages that any operation returns: of any type, and of numbers other than ids."""

    bytes, bytes_of_others = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
                if tensor.dtype != torch.int64:
                    self.bytes_of_others = max(self.bytes_of_others, tensor.untyped_storage().nbytes())
        return out


def test_label_maps_of_large_images_take_no_more_than_themselves(monkeypatch):
    monkeypatch.setattr(post_processing_catseg, "_MAX_PIXELS_AT_ONCE", 2**16)
    logits = torch.randn(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = type("Outputs", (), {"logits": logits})
    processor = image_processing_catseg.CATSegImageProcessorPil()
    with LargestTensor() as largest:
        (segmentation,) = processor.post_process_semantic_segmentation(outputs, [(2048, 2000)])
    assert largest.bytes == segmentation.untyped_storage().nbytes() == 8 * 2048 * 2000
    assert largest.bytes_of_others <= 4 * 5 * 512 * 512
    monkeypatch.undo()
    (expected,) = processor.post_process_semantic_segmentation(outputs, [(2048, 2000)])
    assert (segmentation == expected).float().mean() > 0.9999


MEASURE = """
import json, sys
from pathlib import Path
from PIL import Image
from transformers import pipeline
from catseg_hf import EMBEDDED_MODEL

segmenter = pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL, device="cpu")
segments = segmenter(sys.argv[1], ["snow", "balloon", "water"], **json.loads(sys.argv[2]))
assert [segment["mask"].size for segment in segments] == [(12288, 9216)] * 3
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the peak of a process's memory")
@pytest.mark.parametrize("options", [{}, {"tile_size": 1024}])
def test_a_photograph_of_113_megapixels(tmp_path, options):
    scene = Image.open(ROOT / "demo" / "scene.png").convert("RGB")
    scene.resize((12288, 9216)).save(tmp_path / "photograph.jpg")
    command = [sys.executable, "-c", MEASURE, tmp_path / "photograph.jpg", json.dumps(options)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(printed.splitlines()[-1]) < 1.5  # GB


def test_tiles_find_what_one_view_cannot_hold():
    """Scenes of the emoji world, three by three."""
    scenes, labels = read_scenes(FIXTURES / "emoji_world", "gate", 9)
    mosaic, true = (np.vstack([np.hstack(row) for row in np.split(part, 3)]) for part in (scenes, labels))
    embedded = pipeline(TASK, model=EMBEDDED_MODEL, device="cpu")
    options = {"return_segmentation_map": True, "batch_size": 5}
    whole, tiles, ones = (
        embedded(Image.fromarray(mosaic), list(classes()), **options, **of_case)["segmentation"].numpy()
        for of_case in ({}, {"tile_size": 128}, {"tile_size": 128, "tile_overlap": 0})
    )
    right = [float((found == true)[true != 255].mean()) for found in (whole, tiles, ones)]
    assert right[0] < 0.7 and right[1] > 0.9 and right[1] > right[2] - 0.02
