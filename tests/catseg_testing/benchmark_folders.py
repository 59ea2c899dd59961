"""Writes small datasets in the layouts and file formats of the benchmarks' downloads."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


# Some stored ids of each benchmark, and the labels that they stand for.
LABELS = {
    "coco_stuff": {0: 0, 12: 11, 26: 24, 91: 80, 181: 170, 255: 255},
    "ade20k_150": {0: 255, 1: 0, 8: 7, 150: 149},
    # 0 and 1 are none of the 847 classes; class 255 is one like any other.
    "ade20k_847": {0: 65535, 1: 65535, 2978: 0, 312: 1, 2420: 2, 1857: 255, 2315: 256, 3148: 846},
    "pascal_context_59": {0: 255, 2: 0, 9: 1, 23: 5, 458: 58},
    "pascal_context_459": {0: 459, 1: 0, 256: 255, 257: 256, 459: 458},
    "pascal_voc_20": {0: 255, 1: 0, 15: 14, 20: 19, 255: 255},
    "pascal_voc_20b": {0: 20, 1: 0, 15: 14, 20: 19, 255: 255},
}
# Of the validation set, and among those that the benchmarks list.
NAMES = {
    "coco_stuff": ["000000000139", "000000000285", "000000000632"],
    "ade20k_150": ["ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"],
    "ade20k_847": ["ADE_val_00000001", "ADE_val_00000002", "ADE_val_00000003"],
    "pascal_context_59": ["2008_000002", "2008_000003", "2008_000007"],
    "pascal_context_459": ["2008_000002", "2008_000003", "2008_000007"],
    "pascal_voc_20": ["2007_000033", "2007_000042", "2007_000061"],
    "pascal_voc_20b": ["2007_000033", "2007_000042", "2007_000061"],
}
SIZES = [(24, 36), (32, 20), (28, 28)]


def stored_maps(benchmark: str, seed: int = 0, sizes: list[tuple[int, int]] = SIZES) -> dict[str, np.ndarray]:
    """Maps of stored ids in blocks, of every kind that `LABELS` has, by the images' names."""
    generator = np.random.default_rng(seed)
    ids = np.array(list(LABELS[benchmark]))
    maps = {}
    for name, (height, width) in zip(NAMES[benchmark], sizes, strict=False):
        blocks = generator.choice(ids, (-(-height // 4), -(-width // 4)))
        blocks.flat[: len(ids)] = ids
        maps[name] = blocks.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return maps


def expected_labels(benchmark: str, stored: np.ndarray) -> np.ndarray:
    """The labels that stored ids stand for."""
    return np.vectorize(LABELS[benchmark].__getitem__)(stored)


def write_benchmark(benchmark: str, root: Path, maps: Mapping[str, np.ndarray]) -> Path:
    """Writes images and label maps below `root`; returns it."""
    {
        "coco_stuff": write_coco_stuff,
        "ade20k_150": write_ade20k,
        "ade20k_847": write_ade20k_full,
        "pascal_context_59": write_context_json,
        "pascal_context_459": write_context_matlab,
        "pascal_voc_20": write_voc,
        "pascal_voc_20b": write_voc,
    }[benchmark](root, maps)
    return root


def write_image(path: Path, stored: np.ndarray):
    """An image with one colour for each stored id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.stack([stored * 37, stored * 101 + 50, stored * 11 + 7], axis=-1) % 256
    Image.fromarray(colors.astype(np.uint8)).save(path, quality=95)


def save_ids(path: Path, stored: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored.astype(np.uint8)).save(path)


def write_coco_stuff(root: Path, maps: Mapping[str, np.ndarray]):
    for name, stored in maps.items():
        write_image(root / "coco-stuff" / "images" / "val2017" / f"{name}.jpg", stored)
        save_ids(root / "coco-stuff" / "stuffthingmaps" / "val2017" / f"{name}.png", stored)


def write_ade20k(root: Path, maps: Mapping[str, np.ndarray]):
    for name, stored in maps.items():
        write_image(root / "ADEChallengeData2016" / "images" / "validation" / f"{name}.jpg", stored)
        save_ids(root / "ADEChallengeData2016" / "annotations" / "validation" / f"{name}.png", stored)


def write_ade20k_full(root: Path, maps: Mapping[str, np.ndarray]):
    """Scenes in folders, with the parts and instances that are stored beside every label."""
    for index, (name, stored) in enumerate(maps.items()):
        folder = (
            root / "ADE20K_2021_17_01" / "images" / "ADE" / "validation" / ("urban", "work_place")[index % 2] / "x"
        )
        write_image(folder / f"{name}.jpg", stored)
        planes = [stored // 256 * 10, stored % 256, np.arange(stored.size).reshape(stored.shape) % 7]
        Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).save(folder / f"{name}_seg.png")
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(folder / f"{name}_parts_1.png")
        save_ids(folder / name / f"instance_000_{name}.png", np.zeros((2, 2)))
        (folder / f"{name}.json").write_text("{}")


def write_voc(root: Path, maps: Mapping[str, np.ndarray], labels: str = "SegmentationClassAug"):
    """`SegmentationClassAug` has grey values, `SegmentationClass` a palette."""
    root = root / "VOCdevkit" / "VOC2012"
    for name, stored in maps.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", stored)
        save_ids(root / labels / f"{name}.png", stored)
        if labels == "SegmentationClass":
            image = Image.fromarray(stored.astype(np.uint8)).convert("P")
            image.putpalette([255 - value // 3 for value in range(768)])
            image.save(root / labels / f"{name}.png")
    write_image(root / "JPEGImages" / "2007_000027.jpg", np.zeros((8, 8), int))  # of the training set
    list_file = root / "ImageSets" / "Segmentation" / "val.txt"
    list_file.parent.mkdir(parents=True, exist_ok=True)
    list_file.write_text("".join(f"{name}\n" for name in maps))


def write_context_matlab(root: Path, maps: Mapping[str, np.ndarray]):
    root = root / "VOCdevkit" / "VOC2010"
    (root / "trainval").mkdir(parents=True)
    for name, stored in {**maps, "2008_000008": np.ones((8, 8), int)}.items():  # one of the training set
        write_image(root / "JPEGImages" / f"{name}.jpg", stored)
        savemat(root / "trainval" / f"{name}.mat", {"LabelMap": stored.astype(np.uint16)}, do_compression=True)


def write_context_json(root: Path, maps: Mapping[str, np.ndarray]):
    """Segments on top of each other, codes as text and as numbers, and an image of the training phase."""
    root = root / "VOCdevkit" / "VOC2010"
    images, segments = [], []
    for index, (name, stored) in enumerate({**maps, "2008_000008": np.full((8, 8), 9)}.items()):
        write_image(root / "JPEGImages" / f"{name}.jpg", stored)
        height, width = stored.shape
        phase = "train" if name == "2008_000008" else "val"
        image = {"image_id": 1000 + index, "file_name": f"{name}.jpg", "height": height, "width": width}
        images.append(image | {"phase": phase, "date_captured": "", "image_url": ""})
        ids = [int(number) for number in np.unique(stored) if number]
        covered = stored > 0
        for number in ids:  # each covers what comes after it, too
            lengths = run_lengths(covered)
            counts = lengths if number == ids[0] and index else encode_lengths(lengths)
            segmentation = {"size": [height, width], "counts": counts}
            segments.append({"image_id": 1000 + index, "category_id": number, "segmentation": segmentation})
            covered = covered & (stored != number)
    categories = [{"category_id": number, "name": str(number)} for number in range(460)]
    content = {"images": images, "annos_segmentation": segments, "categories": categories}
    (root / "trainval_merged.json").write_text(json.dumps(content))


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask, column by column, beginning with one outside."""
    lengths, current, length = [], False, 0
    for value in mask.flatten(order="F").tolist():
        if value != current:
            lengths.append(length)
            current, length = value, 0
        length += 1
    return [*lengths, length]


def encode_lengths(lengths: list[int]) -> str:
    """COCO's text for run lengths."""
    text = ""
    for index, length in enumerate(lengths):
        number = length - lengths[index - 2] if index > 2 else length
        while True:
            bits, number = number & 31, number >> 5
            is_last = number == (-1 if bits & 16 else 0)
            text += chr(48 + (bits if is_last else bits | 32))
            if is_last:
                break
    return text


def write_own_benchmark(folder: Path) -> Path:
    """Seven images of several sizes with four classes; returns the file that describes them."""
    for index in range(7):
        (stored,) = stored_maps("pascal_voc_20", index, sizes=[(20 + index, 30 - 2 * index)]).values()
        write_image(folder / "images" / f"{index}.jpg", stored)
        save_ids(folder / "labels" / f"{index}.png", stored)
    description = {"name": "own", "vocabulary": ["cat", "sofa", "sky", "road"], "images": "images", "labels": "labels"}
    description["label_map"] = {"0": 255, "1": 0, "15": 1, "20": 3}
    file = folder / "own.json"
    file.write_text(json.dumps(description))
    return file
