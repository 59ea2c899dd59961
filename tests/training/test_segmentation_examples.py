"""Decoding images and label maps, and what is said about those that cannot be used."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf.image_io_catseg import open_image
from catseg_testing.malformed_images import MALFORMED, TURNED, exif, jpeg
from catseg_training.data.coco_stuff import RAW_TO_CONTIGUOUS
from catseg_training.data.examples import read_example


def encoded(array: np.ndarray | Image.Image, name: str = "file.png") -> dict:
    """An image as a row of a dataset holds it."""
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    image.save(file, format=Image.registered_extensions()[Path(name).suffix])
    return {"path": name, "bytes": file.getvalue()}


def row(label, image=None, label_ids: str = "contiguous", reduce_labels: bool = False) -> dict:
    """A row with the given label map, and a grey image of its size."""
    if isinstance(label, np.ndarray):
        image = np.full((*label.shape[:2], 3), 128, np.uint8) if image is None else image
        label = encoded(label, "label.tif" if label.dtype == np.int32 else "label.png")
    if isinstance(image, np.ndarray | Image.Image):
        image = encoded(image, "image.png")
    return {
        "image": image,
        "label": label,
        "name": "row 7 of train",
        "label_ids": label_ids,
        "reduce_labels": reduce_labels,
        "value_range": None,
    }


def ids(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array([values], dtype=dtype)


def labels_of(example: dict, num_labels: int, ignore_index: int = 255) -> list[int]:
    return read_example(example, num_labels, ignore_index)[1].ravel().tolist()


def refusal(example: dict, num_labels: int = 10, ignore_index: int = 255) -> str:
    with pytest.raises(ValueError) as error:
        read_example(example, num_labels, ignore_index)
    return str(error.value)


def test_picture_and_labels_are_returned_as_stored():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    label = np.arange(35, dtype=np.uint8).reshape(5, 7)
    read_image, read_label = read_example(row(label, image), 35)
    np.testing.assert_array_equal(read_image, image)
    np.testing.assert_array_equal(read_label, label)
    assert read_image.dtype == np.uint8


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.full((1, 2), 90, np.uint8)),
        Image.fromarray(np.full((1, 2, 3), 90, np.uint8)).convert("RGBA"),
        Image.fromarray(np.full((1, 2), 90, np.uint8)).convert("LA"),
        Image.fromarray(np.full((1, 2), 90, np.uint8)).convert("P"),
        Image.fromarray(np.full((1, 2), 90 * 257, np.uint16)),
    ],
    ids=lambda image: image.mode,
)
def test_pictures_of_every_mode_become_rgb(image):
    pixels, _ = read_example(row(ids(0, 1), image), 2)
    assert pixels.tolist() == [[[90, 90, 90]] * 2]


def test_pictures_are_turned_as_their_exif_data_says():
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 10)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, format="PNG", exif=orientation)
    image = {"path": "turned.png", "bytes": file.getvalue()}
    pixels, _ = read_example({**row(np.zeros((3, 2), np.uint8)), "image": image}, 1)
    assert pixels[..., 0].tolist() == [[30, 0], [40, 10], [50, 20]]
    assert "EXIF" in refusal({**row(np.zeros((2, 3), np.uint8)), "image": image})


BAD_EXIF = {
    "no TIFF": b"Exif\0\0garbage!!",
    "cut off": b"Exif\0\0MM\0*\0\0\0\x08\0\xff",
    "orientation of another type": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("column, suffix", [("image", "png"), ("image", "webp"), ("label", "png")])
@pytest.mark.parametrize("bad_exif", BAD_EXIF.values(), ids=BAD_EXIF)
@pytest.mark.filterwarnings("ignore:.*(EXIF|Truncated)")
def test_damaged_metadata_is_no_damage(bad_exif, suffix, column, tmp_path, caplog):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, exif=bad_exif, **({"lossless": True} if suffix == "webp" else {}))
    example = {**row(np.zeros((2, 3), np.uint8)), column: {"path": str(path), "bytes": None}}
    image, label = read_example(example, 6)
    np.testing.assert_array_equal(image[..., 0] if column == "image" else label, pixels)
    in_memory = {**example, column: {"path": None, "bytes": path.read_bytes()}}
    np.testing.assert_array_equal(read_example(in_memory, 6)[0], image)
    if bad_exif == BAD_EXIF["no TIFF"]:
        assert f"{path} has malformed EXIF data: it stays as it is stored" in caplog.text


TURNED_BESIDE_GARBAGE = jpeg(0xE1, exif(TURNED, (0x11A, 2, 4, 0x41414141)))


@pytest.mark.parametrize(
    "data",
    [*(data for data, _ in MALFORMED.values()), TURNED_BESIDE_GARBAGE],
    ids=[*MALFORMED, "orientation beside a malformed tag"],
)
def test_images_are_those_that_the_pipeline_sees(data):
    """Whatever their metadata."""
    expected = np.asarray(open_image(data).convert("RGB"))
    example = row(np.zeros(expected.shape[:2], np.uint8))
    image, _ = read_example({**example, "image": {"path": None, "bytes": data}}, 1)
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_label_pictures_of_8_16_and_32_bits(dtype):
    largest = min(np.iinfo(dtype).max, 40_000)
    assert labels_of(row(ids(0, 7, largest, dtype=dtype)), largest + 1, 65535) == [0, 7, largest]


def test_labels_are_never_cut_to_8_bits():
    example = row(ids(256, 300, 846, 65535, dtype=np.uint16))
    assert labels_of(example, 847, 65535) == [256, 300, 846, 65535]
    assert "holds the id 256" in refusal(example, 10)


def test_255_is_a_class_of_a_large_vocabulary():
    assert labels_of(row(ids(255, 459, dtype=np.uint16)), 459, 459) == [255, 459]


def test_palette_and_bilevel_labels_hold_indices():
    palette = Image.fromarray(ids(0, 3, 255)).convert("P")
    palette.putpalette([200, 10, 30] * 256)
    grey = np.zeros((1, 3, 3), np.uint8)
    assert labels_of(row(encoded(palette), grey), 4) == [0, 3, 255]
    bilevel = Image.fromarray(np.array([[True, False, True]]))
    assert bilevel.mode == "1" and labels_of(row(encoded(bilevel), grey), 2) == [1, 0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_labels_as_arrays(dtype):
    array = ids(0, 3, 255, dtype=dtype)
    for value in (array, array[..., None], array.tolist()):
        example = row(ids(0, 0, 0))
        assert labels_of({**example, "label": value}, 4) == [0, 3, 255]


def test_raw_coco_stuff_ids_are_mapped():
    raw = np.flatnonzero(RAW_TO_CONTIGUOUS != 255).astype(np.uint8)
    assert labels_of(row(ids(*raw, 255), label_ids="coco_stuff_raw"), 171) == [*range(171), 255]
    assert labels_of(row(ids(*raw, 255), label_ids="coco_stuff_raw"), 847, 65535) == [*range(171), 65535]
    shifted = row(ids(0, *(raw + 1)), label_ids="coco_stuff_raw", reduce_labels=True)
    assert labels_of(shifted, 171) == [255, *range(171)]


def test_reduce_labels():
    assert labels_of(row(ids(0, 1, 150, 255), reduce_labels=True), 150) == [255, 0, 149, 255]
    wide = row(ids(0, 1, 256, 847, 65535, dtype=np.uint16), reduce_labels=True)
    assert labels_of(wide, 847, 65535) == [65535, 0, 255, 846, 65535]
    # Of 459 classes that begin at 1 the last one is no ignored 459.
    assert labels_of(row(ids(0, 1, 459, dtype=np.uint16), reduce_labels=True), 459, 459) == [459, 0, 458]
    assert "after 1 has been taken" in refusal(row(ids(11), reduce_labels=True), 10)


@pytest.mark.parametrize(
    "example, num_labels, message",
    [
        (row(ids(0, 10)), 10, r"id 10, but .*10 names, ids 0 to 9.*begin at 1.*--reduce_labels"),
        (row(ids(0, 12)), 10, r"id 12, but .*Give the vocabulary"),
        (row(ids(0, 180)), 171, r"id 180, but .*--label_ids coco_stuff_raw\."),
        (row(ids(0, 181, 182)), 171, r"id 181, but .*--label_ids coco_stuff_raw --reduce_labels"),
        # Neither 65 nor 26 - 1 is a raw id.
        (row(ids(26, 65, 180)), 171, r"id 180, but .*Give the vocabulary"),
        (row(ids(3, 11), label_ids="coco_stuff_raw"), 171, r"id 11, but raw .*--label_ids contiguous"),
        (row(ids(1, 182), label_ids="coco_stuff_raw"), 171, r"id 182, but raw .*--reduce_labels"),
        (
            row(ids(300, dtype=np.uint16), label_ids="coco_stuff_raw"),
            171,
            r"id 300, but raw .*no labels of COCO-Stuff",
        ),
        (row(ids(-1, 3, dtype=np.int32)), 10, r"id -1, but "),
        (row(ids(70_000, dtype=np.int32)), 10, r"id 70000, but "),
        ({**row(ids(0)), "label": ids(-7, dtype=np.int16)}, 10, r"id -7, but "),
    ],
)
def test_ids_out_of_range_are_named_with_their_likely_cause(example, num_labels, message):
    if isinstance(example["label"], np.ndarray):
        assert re.search(message, refusal(example, num_labels))
    else:
        assert re.match(
            r"label\.(png|tif) \(label of row 7 of train\) holds the " + message, refusal(example, num_labels)
        )


def test_unlabelled_255_where_another_index_is_ignored():
    assert "--ignore_index 255" in refusal(row(ids(0, 3, 255)), 10, 65535)
    assert "mask of 0 and 255" in refusal(row(ids(0, 255)), 10, 65535)


@pytest.mark.parametrize("num_labels, ignore_index", [(847, 255), (10, 9), (10, 65536), (10, -100)])
def test_ignore_index_that_is_a_class_or_too_large(num_labels, ignore_index):
    message = refusal(row(ids(0)), num_labels, ignore_index)
    assert str(ignore_index) in message and f"from {num_labels} to 65535" in message


def test_raw_ids_need_their_vocabulary():
    assert "coco_stuff_171" in refusal(row(ids(0), label_ids="coco_stuff_raw"), 150)


def test_sizes_that_differ():
    message = refusal(row(np.zeros((4, 6), np.uint8), np.zeros((4, 5, 3), np.uint8)))
    assert "label.png" in message and "image.png" in message and "6 x 4 and 5 x 4" in message


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colored_labels_are_refused(mode):
    label = encoded(Image.new(mode, (3, 1)), "label.tif")
    message = refusal(row(label, np.zeros((1, 3, 3), np.uint8)))
    assert f"mode {mode}" in message and "label.tif" in message


def test_pictures_of_floats_beyond_16_bits_are_refused():
    image = encoded(np.full((1, 1), 1e6, np.float32), "image.tif")
    assert "image.tif (image of row 7 of train) holds values from 1e+06" in refusal(row(ids(0), image))


@pytest.mark.parametrize("value", [[[1, 2], [3]], [[[1, 2, 3]]], [[0.5]], [1, 2]])
def test_arrays_that_are_no_label_map(value):
    assert "The label of row 7 of train" in refusal({**row(ids(0)), "label": value})


@pytest.mark.parametrize("column", ["image", "label"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_files_that_are_missing_or_damaged(tmp_path, column, suffix):
    pixels = np.random.default_rng(0).integers(0, 10, (40, 50), dtype=np.uint8)
    path = tmp_path / f"broken{suffix}"
    example = {**row(pixels), column: {"path": str(path), "bytes": None}}
    assert f"{path} does not exist" in refusal(example)
    whole = encoded(pixels, path.name)["bytes"]
    for contents in (whole[: len(whole) // 2], b"", b"<html>Not found</html>"):
        path.write_bytes(contents)
        assert f"{path} could not be read: " in refusal(example)
    in_a_row = {**example, column: {"path": path.name, "bytes": whole[:100]}}
    assert f"{path.name} ({column} of row 7 of train)" in refusal(in_a_row)


@pytest.mark.parametrize("column", ["image", "label"])
def test_rows_without_a_value(column):
    assert f"The {column} of row 7 of train is missing" in refusal({**row(ids(0)), column: None})
