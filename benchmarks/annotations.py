"""Times the preparation of a COCO source against pycocotools' decoding with painting and the same writing of PNGs.

python benchmarks/annotations.py --images 1000 --objects 10 --json result.json

Half of the objects are polygons of 5 to 30 corners, half run lengths as pycocotools writes them. Both sides read the
JSON, draw every object of an image over those before it, and save the label map; the preparation also reads the header
of each image, links to it, counts pixels, draws the page of pictures and brings everything to the disk.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from catseg_hf.annotations.preparation import prepare
from measure import machine


NUM_CLASSES = 20


def write_source(folder: Path, num_images: int, num_objects: int, height: int, width: int):
    """A COCO folder, `train/` and `instances_train.json`."""
    random = np.random.default_rng(0)
    (folder / "train").mkdir()
    picture = io.BytesIO()
    Image.fromarray(random.integers(256, size=(height // 8, width // 8, 3), dtype=np.uint8)).resize(
        (width, height)
    ).save(picture, "JPEG")
    images, annotations = [], []
    for number in range(num_images):
        name = f"{number:06d}.jpg"
        (folder / "train" / name).write_bytes(picture.getvalue())
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for place in range(num_objects):
            corners = int(random.integers(5, 31))
            angles = np.sort(random.uniform(0, 2 * np.pi, corners))
            radii = random.uniform(0.3, 1, corners)[:, None] * random.uniform(0.05, 0.4) * np.array([width, height])
            center = random.uniform(0.2, 0.8, 2) * (width, height)
            points = center + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            polygon = [points.clip(0, (width, height)).round(2).ravel().tolist()]
            segmentation = polygon
            if place % 2:
                encoded = coco_mask.merge(coco_mask.frPyObjects(polygon, height, width))
                segmentation = {"size": [height, width], "counts": encoded["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(random.integers(1, NUM_CLASSES + 1)),
                    "segmentation": segmentation,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, NUM_CLASSES + 1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances_train.json").write_text(json.dumps(data))


def draw_with_pycocotools(source: Path, output: Path):
    """Label maps of ids that begin at 0, 255 for no class."""
    output.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(source / "instances_train.json"))
    for number, image in coco.imgs.items():
        labels = np.full((image["height"], image["width"]), 255, np.uint8)
        for annotation in coco.imgToAnns[number]:
            labels[coco.annToMask(annotation).astype(bool)] = annotation["category_id"] - 1
        Image.fromarray(labels).save(output / f"{Path(image['file_name']).stem}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="how many (%(default)s)")
    parser.add_argument("--objects", type=int, default=10, help="of each image (%(default)s)")
    parser.add_argument("--height", type=int, default=480, help="of an image (%(default)s)")
    parser.add_argument("--width", type=int, default=640, help="of an image (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    arguments = parser.parse_args()

    seconds = {"seconds": [], "reference_seconds": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        write_source(source, arguments.images, arguments.objects, arguments.height, arguments.width)
        for repeat in range(arguments.repeats):
            reference, output = (Path(folder, f"{name}_{repeat}") for name in ("reference", "prepared"))
            start = time.perf_counter()
            draw_with_pycocotools(source, reference)
            seconds["reference_seconds"].append(time.perf_counter() - start)
            start = time.perf_counter()
            prepare(source, output)
            seconds["seconds"].append(time.perf_counter() - start)
        differing = sum(
            int(
                (np.asarray(Image.open(path)) != np.asarray(Image.open(output / "labels" / "train" / path.name))).sum()
            )
            for path in reference.iterdir()
        )
    figures = {name: round(min(of), 3) for name, of in seconds.items()}
    figures["ratio"] = round(min(seconds["seconds"]) / min(seconds["reference_seconds"]), 3)
    figures |= {"images": arguments.images, "objects": arguments.objects, "differing_pixels": differing}
    print(json.dumps(figures, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine("cpu"), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
