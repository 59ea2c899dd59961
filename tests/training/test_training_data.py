"""Every source of training data, and the crops that are drawn from it."""

import io
import logging
import os
import pickle
import shutil
import sys
import unicodedata
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from catseg_hf import CATSegImageProcessorPil
from catseg_hf.coco_stuff_catseg import COCO_STUFF_LABELS
from catseg_testing.coco_stuff_folder import write_coco_stuff_folder
from catseg_training.data.coco_stuff import MISSING_RAW_IDS, NUM_CLASSES, RAW_TO_CONTIGUOUS, coco_stuff_pairs
from catseg_training.data.columns import find_columns
from catseg_training.data.crops import EpochSampler, StreamingCrops, TrainingCrops
from catseg_training.data.examples import EvaluationImages, read_example
from catseg_training.data.sources import load_segmentation_data


SIZE = 32


@pytest.fixture(scope="module")
def coco_stuff(tmp_path_factory) -> Path:
    return write_coco_stuff_folder(tmp_path_factory.mktemp("coco_stuff"), num_train=5)


@pytest.fixture
def load(tmp_path):
    """[`load_segmentation_data`] with a cache of its own."""

    def load_with_cache(source, split: str = "train", **options):
        return load_segmentation_data(source, split, cache_dir=str(tmp_path / "cache"), **options)

    return load_with_cache


@pytest.fixture
def refusal(load):
    def load_and_fail(source, split: str = "train", **options) -> str:
        with pytest.raises(ValueError) as error:
            load(source, split, **options)
        return str(error.value)

    return load_and_fail


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def jpeg(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="JPEG")
    return file.getvalue()


