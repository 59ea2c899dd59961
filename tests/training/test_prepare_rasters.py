"""`training/prepare_rasters.py`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


rasterio = pytest.importorskip("rasterio")
pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")

import prepare_rasters  # noqa: E402
from catseg_hf.rasters.tiffs import write_labels  # noqa: E402
from catseg_testing.rasters import TRANSFORM, scene, write_raster  # noqa: E402
from catseg_training.data.raster_tiles import choose_areas  # noqa: E402


CLASSES = ["water", "sand"]


@pytest.fixture
def raster(tmp_path) -> Path:
    """Nothing in the first 70 columns."""
    image = scene()
    image[image == 0] = 1
    image[:, :, :70] = 0
    return write_raster(tmp_path / "in.tif", image, nodata=0)


def write_layer(path: Path, shapes: list, names: list, crs: str = "EPSG:32633"):
    to_crs = [shapely.transform(shape, lambda p: p * (0.5, -0.5) + (TRANSFORM.c, TRANSFORM.f)) for shape in shapes]
    pyogrio.raw.write(
        path,
        geometry=shapely.to_wkb(np.array(to_crs)),
        field_data=[np.array(names, dtype=object)],
        fields=["kind"],
        geometry_type="Polygon",
        crs=crs,
    )


def joined(folder: Path, kind: str, tile: int, size: tuple[int, int]) -> np.ndarray:
    """All tiles of both splits, where they were cut."""
    whole = np.full(size, 255, dtype=np.uint8)
    for path in folder.glob(f"{kind}/*/*.png"):
        top, left = map(int, path.stem.split("_")[-2:])
        pixels = np.asarray(Image.open(path))
        assert max(pixels.shape[:2]) <= tile
        pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
        whole[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
    return whole


def test_polygons(raster, tmp_path, capsys):
    """The later one over the earlier one; a pixel belongs to what its centre lies in."""
    shapes = [shapely.box(60, 20, 180, 130), shapely.box(150.4, 100.6, 250.6, 150.4), shapely.box(0, 0, 40, 40)]
    write_layer(tmp_path / "layer.gpkg", shapes, ["water", "sand", "sand"])
    arguments = [raster, "--labels", tmp_path / "layer.gpkg", "--class_column", "kind", "--tile_size", "32"]
    assert prepare_rasters.main([*map(str, arguments), "--output", str(tmp_path / "data")]) == 0
    assert json.loads((tmp_path / "data" / "classes.json").read_text()) == ["sand", "water"]
    expected = np.full((200, 300), 255, dtype=np.uint8)
    expected[20:130, 60:180] = 1
    expected[101:150, 150:251] = 0
    expected[:, :70] = 255
    np.testing.assert_array_equal(joined(tmp_path / "data", "labels", 32, (200, 300)), expected)
    image = joined(tmp_path / "data", "images", 32, (200, 300))
    held = expected != 255
    np.testing.assert_array_equal(image[held], rasterio.open(raster).read(1)[held])
    for split in ("train", "validation"):
        for path in (tmp_path / "data" / "labels" / split).iterdir():
            assert (np.asarray(Image.open(path)) != 255).any()
            assert (tmp_path / "data" / "images" / split / path.name).exists()
    lines = capsys.readouterr().out.splitlines()
    for index, name in enumerate(("sand", "water")):
        words = lines[index].replace(",", "").split()
        assert words[0] == f"{name}:" and int(words[1]) + int(words[5]) == (expected == index).sum()


def test_rasters_of_ids_and_what_the_command_wrote(raster, tmp_path):
    ids = np.random.default_rng(0).integers(0, 2, (200, 300)).astype(np.uint8)
    ids[50:60] = 255
    profile = {"width": 300, "height": 200, "crs": "EPSG:32633", "transform": TRANSFORM}
    write_labels(tmp_path / "ids.tif", [(0, ids)], profile, CLASSES)
    assert (
        prepare_rasters.main(
            [
                str(raster),
                "--labels",
                str(tmp_path / "ids.tif"),
                "--tile_size",
                "64",
                "--output",
                str(tmp_path / "data"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "data" / "classes.json").read_text()) == CLASSES
    ids[:, :70] = 255
    np.testing.assert_array_equal(joined(tmp_path / "data", "labels", 64, (200, 300)), ids)
    names = [path.name for path in (tmp_path / "data" / "images").glob("*/*")]
    assert len(names) == 4 * 4 == len(set(names))  # and none of the first column, which holds nothing


def test_validation_takes_whole_areas():
    tiles = [(row, column) for row in range(40) for column in range(30)]
    chosen = choose_areas(tiles, 0.1, seed=0)
    assert 0.08 < len(chosen) / len(tiles) < 0.12
    for row in range(0, 40, 4):
        for column in range(0, 30, 4):
            area = {tile for tile in tiles if tile[0] // 4 == row // 4 and tile[1] // 4 == column // 4}
            assert area <= chosen or not area & chosen
    assert choose_areas(tiles, 0.1, seed=0) == chosen != choose_areas(tiles, 0.1, seed=1)
    assert choose_areas(tiles, 0, seed=0) == set()
    assert len(choose_areas(tiles[:14], 0.2, seed=0)) == 3  # few tiles are areas of their own


def test_refusals(raster, tmp_path, capsys):
    layer, output = tmp_path / "layer.gpkg", tmp_path / "data"
    write_layer(layer, [shapely.box(80, 0, 200, 100)], ["water"], crs="EPSG:3857")

    def refusal(*arguments):
        assert prepare_rasters.main([*map(str, arguments), "--output", str(output)]) == 1
        assert not output.exists() and not list(tmp_path.glob(".*"))
        return capsys.readouterr().err

    vector = ("--labels", layer, "--class_column", "kind")
    message = refusal(raster, *vector)
    assert "has the CRS EPSG:3857, but the raster" in message and "`ogr2ogr -t_srs EPSG:32633" in message
    layer.unlink()
    write_layer(layer, [shapely.box(0, 0, 60, 100)], ["water"])
    assert "has the columns kind: name one of these" in refusal(raster, "--labels", layer, "--class_column", "x")
    assert "No tile has a pixel of a class" in refusal(raster, *vector)
    assert "There are 2 rasters and 1 labels" in refusal(raster, raster, *vector)
    ids = np.full((1, 200, 300), 7, dtype=np.uint8)
    write_raster(tmp_path / "ids.tif", ids)
    assert "have ids but no names" in refusal(raster, "--labels", tmp_path / "ids.tif")
    (tmp_path / "classes.json").write_text('["a", "b"]')
    of_ids = ("--labels", tmp_path / "ids.tif", "--classes", tmp_path / "classes.json")
    assert "have the ids [7], but there are 2 classes" in refusal(raster, *of_ids)
    write_raster(tmp_path / "ids.tif", ids[:, :100])
    assert "have another size ((100, 300) and (200, 300))" in refusal(raster, *of_ids)
    (tmp_path / "classes.json").write_text('{"a": 1}')
    assert "but a JSON list of names is needed" in refusal(raster, *of_ids)
    assert "--validation_share is 1.0" in refusal(raster, *vector, "--validation_share", 1)
