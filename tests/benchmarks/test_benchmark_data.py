"""Benchmarks' files and labels, read as the downloads have them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from catseg_hf import load_vocabulary
from catseg_hf.errors import UserError
from catseg_testing.benchmark_folders import (
    LABELS,
    expected_labels,
    stored_maps,
    write_benchmark,
    write_image,
    write_voc,
)
from catseg_training.benchmarks.context_annotations import decode_mask
from catseg_training.benchmarks.description import Benchmark
from catseg_training.benchmarks.files import find_files
from catseg_training.benchmarks.images import BenchmarkImages, shrink
from catseg_training.benchmarks.published import PUBLISHED, find_benchmark


def opened(name: str, root: Path) -> tuple[Benchmark, BenchmarkImages]:
    benchmark = find_benchmark(name)
    return benchmark, BenchmarkImages(benchmark, find_files(benchmark, root).files)


def by_name(images: BenchmarkImages) -> dict[str, dict]:
    return {example["name"]: example for example in map(images.__getitem__, range(len(images)))}


@pytest.mark.parametrize("name", LABELS)
def test_download(name, tmp_path):
    """The images of the validation set and no others, with every pixel's class."""
    maps = stored_maps(name)
    benchmark, images = opened(name, write_benchmark(name, tmp_path, maps))
    examples = by_name(images)
    assert list(examples) == sorted(maps)
    for stem, stored in maps.items():
        assert examples[stem]["image"].shape == (*stored.shape, 3) and examples[stem]["image"].dtype == np.uint8
        np.testing.assert_array_equal(examples[stem]["label"], expected_labels(name, stored))
    classes = set(LABELS[name].values()) - {benchmark.ignore_index}
    assert len(benchmark.class_names) > max(classes)


@pytest.mark.parametrize("benchmark", PUBLISHED, ids=lambda benchmark: benchmark.name)
def test_every_class_has_an_id(benchmark):
    classes = set(range(len(benchmark.class_names)))
    assert set(benchmark.label_map.values()) - {benchmark.ignore_index} == classes
    assert benchmark.ignore_index not in classes
    assert benchmark.last_class == max(classes) < len(benchmark.vocabulary)


@pytest.mark.parametrize(
    "name, folder", [("pascal_voc_20", "VOCdevkit/VOC2012"), ("ade20k_150", "ADEChallengeData2016")]
)
def test_root_is_the_benchmarks_own_folder(name, folder, tmp_path):
    write_benchmark(name, tmp_path, stored_maps(name))
    assert (
        find_files(find_benchmark(name), tmp_path / folder).files == find_files(find_benchmark(name), tmp_path).files
    )


def test_voc_palette(tmp_path):
    """Without the augmented labels the palette images are read, by index and not by colour."""
    maps = stored_maps("pascal_voc_20")
    write_voc(tmp_path, maps, "SegmentationClass")
    _, images = opened("pascal_voc_20", tmp_path)
    for stem, example in by_name(images).items():
        np.testing.assert_array_equal(example["label"], expected_labels("pascal_voc_20", maps[stem]))


def test_coco_variants(tmp_path):
    maps = stored_maps("coco_stuff")
    write_benchmark("coco_stuff", tmp_path, maps)
    root = (tmp_path / "coco-stuff").rename(tmp_path / "coco")
    (root / "images" / "val2017").rename(root / "val2017")
    (root / "stuffthingmaps").rename(root / "annotations")
    found = find_files(find_benchmark("coco_stuff"), tmp_path)
    assert found.images == root / "val2017" and found.labels == root / "annotations" / "val2017"
    assert len(found.files) == 3


@pytest.mark.parametrize(
    "size, expected",
    [
        ((512, 900), (512, 900)),
        ((513, 700), (512, 699)),
        ((1025, 600), (875, 512)),
        ((600, 600), (512, 512)),
        ((400, 2000), (400, 2000)),
    ],
)
def test_shrinking(size, expected):
    image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int32)
    image, label = shrink(image, label, 512)
    assert image.shape == (*expected, 3) and label.shape == expected