def pictures(count: int = 3, height: int = 8, width: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random images and 16-bit labels of 847 classes."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]
    labels = [generator.integers(0, 847, (height, width)).astype(np.uint16) for _ in range(count)]
    return images, labels


def write_parquet(path: Path, columns: dict[str, list], features: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


def check_rows(dataset, images: list[np.ndarray], labels: list[np.ndarray]):
    """Row by row, JPEG files among them bit by bit as Pillow decodes them."""
    rows = list(dataset)
    assert len(rows) == len(images)
    for row, image, label in zip(rows, images, labels, strict=True):
        read_image, read_label = read_example(row, 847, 65535)
        np.testing.assert_array_equal(read_image, image)
        np.testing.assert_array_equal(read_label, label)


def test_raw_ids_of_coco_stuff():
    assert RAW_TO_CONTIGUOUS.shape == (256,) and RAW_TO_CONTIGUOUS.dtype == np.uint8
    raw = np.flatnonzero(RAW_TO_CONTIGUOUS != 255)
    assert RAW_TO_CONTIGUOUS[raw].tolist() == list(range(NUM_CLASSES)) and NUM_CLASSES == len(COCO_STUFF_LABELS)
    assert sorted({*range(182)} - {*raw.tolist()}) == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    assert list(MISSING_RAW_IDS) == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    names = {0: "person", 10: "fire hydrant", 12: "stop sign", 17: "dog", 89: "toothbrush", 91: "banner"}
    names |= {123: "grass", 156: "sky-other", 181: "wood"}
    assert {raw_id: COCO_STUFF_LABELS[RAW_TO_CONTIGUOUS[raw_id]] for raw_id in names} == names


def test_coco_stuff_folder(coco_stuff, load):
    for split, folder, count in (("train", "train2017", 5), ("validation", "val2017", 2), ("val", "val2017", 2)):
        dataset = load(coco_stuff, split)
        assert len(dataset) == count and dataset.cache_files == []
        files = sorted((coco_stuff / "images" / folder).iterdir())
        assert dataset["name"] == [f"images/{folder}/{file.name}" for file in files]
        for row, file in zip(dataset, files, strict=True):
            image, label = read_example(row, 171)
            raw = np.asarray(Image.open(coco_stuff / "stuffthingmaps" / folder / f"{file.stem}.png"))
            assert {181, 255} <= set(raw.ravel().tolist())
            np.testing.assert_array_equal(image, np.asarray(Image.open(file)))
            np.testing.assert_array_equal(label, RAW_TO_CONTIGUOUS[raw])


@pytest.mark.parametrize("images", ["images", "."])
@pytest.mark.parametrize("labels", ["stuffthingmaps", "stuffthingmaps_trainval2017", "annotations"])
def test_layouts_of_the_download(coco_stuff, load, tmp_path, images, labels):
    root = tmp_path / "download"
    for split in ("train2017", "val2017"):
        shutil.copytree(coco_stuff / "images" / split, root / images / split)
        shutil.copytree(coco_stuff / "stuffthingmaps" / split, root / labels / split)
    # COCO's own annotations, and the labels that other tools write beside the raw ones.
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_train2017.json").write_text("{}")
    derived = next((root / labels / "train2017").iterdir())
    shutil.copy(derived, derived.with_stem(f"{derived.stem}_labelTrainIds"))
    dataset, expected = load(root), load(coco_stuff)
    assert len(dataset) == 5
    for row, expected_row in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(read_example(row, 171)[1], read_example(expected_row, 171)[1])


def test_contiguous_labels_in_the_layout_of_the_download_are_found_out(coco_stuff, load, tmp_path):
    root = Path(shutil.copytree(coco_stuff, tmp_path / "contiguous"))
    for path in (root / "stuffthingmaps" / "train2017").iterdir():
        contiguous = RAW_TO_CONTIGUOUS[np.asarray(Image.open(path))]
        contiguous[-1, -1] = 11
        Image.fromarray(contiguous).save(path)
    with pytest.raises(ValueError, match=r"train2017/\d+\.png holds the id .*--label_ids contiguous"):
        read_example(load(root)[0], 171)
    assert read_example(load(root, label_ids="contiguous")[0], 171)[1][-1, -1] == 11


def test_bad_coco_stuff_folders(coco_stuff, refusal, tmp_path, caplog):
    root = Path(shutil.copytree(coco_stuff, tmp_path / "bad"))
    assert "no split 'test'" in refusal(root, "test")
    assert "has no configuration and no columns" in refusal(root, label_column="label")
    assert "Unknown label_ids 'raw'" in refusal(root, label_ids="raw")

    labels = sorted((root / "stuffthingmaps" / "train2017").iterdir())
    for label in labels[:2]:
        label.unlink()
    message = refusal(root)
    assert f"2 of 5 images in {root / 'images' / 'train2017'} have no label" in message
    assert f"{labels[0].stem}.jpg, {labels[1].stem}.jpg" in message

    for label in labels[:2]:
        (root / "images" / "train2017" / f"{label.stem}.jpg").unlink()
    (root / "images" / "train2017" / f"{labels[2].stem}.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(coco_stuff_pairs(root, "train")) == 2
    assert "1 of 3 labels" in caplog.text and labels[2].stem in caplog.text

    for picture in (root / "images" / "train2017").iterdir():
        picture.unlink()
    assert "no images in" in refusal(root)
    shutil.rmtree(root / "images" / "val2017")
    message = refusal(root, "validation")
    assert "images of split 'validation' are missing" in message and str(root / "images" / "val2017") in message


@pytest.fixture
def paired_folder(tmp_path) -> Path:
    images, labels = pictures()
    root = tmp_path / "pairs"
    for split in ("training", "val"):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            for kind, array in (("images", image), ("labels", label)):
                path = root / kind / split / "subfolder" / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(array))
    return root


def test_folder_of_pairs(paired_folder, load):
    check_rows(load(paired_folder, "training"), *pictures())
    check_rows(load(paired_folder, "val", streaming=True), *pictures())
    (paired_folder / "labels").rename(paired_folder / "annotations")
    check_rows(load(paired_folder, "validation"), *pictures())
    assert load(paired_folder, "val")["name"][0] == "images/val/subfolder/0.png"


def test_bad_folders_of_pairs(paired_folder, refusal):
    assert "'train': it has training, val" in refusal(paired_folder, "train")
    (paired_folder / "images" / "val" / "subfolder" / "0.jpg").write_bytes(b"")
    assert "have the same name" in refusal(paired_folder, "val")
    (paired_folder / "labels" / "training" / "subfolder" / "1.png").unlink()
    assert "1 of 3 images" in refusal(paired_folder, "training")


@pytest.mark.parametrize(
    "stale",
    [".ipynb_checkpoints/0-checkpoint.png", "@eaDir/0.png", "__MACOSX/subfolder/0.png", ".hidden/0.png", "._0.png"],
)
def test_files_of_tools_are_no_data(paired_folder, load, refusal, stale):
    for kind, array in zip(("images", "labels"), (pictures()[0][0], pictures()[1][0]), strict=True):
        (paired_folder / kind / "Thumbs.db").write_bytes(b"")
        for split in ("val", ""):
            path = paired_folder / kind / split / stale
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(array))
    check_rows(load(paired_folder, "val"), *pictures())
    assert "it has training, val." in refusal(paired_folder, "test")


@pytest.mark.parametrize("target", [".", "..", "subfolder"])
def test_links_that_lead_back_are_not_followed(paired_folder, load, target):
    for kind in ("images", "labels"):
        folder = paired_folder / kind / "val"
        (folder / "subfolder" / "back").symlink_to((folder / target).resolve(), target_is_directory=True)
    check_rows(load(paired_folder, "val"), *pictures())


def test_links_through_another_folder_that_lead_back_end(paired_folder, load, tmp_path):
    for kind in ("images", "labels"):
        elsewhere = tmp_path / f"elsewhere {kind}"
        elsewhere.mkdir()
        (elsewhere / "back").symlink_to(paired_folder / kind / "val", target_is_directory=True)
        (paired_folder / kind / "val" / "link").symlink_to(elsewhere, target_is_directory=True)
    check_rows(load(paired_folder, "val"), *pictures())


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_pair_in_any_unicode_form(paired_folder, load, forms):
    for kind, form in zip(("images", "labels"), forms, strict=True):
        folder = paired_folder / kind / "val" / "subfolder"
        (folder / "2.png").rename(folder / f"caf{unicodedata.normalize(form, 'é')}.png")
    check_rows(load(paired_folder, "val"), *pictures())


def test_files_without_a_partner_are_named_with_what_is_accepted(paired_folder, load, refusal, caplog):
    images, labels = (paired_folder / kind / "val" / "subfolder" for kind in ("images", "labels"))
    (images / "2.png").rename(images / "2.gif")
    assert len(load(paired_folder, "val")) == 2
    assert "subfolder/2.png" in caplog.text and ".webp" in caplog.text
    (labels / "1.png").rename(labels / "1.jpg")
    message = refusal(paired_folder, "val")
    assert "subfolder/1.png" in message and ".bmp, .png, .tif, .tiff" in message


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
@pytest.mark.parametrize("kinds", [("images",), ("labels",), ("images", "labels")], ids=" and ".join)
def test_names_that_are_no_text_are_printable(paired_folder, load, refusal, caplog, kinds):
    for kind in kinds:
        folder = paired_folder / kind / "val" / "subfolder"
        os.rename(folder / "1.png", os.fsencode(folder) + b"/caf\xe9.png")
    if kinds == ("labels",):
        (paired_folder / "images" / "val" / "subfolder" / "1.png").unlink()
        assert len(load(paired_folder, "val")) == 2
        message = caplog.text
    else:
        message = refusal(paired_folder, "val")
    assert "caf\\xe9.png" in message and message.encode("utf-8")


def test_folders_that_cannot_be_read_are_named(paired_folder, refusal, monkeypatch):
    unreadable = paired_folder / "images" / "val" / "subfolder"

    def scandir(folder, scandir=os.scandir):
        if folder == str(unreadable):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert f"The folder {unreadable} cannot be read (Permission denied)" in refusal(paired_folder, "val")


IMAGE = datasets.Image()
GRID = datasets.List(datasets.List(datasets.Value("uint16")))


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_files_with_pictures(load, tmp_path, streaming):
    images, labels = pictures()
    # JPEG files have to arrive as they are: decoding and encoding them again would change them.
    files = [jpeg(image) for image in images]
    columns = {
        "image": [{"bytes": file, "path": None} for file in files],
        "label": [{"bytes": png(label), "path": f"{index}.png"} for index, label in enumerate(labels)],
        "caption": ["a", "b", "c"],
    }
    write_parquet(
        tmp_path / "data" / "train-00000-of-00001.parquet",
        columns,
        {"image": IMAGE, "label": IMAGE, "caption": datasets.Value("string")},
    )
    expected = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    dataset = load(tmp_path / "data", streaming=streaming)
    check_rows(dataset, expected, labels)
    assert [row["image"]["bytes"] for row in dataset] == files
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    check_rows(load(file, "anything", streaming=streaming), expected, labels)
    check_rows(load(file, streaming=streaming, max_samples=2), expected[:2], labels[:2])
    check_rows(load(file, streaming=streaming, max_samples=99), expected, labels)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "feature",
    [GRID, datasets.List(datasets.List(datasets.List(datasets.Value("int32")))), datasets.Array2D((8, 12), "uint16")],
    ids=["lists", "lists of one", "array"],
)
def test_label_arrays_in_parquet_files(load, tmp_path, streaming, feature):
    images, labels = pictures()
    has_last_axis = isinstance(feature, datasets.List) and isinstance(feature.feature.feature, datasets.List)
    columns = {
        "image": [{"bytes": png(image), "path": None} for image in images],
        "semantic_seg_map": [(label[..., None] if has_last_axis else label).tolist() for label in labels],
    }
    path = tmp_path / "data.parquet"
    write_parquet(path, columns, {"image": IMAGE, "semantic_seg_map": feature})
    dataset = load(path, streaming=streaming)
    assert isinstance(next(iter(dataset))["label"], np.ndarray)  # lists are many times slower
    check_rows(dataset, images, labels)


