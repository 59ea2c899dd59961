"""Images of 16 x 12 grey pixels whose metadata is malformed."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


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
