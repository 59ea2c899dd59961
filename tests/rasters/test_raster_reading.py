"""What is read of rasters, and which are refused."""

import numpy as np
import pytest


rasterio = pytest.importorskip("rasterio")

from affine import Affine  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.shutil import copy as copy_raster  # noqa: E402

from catseg_hf.bands_catseg import Window  # noqa: E402
from catseg_hf.errors import UserError  # noqa: E402
from catseg_hf.rasters import RasterReader  # noqa: E402
from catseg_testing.rasters import TRANSFORM, scene, write_raster  # noqa: E402


PART = Window(30, 50, 70, 90)
ROWS, COLUMNS = slice(30, 100), slice(50, 140)


def write_mask(path, is_held: np.ndarray):
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(is_held)


def read(path, **options):
    with RasterReader(str(path), **options) as raster:
        pixels, is_valid = raster.read(PART)
        np.testing.assert_array_equal(raster.is_valid(PART), is_valid)
        return pixels.numpy(), is_valid, " ".join(raster.remarks)


def test_eight_bits_stay_as_they_are(tmp_path):
    pixels, is_valid, _ = read(write_raster(tmp_path / "in.tif", scene()))
    np.testing.assert_array_equal(pixels, scene()[:, ROWS, COLUMNS])
    assert is_valid.all() and is_valid.shape == (70, 90)


def test_bands_are_chosen_by_number_or_by_what_the_file_calls_them(tmp_path):
    image = scene()
    path = write_raster(tmp_path / "in.tif", image, photometric="minisblack")
    for bands in ((3, 2, 1), (2,)):
        pixels, *_ = read(path, bands=bands)
        expected = image[[band - 1 for band in bands]][:, ROWS, COLUMNS]
        np.testing.assert_array_equal(pixels, np.broadcast_to(expected, pixels.shape))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    np.testing.assert_array_equal(read(path)[0], image[::-1, ROWS, COLUMNS])