@pytest.mark.parametrize("streaming", [False, True])
def test_named_columns(load, tmp_path, streaming):
    images, labels = pictures()
    columns = {
        "label": [{"bytes": png(image), "path": None} for image in images],
        "image": [{"bytes": png(label), "path": None} for label in labels],
        "encoded": [png(image) for image in images],
    }
    features = {"label": IMAGE, "image": IMAGE, "encoded": datasets.Value("binary")}
    path = tmp_path / "data.parquet"
    write_parquet(path, columns, features)
    named = {"label_column": "image", "streaming": streaming}
    check_rows(load(path, image_column="label", **named), images, labels)
    check_rows(load(path, image_column="encoded", **named), images, labels)


BYTES, PATH = datasets.Value("binary"), datasets.Value("string")
CASTABLE = {
    "bytes": (lambda path: path.read_bytes(), BYTES),
    "long bytes": (lambda path: path.read_bytes(), datasets.Value("large_binary")),
    "path": (str, PATH),
    "long path": (str, datasets.Value("large_string")),
    "struct": (lambda path: {"bytes": None, "path": str(path)}, {"bytes": BYTES, "path": PATH}),
    "struct of bytes": (lambda path: {"bytes": path.read_bytes()}, {"bytes": BYTES}),
    "struct of path": (lambda path: {"path": str(path)}, {"path": PATH}),
    "pixels": (
        lambda path: np.asarray(Image.open(path)).tolist(),
        datasets.List(datasets.List(datasets.List(datasets.Value("uint8")))),
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("value, feature", CASTABLE.values(), ids=CASTABLE)
def test_named_columns_that_can_be_cast_to_images(paired_folder, load, tmp_path, value, feature, streaming):
    files = sorted((paired_folder / "images" / "val" / "subfolder").iterdir())
    columns = {"x": [value(file) for file in files], "label": [{"bytes": png(label)} for label in pictures()[1]]}
    write_parquet(tmp_path / "data.parquet", columns, {"x": feature, "label": IMAGE})
    check_rows(load(tmp_path / "data.parquet", image_column="x", streaming=streaming), *pictures())


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "arrow"])
def test_a_data_file_by_its_path(paired_folder, load, tmp_path, suffix):
    folders = {column: paired_folder / f"{column}s" / "val" / "subfolder" for column in ("image", "label")}
    columns = {column: [str(path) for path in sorted(folder.iterdir())] for column, folder in folders.items()}
    dataset, path = datasets.Dataset.from_dict(columns), tmp_path / f"data.{suffix}"
    if suffix == "arrow":
        dataset.save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(path)
    else:
        (dataset.to_csv if suffix == "csv" else dataset.to_json)(path)
    check_rows(load(path, image_column="image", label_column="label"), *pictures())


