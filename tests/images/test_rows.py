"""Images as rows of a dataset, without an engine: the same pixels as `catseg-hf segment` writes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf import cli
from catseg_hf.annotations.rle import decode_coco
from catseg_hf.errors import UserError
from catseg_hf.images.rows import RowOptions, RowSegmenter
from catseg_testing.mixed_images import WORDS, mixed_images, save_quick_model, write_mixed_images


NUM_IMAGES = 13  # one of each kind, of which one is damaged


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_quick_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory) -> tuple[dict[str, dict], Path]:
    """What the command says of the images, by their names, and where it has written them."""
    folder = tmp_path_factory.mktemp("files")
    write_mixed_images(folder, NUM_IMAGES)
    command = ["segment", folder, "--labels", ", ".join(WORDS), "--model", model, "--output", folder / "out"]
    assert cli.main([*map(str, command), "--device=cpu"]) == 1
    records = json.loads((folder / "out" / "summary.json").read_text())["images"]
    return {Path(record["image"]).name: record for record in records}, folder


@pytest.fixture(scope="module")
def segmenter(model) -> RowSegmenter:
    return RowSegmenter(RowOptions(model, WORDS), "cpu")


def decoded(file) -> tuple[np.ndarray, list[int]]:
    with Image.open(file) as image:
        return np.asarray(image), image.getpalette()


@pytest.mark.parametrize("kind", ["bytes", "path", "stored bytes", "stored path"])
def test_rows_are_what_the_command_writes(segmenter, written, kind):
    records, folder = written
    files = mixed_images(NUM_IMAGES)
    images = {
        "bytes": list(files.values()),
        "path": [str(folder / name) for name in files],
        "stored bytes": [{"bytes": content, "path": None} for content in files.values()],
        "stored path": [{"bytes": None, "path": str(folder / name)} for name in files],
    }[kind]
    rows = segmenter.segment(images)
    assert len(rows) == NUM_IMAGES
    for name, row in zip(files, rows, strict=True):
        if name not in records:
            assert name.startswith("005") and row["error"] and row["class_map"] is row["segments"] is None
            continue
        pixels, palette = decoded(io.BytesIO(row["class_map"]))
        expected, expected_palette = decoded(folder / "out" / records[name]["labels"])
        assert np.array_equal(pixels, expected) and palette == expected_palette, name
        for key in ("width", "height", "no_class", "segments"):
            assert row[key] == records[name][key]
        assert row["error"] is None


def test_run_lengths_are_the_class_map(model, segmenter):
    image = mixed_images(1)["000.jpg"]
    (expected,) = segmenter.segment([image])
    (row,) = RowSegmenter(RowOptions(model, WORDS, class_maps="coco_rle"), "cpu").segment([image])
    assert "class_map" not in row and len(row["segments"]) > 1
    ids = np.full((row["height"], row["width"]), 255)
    for segment in row["segments"]:
        ids[decode_coco(segment["counts"], ids.shape)] = segment["index"]
    assert np.array_equal(ids, decoded(io.BytesIO(expected["class_map"]))[0])


def test_batches_and_pixels_of_no_class(model):
    options = RowOptions(model, WORDS, threshold=0.9, batch_size=2)
    rows = RowSegmenter(options, "cpu").segment(list(mixed_images(7).values()))
    assert [row["error"] is None for row in rows] == [True] * 5 + [False, True]
    assert {row["no_class"] for row in rows} == {255, None}
    assert any((decoded(io.BytesIO(row["class_map"]))[0] == 255).any() for row in rows if row["error"] is None)


@pytest.mark.parametrize(
    ("shape", "dtype", "is_taken"),
    [
        ((9, 12, 3), np.uint8, True),
        ((9, 12), np.uint8, False),  # grey, or a palette's indices
        ((1, 9, 12), np.uint8, False),  # the same in a batch with colour ones
        ((9, 12), np.uint16, True),
    ],
)
def test_arrays_that_may_be_indices_are_refused(segmenter, shape, dtype, is_taken):
    (row,) = segmenter.segment([np.arange(np.prod(shape), dtype=dtype).reshape(shape)])
    assert (row["error"] is None) == is_taken
    assert is_taken or "may be grey or the indices of a palette" in row["error"] and str(shape) in row["error"]


def test_a_row_without_an_image(segmenter):
    (row, other) = segmenter.segment([None, {"bytes": None, "path": None}])
    assert row["error"] == other["error"] == "There is no image in this row."


def test_labels_are_encoded_once(model):
    calls = []
    segmenter = RowSegmenter(RowOptions(model, WORDS), "cpu")
    encoder = segmenter.segmenter.model.catseg.clip.text_model
    encoder.register_forward_hook(lambda _, inputs, output: calls.append(len(output[0])))
    for _ in range(2):
        segmenter.segment(mixed_images(2).values())
    assert calls.count(len(WORDS)) == 1 and max(calls[1:]) == 1  # later a single prompt tells that nothing has changed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_maps": "jpeg"}, "`class_maps` is 'jpeg', but 'png' or 'coco_rle' is accepted"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"threshold": 2}, "between 0 and 1, got 2"),
        ({"upsampling": "cubic"}, "'bilinear' or 'guided'"),
        ({"tile_overlap": 0.1}, "there are no tiles"),
        ({"value_range": (3, 1)}, "3"),
        ({"labels": []}, "no labels"),
        ({"model": "no/such"}, "'no/such' could not be loaded"),
    ],
)
def test_options_are_refused_before_weights_are_loaded(model, monkeypatch, options, words):
    monkeypatch.setattr("catseg_hf.images.rows.load_segmenter", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError) as error:
        RowSegmenter(RowOptions(**{"model": model, "labels": WORDS, **options}))
    assert words in str(error.value)


def test_columns_are_checked():
    options = RowOptions("base", WORDS)
    with pytest.raises(UserError, match="no column 'image', but 'id', 'photo'"):
        options.check_columns(["id", "photo"], "image")
    with pytest.raises(UserError, match="has a column 'width', which is what results are called"):
        options.check_columns(["image", "width"], "image")
    options.check_columns(["image", "id"], "image")
