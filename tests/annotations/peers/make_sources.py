"""Small sources of every format, drawn here: python make_sources.py OUTPUT. Equal bytes with every run."""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from catseg_hf.annotations.rle import encode_coco, encode_cvat, encode_label_studio


WIDTH, HEIGHT = 60, 44
CLASSES = ("road", "car", "tree")
COLORS = {"background": (0, 0, 0), "road": (128, 64, 128), "car": (64, 0, 128), "tree": (128, 128, 0)}


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1):
    """An image of width and height, as it is stored, that says how it is to be turned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"exif": exif} if orientation != 1 else {}
    Image.fromarray(np.stack([columns * 4, rows * 5, columns + rows], axis=2).astype(np.uint8)).save(path, **options)


def polygon(
    random: np.random.Generator, corners: int, low: float = 0.0, high: float = 1.0, steps: int = 100
) -> list[list[float]]:
    """Random corners in pixels, in `steps` of a pixel, which may cross, from `low` to `high` of the image's sides."""
    points = random.uniform(low, high, (corners, 2)) * (WIDTH, HEIGHT)
    return ((points * steps).round() / steps).tolist()


def blob(random: np.random.Generator, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A mask with holes, single pixels and lines."""
    mask = random.random(size) < 0.02
    top, left = size[0] // 4, size[1] // 3
    mask[top : top + 12, left : left + 14] = True
    mask[top + 3 : top + 6, left + 4 : left + 9] = False
    mask[size[0] - 5, 2 : size[1] // 2] = True
    return mask


def flat(points: list[list[float]]) -> list[float]:
    return [number for point in points for number in point]


def coco(folder: Path):
    random = np.random.default_rng(1)
    categories = [{"id": number, "name": name} for number, name in zip((3, 1, 7), CLASSES, strict=True)]
    for split, count in (("train", 2), ("val", 1)):
        images, annotations = [], []
        for number in range(count):
            name = f"{split}_{number}.png"
            picture(folder / f"{split}2017" / name)
            images.append({"id": 10 + number, "file_name": name, "width": WIDTH, "height": HEIGHT})
            mask = blob(random)
            lengths = encode_cvat(mask.T)
            segmentations = [
                [flat(polygon(random, 5))],
                [flat(polygon(random, 3)), flat(polygon(random, 8))],
                {"size": [HEIGHT, WIDTH], "counts": encode_coco(blob(random))},
                [flat(polygon(random, 6, -0.3, 1.3))],
                {"size": [HEIGHT, WIDTH], "counts": lengths},
            ]
            for place, segmentation in enumerate(segmentations):
                annotations.append(
                    {
                        "id": 100 * number + place + 1,
                        "image_id": 10 + number,
                        "category_id": categories[place % 3]["id"],
                        "segmentation": segmentation,
                        "iscrowd": int(isinstance(segmentation, dict) and isinstance(segmentation["counts"], list)),
                    }
                )
        data = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / "annotations" / f"instances_{split}2017.json", data)
    stuff = {"id": 1, "image_id": 10, "category_id": 9, "iscrowd": 0, "segmentation": [flat(polygon(random, 9))]}
    data = {
        "images": [{"id": 10, "file_name": "train_0.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [stuff],
        "categories": [{"id": 9, "name": "sky"}],
    }
    write_json(folder / "annotations" / "stuff_train2017.json", data)


def roboflow(folder: Path):
    random = np.random.default_rng(2)
    categories = [{"id": 0, "name": "things", "supercategory": "none"}]
    categories += [{"id": number, "name": name, "supercategory": "things"} for number, name in enumerate(CLASSES, 1)]
    for split in ("train", "valid"):
        picture(folder / split / f"{split}.png")
        annotations = [
            {"id": number, "image_id": 0, "category_id": 1 + number % 3, "segmentation": [flat(polygon(random, 4))]}
            for number in range(4)
        ]
        images = [{"id": 0, "file_name": f"{split}.png", "width": WIDTH, "height": HEIGHT}]
        data = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / split / "_annotations.coco.json", data)


def coco_panoptic(folder: Path):
    random = np.random.default_rng(3)
    picture(folder / "images" / "train" / "scene.png")
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    segments = {70000: 1, 5: 2, 300: 1}
    for number in segments:
        ids[blob(random)] = number
        ids[random.integers(20) :, random.integers(40) :] = number
    levels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
    path = folder / "annotations" / "panoptic_train" / "scene.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(levels).save(path)
    infos = [{"id": number, "category_id": category, "iscrowd": 0} for number, category in segments.items()]
    for info in infos:
        mask = ids == info["id"]
        info["area"], info["bbox"] = int(mask.sum()), [0, 0, WIDTH, HEIGHT]
    data = {
        "images": [{"id": 1, "file_name": "scene.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{"image_id": 1, "file_name": "scene.png", "segments_info": infos}],
        "categories": [{"id": 1, "name": "road", "isthing": 0}, {"id": 2, "name": "car", "isthing": 1}],
    }
    write_json(folder / "annotations" / "panoptic_train.json", data)


def labelme(folder: Path):
    random = np.random.default_rng(4)
    (folder / "labels.txt").write_text("\n".join(["__ignore__", "_background_", *CLASSES]) + "\n")

    def shape(kind: str, points: list[list[float]], label: str) -> dict:
        return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, "mask": None}

    kinds = {"polygon": 7, "rectangle": 2, "oriented_rectangle": 4, "circle": 2, "line": 2, "linestrip": 4, "point": 1}
    for number, orientation in enumerate((1, 6, 6)):
        name = f"photo_{number}.jpg"
        stored = (WIDTH, HEIGHT) if orientation == 1 else (HEIGHT, WIDTH)
        picture(folder / name, stored, orientation)
        shapes = [
            shape(kind, polygon(random, count), ("road", "car", "tree", "__ignore__", "_background_")[place % 5])
            for place, (kind, count) in enumerate(kinds.items())
        ]
        mask = blob(random, (20, 30))
        encoded = io.BytesIO()
        Image.fromarray(mask).save(encoded, "PNG")
        shapes.insert(3, shape("mask", [[11.4, 9.7], [40.2, 28.9]], "tree"))
        shapes[3]["mask"] = base64.b64encode(encoded.getvalue()).decode()
        data = {"version": "6.3.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
        data |= {"imageHeight": HEIGHT, "imageWidth": WIDTH}
        if number == 2:  # the labels of embedded bytes are those of the pixels as they are stored
            data["imageData"] = base64.b64encode((folder / name).read_bytes()).decode()
            data |= {"imageHeight": WIDTH, "imageWidth": HEIGHT}
        write_json(folder / f"photo_{number}.json", data)


def cvat(folder: Path):
    """In quarters of a pixel, since datumaro keeps coordinates as float32, unlike CVAT's own copy of it."""
    random = np.random.default_rng(5)
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations><version>1.1</version><meta><project><tasks>"]
    lines += [f"<task><subset>{subset}</subset></task>" for subset in ("Train", "Validation")]
    lines.append("</tasks><labels>")
    lines += [f"<label><name>{name}</name></label>" for name in CLASSES]
    lines.append("</labels></project></meta>")
    for number, subset in enumerate(("Train", "Train", "Validation")):
        name = f"frame_{number}.png"
        picture(folder / "images" / subset / name)
        lines.append(f'<image id="{number}" name="{name}" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">')
        for place, z_order in enumerate((2, 0, 1)):
            points = ";".join(f"{x},{y}" for x, y in polygon(random, 6, steps=4))
            lines.append(f'<polygon label="{CLASSES[place]}" points="{points}" z_order="{z_order}"/>')
        left, top, right, bottom = ((random.uniform(0.1, 0.4, 4) * WIDTH * 4).round() / 4 + [0, 0, 20, 15]).tolist()
        box = f'xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}"'
        lines.append(f'<box label="tree" {box} z_order="1"/>')
        lengths = ", ".join(map(str, encode_cvat(blob(random, (25, 33)))))
        place = 'left="9" top="6" width="33" height="25"'
        lines.append(f'<mask label="car" rle="{lengths}" {place} z_order="{number}"/>')
        lines.append('<polyline label="road" points="1,2;3,4"/></image>')
    folder.joinpath("annotations.xml").write_text("\n".join([*lines, "</annotations>"]) + "\n")


def label_studio(folder: Path):
    random = np.random.default_rng(6)
    tasks = []
    for number in range(2):
        picture(folder / "upload" / f"0a1b2c3d-photo_{number}.png")
        results = []
        for place in range(5):
            label = CLASSES[place % 3]
            kind = ("polygon", "rectangle", "brush")[place % 3]
            if kind == "polygon":
                value = {"points": (random.uniform(0, 100, (6, 2))).round(6).tolist(), "closed": True}
            elif kind == "rectangle":
                x, y, width, height = random.uniform(5, 45, 4).round(6).tolist()
                value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
            else:
                value = {"format": "rle", "rle": encode_label_studio(blob(random))}
            value[f"{kind}labels"] = [label]
            results.append(
                {
                    "id": f"{number}{place}",
                    "type": f"{kind}labels",
                    "from_name": kind,
                    "to_name": "image",
                    "original_width": WIDTH,
                    "original_height": HEIGHT,
                    "image_rotation": 0,
                    "value": value,
                }
            )
        data = {"image": f"/data/upload/1/0a1b2c3d-photo_{number}.png"}
        tasks.append({"id": number + 1, "data": data, "annotations": [{"id": number + 1, "result": results}]})
    write_json(folder / "export.json", tasks)
    tags = ("PolygonLabels", "RectangleLabels", "BrushLabels")
    labels = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    controls = "".join(f'<{tag} name="{tag[:-6].lower()}" toName="image">{labels}</{tag}>' for tag in tags)
    folder.joinpath("config.xml").write_text(f'<View><Image name="image" value="$image"/>{controls}</View>\n')


def yolo(folder: Path):
    random = np.random.default_rng(7)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    for split, orientation in (("train", 1), ("val", 6)):
        stored = (WIDTH, HEIGHT) if orientation == 1 else (HEIGHT, WIDTH)
        picture(folder / "images" / split / f"{split}.jpg", stored, orientation)
        lines = [
            " ".join([str(place % 3), *(f"{share:.6f}" for share in random.uniform(0, 1, 2 * corners))])
            for place, corners in enumerate((6, 3, 12, 4))
        ]
        path = folder / "labels" / split / f"{split}.txt"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")


def color_map(random: np.random.Generator) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for color in COLORS.values():
        pixels[blob(random)] = color
        pixels[random.integers(30) :, random.integers(50) :] = color
    return pixels


def cvat_masks(folder: Path):
    random = np.random.default_rng(8)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "SegmentationClass").mkdir()
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
    (folder / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n")
    for split in ("train", "val"):
        picture(folder / "JPEGImages" / f"{split}_0.png")
        Image.fromarray(color_map(random)).save(folder / "SegmentationClass" / f"{split}_0.png")
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{split}_0\n")


def voc(folder: Path):
    random = np.random.default_rng(9)
    palette = np.zeros((256, 3), np.uint8)
    for index in range(256):
        for bit in range(24):
            palette[index, bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for index in (3, 15, 20, 255):
        ids[blob(random)] = index
    for name in ("ImageSets/Segmentation", "SegmentationClass", "Annotations"):
        (folder / name).mkdir(parents=True)
    picture(folder / "JPEGImages" / "2007_000001.jpg")
    label_map = Image.fromarray(ids)
    label_map.putpalette(palette.ravel().tolist())
    label_map.save(folder / "SegmentationClass" / "2007_000001.png")
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000001\n")


def camvid(folder: Path):
    random = np.random.default_rng(10)
    picture(folder / "train" / "frame_1.png")
    (folder / "trainannot").mkdir()
    Image.fromarray(color_map(random)).save(folder / "trainannot" / "frame_1.png")
    lines = [f"{' '.join(map(str, color))}\t{name}" for name, color in COLORS.items()]
    (folder / "label_colors.txt").write_text("\n".join(lines) + "\n")
    (folder / "train.txt").write_text("/train/frame_1.png /trainannot/frame_1.png\n")


def cityscapes(folder: Path):
    random = np.random.default_rng(11)
    for split, kind in (("train", "instanceIds"), ("val", "labelIds"), ("test", "labelTrainIds")):
        stem = f"{split}city_000000_000019"
        picture(folder / "leftImg8bit" / split / f"{split}city" / f"{stem}_leftImg8bit.png")
        values = {
            "instanceIds": (7, 11, 26001, 24012, 4, 26),
            "labelIds": (0, 7, 26, 33, 9, 23),
            "labelTrainIds": (0, 13, 18, 255, 10, 8),
        }[kind]
        ids = np.full((HEIGHT, WIDTH), values[0])
        for value in values[1:]:
            ids[blob(random)] = value
            ids[random.integers(30) :, random.integers(50) :] = value
        path = folder / "gtFine" / split / f"{split}city" / f"{stem}_gtFine_{kind}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(ids.astype(np.uint16 if kind == "instanceIds" else np.uint8)).save(path)


def write_json(path: Path, data: object):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data) + "\n")


MAKERS = (coco, roboflow, coco_panoptic, labelme, cvat, label_studio, yolo, cvat_masks, voc, camvid, cityscapes)


if __name__ == "__main__":
    for make in MAKERS:
        (root := Path(sys.argv[1], make.__name__)).mkdir(parents=True)
        make(root)
