"""Image files as they are stored: what Pillow decodes, wrongly or with fewer bits at times, and what it refuses."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import UserError, first_line


PNG_START, TIFF_STARTS = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF and their values.
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR, SAMPLE_FORMAT = 258, 259, 262, 277, 284, 339
UNCOMPRESSED, JPEG_COMPRESSIONS, WHITE_IS_ZERO, SEPARATE_BANDS, SUBFILE_TYPE = 1, (6, 7), 0, 2, 254
PHOTOMETRICS = {0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
NUMBERS = {1: "integers", 2: "signed integers", 3: "floating-point numbers"}

HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
LOSSY_FORMATS = {"AVIF", "HEIF", "JPEG", "JPEG2000", "MPO"}
# Formats whose further frames are other views of the same picture, as phones store them.
FORMATS_OF_ONE_PICTURE = {"HEIF", "ICNS", "ICO", "MPO"}


@dataclass(frozen=True)
class StoredImage:
    """
    A decoded image file, not turned.

    Args:
        image (`PIL.Image.Image`): Its first frame, loaded.
        bits (`int`): Of every channel in the file.
        is_lossy (`bool`): Whether the format may have changed the pixels when it was written.
        white_is_zero (`bool`): Whether it is a TIFF in which 0 is white, which Pillow turns round, if it has 8 bits.
        num_frames (`int`): Frames of an animation, or pages.
        is_misread (`bool`): Whether Pillow is known to decode such a file wrongly.
    """

    image: Image.Image
    bits: int
    is_lossy: bool
    white_is_zero: bool
    num_frames: int
    is_misread: bool


@cache
def reads_heic() -> bool:
    """Whether Pillow reads HEIC here, once this has been called: by pillow-heif, which takes its time to import."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def decode(data: bytes) -> StoredImage:
    """
    Decodes an image file with Pillow, and nothing else: it raises all kinds of exceptions, for damaged pixels and
    malformed metadata alike, among which a fault of this program would not be noticed.
    """
    if _is_heic(data):
        reads_heic()
    image = Image.open(BytesIO(data))
    image.load()
    tags = getattr(image, "tag_v2", {})
    bits = _bits(data, tags)
    separate = tags.get(PLANAR) == SEPARATE_BANDS and tags.get(COMPRESSION) == UNCOMPRESSED
    return StoredImage(
        image,
        bits=bits,
        is_lossy=_is_lossy(image, data, tags),
        white_is_zero=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO,
        num_frames=_num_frames(image, data),
        is_misread=separate and bits > 8 and len(image.getbands()) > 1,
    )


def read_all_bits(data: bytes, name: str) -> np.ndarray:
    """
    Pixels `(H, W, C)` of a file in their own type, by a library that decodes what Pillow decodes wrongly or with fewer
    bits.

    Raises:
        UserError: If it is not installed, or the file is damaged.
    """
    try:
        import rasterio
    except ImportError:
        raise UserError(
            f"{name} has 16 bits in each of several channels, which Pillow reads as 8, or wrongly: install rasterio, "
            'or catseg_hf with its extra, `pip install "catseg_hf[geo]"`, or save the image with 8 bits.'
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.MemoryFile(data) as file, file.open() as raster:
                return np.moveaxis(raster.read(), 0, -1)
    except rasterio.errors.RasterioError as error:
        raise UserError(f"{name} could not be read: {first_line(error)}.") from error


def describe_refused(data: bytes, error: Exception) -> str:
    """Why Pillow did not decode a file, in words that tell what is in it."""
    if not isinstance(error, UnidentifiedImageError):
        return first_line(error)
    if _is_heic(data):
        return "it is a damaged HEIC image" if reads_heic() else "HEIC needs pillow-heif: `pip install pillow-heif`"
    if data.startswith(TIFF_STARTS):
        try:
            return _describe_tiff(data)
        except Exception:  # Pillow raises all kinds for damaged tags
            return "it is a damaged TIFF"
    return "Pillow knows no such format"


def _is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS


def _bits(data: bytes, tags: Mapping[int, Any]) -> int:
    if data.startswith(PNG_START):
        return data[24]
    return max(tags.get(BITS_PER_SAMPLE, (8,)))


def _is_lossy(image: Image.Image, data: bytes, tags: Mapping[int, Any]) -> bool:
    if image.format == "WEBP":
        return b"VP8L" not in data[:64]
    return image.format in LOSSY_FORMATS or tags.get(COMPRESSION) in JPEG_COMPRESSIONS


def _num_frames(image: Image.Image, data: bytes) -> int:
    """Frames or pages of the file that are pictures of their own: not smaller copies of one, or its masks."""
    if image.format in FORMATS_OF_ONE_PICTURE:
        return 1
    try:
        with Image.open(BytesIO(data)) as frames:
            number = getattr(frames, "n_frames", 1)
            if number == 1 or frames.format != "TIFF":
                return number
            is_picture = []
            for index in range(number):
                frames.seek(index)
                is_picture.append(not frames.tag_v2.get(SUBFILE_TYPE, 0))
            return max(1, sum(is_picture))
    except Exception:  # Pillow raises all kinds for what is damaged behind the first frame
        return 1


def _describe_tiff(data: bytes) -> str:
    """Which bands a TIFF has, and how to make of them what is read."""
    from PIL import TiffImagePlugin  # which `import catseg_hf` need not wait for

    file = BytesIO(data)
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8 if data[2:4] in (b"*\0", b"\0*") else 16))
    file.seek(tags.next)
    tags.load(file)
    bands = tags.get(SAMPLES_PER_PIXEL, 1)
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    numbers = NUMBERS.get(max(tags.get(SAMPLE_FORMAT, (1,))), "numbers")
    photometric = PHOTOMETRICS.get(tags.get(PHOTOMETRIC), "unknown colours")
    chosen, wanted = (
        ("-b 1 -b 2 -b 3 -co PHOTOMETRIC=RGB", "its red, green and blue bands as RGB")
        if bands >= 3
        else (
            "-b 1",
            "one band",
        )
    )
    return (
        f"it is a TIFF of {bands} band{'s' * (bands != 1)} of {bits}-bit {numbers} ({photometric}), which Pillow does "
        f"not read: save {wanted} in 8 bits, for example `gdal_translate {chosen} -ot Byte -scale IN.tif OUT.tif`"
    )
