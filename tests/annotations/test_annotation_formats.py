"""Small sources of every format, prepared, against what the tools themselves draw (tests/annotations/peers)."""

import json
from pathlib import Path

import pytest

from catseg_hf.annotations.preparation import prepare
from catseg_hf.annotations.registry import FORMATS, recognise
from catseg_testing.prepared_folders import differences


FIXTURES = Path(__file__).parents[1] / "fixtures" / "annotations"
# What each source is recognised as, and the names that its tool has for no class.
SOURCES = {
    "camvid": ("colors", ()),
    "cityscapes": ("cityscapes", ()),
    "coco": ("coco", ()),
    "coco_panoptic": ("coco_panoptic", ()),
    "cvat": ("cvat", ()),
    "cvat_masks": ("voc", ()),
    "label_studio": ("label_studio", ()),
    "labelme": ("labelme", ()),
    "roboflow": ("coco", ()),
    "voc": ("voc", ("ignored",)),
    "yolo": ("yolo", ()),
}


def test_every_source_has_the_label_maps_of_its_tool():
    assert sorted(SOURCES) == sorted(path.name for path in (FIXTURES / "sources").iterdir())
    assert sorted(SOURCES) == sorted(path.name for path in (FIXTURES / "expected").iterdir())


@pytest.mark.parametrize("name", SOURCES)
def test_pixels_are_those_of_the_tool(name, tmp_path):
    needs = next(known.needs for known in FORMATS if known.name == SOURCES[name][0])
    if "pycocotools" in needs:
        pytest.importorskip("pycocotools")
    prepared = prepare(FIXTURES / "sources" / name, tmp_path / "out")
    assert prepared.source_format.name == SOURCES[name][0]
    assert prepared.report.problems == {}
    found = dict(differences(tmp_path / "out", FIXTURES / "expected" / name, SOURCES[name][1]))
    assert found and set(found.values()) == {0}, found
    assert len(found) == sum(prepared.num_images.values())
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == list(prepared.classes)


def test_the_heading_of_roboflow_is_no_class(tmp_path):
    pytest.importorskip("pycocotools")
    assert prepare(FIXTURES / "sources" / "roboflow", tmp_path / "out").classes == ("road", "car", "tree")


@pytest.mark.parametrize("name", SOURCES)
def test_only_one_format_fits(name):
    found = [known.name for known in FORMATS if known.load_unchecked().recognises(FIXTURES / "sources" / name)]
    assert found == [SOURCES[name][0]]


def test_what_is_written_is_no_source(tmp_path):
    prepare(FIXTURES / "sources" / "voc", tmp_path / "out")
    assert recognise(tmp_path / "out") is None