@pytest.mark.parametrize("streaming", [False, True])
def test_folder_of_save_to_disk(load, refusal, tmp_path, streaming):
    images, labels = pictures()
    columns = {"image": [{"bytes": png(image)} for image in images], "label": [{"bytes": png(x)} for x in labels]}
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": IMAGE, "label": IMAGE}))
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": dataset.take(1), "test": dataset}).save_to_disk(tmp_path / "two")
    check_rows(load(tmp_path / "one", streaming=streaming), images, labels)
    check_rows(load(tmp_path / "two", "test", streaming=streaming), images, labels)
    assert "it has the splits train, test" in refusal(tmp_path / "two", "validation", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_imagefolder_with_metadata(load, refusal, tmp_path, streaming):
    images, labels = pictures()
    for split in ("train", "validation"):
        folder = tmp_path / "folder" / split
        (folder / "masks").mkdir(parents=True)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            (folder / f"{index}.png").write_bytes(png(image))
            (folder / "masks" / f"{index}.png").write_bytes(png(label))
        lines = [f"{index}.png,masks/{index}.png" for index in range(len(images))]
        (folder / "metadata.csv").write_text("\n".join(["file_name,label_file_name", *lines]))
    dataset = load(tmp_path / "folder", "validation", streaming=streaming)
    check_rows(dataset, images, labels)
    (tmp_path / "folder" / "validation" / "masks" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="masks/0.png could not be read"):
        read_example(next(iter(dataset)), 847, 65535)
    assert "split 'test'" in refusal(tmp_path / "folder", "test", streaming=streaming)


def test_imagefolder_of_classes_is_no_segmentation_data(refusal, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "0.png").write_bytes(png(pictures()[0][0]))
    message = refusal(tmp_path / "folder")
    assert "--label_column" in message and "label (ClassLabel)" in message and "labels/SPLIT" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_and_damaged_parquet_files(refusal, tmp_path, streaming):
    path = tmp_path / "empty.parquet"
    write_parquet(path, {"image": [], "label": []}, {"image": IMAGE, "label": IMAGE})
    message = refusal(path, streaming=streaming)
    assert f"split 'train' of {path}" in message and ("is empty" in message or "no data" in message)
    path.write_bytes(b"PAR1 and nothing else")
    assert f"{path} cannot be loaded" in refusal(path, streaming=streaming)


def test_sources_that_do_not_exist(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "no file or folder" in refusal(tmp_path / "missing")
    assert "no file or folder" in refusal("./missing")
    assert "missing.parquet" in refusal(tmp_path / "missing.parquet")
    assert "'nobody/nothing'" in refusal("nobody/nothing")


@pytest.mark.parametrize(
    "features, expected",
    [
        ({"image": IMAGE, "label": IMAGE}, ["image", "label"]),
        ({"image": IMAGE, "annotation": IMAGE, "scene_category": datasets.ClassLabel(2)}, ["image", "annotation"]),
        ({"image": IMAGE, "whatever": GRID}, ["image", "whatever"]),
        ({"photo": IMAGE, "mask": IMAGE}, ["photo", "mask"]),
        ({"image": IMAGE, "depth": IMAGE, "mask": IMAGE}, ["image", "mask"]),
        ({"photo": IMAGE, "ids": GRID}, ["photo", "ids"]),
    ],
)
def test_columns_are_found_by_name_and_type(features, expected):
    assert find_columns(datasets.Features(features), "somewhere") == expected


@pytest.mark.parametrize(
    "features, named, message",
    [
        ({"image": IMAGE}, {}, "--label_column: its columns are image (Image)"),
        ({"a": IMAGE, "b": IMAGE}, {}, "--label_column: its columns are a (Image), b (Image)"),
        ({"image": IMAGE, "mask": IMAGE, "annotation": IMAGE}, {}, "--label_column"),
        ({"a": IMAGE, "b": IMAGE, "label": GRID}, {}, "--image_column: its columns are"),
        ({"image": IMAGE, "label": datasets.Value("int64")}, {}, "label (int64)"),
        ({"image": IMAGE, "label": IMAGE}, {"label_column": "mask"}, "no column 'mask' (--label_column)"),
        ({"image": IMAGE, "label": IMAGE}, {"image_column": "photo"}, "no column 'photo' (--image_column)"),
        ({"image": IMAGE, "label": datasets.Value("int64")}, {"label_column": "label"}, "'label' of somewhere"),
        ({"image": IMAGE, "label": GRID}, {"image_column": "label"}, "label (nested integers)"),
        ({"image": IMAGE}, {"image_column": "image", "label_column": "image"}, "cannot hold both"),
    ],
)
def test_columns_that_are_missing_or_unclear(features, named, message):
    with pytest.raises(ValueError) as error:
        find_columns(datasets.Features(features), "somewhere", **named)
    assert message in str(error.value) and "somewhere" in str(error.value)


def training_crops(dataset, seed: int = 0, **options) -> TrainingCrops:
    return TrainingCrops(dataset, 171, SIZE, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, seed, **options)


def streaming_crops(dataset, seed: int = 0, **options) -> StreamingCrops:
    return StreamingCrops(dataset, 171, SIZE, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, seed, **options)


def digests(items) -> list[bytes]:
    return [item["pixel_values"].numpy().tobytes() + item["labels"].numpy().tobytes() for item in items]


def test_crops_are_normalised_as_the_processor_does(load, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    label = np.random.default_rng(1).integers(0, 171, (SIZE, SIZE), dtype=np.uint8)
    columns = {"image": [{"bytes": png(image), "path": None}], "label": [{"bytes": png(label), "path": None}]}
    write_parquet(tmp_path / "data.parquet", columns, {"image": IMAGE, "label": IMAGE})
    processor = CATSegImageProcessorPil(image_size=SIZE, sliding_window=False)
    expected = torch.as_tensor(processor(image, return_tensors="pt").pixel_values[0])
    crops = training_crops(load(tmp_path / "data.parquet"), color_jitter=False)
    flipped = set()
    for epoch in range(8):
        item = crops[(epoch, 0)]
        assert item["pixel_values"].dtype == torch.float32 and item["labels"].dtype == torch.int64
        flip = item["labels"][0, 0] != int(label[0, 0])
        flipped.add(bool(flip))
        axes = [2] if flip else []
        torch.testing.assert_close(item["pixel_values"].flip(axes), expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(item["labels"].flip(axes and [1]), label)
    assert flipped == {True, False}


def test_crops_are_a_function_of_seed_epoch_and_index(coco_stuff, load):
    dataset = load(coco_stuff)
    items = [(epoch, index) for epoch in range(2) for index in range(5)]
    crops = training_crops(dataset)
    assert len(crops) == 5
    first = digests(crops[item] for item in items)
    assert len(set(first)) == len(items)
    assert digests(training_crops(dataset)[item] for item in reversed(items)) == first[::-1]
    assert not set(digests(training_crops(dataset, seed=1)[item] for item in items)) & set(first)


def epochs_of(crops: TrainingCrops, num_workers: int, **options) -> list[list[bytes]]:
    sampler = EpochSampler(len(crops), seed=3)
    loader = DataLoader(crops, batch_size=2, sampler=sampler, num_workers=num_workers, **options)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append([digest for batch in loader for digest in digests([batch])])
    return epochs


def test_workers_never_change_the_crops(coco_stuff, load, start_method):
    crops = training_crops(load(coco_stuff))
    expected = epochs_of(crops, 0)
    assert len({digest for epoch in expected for digest in epoch}) == 9
    assert epochs_of(crops, 1) == expected
    assert epochs_of(crops, 2, persistent_workers=True) == expected


def test_crops_can_be_sent_to_other_processes(coco_stuff, load):
    dataset = load(coco_stuff)
    for crops in (training_crops(dataset), EvaluationImages(dataset, 171)):
        copy = pickle.loads(pickle.dumps(crops))
        assert len(copy) == len(crops) == 5
    assert digests([pickle.loads(pickle.dumps(training_crops(dataset)))[(1, 2)]]) == digests(
        [training_crops(dataset)[(1, 2)]]
    )
    stream = streaming_crops(load(coco_stuff, streaming=True))
    assert digests(pickle.loads(pickle.dumps(stream))) == digests(stream)


def test_order_of_an_epoch():
    sampler = EpochSampler(20, seed=5)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert len(sampler) == 20 and list(sampler) == list(sampler)
        assert {position[0] for position in sampler} == {epoch}
        orders.append([index for _, index in sampler])
        assert sorted(orders[-1]) == list(range(20))
    assert len({tuple(order) for order in [*orders, list(range(20))]}) == 4
    again, other = EpochSampler(20, seed=5), EpochSampler(20, seed=6)
    again.set_epoch(2)
    assert [index for _, index in again] == orders[2]
    assert [index for _, index in other] != orders[0]
    assert list(EpochSampler(3, seed=0, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]


def test_errors_name_the_file(coco_stuff, load, tmp_path):
    root = Path(shutil.copytree(coco_stuff, tmp_path / "bad"))
    path = sorted((root / "images" / "train2017").iterdir())[3]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=f"{path.name} could not be read"):
        training_crops(load(root))[(0, 3)]
    with pytest.raises(ValueError, match=f"{path.name} could not be read"):
        list(streaming_crops(load(root, streaming=True)))


def stream_epochs(crops: StreamingCrops, num_workers: int) -> list[list[bytes]]:
    loader = DataLoader(crops, batch_size=None, num_workers=num_workers, persistent_workers=num_workers > 0)
    epochs = []
    for epoch in (0, 1, 0):
        crops.set_epoch(epoch)
        epochs.append(digests(loader))
    return epochs


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_crops_are_a_function_of_seed_and_epoch(coco_stuff, load, num_workers, start_method):
    stream = load(coco_stuff, streaming=True)
    first, second, first_again = stream_epochs(streaming_crops(stream), num_workers)
    assert len(first) == 5 and first == first_again
    assert not set(first) & set(second)
    assert stream_epochs(streaming_crops(stream), num_workers) == [first, second, first]
    assert not set(stream_epochs(streaming_crops(stream, seed=1), num_workers)[0]) & set(first)


def test_streams_are_shuffled_and_complete(load, tmp_path):
    labels = [np.full((SIZE, SIZE), number, np.uint8) for number in range(12)]
    columns = {
        "image": [{"bytes": png(np.stack([label] * 3, axis=-1)), "path": None} for label in labels],
        "label": [{"bytes": png(label), "path": None} for label in labels],
    }
    write_parquet(tmp_path / "data.parquet", columns, {"image": IMAGE, "label": IMAGE})
    stream = load(tmp_path / "data.parquet", streaming=True)

    def order(epoch: int, **options) -> list[int]:
        crops = streaming_crops(stream, **options)
        crops.set_epoch(epoch)
        return [int(item["labels"][0, 0]) for item in crops]

    assert sorted(order(0)) == sorted(order(1)) == list(range(12))
    assert order(0) != order(1) and list(range(12)) not in (order(0), order(1))
    shares = [order(0, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == list(range(12)) and len(shares[0]) == 6


def test_streams_can_be_cut(coco_stuff, load):
    assert len(list(streaming_crops(load(coco_stuff, streaming=True, max_samples=3)))) == 3


def test_evaluation_keeps_the_size_of_labels(coco_stuff, load):
    images = EvaluationImages(load(coco_stuff, "validation", max_samples=1), 171)
    assert len(images) == 1
    item = images[0]
    assert item["image"].shape == (60, 80, 3) and item["label"].shape == (60, 80)
    assert item["name"].startswith("images/val2017/") and item["label"].max() == 255
