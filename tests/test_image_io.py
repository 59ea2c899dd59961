"""Images whose metadata is malformed are read all the same."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from catseg_hf import image_io_catseg
from catseg_hf.errors import UserError
from catseg_hf.image_io_catseg import open_image


IMAGE = Image.fromarray(np.arange(12 * 16, dtype=np.uint8).reshape(12, 16))


def encoded(form: str, **options) -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(marker: int, payload: bytes) -> bytes:
    """A JPEG with an application segment."""
    data = encoded("JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def png(kind: bytes, content: bytes) -> bytes:
    """A PNG with an ancillary chunk."""
    data = encoded("PNG")
    return (
        data[:33]
        + struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        + data[33:]
    )


def exif(*tags: tuple[int, int, int, int]) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


TURNED = (0x112, 3, 1, 6)
MALFORMED = {
    "JPEG profile": (jpeg(0xE2, b"ICC_PROFILE\0"), True),
    "JPEG density": (jpeg(0xE0, b"JFIF\0"), True),
    "JPEG colours": (jpeg(0xEE, b"Adobe"), True),
    "JPEG XMP": (jpeg(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<broken"), False),
    "PNG profile": (png(b"iCCP", b"name"), True),
    "PNG text that unpacks to 80 MB": (png(b"zTXt", b"n\0\0" + zlib.compress(bytes(80 * 2**20), 1)), True),
    "PNG XMP": (png(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe"), False),
    "PNG EXIF": (png(b"eXIf", b"garbage"), True),
    "PNG EXIF as text": (png(b"tEXt", b"Raw profile type exif\0\nexif\n 10\nzz"), True),
    "PNG transparency": (png(b"tRNS", b"a"), True),
    "PNG checksum": (png(b"tEXt", b"a\0bcd").replace(b"a\0bcd", b"a\0bce"), True),
}


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
