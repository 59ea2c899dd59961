"""Images larger than one view: what tiles find in mosaics of scenes, and what a large photograph takes.

python training/emoji_world.py --output scenes --num_scenes 500 --seed 1003 --split test
PYTHONPATH=training python benchmarks/large_images.py --scenes scenes --split test --mosaics 31 --baseline 16adf11

A mosaic is 4 x 4 scenes of the emoji world. It is segmented into all words in tiles, scene by scene, as a whole, and
with the sliding window; scores are mean IoU over the words that occur. False changes are pairs of
neighbouring pixels of one true class that were given two: their share among the pairs across a tile's border, and
among all others. Pairs of two scenes are left out of both. Since scenes have more classes in their middle, where more
tiles end, there is also the share among those of the others that lie at the same rows or columns of a scene.

The photograph is a scene enlarged, a JPEG in three classes. Each run is a process of its own, in which the pipeline
has segmented a small image before: seconds, how much of them the model takes, and the peak of the process's memory.
With `--baseline` an earlier commit takes turns with this one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from catseg_hf import EMBEDDED_MODEL, OpenVocabularySegmentationPipeline
from catseg_hf.loading import load_segmenter
from catseg_hf.tiles_catseg import TileAxis
from catseg_hf.visualization import overlay_segmentation
from catseg_training.world.evaluation import classes_of, read_scenes
from catseg_training.world.scoring import word_iou
from catseg_training.world.words import classes
from measure import ROOT, machine, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
SIDE = 4  # scenes in a row of a mosaic
GAP = 8  # between the parts of the picture
OVERLAP = 0.25
# Of scenes of 128 pixels; chosen on validation scenes, of 96, 112, 120 and 128.
MOSAIC_TILE_SIZE = 112
PHOTOGRAPH_TILE_SIZE = 640
LABELS = ["snow", "balloon", "water"]
PHOTOGRAPH = """
import json, sys, time
from pathlib import Path
from PIL import Image
from transformers import pipeline
from catseg_hf import EMBEDDED_MODEL

Image.MAX_IMAGE_PIXELS = None
path, labels, options = sys.argv[1], *map(json.loads, sys.argv[2:])
segmenter = pipeline("zero-shot-image-segmentation", model=EMBEDDED_MODEL, device="cpu")
segmenter(Image.new("RGB", (256, 256)), labels)
model, in_model = segmenter.model, 0.0

def timed(*arguments, forward=model.forward, **kwargs):
    global in_model
    start = time.perf_counter()
    outputs = forward(*arguments, **kwargs)
    in_model += time.perf_counter() - start
    return outputs

model.forward = timed
start, start_cpu = time.perf_counter(), time.process_time()
segmenter(path, labels, **options)
seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
status = Path("/proc/self/status").read_text().splitlines()
peak = next(float(line.split()[1]) / 1e6 for line in status if line.startswith("VmHWM:"))
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "model_seconds": in_model, "peak_memory_gb": peak}))
"""


def mosaic(scenes: np.ndarray) -> np.ndarray:
    """Scenes `(SIDE ** 2, h, w, ...)`, row by row, as one image."""
    rows = [np.concatenate(list(row), axis=1) for row in np.split(scenes, SIDE)]
    return np.concatenate(rows, axis=0)


def segment_mosaics(
    segmenter: OpenVocabularySegmentationPipeline, images: np.ndarray, scene_size: int
) -> dict[str, np.ndarray]:
    """Label maps `(N, H, W)` of mosaics `(N, H, W, 3)`, by how they are segmented."""
    words = list(classes())

    def maps_of(**options: object) -> np.ndarray:
        maps = []
        for image in images:
            result = segmenter(Image.fromarray(image), words, return_segmentation_map=True, **options)
            maps.append(result["segmentation"].numpy())
        return np.stack(maps)

    return {
        "tiles": maps_of(tile_size=MOSAIC_TILE_SIZE, tile_overlap=OVERLAP),
        "tiles_of_a_scenes_size": maps_of(tile_size=scene_size, tile_overlap=OVERLAP),
        "scenes": maps_of(tile_size=scene_size, tile_overlap=0.0),
        "whole": maps_of(),
        "sliding_window": maps_of(sliding_window=True),
    }


def mean_iou(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Over the words that occur."""
    ious = list(word_iou(predictions, labels).values())
    return round(float(np.mean([ious[index] for index in classes_of(labels)])), 4)


