"""What is written for other tools: equal to what their own code has read (peers/judge_exports.sh), pixel for pixel."""

import base64
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from catseg_hf import annotations
from catseg_hf.annotations.contours import trace_borders, trace_pixels
from catseg_hf.annotations.own_folders import MARK
from catseg_hf.annotations.registry import FORMATS
from catseg_hf.annotations.rle import decode_coco, decode_cvat, decode_label_studio
from catseg_hf.annotations.segmented_images import find_regions
from catseg_hf.annotations.writing import AnnotationFiles, name_images
from catseg_hf.errors import UserError
from catseg_testing.hard_masks import LABELS, SCORES, SIZE, hard_label_map, hard_result


PEERS = Path(__file__).parent / "peers"
NAMES = [known.name for known in FORMATS if known.writes]
KINDS = {"classes": False, "instances": True}


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def exports(kind, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(kind)
    Image.new("RGB", SIZE[::-1]).save(folder / "hard.png")
    ids = hard_label_map()
    Image.fromarray(np.where(ids < 0, 255, ids).astype(np.uint8)).save(folder / "hard_labels.png")
    segments = [{"index": index, "label": LABELS[index], "score": score} for index, score in SCORES.items()]
    record = {"image": str(folder / "hard.png"), "labels": "hard_labels.png", "segments": segments}
    AnnotationFiles(NAMES, KINDS[kind]).write(folder, [record], LABELS)
    return folder


def content(path: Path) -> object:
    """What a file says, however it is compressed and whichever version has written it."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.mode, image.getpalette(), np.asarray(image).tolist()
    if path.suffix != ".json":
        return path.read_text()
    data = json.loads(path.read_text())
    for task in data if path.parent.name == "label_studio" else []:
        assert task["predictions"][0].pop("model_version").startswith("catseg_hf ")
    for shape in data.get("shapes", []) if isinstance(data, dict) else []:
        shape["mask"] = pixels_of(shape["mask"]).tolist()
    return data


def pixels_of(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


@pytest.mark.parametrize("name", NAMES)
def test_tools_read_the_label_map(kind, name):
    """On every pixel, but of YOLO's polygons one where pixels touch at corners only: between them ultralytics adds
    points, which it then cuts down to whole numbers."""
    reading = np.asarray(Image.open(PEERS / "readings" / kind / f"{name}.png")).astype(int)
    differing = np.count_nonzero(np.where(reading == 255, -1, reading) != hard_label_map())
    assert differing == (1 if name == "yolo" else 0)


def test_coco_evaluates_an_export_against_itself(kind):
    assert json.loads((PEERS / "readings" / kind / "coco.json").read_text()) == pytest.approx({"segm": 1, "bbox": 1})


def test_exports_are_those_that_tools_have_read(kind, exports):
    read = PEERS / "exports" / kind
    files = sorted(path.relative_to(read) for path in read.rglob("*") if path.is_file())
    written = {path.relative_to(exports) for path in exports.rglob("*") if path.is_file() and not path.is_symlink()}
    written = {path for path in written if path.name != MARK} - {Path("hard.png"), Path("hard_labels.png")}
    assert sorted(written) == files
    for file in files:
        assert content(exports / file) == content(read / file), file


def paint(regions: list[tuple[int, np.ndarray]]) -> np.ndarray:
    ids = np.full(SIZE, -1)
    for index, mask in regions:
        assert mask.any() and not (ids[mask] >= 0).any()
        ids[mask] = index
    return ids


def in_image(left: int, top: int, mask: np.ndarray) -> np.ndarray:
    image = np.zeros(SIZE, bool)
    image[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return image


def from_coco(coco: dict) -> list[tuple[int, np.ndarray]]:
    assert [annotation["id"] for annotation in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    assert [(category["id"], category["name"]) for category in coco["categories"]] == list(enumerate(LABELS, start=1))
    found = []
    for annotation in coco["annotations"]:
        mask = decode_coco(annotation["segmentation"]["counts"], annotation["segmentation"]["size"])
        left, top, width, height = annotation["bbox"]
        rows, columns = np.nonzero(mask)
        assert (left, top, left + width, top + height) == (
            columns.min(),
            rows.min(),
            columns.max() + 1,
            rows.max() + 1,
        )
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0 and annotation["image_id"] == 1
        assert annotation["score"] == SCORES[annotation["category_id"] - 1]
        found.append((annotation["category_id"] - 1, mask))
    return found


def from_coco_panoptic(value: tuple[dict, list[Image.Image]]) -> list[tuple[int, np.ndarray]]:
    dataset, (image,) = value
    colors = np.asarray(image).astype(int) @ [1, 256, 65536]
    (annotation,) = dataset["annotations"]
    assert annotation["file_name"] == "hard.png"
    segments = annotation["segments_info"]
    assert [(colors == segment["id"]).sum() for segment in segments] == [segment["area"] for segment in segments]
    return [(segment["category_id"] - 1, colors == segment["id"]) for segment in segments]


def from_yolo(texts: list[str]) -> list[tuple[int, np.ndarray]]:
    found = []
    for line in texts[0].splitlines():
        index, *values = line.split()
        points = np.array(values, np.float32).reshape(-1, 2) * np.array(SIZE[::-1], np.float32)
        assert len(points) >= 3
        mask = np.zeros(SIZE, np.uint8)
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
        found.append((int(index), mask > 0))
    return found


def from_labelme(files: list[dict]) -> list[tuple[int, np.ndarray]]:
    assert (files[0]["imageHeight"], files[0]["imageWidth"]) == SIZE and files[0]["imagePath"] == "photos/hard.png"
    return [
        (LABELS.index(shape["label"]), in_image(*shape["points"][0], pixels_of(shape["mask"])))
        for shape in files[0]["shapes"]
    ]


def from_cvat(text: str) -> list[tuple[int, np.ndarray]]:
    found = []
    for element in ElementTree.fromstring(text).iter("mask"):
        left, top, width, height = (int(element.get(name)) for name in ("left", "top", "width", "height"))
        mask = decode_cvat(list(map(int, element.get("rle").split(","))), (height, width))
        found.append((LABELS.index(element.get("label")), in_image(left, top, mask)))
    return found


def from_label_studio(tasks: list[dict]) -> list[tuple[int, np.ndarray]]:
    (prediction,) = tasks[0]["predictions"]
    assert 0.5 < prediction["score"] < 0.875
    return [
        (LABELS.index(region["value"]["brushlabels"][0]), decode_label_studio(region["value"]["rle"], SIZE))
        for region in prediction["result"]
    ]


def from_voc(images: list[Image.Image]) -> list[tuple[int, np.ndarray]]:
    ids = np.asarray(images[0])
    assert images[0].getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
    return [(index - 1, ids == index) for index in np.unique(ids).tolist() if index]


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_functions_on_a_result(name, instances):
    """Given a result with a label map, or its segments alone."""
    result = hard_result()
    write, read = getattr(annotations, f"to_{name}"), globals()[f"from_{name}"]
    for value in (result, result["segments"], [result]):
        names = ["photos/hard.png"] if value == [result] else "photos/hard.png"
        regions = read(write(value, LABELS, names, instances=instances))
        assert np.array_equal(paint(regions), hard_label_map())
    if name not in ("yolo", "voc"):  # which have parts always, or never
        assert len(regions) == (10 if instances else 3)


def test_instances_are_8_connected_and_not_too_small():
    ids = hard_label_map()
    segments = [{"index": index, "label": LABELS[index], "score": score} for index, score in SCORES.items()]
    regions = find_regions(ids, segments, instances=True)
    assert [(region.index, region.area) for region in regions] == [
        (0, 345), (0, 3), (0, 16), (1, 1), (1, 32), (1, 47), (1, 1), (2, 22), (2, 8), (2, 1),
    ]  # fmt: skip
    kept = find_regions(ids, segments, instances=True, min_area=8)
    assert [region.area for region in kept] == [area for area in (345, 16, 32, 47, 22, 8)]
    assert [region.label for region in find_regions(ids, segments, min_area=82)] == ["grass"]


@pytest.mark.parametrize("seed", range(30))
def test_polygons_draw_the_mask(seed):
    """Parts with many holes, as OpenCV draws them."""
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(1, 30, size=2)) < generator.choice([0.2, 0.5, 0.8, 0.95])
    drawn = np.zeros(mask.shape, np.uint8)
    for polygon in trace_pixels(mask):
        cv2.fillPoly(drawn, [polygon.astype(np.int32)], 1)
    assert np.array_equal(drawn > 0, mask)


def test_polygons_go_around_corners():
    """A step to the next pixel is diagonal only where both pixels beside it are outside."""
    mask = np.tri(9, dtype=bool)
    mask[0, 5] = mask[1, 6] = True
    steps = [np.diff(np.concatenate([polygon, polygon[:1]]), axis=0) for polygon in trace_pixels(mask)]
    diagonals = [int((np.abs(step) == 1).all(axis=1).sum()) for step in steps]
    assert sorted(diagonals) == [0, 2]


def test_polygons_along_borders():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 3:13] = True
    (polygon,) = trace_borders(mask)
    assert sorted(polygon.tolist()) == [[3, 2], [3, 12], [13, 2], [13, 12]]
    mask[6, 7] = False
    (polygon,) = trace_borders(mask)
    x, y = polygon.T
    assert abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == 99


def test_more_segments_than_a_channel_holds():
    """Of single pixels, 400, whose ids go into green as well."""
    mask = np.zeros((40, 40), bool)
    mask[::2, ::2] = True
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    result = {
        "segments": [{"label": "dot", "score": 0.5, "mask": image}],
        "segmentation": torch.from_numpy(mask.astype(int) - 1),
    }
    dataset, (drawn,) = annotations.to_coco_panoptic(result, ["dot"], "dots.png", instances=True)
    ids = np.asarray(drawn).astype(int) @ [1, 256, 65536]
    assert len(dataset["annotations"][0]["segments_info"]) == 400
    assert np.array_equal(np.unique(ids), np.arange(401)) and np.array_equal(ids > 0, mask)
    assert dataset["categories"][0]["isthing"] == 1


def test_images_with_urls():
    url = "https://host/a.png"
    (image,) = annotations.to_coco(hard_result(), LABELS, url)["images"]
    assert image["coco_url"] == url and "path" not in image
    assert annotations.to_label_studio(hard_result(), LABELS, url)[0]["data"]["image"] == url
    (local,) = annotations.to_label_studio(hard_result(), LABELS, "a b/1.png")
    assert local["data"]["image"] == "/data/local-files/?d=a%20b/1.png"


def test_a_result_without_pixels():
    result = {"segments": [], "segmentation": hard_result()["segmentation"] * 0 - 1}
    assert annotations.to_coco(result, LABELS, "a.png")["annotations"] == []
    assert annotations.to_yolo(result, LABELS, "a.png") == [""]
    assert annotations.to_label_studio(result, LABELS, "a.png")[0]["predictions"][0]["result"] == []
    with pytest.raises(UserError, match="return_segmentation_map=True"):
        annotations.to_coco([[]], LABELS, ["a.png"])


def test_results_that_do_not_fit():
    result = hard_result()
    with pytest.raises(UserError, match=r"There are 2 results, but the names are \['a.png'\]"):
        annotations.to_coco([result, result], LABELS, ["a.png"])
    with pytest.raises(UserError, match="The result of a.png has 'grass', but the labels are water, sand"):
        annotations.to_coco(result, ["water", "sand"], "a.png")


def test_voc_holds_only_so_many_classes(tmp_path):
    labels = [f"class {index}" for index in range(255)]
    with pytest.raises(UserError, match="There are 255 labels, but PASCAL VOC's images hold at most 254"):
        AnnotationFiles(["voc"]).check(labels, tmp_path)
    AnnotationFiles(["voc"]).check(labels[1:], tmp_path)
    with pytest.raises(UserError, match="'background' cannot be written"):
        AnnotationFiles(["voc"]).check(["cat", "background"], tmp_path)


def test_names_of_images():
    assert name_images(["a/x.png", "a/b/x.png", "https://host/y%20z.jpg?size=3"]) == ["x.png", "b/x.png", "y z.jpg"]
    assert name_images(["photos/x.png"]) == ["x.png"]


def test_panoptic_images_of_one_name_in_different_folders():
    mask = Image.fromarray(np.full((4, 5), 255, np.uint8))
    results = [[{"label": "cat", "score": 0.5, "mask": mask}]] * 3
    dataset, _ = annotations.to_coco_panoptic(results, ["cat"], ["a/1.png", "b/1.png", "c/1.png"])
    assert [annotation["file_name"] for annotation in dataset["annotations"]] == ["1.png", "1_2.png", "1_3.png"]
