"""Run-length encodings: those of the tools' own code, back and forth, and damaged."""

import numpy as np
import pytest

from catseg_hf.annotations.rle import (
    decode_coco,
    decode_cvat,
    decode_label_studio,
    encode_coco,
    encode_cvat,
    encode_label_studio,
)
from catseg_hf.errors import UserError
from catseg_testing.hard_masks import SIZE, hard_label_map


# Of pycocotools 2.0.11, for the class 1 of the hard label map.
COCO = "01o40]L0000000]O5DK<5DK<1YO0;O<1YO0;O<5DK<5DKo000000000000000000000000000000000000000000000000000000000000000000000000e>0"  # noqa: E501
# Of label-studio-sdk 2.1.2, for three rows of 20 pixels: the first pixel, and 14 in the middle of the second row.
LABEL_STUDIO = [0, 0, 0, 240, 57, 27, 252, 127, 249, 92, 3, 27, 255, 229, 176, 0]
CODES = {
    "coco": (encode_coco, decode_coco),
    "cvat": (encode_cvat, decode_cvat),
    "label_studio": (encode_label_studio, decode_label_studio),
}


def test_as_pycocotools():
    mask = hard_label_map() == 1
    assert encode_coco(mask) == COCO
    for counts in (COCO, COCO.encode()):
        assert np.array_equal(decode_coco(counts, SIZE), mask)


def test_coco_lists_and_columns():
    assert decode_coco([1, 2, 3], (2, 3)).tolist() == [[False, True, False], [True, False, False]]


def test_as_label_studio():
    mask = np.zeros((3, 20), bool)
    mask[0, 0] = mask[1, 3:17] = True
    assert np.array_equal(decode_label_studio(LABEL_STUDIO, mask.shape), mask)


def test_values_that_are_packed_one_by_one():
    """As the brush writes them where nothing repeats: a block of 8 values, those of two pixels, 128 and 0 opaque."""
    values = [1, 2, 3, 128, 5, 6, 7, 0]
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "0" + "00" + f"{7:03b}"
    bits += "".join(f"{value:08b}" for value in values)
    rle = np.packbits(np.array(list(bits), np.uint8)).tolist()
    assert decode_label_studio(rle, (1, 2)).tolist() == [[True, False]]


def test_cvat_rows():
    assert encode_cvat(np.array([[1, 0, 0], [0, 1, 1]], bool)) == [0, 1, 3, 2]
    assert encode_cvat(np.zeros((2, 2), bool)) == [4]


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (37, 53), (700, 300)])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_back_and_forth(name, shape, share):
    encode, decode = CODES[name]
    height, width = shape
    small = np.random.default_rng(0).random((-(-height // 7), -(-width // 7))) < share
    mask = small.repeat(7, axis=0).repeat(7, axis=1)[:height, :width]
    decoded = decode(encode(mask), shape)
    assert decoded.dtype == bool and np.array_equal(decoded, mask)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (COCO[:-3], "runs have .* pixels together, but the mask has 2745"),
        ("0\x00", "the character '.x00'"),
        ("0é", "none of its own"),
        ("0\ud800", "none of its own"),
        ("0o", "ends within a number"),
        ("0" + "o" * 20 + "0", "more than 60 bits"),
        ("", "runs have 0 pixels"),
        ([3000, -255], "a run of length -255"),
        ([2**62, 2**62, 2**62, 2**62 + 2745], "it is damaged, or of an image of another size"),
        ([2700, 45, 1], "runs have 2746 pixels"),
        ([2700, 45.5], "whole numbers, got"),
        ([2700, None], "whole numbers, got"),
        (2745, "whole numbers, got"),
        ([2**70], "whole numbers, got"),
    ],
)
def test_damaged_coco(counts, message):
    with pytest.raises(UserError, match=message):
        decode_coco(counts, SIZE)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (LABEL_STUDIO[:-4], "was cut off"),
        (LABEL_STUDIO[:3], "was cut off"),
        ([], "was cut off"),
        ([0, 0, 0, 244, *LABEL_STUDIO[4:]], "of 244 values, but an image of 20 x 3 pixels has 240"),
        ([*LABEL_STUDIO[:4], 1, *LABEL_STUDIO[5:]], "values of 1 bits"),
        ([*LABEL_STUDIO[:7], 255, 255, 255, 255, *LABEL_STUDIO[11:]], "goes on behind its 240 values"),
        ([256, 1], "from 0 to 255"),
        ([0.5], "from 0 to 255"),
        ([[1]], "from 0 to 255"),
        ("abc", "from 0 to 255"),
        ([1, [2]], "from 0 to 255"),
        ([2**70], "from 0 to 255"),
        (None, "from 0 to 255"),
    ],
)
def test_damaged_label_studio(rle, message):
    with pytest.raises(UserError, match=message):
        decode_label_studio(rle, (3, 20))
