"""`catseg_hf.annotations.preparation`: classes, background, splits, names of files, orientation, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from catseg_hf.annotations import preparation
from catseg_hf.annotations.labelme import shape_mask
from catseg_hf.annotations.preparation import prepare
from catseg_hf.cli import main
from catseg_hf.errors import UserError


WIDTH, HEIGHT = 12, 8


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", size, (200, 100, 50)).save(path, exif=exif)


def save_labelme(folder: Path, name: str, shapes: list[dict], **changes):
    """An image and its JSON."""
    save_image(folder / f"{name}.jpg")
    data = {"shapes": shapes, "imagePath": f"{Path(name).name}.jpg", "imageData": None}
    data |= {"imageHeight": HEIGHT, "imageWidth": WIDTH, **changes}
    (folder / f"{name}.json").write_text(json.dumps(data))


def rectangle(label: str, *corners: float) -> dict:
    return {"label": label, "shape_type": "rectangle", "points": [list(corners[:2]), list(corners[2:])]}


def label_map(output: Path, path: str) -> np.ndarray:
    return np.asarray(Image.open(output / "labels" / path))


@pytest.fixture
def source(tmp_path) -> Path:
    """A road on the left with a car over it."""
    save_labelme(tmp_path / "source", "a", [rectangle("road", 0, 0, 5, 7), rectangle("car", 4, 2, 7, 5)])
    return tmp_path / "source"


ROAD_AND_CAR = np.full((HEIGHT, WIDTH), 255)
ROAD_AND_CAR[:, :6], ROAD_AND_CAR[2:6, 4:8] = 1, 0


def test_classes_are_sorted_where_there_is_no_list(source, tmp_path):
    prepared = prepare(source, tmp_path / "out")
    assert prepared.classes == ("car", "road")
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["car", "road"]
    assert np.array_equal(label_map(tmp_path / "out", "train/a.png"), ROAD_AND_CAR)


def test_classes_in_a_given_order_and_selection(source, tmp_path):
    (tmp_path / "classes.json").write_text('["sky", "car"]')
    prepared = prepare(source, tmp_path / "out", classes=tmp_path / "classes.json")
    expected = np.where(ROAD_AND_CAR == 0, 1, 255)
    assert np.array_equal(label_map(tmp_path / "out", "train/a.png"), expected)
    assert prepared.report.problems == {}
    assert [len(items) for items in prepared.report.remarks.values()] == [1, 1]  # sky is missing, road is left out
    assert "'road'" in str(prepared.report.remarks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "JSON list of class names"),
        ("[", "cannot be read"),
        ('["a", "a"]', "'a' more than once"),
        ("[]", "list"),
    ],
)
def test_class_lists_that_are_refused(source, tmp_path, text, message):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "out", classes=tmp_path / "classes.json")
    assert not (tmp_path / "out").exists()


def test_background_of_a_format_without_one(source, tmp_path):
    prepared = prepare(source, tmp_path / "out", background="ground")
    assert prepared.classes == ("ground", "car", "road")
    expected = np.where(ROAD_AND_CAR == 255, 0, ROAD_AND_CAR + 1)
    assert np.array_equal(label_map(tmp_path / "out", "train/a.png"), expected)


def test_background_that_is_a_class_already(source, tmp_path):
    prepared = prepare(source, tmp_path / "out", background="road")
    assert prepared.classes == ("car", "road")
    assert np.array_equal(label_map(tmp_path / "out", "train/a.png"), np.where(ROAD_AND_CAR == 0, 0, 1))


def test_background_that_the_format_has(source, tmp_path):
    (source / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    found = {}
    for background in (None, "ignore", "ground"):
        prepared = prepare(source, tmp_path / str(background), background=background)
        found[background] = prepared.classes, label_map(tmp_path / str(background), "train/a.png")
    assert found[None][0] == ("_background_", "road", "car")
    assert np.array_equal(found[None][1] == 0, ROAD_AND_CAR == 255)
    assert found["ignore"][0] == ("road", "car")
    assert np.array_equal(found["ignore"][1] == 255, ROAD_AND_CAR == 255)
    assert found["ground"][0] == ("ground", "road", "car")
    assert np.array_equal(found["ground"][1], found[None][1])


def test_a_background_that_is_not_among_the_classes(source, tmp_path):
    with pytest.raises(UserError, match=r"'ground' is not among the classes.*did you mean 'grounds'"):
        prepare(source, tmp_path / "out", classes=["car", "grounds"], background="ground")


def test_more_classes_than_8_bits_hold(tmp_path):
    names = [f"class {number:03d}" for number in range(256)]
    save_labelme(tmp_path / "source", "a", [rectangle(names[255], 0, 0, 3, 3)])
    prepared = prepare(tmp_path / "source", tmp_path / "out", classes=names)
    labels = label_map(tmp_path / "out", "train/a.png")
    assert labels.dtype == np.uint16 and sorted(np.unique(labels)) == [255, 65535] and prepared.no_class == 65535
    assert prepared.pixels[255] == 16 and prepared.pixels.sum() == 16


def test_splits_are_drawn_by_the_seed(tmp_path):
    for number in range(10):
        save_labelme(tmp_path / "source", f"image_{number}", [rectangle("road", 0, 0, 5, 5)])
    validation = {}
    for run, options in enumerate(({}, {"seed": 1}, {"seed": 1}, {"validation_share": 0.5}, {"validation_share": 0})):
        prepare(tmp_path / "source", tmp_path / str(run), **options)
        validation[run] = sorted(path.name for path in (tmp_path / str(run)).glob("labels/validation/*"))
    assert [len(names) for names in validation.values()] == [1, 1, 1, 5, 0]
    assert validation[0] != validation[1] == validation[2]
    with pytest.raises(UserError, match="from 0 to below 1, got 1.0"):
        prepare(tmp_path / "source", tmp_path / "out", validation_share=1.0)


def test_splits_of_the_source_stay(tmp_path):
    for split in ("train", "valid", "test"):
        save_labelme(tmp_path / "source" / split, split, [rectangle("road", 0, 0, 5, 5)])
    prepared = prepare(tmp_path / "source", tmp_path / "out")
    assert prepared.num_images == {"test": 1, "train": 1, "validation": 1}
    assert (tmp_path / "out" / "labels" / "validation" / "valid.png").exists()
    with pytest.raises(UserError, match=r"splits of its own \(test, train, validation\)"):
        prepare(tmp_path / "source", tmp_path / "again", validation_share=0.1)


def test_images_are_links_or_copies(source, tmp_path):
    prepare(source, tmp_path / "links")
    prepare(source, tmp_path / "copies", copy=True)
    link, copy = (tmp_path / name / "images" / "train" / "a.jpg" for name in ("links", "copies"))
    assert link.is_symlink() and link.resolve() == (source / "a.jpg").resolve()
    assert not copy.is_symlink() and copy.read_bytes() == (source / "a.jpg").read_bytes()


def test_images_inside_the_json(source, tmp_path):
    import base64

    data = (source / "a.jpg").read_bytes()
    save_labelme(source, "a", [rectangle("road", 0, 0, 5, 5)], imageData=base64.b64encode(data).decode())
    (source / "a.jpg").unlink()
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "images" / "train" / "a.jpg").read_bytes() == data


def test_images_of_one_name_in_different_folders(tmp_path):
    for folder in ("one", "two"):
        save_labelme(tmp_path / "source" / folder, "a", [rectangle("road", 0, 0, 5, 5)])
    prepared = prepare(tmp_path / "source", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("images/train/*")) == ["a.jpg", "two_a.jpg"]
    assert list(prepared.report.remarks.values()) == [["two/a.jpg, written as two_a"]]
    for path in (tmp_path / "out").glob("images/train/*"):
        assert ("two" in path.name) == (path.resolve().parent.name == "two")


def test_nothing_is_left_of_a_run_that_fails(source, tmp_path, monkeypatch):
    save_labelme(source, "b", [rectangle("road", 0, 0, 5, 5)])

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation, "write_page", fail)
    with pytest.raises(UserError, match="No space left"):
        prepare(source, tmp_path / "new" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_output_that_is_in_use(source, tmp_path):
    with pytest.raises(UserError, match=r"is not empty.*\(--output\)"):
        prepare(source, source)


def test_the_page_has_counts_pictures_and_escaped_names(tmp_path):
    save_labelme(tmp_path / "source", "a", [rectangle("<b>", 0, 0, 5, 7), rectangle("car", 20, 20, 30, 30)])
    prepared = prepare(tmp_path / "source", tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<td class='name'>&lt;b&gt;</td><td>1</td><td>48</td>" in page and "<b>" not in page
    assert page.count("<img src='data:image/jpeg;base64,") == 1
    assert "1 image (train 1)" in page and "shapes outside their image" in page
    assert prepared.pixels.tolist() == [48, 0] and prepared.images.tolist() == [1, 0]


# What EXIF says of an image of 8 x 12 pixels that is shown as 12 x 8.
TURNED = 6


@pytest.mark.parametrize("is_upright", [True, False])
def test_orientation_by_the_size_of_the_labels(tmp_path, is_upright):
    """COCO tells neither; the size in the JSON does, where it can."""
    pytest.importorskip("pycocotools")
    save_image(tmp_path / "source" / "a.jpg", (HEIGHT, WIDTH), TURNED)
    size = (WIDTH, HEIGHT) if is_upright else (HEIGHT, WIDTH)
    save_coco(tmp_path / "source", [[[0, 0, 4, 0, 4, 2, 0, 2]]], size)
    prepare(tmp_path / "source", tmp_path / "out")
    expected = np.full((HEIGHT, WIDTH), 255)
    if is_upright:
        expected[:2, :4] = 0
    else:  # the stored upper left corner is shown in the upper right
        expected[:4, -2:] = 0
    assert np.array_equal(label_map(tmp_path / "out", "train/a.png"), expected)


@pytest.mark.parametrize("tool", ["cvat", "label_studio", "coco", "labelme", "labelme_embedded"])
def test_orientation_of_square_images(tmp_path, tool):
    """Where sizes do not tell: tools show images upright, and Labelme embedded bytes as they
    are stored."""
    import base64

    if tool not in ("labelme", "labelme_embedded"):
        pytest.importorskip("pycocotools")
    source = tmp_path / "source"
    save_image(source / "a.jpg", (10, 10), TURNED)
    corners = [[0, 0], [4, 0], [4, 2], [0, 2]]
    if tool == "coco":
        save_coco(source, [[sum(corners, [])]], (10, 10))
    elif tool == "cvat":
        points = ";".join(f"{x},{y}" for x, y in corners)
        save_cvat(source, f'<polygon label="road" points="{points}"/>', (10, 10))
    elif tool == "label_studio":
        value = {"points": [[10 * x, 10 * y] for x, y in corners], "polygonlabels": ["road"]}
        save_label_studio(source, [{"type": "polygonlabels", "value": value}], (10, 10))
    else:
        data = base64.b64encode((source / "a.jpg").read_bytes()).decode() if tool == "labelme_embedded" else None
        shape = {"label": "road", "shape_type": "polygon", "points": [[0, 0], [3, 0], [3, 1], [0, 1]]}
        content = {"shapes": [shape], "imagePath": "a.jpg", "imageData": data, "imageHeight": 10, "imageWidth": 10}
        (source / "a.json").write_text(json.dumps(content))
    prepare(source, tmp_path / "out")
    expected = np.full((10, 10), 255)
    if tool == "labelme_embedded":
        expected[:4, -2:] = 0
    else:
        expected[:2, :4] = 0
    assert np.array_equal(label_map(tmp_path / "out", "train/a.png"), expected)


def save_coco(source: Path, segmentations: list, size: tuple[int, int]):
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "segmentation": segmentation}
        for number, segmentation in enumerate(segmentations, 1)
    ]
    images = [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "road"}]}
    (source / "annotations.json").write_text(json.dumps(data))


def save_cvat(source: Path, shapes: str, size: tuple[int, int]):
    image = f'<image id="0" name="a.jpg" width="{size[0]}" height="{size[1]}">{shapes}</image>'
    (source / "annotations.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")


def save_label_studio(source: Path, results: list[dict], size: tuple[int, int]):
    results = [
        {"id": str(n), "original_width": size[0], "original_height": size[1], **r} for n, r in enumerate(results)
    ]
    task = {"id": 1, "data": {"image": "/data/local-files/?d=photos/a.jpg"}, "annotations": [{"result": results}]}
    (source / "export.json").write_text(json.dumps([task]))


def test_rotation_in_cvat_and_label_studio(tmp_path):
    """CVAT turns boxes about their centre, Label Studio about their upper left corner; both clockwise."""
    pytest.importorskip("pycocotools")
    save_image(tmp_path / "cvat" / "a.jpg", (20, 20))
    save_cvat(tmp_path / "cvat", '<box label="r" xtl="6" ytl="8" xbr="14" ybr="12" rotation="90"/>', (20, 20))
    prepare(tmp_path / "cvat", tmp_path / "cvat_out")
    labels = label_map(tmp_path / "cvat_out", "train/a.png")
    assert np.array_equal(labels == 0, box_mask(8, 6, 12, 14))
    save_image(tmp_path / "studio" / "a.jpg", (20, 20))
    value = {"x": 50, "y": 25, "width": 40, "height": 20, "rotation": 90, "rectanglelabels": ["r"]}
    save_label_studio(tmp_path / "studio", [{"type": "rectanglelabels", "value": value}], (20, 20))
    prepare(tmp_path / "studio", tmp_path / "studio_out")
    labels = label_map(tmp_path / "studio_out", "train/a.png")
    assert np.array_equal(labels == 0, box_mask(6, 5, 10, 13))


def box_mask(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_ellipses_in_label_studio_and_cvat(tmp_path):
    pytest.importorskip("pycocotools")
    columns, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
    inside = ((columns - 20) / 6) ** 2 + ((rows - 18) / 12) ** 2
    save_image(tmp_path / "studio" / "a.jpg", (40, 40))
    value = {"x": 50, "y": 45, "radiusX": 30, "radiusY": 15, "rotation": 90, "ellipselabels": ["e"]}
    save_label_studio(tmp_path / "studio", [{"type": "ellipselabels", "value": value}], (40, 40))
    save_image(tmp_path / "cvat" / "a.jpg", (40, 40))
    save_cvat(tmp_path / "cvat", '<ellipse label="e" cx="20" cy="18" rx="12" ry="6" rotation="90"/>', (40, 40))
    for name, border in (("studio", 0.25), ("cvat", 0.45)):  # OpenCV's has the border beside
        prepare(tmp_path / name, tmp_path / f"{name}_out")
        labels = label_map(tmp_path / f"{name}_out", "train/a.png")
        assert (labels[inside < 1 - border] == 0).all() and (labels[inside > 1 + border] == 255).all()


def test_turned_boxes_of_cvat_lie_over_others_of_their_z_order(tmp_path):
    pytest.importorskip("pycocotools")
    save_image(tmp_path / "source" / "a.jpg", (20, 20))
    boxes = [
        f'<box label="{name}" xtl="2" ytl="2" xbr="8" ybr="8" {more}/>'
        for name, more in (("turned", 'rotation="90"'), ("upright", ""), ("below", 'z_order="-1"'))
    ]
    save_cvat(tmp_path / "source", "".join(boxes), (20, 20))
    prepared = prepare(tmp_path / "source", tmp_path / "out")
    labels = label_map(tmp_path / "out", "train/a.png")
    assert prepared.classes[labels[4, 4]] == "turned"


def test_labels_beside_regions_in_label_studio(tmp_path):
    """A region may get its label from another result of its id."""
    pytest.importorskip("pycocotools")
    save_image(tmp_path / "source" / "a.jpg", (20, 20))
    region = {"x": 0, "y": 0, "width": 50, "height": 50}
    results = [
        {"id": "r", "type": "rectangle", "value": region},
        {"id": "r", "type": "labels", "value": {**region, "labels": ["road"]}},
        {"id": "k", "type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["dot"]}},
    ]
    save_label_studio(tmp_path / "source", results, (20, 20))
    prepared = prepare(tmp_path / "source", tmp_path / "out")
    labels = label_map(tmp_path / "out", "train/a.png")
    assert np.array_equal(labels == prepared.classes.index("road"), box_mask(0, 0, 10, 10))
    assert "keypoint 'dot'" in str(prepared.report.remarks)


def test_regions_without_an_id_in_label_studio(tmp_path):
    pytest.importorskip("pycocotools")
    save_image(tmp_path / "source" / "a.jpg", (20, 20))
    results = [
        {
            "id": None,
            "type": "rectanglelabels",
            "value": {"x": x, "y": 0, "width": 50, "height": 50, "rectanglelabels": [name]},
        }
        for x, name in ((0, "road"), (50, "car"))
    ]
    save_label_studio(tmp_path / "source", results, (20, 20))
    prepare(tmp_path / "source", tmp_path / "out")
    labels = label_map(tmp_path / "out", "train/a.png")
    assert np.array_equal(labels == 1, box_mask(0, 0, 10, 10)) and np.array_equal(labels == 0, box_mask(10, 0, 20, 10))


def test_a_square_of_labelme_has_121_pixels():
    assert shape_mask("rectangle", [[5, 5], [15, 15]], (30, 30)).sum() == 121
    assert shape_mask("point", [[15, 15]], (30, 30)).sum() == 97


def test_one_binary_mask_for_each_class(tmp_path):
    for layout, path in (("by_class", "masks/{name}/a.png"), ("by_image", "masks/a/{name}.png")):
        source = tmp_path / layout
        save_image(source / "images" / "a.jpg")
        for name, left in (("road", 2), ("car", 0)):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[:4, left : left + 4] = 255
            (source / path.format(name=name)).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(source / path.format(name=name))
        prepared = prepare(source, tmp_path / f"{layout}_out")
        assert prepared.source_format.name == "binary_masks" and prepared.classes == ("car", "road")
        expected = np.full((HEIGHT, WIDTH), 255)
        expected[:4, :4], expected[:4, 2:6] = 0, 1
        assert np.array_equal(label_map(tmp_path / f"{layout}_out", "train/a.png"), expected)


def test_roboflow_masks(tmp_path):
    source = tmp_path / "source"
    for split in ("train", "valid"):
        save_image(source / split / "a.jpg")
        ids = np.zeros((HEIGHT, WIDTH), np.uint8)
        ids[2:] = 2
        Image.fromarray(ids).save(source / split / "a_mask.png")
        (source / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n2, road\n")
    prepared = prepare(source, tmp_path / "out")
    assert prepared.classes == ("background", "car", "road") and prepared.num_images == {"train": 1, "validation": 1}
    assert label_map(tmp_path / "out", "validation/a.png")[:, 0].tolist() == [0, 0, 2, 2, 2, 2, 2, 2]


def test_cityscapes_classes_beyond_the_benchmark(tmp_path):
    sources = Path(__file__).parents[1] / "fixtures" / "annotations" / "sources"
    prepared = prepare(sources / "cityscapes", tmp_path / "out", classes=["parking", "road"])
    assert prepared.images.tolist() == [1, 3] and prepared.report.problems == {}


@pytest.mark.parametrize("as_script", [False, True])
def test_the_command_says_what_it_recognised(source, tmp_path, capsys, as_script):
    from catseg_hf.commands import prepare as command

    arguments = [str(source), "--output", str(tmp_path / "out"), "--background", "ground", "--seed", "3"]
    assert (command.main(arguments) if as_script else main(["prepare", *arguments])) == 0
    printed = capsys.readouterr().out
    assert f"Recognised {source} as Labelme (--format labelme)" in printed
    assert "1 image (train 1) with 3 classes" in printed and "index.html" in printed


def test_the_command_names_what_was_lost(source, tmp_path, capsys):
    save_labelme(source, "b", [rectangle("road", 0, 0, 5, 5), *[rectangle("car", 50, 50, 60, 60)] * 12])
    assert main(["prepare", str(source), "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "problem: 12 shapes outside their image" in printed and "and 2 more, all of them in index.html" in printed
    assert f"{source / 'b.jpg'}, shape 1 (rectangle 'car'): a point at (60, 60), of an image of 12 x 8" in printed


def test_formats_are_named_where_none_is_recognised(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "data.json").write_text('{"something": 1}')
    assert main(["prepare", str(tmp_path / "source"), "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert "no format that is recognised" in printed and "label_studio: Label Studio" in printed
    assert main(["prepare", str(tmp_path / "nothing"), "--output", str(tmp_path / "out")]) == 2
    assert "There is no file or folder" in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    from catseg_hf.annotations import registry

    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Reading COCO needs pycocotools.*catseg_hf\[annotations\]"):
        registry.find_format("coco").load()
