"""`catseg-hf raster`: maps of classes as GeoTIFFs."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image


rasterio = pytest.importorskip("rasterio")

from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.shutil import copy as copy_raster  # noqa: E402

from catseg_hf import EMBEDDED_MODEL, cli  # noqa: E402
from catseg_hf.loading import load_segmenter  # noqa: E402
from catseg_hf.pipeline_catseg import OpenVocabularySegmentationPipeline  # noqa: E402
from catseg_hf.rasters import RasterReader, outputs  # noqa: E402
from catseg_hf.rasters.segmentation import _Run  # noqa: E402
from catseg_hf.tiles_catseg import TileGrid  # noqa: E402
from catseg_hf.visualization import class_color  # noqa: E402
from catseg_testing.rasters import TRANSFORM, scene, write_raster  # noqa: E402
from catseg_testing.tiny_training import TrainingDriver  # noqa: E402


LABELS = ["snow", "balloon", "water", "broccoli"]
TILES = ("--tile_size", 96)
TESTS = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path) -> Path:
    """A raster whose upper half holds nothing but one pixel."""
    image = scene()
    image[image == 0] = 1
    image[:, :100] = 0
    image[:, 70, 290] = 200
    return write_raster(tmp_path / "in.tif", image, nodata=0)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command; returns its exit status and what it printed for people to read."""

    def run(*arguments, output="out.tif", labels=None):
        options = ["--labels", labels or ", ".join(LABELS), "--device=cpu", "--output", str(tmp_path / output)]
        code = cli.main(["raster", *map(str, arguments), *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def looks(monkeypatch) -> list[int]:
    """How many tiles the model is given, call by call."""
    counts, look = [], OpenVocabularySegmentationPipeline.word_probabilities

    def count(self, images, *arguments, **options):
        counts.append(len(images))
        return look(self, images, *arguments, **options)

    monkeypatch.setattr(OpenVocabularySegmentationPipeline, "word_probabilities", count)
    return counts


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(".*"))


def test_the_map_lies_on_the_raster(run, source, tmp_path):
    code, printed = run(source, *TILES)
    assert code == 0 and f"{source}: " in printed and "Pixels of the value 0, nodata, get no class" in printed
    with rasterio.open(source) as given, rasterio.open(tmp_path / "out.tif") as written:
        assert (written.crs, written.transform, written.bounds) == (given.crs, given.transform, given.bounds)
        assert written.shape == given.shape and written.count == 1 and written.dtypes == ("uint8",)
        assert written.nodata == 255 and written.profile["compress"] == "deflate"
        assert written.block_shapes == [(512, 512)]
        labels = written.read(1)
        np.testing.assert_array_equal(labels == 255, given.dataset_mask() == 0)
    assert left_over(tmp_path) == []


def test_classes_are_those_of_the_pipeline(run, tmp_path):
    """Of a raster without nodata, which is an image."""
    image = scene()
    source = write_raster(tmp_path / "in.tif", image)
    pil = Image.fromarray(image.transpose(1, 2, 0))
    segmenter = load_segmenter(EMBEDDED_MODEL, "cpu")
    for options, kwargs in (
        ((), {}),
        (("--upsampling", "guided", "--threshold", 0.3), {"upsampling": "guided", "threshold": 0.3}),
        (("--background", "grass", "--batch_size", 2), {"background_labels": "grass", "batch_size": 2}),
    ):
        assert run(source, *TILES, *options)[0] == 0
        result = segmenter(pil, LABELS, tile_size=96, return_segmentation_map=True, **kwargs)
        with rasterio.open(tmp_path / "out.tif") as written:
            expected = result["segmentation"].numpy().astype(np.uint8)
            np.testing.assert_array_equal(written.read(1), expected)


def test_names_and_colours_are_where_programs_look(run, source, tmp_path):
    assert run(source, *TILES)[0] == 0
    copy_raster(tmp_path / "out.tif", tmp_path / "out.vrt", driver="VRT")
    tree = ElementTree.parse(tmp_path / "out.vrt")
    assert [element.text for element in tree.iter("Category")] == LABELS
    rows = [[cell.text for cell in row] for row in tree.iter("Row")]
    assert rows == [[str(value) for value in (i, name, *class_color(i))] for i, name in enumerate(LABELS)]
    with rasterio.open(tmp_path / "out.tif") as written:
        assert written.colorinterp == (ColorInterp.palette,)
        assert [written.colormap(1)[index][:3] for index in range(4)] == [class_color(index) for index in range(4)]
        assert json.loads(written.tags()["class_names"]) == dict(zip("0123", LABELS, strict=True))


def test_many_classes_take_sixteen_bits(run, source, tmp_path):
    names = [f"thing {index}" for index in range(256)]
    assert run(source, "--tile_size", 300, labels=",".join(names))[0] == 0
    with rasterio.open(tmp_path / "out.tif") as written:
        assert written.dtypes == ("uint16",) and written.nodata == 65535
        assert written.read(1)[0, 0] == 65535 and written.read(1)[150, 150] < 256
        assert written.colormap(1)[255][:3] == class_color(255)


def test_overviews_hold_ids_only(run, tmp_path):
    source = write_raster(tmp_path / "in.tif", np.tile(scene(), (1, 6, 5)))
    assert run(source, "--tile_size", 1500)[0] == 0
    with rasterio.open(tmp_path / "out.tif") as written:
        assert written.overviews(1) == [2, 4]
        labels = written.read(1)
    for level, step in enumerate((2, 4)):
        with rasterio.open(tmp_path / "out.tif", overview_level=level) as overview:
            assert overview.shape == (1200 // step, 1500 // step)
            found, own = overview.read(1), labels.reshape(1200 // step, step, 1500 // step, step)
        assert (own == found[:, None, :, None]).any(axis=(1, 3)).all()  # of a pixel that lies there


@pytest.mark.parametrize("batch_size", [1, 3])
def test_tiles_that_hold_nothing_cost_no_model_time(run, source, looks, batch_size):
    """Of the five rows of tiles of this raster the first lies above the pixel that is held."""
    assert run(source, "--tile_size", 48, "--batch_size", batch_size)[0] == 0
    with rasterio.open(source) as given:
        is_valid = given.dataset_mask() > 0
    grid = TileGrid.cover((200, 300), 48, 0.25)
    windows = [grid.window(*place) for place in grid.places]
    held = [is_valid[w.top : w.top + w.height, w.left : w.left + w.width].any() for w in windows]
    assert sum(looks) == sum(held) < len(held) and not held[0]


def test_a_raster_of_nothing(run, tmp_path, looks):
    assert run(write_raster(tmp_path / "in.tif", np.zeros_like(scene()), nodata=0), *TILES)[0] == 0
    with rasterio.open(tmp_path / "out.tif") as written:
        assert (written.read(1) == 255).all()
    assert looks == []


def test_what_holds_nothing_does_not_touch_the_rest(run, tmp_path):
    """Whatever is stored there."""
    maps = []
    for value in (0, 255):
        image = scene()
        image[:, :, 120:180] = value
        image = np.concatenate([image, np.where(image[:1] == value, 0, 255).astype(np.uint8)])
        image[3, :, 120:180] = 0
        image[3, :, :120] = image[3, :, 180:] = 255
        source = write_raster(tmp_path / f"{value}.tif", image, photometric="rgb", alpha="yes")
        assert run(source, *TILES)[0] == 0
        maps.append(rasterio.open(tmp_path / "out.tif").read(1))
    np.testing.assert_array_equal(*maps)
    assert (maps[0][:, 120:180] == 255).all() and (maps[0][:, :120] != 255).all()


def test_resolution(run, source, tmp_path):
    assert run(source, *TILES, "--resolution", 1)[0] == 0
    with rasterio.open(tmp_path / "out.tif") as written:
        assert written.shape == (100, 150) and written.res == (1, 1)
        assert (written.transform.c, written.transform.f) == (TRANSFORM.c, TRANSFORM.f)
        labels = written.read(1)
        assert (labels[:30] == 255).all() and (labels[52:] != 255).all()


@pytest.mark.parametrize("options", [(), ("--upsampling", "guided"), ("--batch_size", 3)])
def test_going_on_after_a_kill_gives_the_same_bytes(run, source, tmp_path, monkeypatch, looks, options):
    extra = ("--probabilities", tmp_path / "probabilities.tif", *TILES, *options)
    files = ("out.tif", "out.tif.aux.xml", "probabilities.tif")
    assert run(source, *extra)[0] == 0
    whole = {name: (tmp_path / name).read_bytes() for name in files}
    for name in files:
        (tmp_path / name).unlink()
    num_looks, part_of = sum(looks), _Run._part

    def die(self, band):
        if band.top > 60:
            raise KeyboardInterrupt
        return part_of(self, band)

    monkeypatch.setattr(_Run, "_part", die)
    with pytest.raises(KeyboardInterrupt):
        run(source, *extra)
    assert not any((tmp_path / name).exists() for name in files) and left_over(tmp_path) == [".out.tif.parts"]
    monkeypatch.setattr(_Run, "_part", part_of)
    code, printed = run(source, *extra, "--resume", "--threshold", 0.2)
    assert code == 2 and "was begun with another threshold, so that --resume cannot go on" in printed
    looks.clear()
    assert run(source, *extra, "--resume")[0] == 0
    assert {name: (tmp_path / name).read_bytes() for name in files} == whole
    assert 0 < sum(looks) <= num_looks and left_over(tmp_path) == []


def test_resuming_leaves_out_what_is_done(run, source, tmp_path, monkeypatch, looks):
    """All that is left of a run whose outputs could not be written is to write them."""
    with monkeypatch.context() as patch:
        patch.setattr("catseg_hf.rasters.segmentation.write_labels", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(source, *TILES)
    looks.clear()
    assert run(source, *TILES, "--resume")[0] == 0 and looks == []
    assert run(source, *TILES)[0] == 0 and looks  # without it all is done anew


def test_polygons_after_a_kill(run, source, tmp_path, monkeypatch):
    """A GeoPackage has the date inside, and everything else is the same."""
    raw = pytest.importorskip("pyogrio.raw")
    vector = tmp_path / "out.gpkg"

    def read() -> tuple[dict, list[bytes], list[list]]:
        info, _, geometries, fields = raw.read(vector)
        return {**info, "fields": list(info["fields"])}, list(geometries), [list(values) for values in fields]

    assert run(source, *TILES, "--vector", vector)[0] == 0
    whole = read()
    vector.unlink()
    with monkeypatch.context() as patch:
        part_of = _Run._part
        patch.setattr(_Run, "_part", lambda self, band: part_of(self, band) if band.top < 60 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(source, *TILES, "--vector", vector)
    assert not vector.exists()
    assert run(source, *TILES, "--vector", vector, "--resume")[0] == 0
    assert len(whole[1]) > 5 and str(read()) == str(whole)


def test_another_run_into_the_same_output(run, source, tmp_path, monkeypatch):
    """It is refused, and the first comes to its end."""
    part_of, refused = _Run._part, []

    def meet(self, band):
        if not refused:
            refused.append(run(source, *TILES, "--resume"))
        return part_of(self, band)

    monkeypatch.setattr(_Run, "_part", meet)
    assert run(source, *TILES)[0] == 0
    [(code, printed)] = refused
    assert code == 2 and f"Another run is writing {tmp_path / 'out.tif'}" in printed
    assert (tmp_path / "out.tif").exists() and left_over(tmp_path) == []


def test_a_raster_by_url(run, source, tmp_path):
    assert run(source, *TILES)[0] == 0
    expected = rasterio.open(tmp_path / "out.tif").read(1)
    command = [sys.executable, "-m", "catseg_testing.range_server", str(tmp_path)]
    with (
        open(tmp_path / "requests", "w") as requests,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=requests, text=True, cwd=TESTS) as server,
    ):
        try:
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            code, printed = run(f"{url}/in.tif", *TILES, output="remote.tif")
            assert code == 0, printed
            missing = run(f"{url}/no.tif", *TILES, output="remote.tif")
        finally:
            server.kill()
    np.testing.assert_array_equal(rasterio.open(tmp_path / "remote.tif").read(1), expected)
    assert "in_rpc.txt" not in (tmp_path / "requests").read_text()  # nor the other 30 names of what may lie beside it
    assert missing[0] == 2 and f"The raster '{url}/no.tif' could not be opened" in missing[1]


@pytest.mark.slow
def test_processes_share_several_rasters(tmp_path):
    """One process to a raster, and the maps of one process alone."""
    rasters = [write_raster(tmp_path / f"{name}.tif", scene(90 + 10 * name, 100)) for name in range(3)]
    command = ["raster", *rasters, "--labels", ", ".join(LABELS), "--tile_size", 80, "--output"]
    with TrainingDriver() as driver:
        for name, options in (("alone", {}), ("shared", {"world_size": 2})):
            result = driver.run(*command, tmp_path / name, script="catseg-hf", **options)
            assert set(result["status"]) == {0}, result["stderr"]
            assert result["stdout"].count("Written: ") == 3
    for raster in rasters:
        shared, alone = ((tmp_path / name / raster.name).read_bytes() for name in ("shared", "alone"))
        assert shared == alone


def test_probabilities(run, source, tmp_path):
    path = tmp_path / "probabilities.tif"
    chosen = ("--probabilities", path, "--probabilities_of", "water, snow|ice")
    assert run(source, *TILES, "--probabilities", path, labels="snow|ice, balloon, water")[0] == 0
    with rasterio.open(path) as written, rasterio.open(tmp_path / "out.tif") as labels:
        assert (written.crs, written.transform) == (labels.crs, labels.transform)
        assert written.descriptions == ("snow", "balloon", "water") and written.nodata == 255
        assert written.scales == (1 / 254,) * 3
        values, ids = written.read(), labels.read(1)
    np.testing.assert_array_equal((values == 255).all(axis=0), ids == 255)
    held = ids != 255
    best, own = values[:, held].max(axis=0), values[:, held][ids[held], np.arange(held.sum())]
    np.testing.assert_array_equal(own, best)
    assert 50 < best.max() <= 254
    code, printed = run(source, *TILES, *chosen, labels="snow|ice, balloon, water")
    assert code == 2 and "--probabilities_of names 'snow|ice', but the classes are snow, balloon, water" in printed
    assert run(source, *TILES, *chosen[:3], "water", labels="snow|ice, balloon, water")[0] == 0
    np.testing.assert_array_equal(rasterio.open(path).read(1), values[2])


def test_several_rasters_go_into_a_folder(run, source, tmp_path):
    other = write_raster(tmp_path / "other.tif", scene(80, 90))
    assert run(source, other, "--tile_size", 80, output="maps")[0] == 0
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.tif")) == ["in.tif", "other.tif"]
    assert rasterio.open(tmp_path / "maps" / "other.tif").shape == (80, 90)
    (tmp_path / "second").mkdir()
    code, printed = run(source, write_raster(tmp_path / "second" / "in.tif", scene(80, 90)), output="maps")
    assert code == 2 and "Two of the rasters have the same name" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bands", 4, 3, 2), "has 3 bands and so no band 4"),
        (("--range", 5, 5), "`value_range` is [5.0, 5.0]"),
        (("--tile_overlap", 0.7), "`tile_overlap` is 0.7"),
        (("--tile_size", 3), "`tile_size` is 3"),
        (("--resolution", -1), "--resolution is -1.0, but units per pixel above 0"),
        (("--vector", "out.shp"), "--vector is 'out.shp', but .gpkg, .geojson, .json, .fgb are written"),
        (("--probabilities", "out.png"), "--probabilities is 'out.png', but a GeoTIFF is written"),
    ],
)
def test_options_that_are_refused(run, source, tmp_path, options, message):
    code, printed = run(source, *options)
    assert code == 2 and message in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif"]


def test_outputs_that_are_refused(run, source, tmp_path, monkeypatch):
    code, printed = run(source, output="in.tif")
    assert code == 2 and "is the raster itself: give another name" in printed
    code, printed = run(source, output="out.png")
    assert code == 2 and "but a GeoTIFF is written: give a name that ends in .tif" in printed
    code, printed = run(source, "--probabilities", tmp_path / "out.tif")
    assert code == 2 and "Two of the outputs would be" in printed
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    code, printed = run(source)
    assert code == 2 and "may take 140,000 bytes, but only 1,000 are free" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.tif"]


def test_damage_leaves_no_output(run, source, tmp_path):
    with rasterio.open(source) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_2_2", "TIFF", bidx=1))
    data = bytearray(source.read_bytes())
    data[offset : offset + 40] = bytes(40)
    source.write_bytes(data)
    (tmp_path / "out.tif").write_text("of an earlier run")
    code, printed = run(source, *TILES)
    assert code == 2 and "could not be read in the rows from" in printed
    assert (tmp_path / "out.tif").read_text() == "of an earlier run"


def test_what_gdal_keeps_does_not_grow_with_the_height(run, tmp_path, monkeypatch):
    """By itself it keeps a share of the machine's memory."""
    limits, part_of = set(), _Run._part

    def record(self, band):
        limits.add(rasterio.env.getenv()["GDAL_CACHEMAX"])
        return part_of(self, band)

    monkeypatch.setattr(_Run, "_part", record)
    for image in (scene(), np.tile(scene(), (1, 2, 1))):
        assert run(write_raster(tmp_path / "in.tif", image), "--tile_size", 200)[0] == 0
    assert limits == {64 * 2**20}
    with RasterReader(str(write_raster(tmp_path / "in.tif", np.zeros((4, 64, 90_000), np.uint16)))) as raster:
        assert raster.limited_cache(200).options["GDAL_CACHEMAX"] == 2 * 200 * 4 * 2 * 90_000
