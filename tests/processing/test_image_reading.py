"""Image files of every bit depth, mode and layout: one rule, wherever they are read."""

import importlib.util
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from catseg_app.segmentation import read_image as read_in_app
from catseg_hf import CATSegImageProcessorPil, image_pixels_catseg
from catseg_hf.errors import UserError
from catseg_hf.image_io_catseg import open_image
from catseg_hf.image_pixels_catseg import rgb_pixels
from catseg_hf.image_sources_catseg import read_pixels
from catseg_training.benchmarks.description import read_description
from catseg_training.benchmarks.files import ImageFiles
from catseg_training.benchmarks.images import BenchmarkImages
from catseg_training.data.examples import read_image as read_in_training
from conftest import ROOT


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
rasterio = pytest.importorskip("rasterio")

HEIGHT, WIDTH = 6, 9
COLOR = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
COLOR[0, 0], COLOR[0, 1] = 0, 255
GREY = COLOR[..., 0]
AS_RGB = np.repeat(GREY[..., None], 3, axis=2)


def pillow(array, mode=None, file_format="PNG", **options) -> bytes:
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, file_format, **options)
    return file.getvalue()


def tiff(array, photometric="minisblack", **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric=photometric, **options)
    return file.getvalue()


def png(samples: np.ndarray, bits: int) -> bytes:
    """A PNG of samples `(H, W)` or `(H, W, 3)` with any number of bits."""
    rows = samples.reshape(len(samples), -1)
    packed = [np.unpackbits(row.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - bits :] for row in rows]
    data = b"".join(b"\0" + np.packbits(row).tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, 2 if samples.ndim == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def bands(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -1, 0)


deep_color, deep_grey = COLOR.astype(np.uint16) * 257, GREY.astype(np.uint16) * 257
with_alpha = np.dstack([COLOR, np.full((HEIGHT, WIDTH), 40, np.uint8)])
few = (GREY // 64, GREY // 16)
palette = Image.fromarray(AS_RGB).convert("P", palette=Image.Palette.ADAPTIVE)

# What files contain, and the pixels that they stand for.
FILES = {
    "rgb": (pillow(COLOR), COLOR),
    "rgba": (pillow(with_alpha), COLOR),
    "grey": (pillow(GREY), AS_RGB),
    "grey with alpha": (pillow(Image.fromarray(GREY).convert("LA")), AS_RGB),
    "palette": (pillow(palette), AS_RGB),
    "palette with transparency": (pillow(palette, transparency=3), AS_RGB),
    "1 bit": (pillow(GREY > 100, "1"), np.where(AS_RGB > 100, 255, 0)),
    "2 bits": (png(few[0], 2), np.repeat(few[0][..., None] * 85, 3, axis=2)),
    "4 bits": (png(few[1], 4), np.repeat(few[1][..., None] * 17, 3, axis=2)),
    "16 bits": (pillow(deep_grey), AS_RGB),
    "16 bits rgb": (png(deep_color, 16), COLOR),
    "tiff": (tiff(COLOR, "rgb"), COLOR),
    "tiff int16": (tiff(GREY.astype(np.int16)), AS_RGB),
    "tiff int32": (tiff(GREY.astype(np.int32)), AS_RGB),
    "tiff uint32": (tiff(GREY.astype(np.uint32)), AS_RGB),
    "tiff int32 of 16 bits": (tiff(deep_grey.astype(np.int32)), AS_RGB),
    "tiff uint16": (tiff(deep_grey), AS_RGB),
    "tiff uint16, big end first": (tiff(deep_grey, byteorder=">"), AS_RGB),
    "tiff float": (tiff(GREY.astype(np.float32)), AS_RGB),
    "tiff float to 1": (tiff(GREY.astype(np.float32) / 255), AS_RGB),
    "tiff, white is zero": (tiff(255 - GREY, "miniswhite"), AS_RGB),
    "tiff uint16, white is zero": (tiff(65535 - deep_grey, "miniswhite"), AS_RGB),
    "tiff rgb uint16": (tiff(deep_color, "rgb"), COLOR),
    "tiff rgb uint16, separate": (tiff(bands(deep_color), "rgb", planarconfig="separate"), COLOR),
    "tiff rgb uint16, separate, big end first": (
        tiff(bands(deep_color), "rgb", planarconfig="separate", byteorder=">"),
        COLOR,
    ),
    "tiff rgb uint16, separate, deflate": (
        tiff(bands(deep_color), "rgb", planarconfig="separate", compression="deflate"),
        COLOR,
    ),
    "tiff rgb uint8, separate": (tiff(bands(COLOR), "rgb", planarconfig="separate"), COLOR),
}
IDS = FILES.keys()


def channels_last(pixels) -> np.ndarray:
    return pixels.permute(1, 2, 0).numpy()


def in_pipeline(path: Path, value_range=None) -> np.ndarray:
    return channels_last(read_pixels(str(path), CATSegImageProcessorPil(), value_range=value_range))


def in_pipeline_as_bytes(path: Path, value_range=None) -> np.ndarray:
    return channels_last(read_pixels(path.read_bytes(), CATSegImageProcessorPil(), value_range=value_range))


def in_processor(path: Path, value_range=None) -> np.ndarray:
    processor = CATSegImageProcessorPil(do_resize=False, do_rescale=False, do_normalize=False, value_range=value_range)
    (pixels,) = processor(str(path))["pixel_values"]
    return channels_last(pixels)


def in_training(path: Path, value_range=None) -> np.ndarray:
    return read_in_training({"path": str(path), "bytes": None}, str(path), value_range)


def in_benchmarks(path: Path, value_range=None) -> np.ndarray:
    description = path.parent / "benchmark.json"
    labels = path.parent / "label.png"
    ranged = "" if value_range is None else f', "value_range": {list(value_range)}'
    description.write_text(f'{{"name": "own", "vocabulary": ["a"], "images": ".", "labels": "."{ranged}}}')
    Image.new("L", (WIDTH, HEIGHT)).save(labels)
    benchmark = read_description(description)
    return BenchmarkImages(benchmark, [ImageFiles(path.stem, path, labels)])[0]["image"]


def in_app(path: Path) -> np.ndarray:
    image, _ = read_in_app(path)
    return in_pipeline_of(image)


def in_pipeline_of(image: Image.Image) -> np.ndarray:
    return channels_last(read_pixels(image, CATSegImageProcessorPil()))


def in_example_without_torch(path: Path) -> np.ndarray:
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("segment_onnx", ROOT / "demo" / "segment_onnx.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return np.asarray(example.read_image(path))


RANGED_READERS = [in_pipeline, in_pipeline_as_bytes, in_processor, in_training, in_benchmarks]
READERS = [*RANGED_READERS, in_app, in_example_without_torch]


@pytest.fixture
def file(request, tmp_path) -> tuple[Path, np.ndarray]:
    data, expected = request.param
    path = tmp_path / f"image{'.tif' if data[:2] in (b'II', b'MM') else '.png'}"
    path.write_bytes(data)
    return path, expected


def _is_misread(path: Path) -> bool:
    """Whether Pillow alone reads a TIFF of 16 bits wrongly, in some of its releases at least."""
    tags = getattr(Image.open(path), "tag_v2", {})
    return max(tags.get(258, (8,))) > 8 and (tags.get(262) == 0 or tags.get(284) == 2)


@pytest.mark.parametrize("file", FILES.values(), ids=IDS, indirect=True)
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_one_rule_for_bits_modes_and_layouts(file, read, request):
    path, expected = file
    if read is in_example_without_torch and _is_misread(path):
        with pytest.raises(UserError, match="that Pillow alone reads wrongly"):
            read(path)
        return
    pixels = np.rint(read(path)).astype(int)
    assert pixels.shape == expected.shape
    np.testing.assert_allclose(pixels, expected, atol=1 if "16" in str(path) else 0)


small_color, small_grey = COLOR * (3000 / 255), GREY * (3000 / 255)
RANGED = {
    "grey": (pillow(np.rint(small_grey).astype(np.uint16)), (0, 3000), AS_RGB),
    "rgb png": (png(np.rint(small_color).astype(np.uint16), 16), (0, 3000), COLOR),
    "rgb tiff": (tiff(np.rint(small_color).astype(np.uint16), "rgb"), (0, 3000), COLOR),
    "rgb tiff, separate": (
        tiff(bands(np.rint(small_color).astype(np.uint16)), "rgb", planarconfig="separate"),
        (0, 3000),
        COLOR,
    ),
    "negative": (tiff(np.rint(small_grey - 1000).astype(np.int16)), (-1000, 2000), AS_RGB),
    "float": (tiff((small_grey - 1000).astype(np.float32)), (-1000, 2000), AS_RGB),
    "8 bits": (pillow(GREY // 2 + 20), (20, 147), AS_RGB // 2 * 2),
    "cut off": (pillow(GREY), (100, 101), np.where(AS_RGB > 100, 255, 0)),
}


@pytest.mark.parametrize("read", RANGED_READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("name", RANGED)
def test_a_range_of_values_becomes_black_to_white(name, read, tmp_path):
    data, value_range, expected = RANGED[name]
    path = tmp_path / f"image{'.tif' if data[:2] in (b'II', b'MM') else '.png'}"
    path.write_bytes(data)
    np.testing.assert_allclose(np.rint(read(path, value_range)), expected, atol=1)


@pytest.mark.parametrize("value_range", [(5, 5), (10, 0), (0,), "all", (0, float("nan")), 3])
def test_a_range_is_two_numbers(value_range):
    with pytest.raises(UserError, match="`value_range` is .* the lower one first"):
        rgb_pixels(COLOR, value_range=value_range)
    with pytest.raises(UserError, match="`value_range`"):
        CATSegImageProcessorPil()(COLOR, value_range=value_range)


def test_the_range_is_saved_with_the_processor(tmp_path):
    CATSegImageProcessorPil(value_range=(0, 3000)).save_pretrained(tmp_path)
    processor = CATSegImageProcessorPil.from_pretrained(tmp_path)
    image = Image.fromarray(np.rint(small_grey).astype(np.uint16))
    pixels = channels_last(read_pixels(image, processor))
    np.testing.assert_allclose(pixels.astype(int), AS_RGB, atol=1)
    np.testing.assert_array_equal(
        processor(image)["pixel_values"][0], processor(pixels, value_range=None)["pixel_values"][0]
    )


@pytest.mark.parametrize(
    "data, warned",
    [
        (pillow(np.rint(small_grey).astype(np.uint16)), "no value above 3,000 of"),
        (pillow(GREY.astype(np.uint16) * 16), "no value above 4,080 of"),
        (tiff(np.rint(small_color).astype(np.uint16), "rgb"), "no value above 3,071 of"),
        (pillow(deep_grey), None),
        (png(deep_color, 16), None),
        (pillow(GREY // 8), None),
    ],
    ids=["reflectances", "12 bits", "reflectances in rgb", "16 bits", "16 bits in rgb", "dark in 8 bits"],
)
def test_images_that_use_little_of_their_range_are_warned_of(data, warned, monkeypatch, caplog):
    monkeypatch.setattr(image_pixels_catseg, "_WARNED_BITS", set())
    for _ in range(2):
        rgb_pixels(open_image(data, "photo.tif"), "photo.tif")
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == (warned is not None)
    assert warned is None or (warned in warnings[0] and "photo.tif" in warnings[0] and "--range" in warnings[0])


@pytest.mark.parametrize(
    "array, options, words",
    [
        (with_alpha, {"planarconfig": "contig"}, "4 bands of 8-bit integers (black is zero)"),
        (deep_color, {"planarconfig": "contig"}, "3 bands of 16-bit integers (black is zero)"),
        (COLOR.astype(np.float32), {"photometric": "rgb"}, "3 bands of 32-bit floating-point numbers (RGB)"),
        (COLOR.astype(np.int16), {"photometric": "rgb"}, "3 bands of 16-bit signed integers (RGB)"),
        (GREY.astype(np.float64), {}, "1 band of 64-bit floating-point numbers"),
    ],
    ids=lambda value: None,
)
def test_what_pillow_does_not_read_is_named(array, options, words):
    with pytest.raises(UserError) as error:
        open_image(tiff(array, **options), "map.tif")
    assert words in str(error.value) and "gdal_translate" in str(error.value)


def test_what_pillow_misreads_is_refused_without_another_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(UserError, match="image.tif has 16 bits in each of several channels.*rasterio"):
        open_image(FILES["tiff rgb uint16, separate"][0], "image.tif")
    with pytest.raises(UserError, match="rasterio"):
        open_image(FILES["16 bits rgb"][0], "image.png", value_range=(0, 3000))


@pytest.mark.parametrize("file_format, frames", [("GIF", 3), ("PNG", 3), ("TIFF", 3), ("WEBP", 3)])
def test_further_frames_are_counted(file_format, frames, caplog):
    images = [Image.fromarray(np.roll(COLOR, shift, 1)) for shift in range(frames)]
    data = pillow(images[0], file_format=file_format, save_all=True, append_images=images[1:])
    open_image(data, f"film.{file_format}")
    assert f"film.{file_format} has 3 frames or pages, of which only the first is read" in caplog.text


def test_smaller_copies_of_an_image_are_no_pages(tmp_path, caplog):
    image = np.repeat(np.repeat(COLOR, 40, 0), 40, 1)
    size = {"width": image.shape[1], "height": image.shape[0]}
    with rasterio.open(tmp_path / "pyramid.tif", "w", driver="GTiff", count=3, dtype="uint8", **size) as raster:
        raster.write(bands(image))
    with rasterio.open(tmp_path / "pyramid.tif", "r+") as raster:
        raster.build_overviews([2, 4])
    open_image(tmp_path / "pyramid.tif")
    assert "frames" not in caplog.text


def test_heic_is_read():
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    image = np.repeat(np.repeat(COLOR, 16, 0), 16, 1)
    pillow_heif.from_pillow(Image.fromarray(image)).save(file, quality=-1, chroma=444)
    pixels = np.asarray(open_image(file.getvalue(), "IMG.HEIC"))
    assert np.abs(pixels.astype(int) - image).mean() < 2