def test_one_band_is_grey_and_palettes_are_colours(tmp_path):
    grey = scene()[:1]
    pixels, *_ = read(write_raster(tmp_path / "grey.tif", grey))
    np.testing.assert_array_equal(pixels, np.broadcast_to(grey[:, ROWS, COLUMNS], pixels.shape))
    path = write_raster(tmp_path / "palette.tif", grey % 3)
    colors = {0: (10, 20, 30, 255), 1: (0, 200, 7, 255), 2: (255, 0, 255, 255)}
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, colors)
    expected = np.array([colors[index][:3] for index in range(3)])[(grey % 3)[0, ROWS, COLUMNS]]
    np.testing.assert_array_equal(read(path)[0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_other_types_are_stretched_by_one_range(tmp_path, dtype):
    """That of an overview, for every tile alike, and said; or the one that is given."""
    image = (scene().astype(dtype) * 4 - 100).astype(dtype)
    path = write_raster(tmp_path / "in.tif", image)
    low, high = np.percentile(image, (2, 98))
    for options in ({}, {"value_range": (0, 800)}):
        first, last = options.get("value_range", (low, high))
        pixels, _, remarks = read(path, **options)
        part = image[:, ROWS, COLUMNS].astype(np.float64)
        expected = np.clip((part - first) * 255 / (last - first), 0, 255)
        np.testing.assert_allclose(pixels, expected, atol=0.501)
        assert (f"Values from {low:g} to {high:g}, the 2nd and 98th percentile" in remarks) == (not options)


@pytest.mark.parametrize("resolution", [None, 1.0])
def test_percentiles_leave_out_what_is_masked(tmp_path, resolution):
    image = np.full((1, 200, 300), 60000, dtype=np.uint16)
    image[:, 100:] = np.linspace(1000, 2000, 300)
    path = write_raster(tmp_path / "in.tif", image)
    write_mask(path, np.arange(200)[:, None].repeat(300, axis=1) >= 100)
    with RasterReader(str(path), resolution=resolution) as raster:
        assert 1000 < raster.value_range[0] < raster.value_range[1] < 2000


def test_percentiles_leave_out_what_holds_nothing(tmp_path):
    image = np.full((1, 200, 300), -9999, dtype=np.float32)
    image[:, :100] = np.linspace(0, 100, 30_000).reshape(100, 300)
    image[:, 150:] = np.nan
    with RasterReader(str(write_raster(tmp_path / "in.tif", image, nodata=-9999))) as raster:
        assert raster.value_range == pytest.approx((2, 98), abs=0.01)


@pytest.mark.parametrize("kind", ["nodata", "nan", "alpha", "mask"])
def test_what_holds_nothing(tmp_path, kind):
    """Nodata only where all bands have it; alpha and masks beside nodata; NaN in any band."""
    image, expected, profile = scene(), np.ones((200, 300), dtype=bool), {}
    expected[40:60, 60:80] = False
    if kind == "nodata":
        image[image == 7] = 8
        image[:, ~expected] = 7
        image[0, 90, 100] = 7
        profile["nodata"] = 7
    elif kind == "nan":
        image = image.astype(np.float32)
        image[1, ~expected] = np.nan
        profile["nodata"] = np.nan
    elif kind == "alpha":
        alpha = np.where(expected, 128, 0)[None].astype(np.uint8)
        image, profile = np.concatenate([image, alpha]), {"photometric": "rgb", "alpha": "yes"}
    path = write_raster(tmp_path / "in.tif", image, **profile)
    if kind == "mask":
        write_mask(path, expected)
    pixels, is_valid, remarks = read(path)
    np.testing.assert_array_equal(is_valid, expected[ROWS, COLUMNS])
    said = {"nodata": "value 7, nodata", "nan": "value nan, nodata", "alpha": "band 4, alpha", "mask": "its mask"}
    assert said[kind] in remarks
    mean = pixels[:, is_valid].mean(axis=1).round()
    np.testing.assert_allclose(
        pixels[:, ~is_valid], np.broadcast_to(mean[:, None], pixels[:, ~is_valid].shape), atol=1
    )


@pytest.mark.parametrize("kind", ["plain", "nodata", "mask", "nodata and mask"])
@pytest.mark.parametrize(("resolution", "size"), [(2.0, (50, 75)), (0.25, (400, 600)), (0.7, (143, 214))])
def test_resolution(tmp_path, kind, resolution, size):
    image = np.full((3, 200, 300), 100, dtype=np.uint8)
    image[:, :, 150:] = 200
    is_held = np.ones((200, 300), dtype=bool)
    if kind != "plain":
        is_held[:100] = False
        image[:, :100] = 0
    if kind == "nodata and mask":
        image[:, :50] = 100  # held back by the mask alone
    path = write_raster(tmp_path / "in.tif", image, **({"nodata": 0} if "nodata" in kind else {}))
    if "mask" in kind:
        is_unmasked = is_held if kind == "mask" else np.arange(200)[:, None].repeat(300, axis=1) >= 50
        write_mask(path, is_unmasked)
    with RasterReader(str(path), resolution=resolution) as raster:
        assert raster.size == size and raster.crs == "EPSG:32633"
        assert tuple(raster.transform)[:6] == (resolution, 0, TRANSFORM.c, 0, -resolution, TRANSFORM.f)
        pixels, is_valid = raster.read(Window(0, 0, *size))
        middle = size[0] // 2
        assert (pixels[0, middle + 2 :, : size[1] // 2 - 2] == 100).all()
        assert (pixels[0, middle + 2 :, size[1] // 2 + 2 :] == 200).all()
        assert is_valid[middle + 2 :].all()
        assert is_valid[: middle - 2].all() if kind == "plain" else not is_valid[: middle - 2].any()
        assert ("alpha" in " ".join(raster.remarks)) == (kind == "mask")


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as refused:
        RasterReader(str(path), **options)
    return str(refused.value)


def test_bands_that_are_not_there(tmp_path):
    path = write_raster(tmp_path / "in.tif", scene()[:1])
    assert "--bands is 4 3 2, but the raster" in (message := refusal(path, bands=(4, 3, 2)))
    assert "has 1 band and so no band 4: give numbers from 1 to 1, or leave" in message
    assert "--bands has 2 numbers, but three are needed" in refusal(path, bands=(1, 1))


def test_degrees_and_unknown_units_have_no_resolution(tmp_path):
    degrees = write_raster(
        tmp_path / "degrees.tif", scene(), crs="EPSG:4326", transform=Affine(1e-5, 0, 9, 0, -1e-5, 50)
    )
    assert "is in degrees (EPSG:4326)" in refusal(degrees, resolution=0.3)
    RasterReader(str(degrees)).close()
    unknown = write_raster(tmp_path / "unknown.tif", scene(), crs=None)
    assert "has no coordinate reference system, so that its units" in refusal(unknown, resolution=0.3)
    assert "It has no coordinate reference system, and so has the result" in read(unknown)[2]
    assert "is only 150 by 100 units of its CRS" in refusal(write_raster(tmp_path / "in.tif", scene()), resolution=400)


def test_rotated_rasters(tmp_path):
    path = write_raster(tmp_path / "in.tif", scene(), transform=Affine(0.4, 0.3, 400_000, 0.3, -0.4, 5_600_000))
    assert (
        "is rotated (its transform is (" in (message := refusal(path)) and "`gdalwarp IN.tif UPRIGHT.tif`" in message
    )


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_rasters_that_are_cut_off(tmp_path, interleave):
    """Also where a VRT names them."""
    path = write_raster(tmp_path / "in.tif", scene(), interleave=interleave)
    copy_raster(path, tmp_path / "in.vrt", driver="VRT")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    for name in ("in.tif", "in.vrt"):
        message = refusal(tmp_path / name)
        assert "is cut off: its rows from" in message and f"at {len(data) * 2 // 3:,} bytes" in message
    path.write_bytes(data[:100])
    assert "could not be opened" in refusal(path)


def test_what_is_no_raster(tmp_path):
    (tmp_path / "in.tif").write_text("no raster")
    for path in (tmp_path / "in.tif", tmp_path / "missing.tif"):
        assert f"The raster {str(path)!r} could not be opened" in refusal(path)


def test_damage_inside_is_told_by_rows(tmp_path):
    path = write_raster(tmp_path / "in.tif", scene())
    with rasterio.open(path) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    with RasterReader(str(path)) as raster:
        raster.read(Window(0, 0, 64, 64))
        with pytest.raises(UserError, match="could not be read in the rows from 64 to 128"):
            raster.read(Window(64, 64, 64, 64))
