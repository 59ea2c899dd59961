"""The command `catseg-hf segment`."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SegformerConfig

from catseg_hf import (
    EMBEDDED_MODEL,
    CATSegForSemanticSegmentation,
    OpenVocabularySegmentationPipeline,
    class_words_catseg,
    cli,
    load_vocabulary,
    loading,
)
from catseg_hf.images import results, sources
from catseg_hf.visualization import class_color, draw_segmentation
from conftest import FIXTURES, ROOT


PICTURE = FIXTURES / "picture.png"


@pytest.fixture
def checkpoint(small_checkpoint) -> str:
    return str(small_checkpoint)


@pytest.fixture
def folder(tmp_path):
    """Two images of different sizes, a file that is no image, and one that ends too early."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.open(PICTURE).convert("RGB")
    image.save(folder / "first.png")
    image.resize((60, 40)).save(folder / "second.JPG", format="JPEG")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def run(checkpoint, tmp_path, capfd):
    """Runs `catseg-hf segment` and returns its exit code, what it printed, and the summary that it wrote, if any."""

    def run(*images, model=checkpoint, output=tmp_path / "out", **options):
        options = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        arguments = ["segment", *map(str, images), f"--model={model}", f"--output={output}", *options]
        code = cli.main(arguments)
        summary = Path(output) / "summary.json"
        summary = json.loads(summary.read_text()) if summary.exists() else None
        return code, capfd.readouterr(), summary

    return run


