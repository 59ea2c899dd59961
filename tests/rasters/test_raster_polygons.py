"""Maps of classes as polygons."""

import numpy as np
import pytest


rasterio = pytest.importorskip("rasterio")
pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")

from affine import Affine  # noqa: E402
from rasterio.features import rasterize, shapes  # noqa: E402

from catseg_hf import cli  # noqa: E402
from catseg_hf.rasters.vectors import Polygonizer, write_polygons  # noqa: E402
from catseg_testing.rasters import TRANSFORM, scene, write_raster  # noqa: E402


NODATA = 255


def random_map(seed: int, height: int = 60, width: int = 50, num_classes: int = 3) -> np.ndarray:
    """Coarse and fine parts, holes, corners that touch, and some pixels of no class."""
    generator = np.random.default_rng(seed)
    labels = np.kron(generator.integers(0, num_classes, (height // 10, width // 10)), np.ones((10, 10)))
    fine = generator.random(labels.shape) < 0.15
    labels[fine] = generator.integers(0, num_classes, fine.sum())
    labels[20:40, 10:30] = 0
    labels[25:35, 15:25] = 1
    labels[generator.random(labels.shape) < 0.05] = NODATA
    return labels.astype(np.uint8)


def polygonize(labels: np.ndarray, heights: list[int], probability: np.ndarray | None = None):
    probability = np.full_like(labels, 255) if probability is None else probability
    polygonizer, top = Polygonizer(NODATA), 0
    for height in heights:
        polygonizer.add(top, labels[top : top + height], probability[top : top + height])
        top += height
    assert top == len(labels)
    return polygonizer.polygons()


def by_class(geometries, classes) -> set[tuple[int, str]]:
    return {(int(index), shapely.normalize(geometry).wkt) for geometry, index in zip(geometries, classes, strict=True)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("heights", [[60], [20, 20, 20], [7, 1, 1, 22, 29], [1] * 60])
def test_windows_give_the_polygons_of_the_whole(seed, heights):
    """Those of GDAL, as geometries and as pixels."""
    labels = random_map(seed)
    found = polygonize(labels, heights)
    whole = list(shapes(labels, mask=labels != NODATA, connectivity=4))
    expected = [shapely.Polygon(shape["coordinates"][0], shape["coordinates"][1:]) for shape, _ in whole]
    assert by_class(found.geometries, found.classes) == by_class(expected, [value for _, value in whole])
    assert shapely.is_valid(found.geometries).all()
    drawn = rasterize(zip(found.geometries, found.classes, strict=True), labels.shape, fill=NODATA, dtype="uint8")
    np.testing.assert_array_equal(drawn, labels)


@pytest.mark.parametrize("heights", [[60], [13, 17, 30]])
def test_probabilities_are_means_over_the_pixels(heights):
    labels = random_map(0)
    probability = np.random.default_rng(0).integers(0, 256, labels.shape, dtype=np.uint8)
    found = polygonize(labels, heights, probability)
    for index in np.argsort(-found.num_pixels)[:20]:
        own = rasterize([found.geometries[index]], labels.shape) == 1
        assert found.num_pixels[index] == own.sum() == found.geometries[index].area
        assert found.probabilities[index] == pytest.approx(probability[own].mean() / 255)


def test_a_map_of_nothing_has_no_polygons():
    found = polygonize(np.full((9, 9), NODATA, dtype=np.uint8), [4, 5])
    assert len(found.geometries) == 0 and len(found.simplified(1).geometries) == 0


def test_small_ones_are_left_out():
    labels = random_map(1)
    found = polygonize(labels, [60])
    kept = found.largest(5)
    assert 0 < len(kept.geometries) < len(found.geometries)
    large = found.num_pixels >= 5
    assert by_class(kept.geometries, kept.classes) == by_class(found.geometries[large], found.classes[large])


@pytest.mark.parametrize("heights", [[60], [13, 17, 30]])
def test_simplified_neighbours_keep_their_common_borders(heights):
    labels = random_map(2)
    labels[labels == NODATA] = 0
    found = polygonize(labels, heights).simplified(2)
    assert shapely.coverage_is_valid(found.geometries)
    assert shapely.is_valid(found.geometries).all()
    before = polygonize(labels, heights)
    assert shapely.get_num_coordinates(found.geometries).sum() < shapely.get_num_coordinates(before.geometries).sum()
    total = shapely.area(found.geometries).sum()
    assert total == pytest.approx(shapely.union_all(found.geometries).area)
    assert total == pytest.approx(labels.size, rel=0.02)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb"])
@pytest.mark.parametrize("transform", [TRANSFORM, Affine(0.1, 0, 7.3, 0, 0.1, 1.1)], ids=["north", "south up"])
def test_files_give_the_pixels_back(tmp_path, suffix, transform):
    labels, names = random_map(3), ["water", "sand", "tree, oak"]
    found = polygonize(labels, [30, 30])
    path = tmp_path / f"out{suffix}"
    write_polygons(path, found, names, transform, rasterio.CRS.from_epsg(32633), "out")
    info, _, geometries, fields = pyogrio.raw.read(path)
    geometries, columns = shapely.from_wkb(geometries), dict(zip(info["fields"], fields, strict=True))
    assert rasterio.CRS.from_user_input(info["crs"]) == "EPSG:32633" and len(geometries) == len(found.geometries)
    assert shapely.is_valid(geometries).all()
    assert all(shapely.is_ccw(shapely.get_exterior_ring(geometries)))
    assert {(names[index], index) for index in columns["class_id"]} == set(
        zip(columns["class"], columns["class_id"], strict=True)
    )
    np.testing.assert_allclose(columns["area"], shapely.area(geometries), rtol=1e-6)
    np.testing.assert_allclose(columns["area"], columns["pixels"] * abs(transform.a * transform.e))
    np.testing.assert_allclose(sorted(columns["probability"]), 1)
    for all_touched in (False, True):
        drawn = rasterize(
            zip(geometries, columns["class_id"], strict=True),
            labels.shape,
            fill=NODATA,
            transform=transform,
            dtype="uint8",
            all_touched=all_touched,
        )
        np.testing.assert_array_equal(drawn, labels)


def test_files_of_nothing_and_of_degrees(tmp_path):
    empty = polygonize(np.full((9, 9), NODATA, dtype=np.uint8), [9])
    for suffix in (".gpkg", ".geojson", ".fgb"):
        path = tmp_path / f"empty{suffix}"
        write_polygons(path, empty, ["water"], TRANSFORM, None, "empty")
        assert len(pyogrio.raw.read(path)[2]) == 0
    degrees = polygonize(random_map(0), [60])
    write_polygons(
        path := tmp_path / "degrees.gpkg", degrees, list("abc"), TRANSFORM, rasterio.CRS.from_epsg(4326), "x"
    )
    assert "area" not in pyogrio.raw.read(path)[0]["fields"]


@pytest.mark.parametrize("options", [(), ("--min_area", 20, "--simplify", 1.5)])
def test_the_command_writes_them(tmp_path, options):
    image = scene()
    image[image == 0] = 1
    image[:, :100, :150] = 0
    source = write_raster(tmp_path / "in.tif", image, nodata=0)
    arguments = ["raster", source, "--labels", "snow, balloon, water", "--device=cpu", "--tile_size", 96]
    outputs = ["--output", tmp_path / "out.tif", "--vector", tmp_path / "out.gpkg"]
    assert cli.main([*map(str, [*arguments, *outputs, *options])]) == 0
    with rasterio.open(tmp_path / "out.tif") as written:
        labels = written.read(1)
    info, _, geometries, fields = pyogrio.raw.read(tmp_path / "out.gpkg")
    geometries, columns = shapely.from_wkb(geometries), dict(zip(info["fields"], fields, strict=True))
    drawn = rasterize(
        zip(geometries, columns["class_id"], strict=True), labels.shape, fill=255, transform=TRANSFORM, dtype="uint8"
    )
    assert 0 <= columns["probability"].min() < 0.5 < columns["probability"].max() <= 1
    if options:
        assert columns["pixels"].min() >= 20 and (drawn == labels).mean() > 0.97
    else:
        np.testing.assert_array_equal(drawn, labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif", "out.gpkg", "out.tif", "out.tif.aux.xml"]