def false_changes(predictions: np.ndarray, labels: np.ndarray, scene_size: int) -> dict[str, float]:
    """Of the pairs of neighbours in maps `(N, H, W)` that have one true class, those that were given two, in per
    cent."""
    counts = {name: np.zeros(2) for name in ("across_tile_borders", "at_the_same_places_of_scenes", "elsewhere")}
    for axis in (1, 2):
        predicted, true = np.moveaxis(predictions, axis, 0), np.moveaxis(labels, axis, 0)
        starts = TileAxis.cover(len(true), MOSAIC_TILE_SIZE, OVERLAP).starts
        borders = {*starts, *(start + MOSAIC_TILE_SIZE for start in starts)}
        for place in range(1, len(true)):
            if place % scene_size == 0:
                continue
            same = true[place - 1] == true[place]
            count = np.array([(same & (predicted[place - 1] != predicted[place])).sum(), same.sum()])
            counts["across_tile_borders" if place in borders else "elsewhere"] += count
            if place not in borders and place % scene_size in {border % scene_size for border in borders}:
                counts["at_the_same_places_of_scenes"] += count
    return {name: round(100 * float(false / pairs), 4) for name, (false, pairs) in counts.items()}


def draw(image: np.ndarray, *predictions: np.ndarray) -> Image.Image:
    """An image (H, W, 3), and beside it its label maps in the colours of the words that they have most of."""
    shown = [Image.fromarray(image)]
    order = np.argsort(-np.bincount(np.concatenate(predictions).ravel(), minlength=len(classes())), kind="stable")
    for prediction in predictions:
        shown.append(overlay_segmentation(shown[0], order.argsort()[prediction], opacity=0.8))
    picture = Image.new("RGB", (len(shown) * (image.shape[1] + GAP) - GAP, len(image)), "white")
    for index, part in enumerate(shown):
        picture.paste(part, (index * (image.shape[1] + GAP), 0))
    return picture


def segment_photograph(photograph: Path, source: Path, options: dict[str, object]) -> dict[str, float]:
    """What one process takes, of the code in a folder of sources."""
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PHOTOGRAPH, str(photograph), json.dumps(LABELS), json.dumps(options)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def photograph_cases(size: tuple[int, int], baseline: str | None, repeats: int) -> dict[str, dict[str, float]]:
    """The shortest of some runs of each case."""
    with tempfile.TemporaryDirectory() as folder:
        photograph, old = Path(folder, "photograph.jpg"), Path(folder, "old")
        scene = Image.open(ROOT / "demo" / "scene.png").convert("RGB")
        scene.resize(size, Image.Resampling.BICUBIC).save(photograph, quality=90)
        tiles = {"tile_size": min(PHOTOGRAPH_TILE_SIZE, max(size)), "tile_overlap": OVERLAP}
        cases: dict[str, Callable[[], dict[str, float]]] = {
            "whole": lambda: segment_photograph(photograph, ROOT / "src", {}),
            "tiles": lambda: segment_photograph(photograph, ROOT / "src", tiles),
        }
        if baseline is not None:
            subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", old, baseline], check=True)
            cases["baseline"] = lambda: segment_photograph(photograph, old / "src", {})
        runs = {name: [] for name in cases}
        try:
            for _ in range(repeats):
                for name, run in cases.items():
                    runs[name].append(run())
        finally:
            if baseline is not None:
                subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", old], check=True)
    shortest = {name: min(of_case, key=lambda run: run["seconds"]) for name, of_case in runs.items()}
    for run in shortest.values():
        run["other_seconds"] = run["seconds"] - run["model_seconds"]
    return {name: {key: round(value, 2) for key, value in run.items()} for name, run in shortest.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, default=SCENES, metavar="DIR", help="(default: those of the tests)")
    parser.add_argument("--split", default="gate", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--mosaics", type=int, default=6, help="of 16 scenes each (default: %(default)s)")
    parser.add_argument(
        "--photograph",
        type=int,
        nargs=2,
        default=(12288, 9216),
        metavar=("WIDTH", "HEIGHT"),
        help="(default: %(default)s)",
    )
    parser.add_argument("--baseline", metavar="COMMIT", help="an earlier commit to take turns with")
    parser.add_argument("--repeats", type=int, default=3, help="runs of the photograph (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="where to draw a mosaic, as a whole and in tiles")
    arguments = parser.parse_args()

    images, labels = read_scenes(arguments.scenes, arguments.split, arguments.mosaics * SIDE**2)
    images, labels = (
        np.stack([mosaic(scenes) for scenes in np.split(part, arguments.mosaics)]) for part in (images, labels)
    )
    segmenter = load_segmenter(EMBEDDED_MODEL, "cpu")
    scene_size = images.shape[1] // SIDE
    predictions = segment_mosaics(segmenter, images, scene_size)
    if arguments.picture is not None:
        draw(images[0], predictions["whole"][0], predictions["tiles"][0]).quantize(128).save(
            arguments.picture, optimize=True
        )
    result = {
        "machine": machine("cpu"),
        "mosaics": len(images),
        "mean_iou": {name: mean_iou(maps, labels) for name, maps in predictions.items()},
        "false_changes_percent": false_changes(predictions["tiles"], labels, scene_size),
        "baseline": arguments.baseline,
        "photograph": photograph_cases(tuple(arguments.photograph), arguments.baseline, arguments.repeats),
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
