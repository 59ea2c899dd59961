"""Sources whose parts have other types than their format says, or contradict each other: a sentence for each, or the
rest is prepared and what is lost is named."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf.annotations import dataset, prepare
from catseg_hf.errors import UserError


SIZE = 20
POLYGON = [[1, 1], [9, 1], [9, 9]]
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
ROAD = {"id": 1, "name": "road"}


def save_image(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIZE, SIZE)).save(path)


def save_coco(folder: Path, *, images=None, annotations=(ANNOTATION,), categories=(ROAD,)):
    listed = [{"id": 1, "file_name": "a.png", "height": SIZE, "width": SIZE}, *(images or [])]
    for record in listed:
        save_image(folder / record["file_name"])
    data = {"images": listed, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(data))


def written(output: Path) -> dict[str, list[int]]:
    """The ids in each label map."""
    return {path.stem: np.unique(np.asarray(Image.open(path))).tolist() for path in output.rglob("labels/*/*.png")}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"id": 1, "height": SIZE, "width": SIZE}, "image b.png: its id 1 is that of another image"),
        ({"height": SIZE, "width": SIZE}, "it has no file_name, id or size"),
        ({"id": 2, "height": float("inf"), "width": SIZE}, "it has no file_name, id or size"),
        ({"id": [2], "height": SIZE, "width": SIZE}, "it has no file_name, id or size"),
    ],
)
def test_an_image_of_coco_without_an_id_of_its_own_is_left_out(tmp_path, record, words):
    save_coco(tmp_path / "in", images=[{"file_name": "b.png", **record}])
    found = prepare(tmp_path / "in", tmp_path / "out").report.problems
    (message,) = found[dataset.DAMAGED_FILE]
    assert words in message and written(tmp_path / "out") == {"a": [0, 255]}


@pytest.mark.parametrize(
    ("key", "kind"), [("image_id", dataset.MISSING_IMAGE), ("category_id", dataset.UNKNOWN_CLASS)]
)
def test_ids_of_coco_that_are_lists(tmp_path, key, kind):
    save_coco(tmp_path / "in", annotations=[ANNOTATION, {**ANNOTATION, "id": 2, key: [1]}])
    found = prepare(tmp_path / "in", tmp_path / "out").report.problems
    assert list(found) == [kind] and "annotation 2" in found[kind][0]


@pytest.mark.parametrize(
    "categories",
    [
        [{"name": "road"}],
        [ROAD, {"id": "2", "name": "car"}],
        [ROAD, {"id": 1, "name": "car"}],
        ["road"],
        [{"id": [1], "name": "road"}],
    ],
)
def test_categories_of_coco_without_ids_of_their_own(tmp_path, categories):
    save_coco(tmp_path / "in", categories=categories)
    with pytest.raises(UserError, match=r"a\.json has the categories .* each needs an id of its own"):
        prepare(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_supercategory_that_is_a_list(tmp_path):
    save_coco(tmp_path / "in", categories=[{**ROAD, "supercategory": ["way"]}])
    assert prepare(tmp_path / "in", tmp_path / "out").classes == ("road",)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"images": ["x"]}, dataset.DAMAGED_FILE, "image x: it has no id"),
        ({"file_name": 5}, dataset.MISSING_IMAGE, "There is no image '5'"),
        ({"segments_info": [{"id": 1, "category_id": [1]}]}, dataset.UNNAMED_COLOR, "segment 1, 400 pixels"),
        ({"segments_info": [{"id": float("inf"), "category_id": 1}]}, dataset.DAMAGED_FILE, "keys are missing"),
    ],
)
def test_coco_panoptic_of_other_types(tmp_path, change, kind, words):
    folder = tmp_path / "in"
    for name in "ab":
        save_image(folder / f"images/{name}.png")
        (folder / "pan").mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (1, 0, 0)).save(folder / f"pan/{name}.png")
    images = [
        {"id": number, "file_name": f"{name}.png", "height": SIZE, "width": SIZE}
        for number, name in enumerate("ab", 1)
    ]
    segments = [{"id": 1, "category_id": 1}]
    good, changed = (
        {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        for number, name in enumerate("ab", 1)
    )
    changed |= {key: value for key, value in change.items() if key != "images"}
    data = {"images": images + change.get("images", []), "annotations": [good, changed], "categories": [ROAD]}
    (folder / "pan.json").write_text(json.dumps(data))
    found = prepare(folder, tmp_path / "out").report.problems
    assert words in found[kind][0] and written(tmp_path / "out")["a"] == [0]


def test_label_maps_of_coco_panoptic_are_not_taken_for_images(tmp_path):
    save_image(tmp_path / "photos/a.png")
    (tmp_path / "in/pan").mkdir(parents=True)
    Image.new("RGB", (SIZE, SIZE), (1, 0, 0)).save(tmp_path / "in/pan/a.png")
    record = {"id": 1, "file_name": "a.png", "height": SIZE, "width": SIZE}
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1}]}
    data = {"images": [record], "annotations": [annotation], "categories": [ROAD]}
    (tmp_path / "in/pan.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"'a\.png' is only there as its label map, .*: name its folder \(--images\)"):
        prepare(tmp_path / "in", tmp_path / "out")
    save_image(tmp_path / "in/images/train/a.png")
    (tmp_path / "in/pan").rename(tmp_path / "in/panoptic_train")
    (tmp_path / "in/pan.json").rename(tmp_path / "in/panoptic_train.json")
    prepare(tmp_path / "in", tmp_path / "with_images")
    assert (tmp_path / "with_images/images/train/a.png").resolve() == tmp_path / "in/images/train/a.png"
    record["path"] = "../photos/a.png"  # as exports say
    (tmp_path / "in/panoptic_train.json").write_text(json.dumps(data))
    prepare(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/images/train/a.png").resolve() == tmp_path / "photos/a.png"


@pytest.mark.parametrize("data", [{}, {"image": "http://[bad/a.png"}, {"image": 5}])
def test_tasks_of_label_studio_without_an_image(tmp_path, data):
    save_image(tmp_path / "in/a.png")
    value = {"points": POLYGON, "polygonlabels": ["road"]}
    annotations = [{"result": [{"id": "r", "type": "polygonlabels", "original_width": [9], "value": value}]}]
    tasks = [{"id": 1, "data": {"image": "a.png"}, "annotations": annotations}, {"id": 2, "data": data}]
    (tmp_path / "in/a.json").write_text(json.dumps([tasks[0], {**tasks[1], "annotations": annotations}]))
    found = prepare(tmp_path / "in", tmp_path / "out").report.problems
    assert [message.split(": ")[0][-6:] for message in found[dataset.DAMAGED_FILE]] == ["task 2"]
    assert written(tmp_path / "out") == {"a": [0, 255]}


def test_a_size_that_is_no_number_in_label_studio(tmp_path):
    save_image(tmp_path / "in/a.png")
    value = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["road"]}
    region = {"id": "r", "type": "polygonlabels", "original_width": [SIZE], "original_height": "20", "value": value}
    (tmp_path / "in/a.json").write_text(
        json.dumps([{"data": {"image": "a.png"}, "annotations": [{"result": [region]}]}])
    )
    assert prepare(tmp_path / "in", tmp_path / "out").report.problems == {}
    assert written(tmp_path / "out") == {"a": [0, 255]}


def test_what_a_source_without_classes_lacks(tmp_path):
    save_image(tmp_path / "in/a.png")
    task = {"id": 7, "data": {"image": "a.png"}, "annotations": [], "predictions": [{"result": []}]}
    (tmp_path / "in/a.json").write_text(json.dumps([task]))
    with pytest.raises(UserError, match="names no class.*task 7: it has no annotation"):
        prepare(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("names", ["{a: road}", "{0: road, b: car}", "road", "[]"])
def test_names_of_yolo_that_are_not_by_number(tmp_path, names):
    save_image(tmp_path / "images/train/a.png")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: {names}")
    with pytest.raises(UserError, match=r"data\.yaml names no classes: .* mapping from ids to names, got"):
        prepare(tmp_path, tmp_path / "out", format="yolo")


@pytest.mark.parametrize("subset", ["../../out_of_it", "a/b", "..", "a\\b"])
def test_subsets_of_cvat_stay_in_the_output(tmp_path, subset):
    save_image(tmp_path / "in/a.png")
    (tmp_path / "in/a.xml").write_text(
        f'<annotations><version>1.1</version><image id="0" name="a.png" subset="{subset}" width="20" height="20">'
        '<polygon label="road" points="1,1;9,1;9,9"/></image></annotations>'
    )
    prepare(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    (label_map,) = tmp_path.rglob("labels/*/*.png")
    assert label_map.parent.parent == tmp_path / "out/labels"


@pytest.mark.parametrize("encoding", ["utf-7", "nonsense"])
def test_xml_in_an_encoding_that_is_not_read(tmp_path, encoding):
    path = tmp_path / "a.xml"
    path.write_text(f'<?xml version="1.0" encoding="{encoding}"?><annotations><version>1.1</version></annotations>')
    with pytest.raises(UserError, match="is no XML that can be read"):
        prepare(path, tmp_path / "out", format="cvat")
    with pytest.raises(UserError, match="of no format that is recognised"):
        prepare(path, tmp_path / "out")


def save_list(folder: Path, name: str, text: bytes):
    """An image with a label map that a list of colours or ids belongs to."""
    if name == "_classes.csv":
        save_image(folder / "a.jpg")
        Image.new("L", (SIZE, SIZE), 1).save(folder / "a_mask.png")
    else:
        save_image(folder / "images/a.png")
        (folder / "labels").mkdir()
        Image.new("RGB", (SIZE, SIZE), (128, 0, 0)).save(folder / "labels/a.png")
    (folder / name).write_bytes(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", b"caf\xe9:128,0,0::\n"),
        ("label_colors.txt", b"128 0 0 caf\xe9\n"),
        ("_classes.csv", b"Pixel Value, Class\n1, caf\xe9\n"),
    ],
)
def test_lists_that_are_not_in_utf8(tmp_path, name, text):
    save_list(tmp_path / "in", name, text)
    with pytest.raises(UserError, match=f"{name} is no text in UTF-8 .* save it in this encoding"):
        prepare(tmp_path / "in", tmp_path / "out")


def test_other_lists_that_are_not_in_utf8(tmp_path):
    save_image(tmp_path / "in/a.png")
    shape = {"label": "road", "points": POLYGON}
    (tmp_path / "in/a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    (tmp_path / "in/labels.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"labels\.txt is no text in UTF-8"):
        prepare(tmp_path / "in", tmp_path / "out")
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo/data.yaml").write_text("train: train.txt\nnames: [road]")
    (tmp_path / "yolo/train.txt").write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(UserError, match=r"train\.txt is no text in UTF-8"):
        prepare(tmp_path / "yolo", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labelmap.txt", b"road:128,0,0::\ncar:128,0,0::\n"),
        ("label_colors.txt", b"128 0 0 road\n128 0 0 car\n"),
        ("_classes.csv", b"Pixel Value, Class\n1, road\n1, car\n"),
    ],
)
def test_a_colour_of_two_classes(tmp_path, name, text):
    save_list(tmp_path / "in", name, text)
    with pytest.raises(UserError, match=f"{name} names .* twice, 'road' and 'car'"):
        prepare(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["road", "road"]}, "`classes` has 'road' more than once"),
        ({"classes": [1]}, r"`classes` has to be a list of class names, such as .*, got \[1\]"),
        ({"classes": []}, "`classes` has to be a list"),
        ({"validation_share": "0.1"}, "got '0.1'"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, options, message):
    save_coco(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_names_that_no_encoding_has(tmp_path):
    save_coco(tmp_path / "in", categories=[{"id": 1, "name": "ro\ud800ad"}])
    with pytest.raises(UserError, match=r"The class 'ro\\ud800ad' is no text that can be written"):
        prepare(tmp_path / "in", tmp_path / "out")


def test_file_names_that_are_not_in_utf8(tmp_path):
    save_coco(tmp_path / "in")
    folder = os.fsencode(tmp_path / "in")
    for suffix in (b".json", b".png"):
        (tmp_path / f"in/x{suffix.decode()}").write_text(json.dumps({"imagePath": "x.png", "shapes": []}))
        try:
            os.rename(folder + b"/x" + suffix, folder + b"/caf\xe9" + suffix)
        except OSError:
            pytest.skip("the file system has UTF-8 only")
    shapes = {"imagePath": "a.png", "shapes": [{"label": "road", "points": POLYGON}]}
    (tmp_path / "in/a.json").write_text(json.dumps(shapes))
    prepared = prepare(tmp_path / "in", tmp_path / "out", format="labelme")
    assert r"caf\udce9.json" in prepared.report.problems[dataset.MISSING_IMAGE][0]
    assert r"caf\udce9.json" in (tmp_path / "out/index.html").read_text(encoding="utf-8")