def test_shrunk_values():
    """Half the size: the mean of two by two pixels, and the label of the first of them."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    label = generator.integers(0, 900, (8, 12), dtype=np.int32)
    small_image, small_label = shrink(image, label, 4)
    means = image.reshape(4, 2, 6, 2, 3).mean(axis=(1, 3))
    assert small_image.dtype == np.uint8 and np.abs(small_image - means).max() <= 0.5
    np.testing.assert_array_equal(small_label, label[::2, ::2])


def test_only_ade20k_847_shrinks():
    assert {b.name: b.max_shortest_edge for b in PUBLISHED if b.max_shortest_edge} == {"ade20k_847": 512}


def test_predictions_of_20b():
    """A context name is never one of the objects, and all of them are the background."""
    benchmark = find_benchmark("pascal_voc_20b")
    assert benchmark.class_names == [*load_vocabulary("pascal_voc_20"), "background"]
    assert benchmark.last_class == 20 and len(benchmark.vocabulary) == 59


def test_repeated_prompts():
    repeated = find_benchmark("ade20k_847").repeated_prompts
    assert len(repeated) == 10
    assert repeated[191] == repeated[252] == 114 and repeated[255] == 174  # bag, bag, pier
    labels = load_vocabulary("ade20k_847")
    assert {labels[index].split(",")[0] for index in repeated} == {
        *("bag", "pot", "basket", "screen", "pier", "control panel", "pipe", "grill", "patio")
    }
    assert all(not benchmark.repeated_prompts for benchmark in PUBLISHED if benchmark.name != "ade20k_847")


@pytest.mark.parametrize("counts", [[1, 2, 3], "123"])
def test_run_lengths(counts):
    np.testing.assert_array_equal(decode_mask(counts, 2, 3), [[False, True, False], [True, False, False]])
    with pytest.raises(ValueError, match="6 pixels is not one of 2 x 4"):
        decode_mask(counts, 2, 4)


# Of a MATLAB file behind its 128 bytes: its signature stands at 512 of the whole.
HDF5 = bytes(384) + b"\x89HDF\r\n\x1a\n" + bytes(1024)
BAD_FILES = {
    "unreadable image": (
        "ade20k_150",
        "images/validation/{}.jpg",
        lambda path: path.write_bytes(b"no"),
        "could not be read",
    ),
    "no label": ("ade20k_150", "annotations/validation/{}.png", Path.unlink, "does not exist"),
    "no image": ("ade20k_150", "images/validation/{}.jpg", Path.unlink, "does not exist"),
    "unknown id": (
        "ade20k_150",
        "annotations/validation/{}.png",
        lambda path: Image.fromarray(np.full((24, 36), 151, np.uint8)).save(path),
        "151, which ade20k_150 does not know",
    ),
    "size": (
        "ade20k_150",
        "annotations/validation/{}.png",
        lambda path: Image.fromarray(np.ones((36, 24), np.uint8)).save(path),
        "36 x 24 and 24 x 36",
    ),
    "colours": (
        "ade20k_150",
        "annotations/validation/{}.png",
        lambda path: Image.new("RGB", (36, 24)).save(path),
        "mode RGB",
    ),
    "no colours": (
        "ade20k_847",
        "images/ADE/validation/urban/x/{}_seg.png",
        lambda path: Image.new("L", (36, 24)).save(path),
        "mode L",
    ),
    "truncated .mat": (
        "pascal_context_459",
        "trainval/{}.mat",
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        "truncated",
    ),
    "MATLAB v7.3": (
        "pascal_context_459",
        "trainval/{}.mat",
        lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM" + HDF5),
        "MATLAB v7.3 (HDF5), but formats up to v7 are read: load it in MATLAB and save it again by "
        "save(NAME, 'LabelMap', '-v7')",
    ),
    "HDF5": (
        "pascal_context_459",
        "trainval/{}.mat",
        lambda path: path.write_bytes(HDF5[-1032:]),
        "MATLAB v7.3 (HDF5)",
    ),
    "other .mat": ("pascal_context_459", "trainval/{}.mat", lambda path: savemat(path, {"x": [1]}), "LabelMap"),
}
ROOTS = {
    "ade20k_150": "ADEChallengeData2016",
    "ade20k_847": "ADE20K_2021_17_01",
    "pascal_context_459": "VOCdevkit/VOC2010",
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tmp_path):
    """They are named, and the others are read."""
    name, place, spoil, message = BAD_FILES[case]
    maps = stored_maps(name)
    write_benchmark(name, tmp_path, maps)
    stem = next(iter(maps))
    path = tmp_path / ROOTS[name] / place.format(stem)
    spoil(path)
    _, images = opened(name, tmp_path)
    examples = by_name(images)
    assert [example["name"] for example in examples.values() if "problem" in example] == [stem]
    assert message in examples[stem]["problem"] and str(path) in examples[stem]["problem"]
    assert len(examples) == 3


@pytest.mark.parametrize("change", ["truncated", "size", "key"])
def test_bad_annotations(change, tmp_path):
    write_benchmark("pascal_context_59", tmp_path, stored_maps("pascal_context_59"))
    path = tmp_path / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
    content = json.loads(path.read_text())
    if change == "size":
        content["annos_segmentation"][0]["segmentation"]["size"] = [1, 2]
    elif change == "key":
        del content["images"]
    path.write_text(json.dumps(content)[: -5 if change == "truncated" else None])
    if change == "size":
        problems = [e["problem"] for e in by_name(opened("pascal_context_59", tmp_path)[1]).values() if "problem" in e]
        assert len(problems) == 1 and str(path) in problems[0]
    else:
        with pytest.raises(UserError, match="trainval_merged.json"):
            opened("pascal_context_59", tmp_path)


@pytest.mark.parametrize(
    "name, removed, message",
    [
        ("pascal_voc_20", "VOCdevkit/VOC2012/ImageSets", "val.txt"),
        ("ade20k_150", "ADEChallengeData2016/annotations", "ADEChallengeData2016 lacks annotations/validation"),
        ("coco_stuff", "coco-stuff/stuffthingmaps", "stuffthingmaps_trainval2017.zip"),
    ],
)
def test_incomplete_root(name, removed, message, tmp_path):
    write_benchmark(name, tmp_path, stored_maps(name))
    (tmp_path / removed).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=message):
        opened(name, tmp_path)


def describe(path: Path, **values) -> str:
    values = {"name": "mine", "vocabulary": ["cat", "dog"], "images": "photos", "labels": "masks"} | values
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    return str(path)


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, [[0, 1, 255]]),
        ({"label_map": {"0": 1, "1": 0, "255": 0}}, [[1, 0, 0]]),
        ({"label_map": {"0": 7, "1": 0}, "ignore_index": 7}, [[7, 0, None]]),
    ],
)
def test_own_description(values, expected, tmp_path):
    file = describe(tmp_path / "mine.json", image_suffix=".png", label_suffix="_mask.png", **values)
    for number in range(2):
        folder = tmp_path / "photos" / str(number)
        write_image(folder / f"a{number}.png", np.zeros((1, 3), int))
        (tmp_path / "masks" / str(number)).mkdir(parents=True)
        label = np.array([[0, 1, 255]], np.uint8)
        Image.fromarray(label).save(tmp_path / "masks" / str(number) / f"a{number}_mask.png")
    _, images = opened(file, tmp_path)
    examples = by_name(images)
    assert list(examples) == ["a0", "a1"]
    for example in examples.values():
        if None in expected[0]:
            assert "255, which mine does not know" in example["problem"]
        else:
            np.testing.assert_array_equal(example["label"], expected)


def test_own_folder_with_images_and_labels(tmp_path):
    """In one folder, under one suffix, and under the same names in two subfolders."""
    file = describe(tmp_path / "m.json", images=".", labels=".", image_suffix=".png", label_suffix="_gt.png")
    for folder in ("a", "b"):
        write_image(tmp_path / folder / "x.png", np.zeros((2, 2), int))
        Image.new("L", (2, 2)).save(tmp_path / folder / "x_gt.png")
    assert list(by_name(opened(file, tmp_path)[1])) == ["a/x", "b/x"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"vocabulary": ...}, "'vocabulary'"),
        ({"vocabulary": "cats"}, "cats"),
        ({"vocabulary": []}, "vocabulary"),
        ({"ignore": 255}, "'ignore'"),
        ({"ignore_index": 1}, "'ignore_index' is 1"),
        ({"label_map": {"cat": 0}}, "'cat'"),
        ({"label_map": {"3": 2}}, "maps 3 to 2"),
        ({"label_map": [0, 1]}, "label_map"),
        ({"name": "../mine"}, "../mine"),
        ({"name": "ade20k_150"}, "another name"),
        ({"images": 3}, "'images' is 3"),
    ],
)
def test_bad_descriptions(values, message, tmp_path):
    with pytest.raises(UserError, match=message):
        find_benchmark(describe(tmp_path / "mine.json", **values))


@pytest.mark.parametrize("name, message", [("ade20k", "ade20k_150"), ("missing.json", "missing.json")])
def test_unknown_benchmarks(name, message):
    with pytest.raises(UserError, match=message):
        find_benchmark(name)


def test_own_vocabulary_by_name(tmp_path):
    benchmark = find_benchmark(describe(tmp_path / "mine.json", vocabulary="ade20k_847"))
    assert benchmark.ignore_index == 65535
    assert replace(benchmark, name="x").class_names == load_vocabulary("ade20k_847")
