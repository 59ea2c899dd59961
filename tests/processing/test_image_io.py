"""Images whose metadata is malformed are read all the same."""

import io

import numpy as np
import pytest
from PIL import Image

from catseg_hf import image_io_catseg
from catseg_hf.errors import UserError
from catseg_hf.image_io_catseg import open_image
from catseg_testing.malformed_images import MALFORMED, TURNED, encoded, exif, jpeg


@pytest.mark.parametrize("data, warned", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_metadata(tmp_path, caplog, data, warned):
    image_io_catseg.logger.warning_once.cache_clear()
    (tmp_path / "image").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(encoded("JPEG" if data[:2] == b"\xff\xd8" else "PNG"))))
    for source in (tmp_path / "image", str(tmp_path / "image")):  # one warning for both
        np.testing.assert_array_equal(np.asarray(open_image(source)), expected)
    assert len(caplog.records) == warned
    np.testing.assert_array_equal(np.asarray(open_image(data)), expected)
    np.testing.assert_array_equal(np.asarray(open_image(io.BytesIO(data))), expected)


@pytest.mark.parametrize("tag", [(0x11A, 2, 4, 0x41414141), (0x8769, 2, 4, 0x42424242)])
def test_orientation_applies_beside_malformed_tags(tag):
    image = open_image(jpeg(0xE1, exif(TURNED, tag)))
    assert image.size == (12, 16)
    assert open_image(jpeg(0xE1, exif(tag))).size == (16, 12)
    assert image_io_catseg.upright(image, "").size == (12, 16)  # not turned twice


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_damaged_pixels_are_refused(form):
    with pytest.raises(UserError, match="The image of type bytes could not be read"):
        open_image(encoded(form)[:-40])


def test_large_images_are_not_called_damaged(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=r"very large: .*192 pixels.*MAX_IMAGE_PIXELS.*--max_image_pixels"):
        open_image(encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(encoded("PNG")).size == (16, 12)


@pytest.mark.parametrize("name", ["_jpeg_without_metadata", "_unreadable"])
def test_faults_of_this_program_keep_their_type(name, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(image_io_catseg, name, fail)
    with pytest.raises(ZeroDivisionError):
        open_image(encoded("JPEG")[:-40])
