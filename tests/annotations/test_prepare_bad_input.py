"""What is wrong with a source is named with its file and shape, counted, and never silently dropped; all else is
prepared as if it were not there."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf.annotations import dataset
from catseg_hf.annotations.preparation import prepare
from catseg_hf.annotations.rle import encode_coco
from catseg_hf.errors import UserError


SIZE = 20
GOOD = [[1, 1, 9, 1, 9, 9, 1, 9]]


def save_image(path: Path, size: tuple[int, int] = (SIZE, SIZE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def save_coco(folder: Path, annotations: list, images: list | None = None):
    save_image(folder / "a.png")
    if images is None:
        images = [{"id": 1, "file_name": "a.png", "width": SIZE, "height": SIZE}]
    good = {"id": 0, "image_id": 1, "category_id": 1, "segmentation": GOOD}
    data = {"images": images, "annotations": [good, *annotations], "categories": [{"id": 1, "name": "road"}]}
    (folder / "annotations.json").write_text(json.dumps(data))


def problems(source: Path, output: Path, **options) -> dict[str, list[str]]:
    return prepare(source, output, **options).report.problems


def rle(counts, size=(SIZE, SIZE)) -> dict:
    return {"counts": counts, "size": list(size)}


@pytest.mark.parametrize(
    ("segmentation", "kind", "words"),
    [
        ([[30, 30, 40, 30, 40, 40]], dataset.OUTSIDE, "a point at (40, 40), of an image of 20 x 20"),
        ([[-9, -9, -1, -9, -1, -1]], dataset.OUTSIDE, "of an image of 20 x 20"),
        ([[1, 1, 5, 1, 1e12, 5]], dataset.OUTSIDE, "1e+12"),
        ([[1, 1, 5, 5]], dataset.WITHOUT_AREA, "2 points and needs 3"),
        ([], dataset.WITHOUT_AREA, "no segmentation"),
        ([[1, 1, 1, 1, 1, 1]], dataset.WITHOUT_AREA, "no pixel"),
        ([[1, 1, 5, 1, 5, 5, 7]], dataset.DAMAGED_SHAPE, "odd number of coordinates, 7"),
        ([[1, 1, 5, 1, 5, float("nan")]], dataset.DAMAGED_SHAPE, "no finite numbers"),
        ([["x", 1, 5, 1, 5, 5]], dataset.DAMAGED_SHAPE, "malformed (ValueError"),
        ("M 1 1", dataset.DAMAGED_SHAPE, "malformed"),
        ({"counts": [1, 2]}, dataset.DAMAGED_SHAPE, "malformed (KeyError: 'size'"),
        (rle([5, 5]), dataset.DAMAGED_SHAPE, "runs have 10 pixels"),
        (rle("abc"), dataset.DAMAGED_SHAPE, "RLE"),
        (rle(encode_coco(np.ones((SIZE, SIZE), bool))[:-1]), dataset.DAMAGED_SHAPE, "RLE"),
        (rle([50, 50], (10, 10)), dataset.DAMAGED_SHAPE, "RLE is of (10, 10) (height, width), its image of (20, 20)"),
    ],
)
def test_shapes_of_coco(tmp_path, segmentation, kind, words):
    pytest.importorskip("pycocotools")
    bad = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": segmentation}
    save_coco(tmp_path / "source", [bad])
    found = problems(tmp_path / "source", tmp_path / "out")
    assert list(found) == [kind] and len(found[kind]) == 1
    assert f"{tmp_path / 'source' / 'a.png'}, annotation 7 (road): " in found[kind][0] and words in found[kind][0]
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "train" / "a.png"))
    assert (labels == 0).sum() == 64 and (labels == 255).sum() == SIZE**2 - 64


def test_categories_and_images_of_coco(tmp_path):
    pytest.importorskip("pycocotools")
    images = [
        {"id": 1, "file_name": "a.png", "width": SIZE, "height": SIZE},
        {"id": 2, "file_name": "missing.png", "width": SIZE, "height": SIZE},
        {"id": 3, "file_name": "small.png", "width": SIZE, "height": SIZE},
        {"id": 4, "file_name": "b.png", "width": SIZE, "height": SIZE},
        {"id": 5},
    ]
    annotations = [
        {"id": 7, "image_id": 1, "category_id": 9, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
        {"id": 8, "image_id": 99, "category_id": 1, "segmentation": GOOD},
        "nonsense",
    ]
    source = tmp_path / "source"
    save_coco(source, annotations, images)
    save_image(source / "small.png", (10, 10))
    (source / "b.png").write_bytes(b"no image")
    found = problems(source, tmp_path / "out")
    assert {kind: len(items) for kind, items in found.items()} == {
        dataset.DAMAGED_FILE: 1,
        dataset.MISSING_IMAGE: 4,
        dataset.UNKNOWN_CLASS: 1,
        dataset.OTHER_SIZE: 1,
    }
    assert "annotation 7 (category 9)" in found[dataset.UNKNOWN_CLASS][0]
    assert "for 20 x 20 pixels, and it has 10 x 10" in found[dataset.OTHER_SIZE][0]
    for name in ("missing.png", "annotation 8", "nonsense", "b.png"):
        assert any(name in item for item in found[dataset.MISSING_IMAGE]), name
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "train" / "a.png"))
    assert (labels == 255).sum() == SIZE**2 - 64 + 16  # what is of an unknown class is of none
    assert [path.name for path in (tmp_path / "out").glob("labels/*/*")] == ["a.png"]


def test_a_name_that_images_in_different_folders_have(tmp_path):
    pytest.importorskip("pycocotools")
    source = tmp_path / "source"
    save_coco(source, [], [{"id": 1, "file_name": "b.png", "width": SIZE, "height": SIZE}])
    for folder in ("one", "two"):
        save_image(source / folder / "b.png")
    with pytest.raises(UserError, match=r"No image of .* can be used. 1 images.*one/b.png or .*two/b.png"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shapes_that_reach_out_are_cut_and_said(tmp_path):
    pytest.importorskip("pycocotools")
    save_coco(
        tmp_path / "source", [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 40, 0, 0, 40]]}]
    )
    report = prepare(tmp_path / "source", tmp_path / "out").report
    assert report.problems == {} and list(report.remarks) == [dataset.CLIPPED]
    assert "annotation 7 (road)" in report.remarks[dataset.CLIPPED][0]


def test_masks_that_reach_out_are_cut_and_said(tmp_path):
    pytest.importorskip("pycocotools")
    source = tmp_path / "source"
    save_image(source / "a.png")
    mask = '<mask label="r" rle="0, 24" left="-2" top="18" width="6" height="4"/>'
    image = f'<image id="0" name="a.png" width="{SIZE}" height="{SIZE}">{mask}</image>'
    (source / "annotations.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")
    report = prepare(source, tmp_path / "out").report
    assert report.problems == {} and "shape 0 (mask 'r')" in report.remarks[dataset.CLIPPED][0]
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "train" / "a.png"))
    assert (labels[18:, :4] == 0).all() and (labels == 0).sum() == 8


@pytest.mark.parametrize("name", ["coco", "coco_panoptic", "label_studio", "labelme"])
@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", '"text"', "{", '[{"data": {}}]'])
def test_a_json_of_another_format(tmp_path, name, text):
    pytest.importorskip("pycocotools")
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UserError, match=r"labels\.json"):
        prepare(tmp_path / "labels.json", tmp_path / "out", format=name)
    assert not (tmp_path / "out").exists()


def save_labelme(folder: Path, shapes: list, **changes):
    save_image(folder / "a.png")
    good = {"label": "road", "shape_type": "rectangle", "points": [[1, 1], [8, 8]]}
    data = {"shapes": [good, *shapes], "imagePath": "a.png", "imageData": None}
    (folder / "a.json").write_text(json.dumps({**data, "imageHeight": SIZE, "imageWidth": SIZE, **changes}))


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ({"shape_type": "polygon", "points": [[1, 1], [2, 2]]}, dataset.WITHOUT_AREA, "2 points and needs 3"),
        ({"shape_type": "circle", "points": [[1, 1], [2, 2], [3, 3]]}, dataset.WITHOUT_AREA, "3 points and needs 2"),
        ({"shape_type": "rectangle", "points": [[30, 30], [40, 40]]}, dataset.OUTSIDE, "(40, 40)"),
        ({"shape_type": "star", "points": [[1, 1]]}, dataset.NOT_DRAWN, "Labelme itself draws no such shape"),
        ({"shape_type": "mask", "points": [[1, 1], [4, 4]], "mask": "abc"}, dataset.DAMAGED_SHAPE, "mask is no PNG"),
        ({"shape_type": "polygon"}, dataset.DAMAGED_SHAPE, "malformed (KeyError: 'points'"),
    ],
)
def test_shapes_of_labelme(tmp_path, shape, kind, words):
    save_labelme(tmp_path / "source", [{"label": "car", **shape}])
    found = problems(tmp_path / "source", tmp_path / "out")
    assert list(found) == [kind] and words in found[kind][0]
    assert f"{tmp_path / 'source' / 'a.png'}, shape 1 ({shape['shape_type']} 'car')" in found[kind][0]


def test_files_of_labelme(tmp_path):
    source = tmp_path / "source"
    save_labelme(source, ["nonsense", {"label": "sky", "points": [[1, 1], [3, 1], [3, 3]]}])
    (source / "labels.txt").write_text("road\n")
    (source / "b.json").write_text('{"shapes": [], "imagePath": "b.png"}')
    (source / "c.json").write_text("{")
    (source / "d.json").write_text('{"images": []}')
    found = problems(source, tmp_path / "out")
    assert {kind: len(items) for kind, items in found.items()} == {
        dataset.MISSING_IMAGE: 1,
        dataset.DAMAGED_FILE: 2,
        dataset.DAMAGED_SHAPE: 1,
        dataset.UNKNOWN_CLASS: 1,
    }
    assert "shape 2 (polygon 'sky'): its class 'sky' is not in the list" in found[dataset.UNKNOWN_CLASS][0]
    assert "b.json" in found[dataset.MISSING_IMAGE][0] and "'images'" in found[dataset.DAMAGED_FILE][1]


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ('<mask label="r" rle="3, 4" left="1" top="1" width="3" height="3"/>', dataset.DAMAGED_SHAPE, "runs have 7"),
        ('<mask label="r" rle="0, 9" left="30" top="1" width="3" height="3"/>', dataset.OUTSIDE, "no pixel"),
        ('<mask label="r" rle="9" left="3" top="1" width="3" height="3"/>', dataset.WITHOUT_AREA, "no pixel"),
        ('<polygon label="r" points="1,1;2,2"/>', dataset.WITHOUT_AREA, "2 points"),
        ('<polygon label="r" points="1,1;2"/>', dataset.DAMAGED_SHAPE, "malformed"),
        ('<box label="r" xtl="1"/>', dataset.DAMAGED_SHAPE, "malformed"),
        ('<ellipse label="r" cx="40" cy="40" rx="3" ry="3"/>', dataset.OUTSIDE, "of an image of 20 x 20"),
        ('<box label="x" xtl="1" ytl="1" xbr="4" ybr="4"/>', dataset.UNKNOWN_CLASS, "'x' is not in the list"),
    ],
)
def test_shapes_of_cvat(tmp_path, shape, kind, words):
    pytest.importorskip("pycocotools")
    source = tmp_path / "source"
    save_image(source / "a.png")
    good = '<box label="r" xtl="1" ytl="1" xbr="9" ybr="9"/>'
    meta = "<version>1.1</version><meta><task><labels><label><name>r</name></label></labels></task></meta>"
    image = f'<image id="0" name="a.png" width="{SIZE}" height="{SIZE}">{good}{shape}</image>'
    (source / "annotations.xml").write_text(f"<annotations>{meta}{image}</annotations>")
    found = problems(source, tmp_path / "out")
    assert list(found) == [kind] and words in found[kind][0]
    assert f"{source / 'a.png'}, shape 1 ({shape[1:].split()[0]} " in found[kind][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations><version>1.1</version><track/></annotations>", "CVAT for video"),
        ("<annotations>", "no XML that can be read"),
        ("<annotation><folder/></annotation>", "XML of another format"),
    ],
)
def test_xml_of_another_format(tmp_path, text, message):
    pytest.importorskip("pycocotools")
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "a.xml", tmp_path / "out", format="cvat")


def test_tasks_of_label_studio(tmp_path):
    pytest.importorskip("pycocotools")
    source = tmp_path / "source"
    save_image(source / "a.png")
    save_image(source / "b.png", (10, 10))

    def task(number: int, image: str, *results: dict) -> dict:
        sized = [
            {"id": str(place), "original_width": SIZE, "original_height": SIZE, **r} for place, r in enumerate(results)
        ]
        return {"id": number, "data": {"image": image}, "annotations": [{"result": sized}]}

    box = {"type": "rectanglelabels", "value": {"x": 0, "y": 0, "width": 40, "height": 40, "rectanglelabels": ["r"]}}
    brush = {"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0, 1, 2], "brushlabels": ["r"]}}
    line = {"type": "polygonlabels", "value": {"points": [[1, 1], [50, 50]], "polygonlabels": ["r"]}}
    bare = {"type": "rectangle", "value": {"x": 0, "y": 0, "width": 9, "height": 9}}
    out = {"type": "rectanglelabels", "value": {"x": 120, "y": 0, "width": 9, "height": 9, "rectanglelabels": ["r"]}}
    tasks = [
        task(1, "a.png", box, brush, line, bare, out, {**box, "image_rotation": 90}),
        task(2, "/data/upload/1/00000000-missing.png", box),
        task(3, "b.png", box),
        {"id": 4, "data": {"image": "a.png"}, "annotations": []},
        {"id": 5, "data": {"image": "a.png"}, "annotations": [{}]},
        {"id": 6},
    ]
    (source / "export.json").write_text(json.dumps(tasks))
    found = problems(source, tmp_path / "out")
    assert {kind: len(items) for kind, items in found.items()} == {
        dataset.MISSING_IMAGE: 1,
        dataset.WITHOUT_LABELS: 1,
        dataset.DAMAGED_FILE: 2,
        dataset.DAMAGED_SHAPE: 2,
        dataset.WITHOUT_AREA: 1,
        dataset.UNKNOWN_CLASS: 1,
        dataset.OUTSIDE: 1,
        dataset.OTHER_SIZE: 1,
    }
    assert "turned by 90 degrees" in found[dataset.DAMAGED_SHAPE][1]
    assert "task 2" in found[dataset.MISSING_IMAGE][0] and "missing.png" in found[dataset.MISSING_IMAGE][0]
    assert "region 1 (brush 'r')" in found[dataset.DAMAGED_SHAPE][0]


def test_lines_of_yolo(tmp_path):
    pytest.importorskip("cv2")
    source = tmp_path / "source"
    save_image(source / "images" / "train" / "a.png")
    (source / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [road]\n")
    (source / "labels" / "train").mkdir(parents=True)
    lines = ["0 .1 .1 .5 .1 .5 .5", "0 .5 .5 .2 .2", "3 .1 .1 .5 .1 .5 .5", "0 .1 .1 .5 .1 .5 .5 .7", "0 a b c d e f"]
    lines += ["0 1.5 1.5 1.6 1.5 1.6 1.6", "", "0 .1 .1"]
    (source / "labels" / "train" / "a.txt").write_text("\n".join(lines))
    (source / "labels" / "train" / "b.txt").write_text("")
    found = problems(source, tmp_path / "out")
    assert {kind: len(items) for kind, items in found.items()} == {
        dataset.MISSING_IMAGE: 2,  # the folder of a split, and the image of b.txt
        dataset.WITHOUT_AREA: 2,
        dataset.DAMAGED_SHAPE: 2,
        dataset.OUTSIDE: 1,
        dataset.UNKNOWN_CLASS: 1,
    }
    assert (
        "a.png, line 2 of a.txt" in found[dataset.WITHOUT_AREA][0] and "it is a box" in found[dataset.WITHOUT_AREA][0]
    )
    assert "class 3" in found[dataset.UNKNOWN_CLASS][0] and "b.txt" in found[dataset.MISSING_IMAGE][1]


def test_label_maps_in_colour(tmp_path):
    source = tmp_path / "source"
    for name in "abcde":
        save_image(source / "images" / f"{name}.png")
    (source / "label_colors.txt").write_text("0 0 0 background\n255 0 0 car\n")
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:2], pixels[5, 5] = (255, 0, 0), (254, 0, 0)
    (source / "labels").mkdir()
    Image.fromarray(pixels).save(source / "labels" / "a.png")
    (source / "labels" / "b.png").write_bytes((source / "labels" / "a.png").read_bytes()[:60])
    Image.fromarray(pixels[:9]).save(source / "labels" / "c.png")
    Image.fromarray(pixels).convert("RGB").save(source / "labels" / "d.png", format="JPEG")
    Image.fromarray(pixels).save(source / "labels" / "f.png")
    found = problems(source, tmp_path / "out")
    assert {kind: len(items) for kind, items in found.items()} == {
        dataset.MISSING_IMAGE: 1,
        dataset.WITHOUT_LABELS: 1,
        dataset.UNNAMED_COLOR: 1,
        dataset.DAMAGED_FILE: 2,
        dataset.OTHER_SIZE: 1,
    }
    assert found[dataset.UNNAMED_COLOR] == [f"{source / 'images' / 'a.png'}, colour (254, 0, 0), 1 pixel"]
    assert "e.png" in found[dataset.WITHOUT_LABELS][0] and "f.png" in found[dataset.MISSING_IMAGE][0]
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "train" / "a.png"))
    assert labels[5, 5] == 255 and (labels == 1).sum() == 2 * SIZE


def test_segments_of_coco_panoptic(tmp_path):
    source = tmp_path / "source"
    save_image(source / "a.png")
    (source / "panoptic").mkdir()
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:5], pixels[5:8] = (1, 0, 0), (2, 0, 0)
    Image.fromarray(pixels).save(source / "panoptic" / "a.png")
    segments = [{"id": 1, "category_id": 1}, {"id": 3, "category_id": 1}]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": SIZE, "height": SIZE}],
        "annotations": [
            {"image_id": 1, "file_name": "a.png", "segments_info": segments},
            {"image_id": 8, "file_name": "b.png", "segments_info": []},
        ],
        "categories": [{"id": 1, "name": "road"}],
    }
    (source / "panoptic.json").write_text(json.dumps(data))
    found = problems(source, tmp_path / "out")
    assert {kind: len(items) for kind, items in found.items()} == {
        dataset.DAMAGED_FILE: 1,
        dataset.WITHOUT_AREA: 1,
        dataset.UNNAMED_COLOR: 1,
    }
    assert "segment 2, 60 pixels" in found[dataset.UNNAMED_COLOR][0] and "segment 3" in found[dataset.WITHOUT_AREA][0]


def test_voc_without_label_maps(tmp_path):
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(UserError, match="boxes only"):
        prepare(tmp_path, tmp_path / "out", format="voc")
