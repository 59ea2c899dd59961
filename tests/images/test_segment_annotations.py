"""`catseg-hf segment --format`: annotations from label maps that are finished."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from catseg_hf import cli
from catseg_hf.annotations.registry import FORMATS
from catseg_hf.annotations.rle import decode_coco


NAMES = [known.name for known in FORMATS if known.writes]
ALL = [f"--format={name}" for name in NAMES]
LABELS = "grass, water, snow"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two of one name, in different folders."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = generator.integers(256, size=(3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(folder / name)
    return folder


def segment(images: Path, output: Path, *arguments: str) -> int:
    paths = [str(images / name) for name in ("a", "b")]
    return cli.main(["segment", *paths, "--labels", LABELS, "--device=cpu", f"--output={output}", *arguments])


def contents(folder: Path) -> dict[str, bytes | str]:
    """All files, and where links lead."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def complete(images, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("complete")
    assert segment(images, output, *ALL, "--instances", "--min_area=5", "--threshold=0.3") == 0
    return output


def test_annotations_are_of_the_label_maps(complete, images):
    coco = json.loads((complete / "annotations.json").read_text())
    summary = json.loads((complete / "summary.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a/1.png", "a/2.png", "b/1.png"]
    for image, record in zip(coco["images"], summary["images"], strict=True):
        assert (complete / image["path"]).resolve() == images / image["file_name"]
        ids = np.asarray(Image.open(complete / record["labels"])).astype(int)
        drawn = np.full(ids.shape, record["no_class"])
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                assert annotation["area"] >= 5
                drawn[decode_coco(annotation["segmentation"]["counts"], ids.shape)] = annotation["category_id"] - 1
        differing = ids[drawn != ids]
        assert len(differing) < 0.1 * ids.size and (drawn[drawn != ids] == record["no_class"]).all()
    assert [path.name for path in complete.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("folder", ["yolo/images/train", "voc/JPEGImages"])
def test_images_are_linked(complete, images, folder):
    names = {"1.png": "a/1.png", "2.png": "a/2.png", "1_2.png": "b/1.png"}
    assert {path.name: path.resolve() for path in (complete / folder).iterdir()} == {
        name: images / image for name, image in names.items()
    }


def test_label_maps_and_summary_are_as_without(complete, images, tmp_path):
    assert segment(images, tmp_path, "--threshold=0.3") == 0
    assert contents(tmp_path).items() <= contents(complete).items()


def test_resumed(complete, images, tmp_path):
    """After a run without annotations, and after one that lost some."""
    options = ["--instances", "--min_area=5", "--threshold=0.3", "--resume"]
    output = tmp_path / "output"
    os.symlink(images, tmp_path / "images")  # so that links have the same paths
    assert segment(images, output, "--threshold=0.3") == 0
    assert segment(images, output, *ALL, *options) == 0
    first = contents(output)
    assert {name: value for name, value in contents(complete).items() if "/" not in name}.keys() <= first.keys()
    (output / "1_labels.png").unlink()
    (output / "annotations.json").unlink()
    shutil.rmtree(output / "yolo")
    assert segment(images, output, *ALL, *options) == 0
    assert contents(output) == first


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labelme/1.json", '{"shapes": []}'),  # corrected
        ("labelme/mine.json", "{}"),
        ("annotations.json", '{"images": [], "annotations": [], "categories": []}'),
    ],
)
def test_what_is_not_of_this_command_is_not_replaced(images, complete, tmp_path, capsys, file, text):
    output = tmp_path / "output"
    shutil.copytree(complete, output, symlinks=True)
    (output / file).write_text(text)
    before = contents(output)
    assert segment(images, output, *ALL) == 2
    place = output / file.partition("/")[0]
    assert f"error: {place} " in capsys.readouterr().err and contents(output) == before
    place.rename(tmp_path / "elsewhere")
    assert segment(images, output, *ALL) == 0


def test_file_names_that_are_not_in_utf8(images, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    try:
        shutil.copy(os.fsencode(images / "a/1.png"), os.fsencode(folder) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("the file system has UTF-8 only")
    arguments = ["segment", str(folder), "--labels", LABELS, "--device=cpu", f"--output={tmp_path / 'output'}"]
    assert cli.main([*arguments, "--format=coco"]) == 2
    assert "caf\\udce9.png is not in UTF-8" in capsys.readouterr().err and not (tmp_path / "output").exists()
    assert cli.main(arguments) == 0


def test_a_data_set_of_the_same_name_is_not_replaced(images, tmp_path, capsys):
    (tmp_path / "voc" / "JPEGImages").mkdir(parents=True)
    assert segment(images, tmp_path, "--format=voc") == 2
    assert "is no folder of this command" in capsys.readouterr().err and (tmp_path / "voc" / "JPEGImages").is_dir()


def test_nothing_half_written(images, tmp_path, monkeypatch):
    from catseg_hf.annotations import labelme

    def broken(image):
        if image.name == "a/2.png":
            raise KeyboardInterrupt
        return original(image)

    assert segment(images, tmp_path, "--format=labelme") == 0
    before, original = contents(tmp_path), labelme._describe
    monkeypatch.setattr(labelme, "_describe", broken)
    with pytest.raises(KeyboardInterrupt):
        segment(images, tmp_path, "--format=labelme", "--instances")
    assert contents(tmp_path) == before


def test_what_cannot_be_written_is_refused_before_the_model_runs(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    assert segment(images, tmp_path / "output", "--format=coco", "--instances") == 2
    assert "pip install opencv-python-headless" in capsys.readouterr().err
    assert segment(images, tmp_path / "output", "--format=yolo") == 2
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["coco", "coco_panoptic", "cvat", "labelme", "voc", "yolo"])
def test_prepared_again(images, tmp_path, monkeypatch, name):
    """What is written is what `catseg-hf prepare` reads: no pixel differs."""
    # Masks need none of the packages that draw polygons.
    monkeypatch.setattr("catseg_hf.annotations.registry.find_spec", lambda package: True)
    assert segment(images, tmp_path / "output", f"--format={name}") == 0
    source = tmp_path / "output" / (name if name != "coco" else "annotations.json")
    (tmp_path / "classes.json").write_text(json.dumps(LABELS.split(", ")))
    command = [
        "prepare",
        str(source),
        "--output",
        str(tmp_path / "prepared"),
        "--classes",
        str(tmp_path / "classes.json"),
    ]
    if name == "coco_panoptic":
        command += ["--images", str(images)]
    assert cli.main([*command, "--background=ignore"]) == 0
    summary = json.loads((tmp_path / "output" / "summary.json").read_text())
    written = [np.asarray(Image.open(tmp_path / "output" / record["labels"])) for record in summary["images"]]
    prepared = [np.asarray(Image.open(path)) for path in (tmp_path / "prepared" / "labels").rglob("*.png")]
    assert len(prepared) == 3
    for label_map in written:
        assert any(np.array_equal(label_map, other) for other in prepared)