def segment_alone(checkpoint, image, labels, **kwargs):
    model = CATSegForSemanticSegmentation.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    pipeline = OpenVocabularySegmentationPipeline(model=model, processor=processor)
    return pipeline(image, labels, return_segmentation_map=True, **kwargs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folder(run, folder, checkpoint, tmp_path):
    code, printed, summary = run(folder, labels="cat, sofa, wall", batch_size=2)
    assert code == 0
    assert names(tmp_path / "out") == [
        "first_labels.png",
        "first_overlay.png",
        "second_labels.png",
        "second_overlay.png",
        "summary.json",
    ]
    assert summary["labels"] == ["cat", "sofa", "wall"] and summary["unreadable"] == []
    assert [Path(record["image"]).name for record in summary["images"]] == ["first.png", "second.JPG"]
    assert "Segmented 2 images" in printed.out
    for record in summary["images"]:
        image = Image.open(record["image"]).convert("RGB")
        expected = segment_alone(checkpoint, image, summary["labels"])
        label_map = Image.open(tmp_path / "out" / record["labels"])
        assert (record["width"], record["height"]) == image.size == label_map.size
        assert label_map.mode == "P" and record["no_class"] is None
        different = np.array(label_map) != expected["segmentation"].numpy()
        assert different.mean() < 1e-3
        palette = np.array(label_map.getpalette()).reshape(-1, 3)
        assert [tuple(color) for color in palette[:3]] == [class_color(index) for index in range(3)]
        overlay = Image.open(tmp_path / "out" / record["overlay"])
        drawn = draw_segmentation(image, np.array(label_map), summary["labels"])
        assert overlay.mode == "RGB" and np.array_equal(np.array(overlay), np.array(drawn))
        areas = [segment["area"] for segment in record["segments"]]
        assert areas == sorted(areas, reverse=True) and sum(areas) == pytest.approx(1, abs=1e-5)
        for segment, wanted in zip(record["segments"], expected["segments"], strict=True):
            assert segment["label"] == wanted["label"] == summary["labels"][segment["index"]]
            assert segment["score"] == pytest.approx(wanted["score"], abs=1e-4)
            assert segment["area"] == pytest.approx((np.array(label_map) == segment["index"]).mean(), abs=1e-5)
        assert f"{record['segments'][0]['label']} {areas[0]:.1%}" in printed.out


def test_unreadable_files_do_not_stop_the_rest(run, folder, tmp_path):
    (folder / "broken.png").write_text("not an image")
    (folder / "cut.png").write_bytes(PICTURE.read_bytes()[:20000])
    (tmp_path / "empty").mkdir()
    arguments = [folder, "absent.jpg", tmp_path / "empty", tmp_path / "*.gif", "http://127.0.0.1:9/photo.jpg"]
    code, printed, summary = run(*arguments, labels="cat", batch_size=3)
    assert code == 1
    assert len(summary["images"]) == 2 and len(summary["unreadable"]) == 6
    for name in ("broken.png", "cut.png", "absent.jpg", "empty", "*.gif", "photo.jpg"):
        lines = [line for line in printed.err.splitlines() if line.startswith("catseg-hf:") and name in line]
        assert len(lines) == 1
    assert len(names(tmp_path / "out")) == 5


def test_nothing_to_segment(run, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load_segmenter", None)  # not needed
    (tmp_path / "empty").mkdir()
    code, printed, summary = run(tmp_path / "empty", labels="cat")
    assert code == 1 and summary is None
    (line,) = printed.err.splitlines()
    assert line.startswith(f"catseg-hf: The folder {str(tmp_path / 'empty')!r} has no images: files of .")
    assert not (tmp_path / "out").exists()


def test_terminals_obey_no_label(run, folder):
    code, printed, summary = run(folder / "first.png", labels="\x1b[31mcat")
    assert code == 0 and summary["labels"] == ["\x1b[31mcat"]
    assert r"\x1b[31mcat" in printed.out and "\x1b[31m" not in printed.out
    code, printed, _ = run(folder / "no\x1b[31m.png")
    assert code == 1 and "\x1b[31m" not in printed.err


def test_the_checkpoints_vocabulary_and_threshold(run, folder, tmp_path):
    code, printed, summary = run(folder / "first.png", threshold=0.45)
    assert code == 0 and summary["labels"] == ["cat", "sofa", "sky", "tree, oak"]
    (record,) = summary["images"]
    label_map = np.array(Image.open(tmp_path / "out" / "first_labels.png"))
    assert record["no_class"] == 255 and 0 < (label_map == 255).mean() < 1
    assert set(np.unique(label_map)) == {255} | {segment["index"] for segment in record["segments"]}
    assert Image.open(tmp_path / "out" / "first_labels.png").getpalette()[-3:] == [0, 0, 0]

    code, printed, summary = run(folder / "first.png", threshold=1)
    assert code == 0 and summary["images"][0]["segments"] == [] and "no class" in printed.out


def test_many_labels_and_bf16(run, folder, tmp_path):
    code, _, summary = run(folder / "second.JPG", vocabulary="pascal_context_459", dtype="bfloat16", device="cpu")
    assert code == 0 and summary["labels"] == load_vocabulary("pascal_context_459")
    label_map = Image.open(tmp_path / "out" / "second_labels.png")
    assert label_map.mode == "I;16"
    found = {segment["index"] for segment in summary["images"][0]["segments"]}
    assert set(np.unique(np.array(label_map))) == found and max(found) > 255


@pytest.mark.parametrize(
    ("num_labels", "has_gaps", "mode", "no_class"),
    [(255, True, "P", 255), (256, False, "P", None), (256, True, "I;16", 65535), (257, False, "I;16", None)],
)
def test_label_maps(num_labels, has_gaps, mode, no_class):
    segmentation = torch.arange(-has_gaps, num_labels)[None]
    label_map, value = results.draw_label_map(segmentation, num_labels, has_gaps)
    assert label_map.mode == mode and value == no_class
    values = np.array(label_map)[0].tolist()
    assert values == [no_class] * has_gaps + list(range(num_labels))


def test_globs_and_repeated_pictures(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "inner").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "inner" / "third.png")
    Image.new("RGB", (4, 4)).save(folder / "odd[1].png")
    pictures, failures = sources.find_images(["*.png", "first.png", "./first.png", "**/third.png", "odd[1].png"])
    assert pictures == ["first.png", "odd[1].png", "inner/third.png"] and failures == []
    pictures, failures = sources.find_images([str(folder)])
    assert [Path(picture).name for picture in pictures] == ["first.png", "odd[1].png", "second.JPG"]
    assert failures == []


def test_no_picture_is_overwritten(run, folder, tmp_path):
    """Results of images of one name, and results beside images that are named like them."""
    (folder / "other").mkdir()
    image = Image.open(PICTURE).resize((30, 20))
    for name in ("other/FIRST.png", "first_overlay.png"):
        image.save(folder / name)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pictures = [folder / "other" / "FIRST.png", folder / "first.png", folder / "first_overlay.png"]
    code, _, summary = run(*pictures, output=folder, labels="cat, sofa")
    assert code == 0
    written = [record[kind] for record in summary["images"] for kind in ("overlay", "labels")]
    assert len({name.lower() for name in written}) == 6
    assert all(path.read_bytes() == content for path, content in before.items())
    assert all((folder / name).exists() for name in written)


def test_faults_of_the_program_keep_their_traceback(run, folder, monkeypatch):
    for module, function in (
        (sources, "find_images"),
        (class_words_catseg, "split_labels"),
        (results, "draw_label_map"),
    ):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="invalid literal for int"):
            patch.setattr(module, function, lambda *arguments: int("oops"))
            run(folder, labels="cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": " , "}, "at least one class"),
        ({"labels": "cat, cat"}, "'cat' occurs twice"),
        ({"labels": "cat, " + "word " * 500}, "'word word .* at most 77"),
        ({"labels": ",".join(map(str, range(5000)))}, "5000 labels and words, but at most 4096"),
        ({"model": "no/such/folder"}, "'no/such/folder' could not be loaded"),
    ],
)
def test_bad_arguments(run, folder, tmp_path, options, message):
    code, printed, _ = run(folder, **{"labels": "cat", **options})
    errors = [line for line in printed.err.splitlines() if line.startswith("catseg-hf: error:")]
    assert code == 2 and len(errors) == 1
    assert re.search(message, errors[0])
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(run, folder, tmp_path):
    SegformerConfig().save_pretrained(tmp_path / "segformer")
    code, printed, _ = run(folder, labels="cat", model=tmp_path / "segformer")
    assert code == 2 and "is of type 'segformer', but a CAT-Seg checkpoint is needed" in printed.err
    code, printed, _ = run(folder, labels="cat", model=folder)
    assert code == 2 and "could not be loaded" in printed.err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"", "The weights of .* are truncated, damaged or refused"),
        ("config.json", b"[]", r"holds \[\], not a JSON object"),
        # It is not asked whether to run the code of a checkpoint that is refused anyway.
        ("config.json", b'{"model_type": "other", "auto_map": {"AutoConfig": "a.B"}}', "is of type 'other'"),
    ],
    ids=["weights", "no settings", "other code"],
)
def test_damaged_checkpoints(run, folder, tmp_path, name, content, message):
    checkpoint = shutil.copytree(EMBEDDED_MODEL, tmp_path / "checkpoint")
    (checkpoint / name).write_bytes(content)
    code, printed, _ = run(folder, labels="cat", model=checkpoint)
    assert code == 2 and re.search(message, printed.err)


