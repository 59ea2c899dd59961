"""Label maps of every bit depth and format: the ids that are stored, or a refusal."""

import io

import numpy as np
import pytest
from PIL import Image
from test_image_reading import pillow, png, tiff

from catseg_hf import CATSegImageProcessorPil
from catseg_hf.errors import UserError
from catseg_training.benchmarks.labels import read_label_ids as read_of_benchmark
from catseg_training.data.examples import stored_ids


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
rasterio = pytest.importorskip("rasterio")

IDS = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 2]], np.uint8)


def raster(bits: int, photometric: str) -> bytes:
    with rasterio.MemoryFile() as file:
        size = {"width": IDS.shape[1], "height": IDS.shape[0], "count": 1, "dtype": "uint8"}
        with file.open(driver="GTiff", NBITS=bits, PHOTOMETRIC=photometric, **size) as written:
            written.write(IDS % 2**bits, 1)
        return file.read()


def with_palette(bits: int) -> bytes:
    image = Image.fromarray(IDS)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    return pillow(image, bits=bits)


FILES = {
    **{f"png of {bits} bits": png(IDS, bits) for bits in (2, 4, 8, 16)},
    **{f"palette of {bits} bits": with_palette(bits) for bits in (2, 4, 8)},
    **{f"tiff of {bits} bits": raster(bits, "MINISBLACK") for bits in (1, 2, 4)},
    **{f"tiff of {bits} bits, white is zero": raster(bits, "MINISWHITE") for bits in (1, 2, 4)},
    **{
        f"tiff {dtype}": tiff(IDS.astype(dtype))
        for dtype in ("uint8", "uint16", "int16", "int32", "uint32", "float32")
    },
    **{f"tiff {dtype}, white is zero": tiff(IDS.astype(dtype), "miniswhite") for dtype in ("uint8", "uint16")},
    "bmp": pillow(IDS, file_format="BMP"),
    "gif": pillow(IDS, file_format="GIF"),
}


def in_training(path):
    return stored_ids({"path": str(path), "bytes": None}, str(path))


def in_benchmarks(path):
    return read_of_benchmark("ids", path, path.stem)


def in_processor(path):
    image = Image.new("RGB", IDS.shape[::-1])
    processor = CATSegImageProcessorPil(do_resize=False)
    return processor(image, segmentation_maps=str(path))["labels"][0].numpy()


READERS = pytest.mark.parametrize("read", [in_training, in_benchmarks, in_processor], ids=lambda read: read.__name__)


@READERS
@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_that_are_stored(name, read, tmp_path):
    path = tmp_path / "label.png"
    path.write_bytes(FILES[name])
    ids = read(path)
    assert ids.dtype.kind in "iu"
    np.testing.assert_array_equal(ids, IDS % 2 if "of 1 bits" in name else IDS)


LOSSY = {
    "JPEG": pillow(IDS * 20, file_format="JPEG"),
    "WEBP": pillow(np.dstack([IDS] * 3), file_format="WEBP", quality=80),
    "JPEG2000": pillow(IDS, file_format="JPEG2000"),
    "AVIF": pillow(np.dstack([IDS] * 3), file_format="AVIF"),
    "TIFF": pillow(IDS, file_format="TIFF", compression="jpeg"),
}


@READERS
@pytest.mark.parametrize("name", LOSSY)
def test_labels_stored_with_loss_are_refused_by_their_format(name, read, tmp_path):
    path = tmp_path / "label.png"
    path.write_bytes(LOSSY[name])
    with pytest.raises(UserError, match=rf"label.png.* is stored as {name}.*as PNG"):
        read(path)


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_fractions_are_named(value):
    data = tiff(np.array([[1, value]], np.float32))
    with pytest.raises(UserError, match="labels.tif holds floating-point numbers, .* among them"):
        stored_ids({"path": "labels.tif", "bytes": data}, "labels.tif")


def test_an_image_that_a_user_has_opened_is_refused_as_well(tmp_path):
    image = Image.open(io.BytesIO(LOSSY["JPEG"]))
    with pytest.raises(UserError, match="Segmentation map 0 is stored as JPEG"):
        CATSegImageProcessorPil()(np.zeros((*IDS.shape, 3), np.uint8), segmentation_maps=image)