def test_output_that_is_a_file(run, folder):
    code, printed, _ = run(folder, labels="cat", output=folder / "notes.txt")
    assert code == 2 and "is a file, but a folder is needed" in printed.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_output_that_cannot_be_written(run, folder, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    code, printed, _ = run(folder, labels="cat")
    assert code == 2 and "Could not write" in printed.err


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"threshold": 2}, {"vocabulary": "coco"}, {"dtype": "int8"}])
def test_bad_options(run, folder, options, capfd):
    with pytest.raises(SystemExit) as error:
        run(folder, **options)
    assert error.value.code == 2
    assert str(next(iter(options.values()))) in capfd.readouterr().err


def test_a_device_that_is_not_there(run, folder, tmp_path):
    code, printed, _ = run(folder, labels="cat", device="tpu9")
    (error,) = [line for line in printed.err.splitlines() if line.startswith("catseg-hf: error:")]
    assert code == 2 and "There is no device 'tpu9' here" in error
    assert not (tmp_path / "out").exists()


def test_command(folder, checkpoint, tmp_path):
    command = [sys.executable, "-m", "catseg_hf.cli", "segment", folder, "--labels=cat", f"--model={checkpoint}"]
    done = subprocess.run([*command, f"--output={tmp_path / 'out'}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{folder / 'first.png'}: cat 100.0%\n" in done.stdout
    assert len(names(tmp_path / "out")) == 5


def test_without_a_model_the_embedded_one_is_used(tmp_path, capsys):
    scene = ROOT / "demo" / "scene.png"
    assert cli.main(["segment", str(scene), "--labels=grass, water", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert "comes with catseg_hf" in printed.err and "Segmented 1" in printed.out
    assert json.loads((tmp_path / "summary.json").read_text())["model"] == EMBEDDED_MODEL


def test_a_console_that_cannot_encode_names_and_labels(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    Image.open(PICTURE).convert("RGB").resize((60, 40)).save(tmp_path / "photos" / "café \N{CAT FACE}.png")
    outputs = {}
    for name in ("stdout", "stderr"):
        outputs[name] = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, name, outputs[name])
    arguments = ["segment", str(tmp_path / "photos"), "no such \N{CAT FACE}.png", "--labels", "Käfer, sofa"]
    assert cli.main([*arguments, "--model", checkpoint, "--output", str(tmp_path / "out")]) == 1
    for output in outputs.values():
        output.flush()
    assert rb"caf\xe9 \U0001f431.png: " in outputs["stdout"].buffer.getvalue()
    assert rb"no such \U0001f431.png" in outputs["stderr"].buffer.getvalue()
    assert names(tmp_path / "out") == ["café \N{CAT FACE}_labels.png", "café \N{CAT FACE}_overlay.png", "summary.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_names_that_are_no_text(run, folder, tmp_path):
    os.rename(folder / "second.JPG", os.fsencode(folder) + b"/caf\xe9.jpg")
    os.rename(folder / "notes.txt", os.fsencode(folder) + b"/\xff.png")
    code, printed, summary = run(folder, os.fsdecode(b"no such \xe8.png"), labels="cat")
    assert code == 1 and "caf\\udce9.jpg: cat" in printed.out
    assert "\\udcff.png' could not be read" in printed.err and "no such \\udce8.png' could not" in printed.err
    written = {os.fsencode(name) for name in names(tmp_path / "out")}
    assert {b"caf\xe9_labels.png", b"caf\xe9_overlay.png"} < written
    (record,) = [record for record in summary["images"] if record["labels"] != "first_labels.png"]
    assert os.fsencode(record["labels"]) == b"caf\xe9_labels.png"


def test_a_folder_that_cannot_be_read(run, folder, monkeypatch):
    def listdir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", listdir)
    code, printed, _ = run(folder, labels="cat")
    assert code == 1 and f"catseg-hf: The folder {str(folder)!r} cannot be read: Permission denied." in printed.err


def test_own_results_are_not_segmented_again(run, folder):
    Image.new("RGB", (9, 9)).save(folder / "mine_labels.png")  # named like a result
    pictures = ["first.png", "mine_labels.png", "second.JPG"]
    for source in (folder, folder, folder / "*.[pJ]*"):
        code, _, summary = run(source, output=folder, labels="cat, sofa")
        assert code == 0
        assert [Path(record["image"]).name for record in summary["images"]] == pictures
    assert len(names(folder)) == 3 + 2 * 3 + 2  # images, results, notes and summary


def test_large_images_have_an_option(run, folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    code, printed, _ = run(folder / "first.png", labels="cat", max_image_pixels=1000)
    assert code == 1 and "very large" in printed.err and "--max_image_pixels" in printed.err
    code, _, summary = run(folder / "first.png", labels="cat", max_image_pixels=451 * 300)
    assert code == 0 and len(summary["images"]) == 1


def test_a_folder_without_pictures_names_what_is_accepted(run, tmp_path):
    (tmp_path / "empty").mkdir()
    code, printed, _ = run(tmp_path / "empty", labels="cat")
    assert code == 1 and ".jpg" in printed.err and ".png" in printed.err
