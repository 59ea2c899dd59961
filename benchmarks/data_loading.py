"""Times the training data loader: decoding, checking, augmenting and normalising crops out of 640 x 480 JPEGs.

    PYTHONPATH=training python benchmarks/data_loading.py --json result.json

Images and label maps are made first, in a temporary folder in the layout of COCO-Stuff, with files of about 150 kB
and 7 kB.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from catseg_training.data.crops import EpochSampler, TrainingCrops
from catseg_training.data.sources import load_segmentation_data
from measure import machine, write_json


HEIGHT, WIDTH = 480, 640
NUM_LABELS = 171


def resized_noise(generator: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Random values on a coarse grid, `(height, width, channels)`, interpolated to the size of an image."""
    noise = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
    planes = [Image.fromarray(noise[..., channel]).resize((WIDTH, HEIGHT)) for channel in range(channels)]
    return np.stack([np.asarray(plane, dtype=np.float32) for plane in planes], axis=-1)


def write_pair(root: Path, index: int, generator: np.random.Generator) -> int:
    """Writes an image of blobs, texture and grain with a label map of wavy regions; returns the bytes of both."""
    pixels = 0.6 * resized_noise(generator, 6, 8, 3) + 0.3 * resized_noise(generator, 60, 80, 3)
    pixels += generator.normal(20, 10, (HEIGHT, WIDTH, 1))
    waves = resized_noise(generator, 12, 16, 2) / 6
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    regions = generator.integers(0, 11, (9, 9), dtype=np.uint8)
    label = regions[(rows + waves[..., 0]).astype(int) // 80, (columns + waves[..., 1]).astype(int) // 100]
    image_path = root / "images" / "train2017" / f"{index:012d}.jpg"
    label_path = root / "stuffthingmaps" / "train2017" / f"{index:012d}.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(image_path, quality=92)
    Image.fromarray(label).save(label_path)
    return image_path.stat().st_size + label_path.stat().st_size


def crops_per_second(crops: TrainingCrops, num_workers: int, num_epochs: int, batch_size: int) -> float:
    """Of `num_epochs` passes after one that is not timed, in which the workers start and files enter the cache."""
    sampler = EpochSampler(len(crops), seed=0)
    loader = DataLoader(
        crops, batch_size, sampler=sampler, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    for epoch in range(num_epochs + 1):
        if epoch == 1:
            start = time.perf_counter()
        sampler.set_epoch(epoch)
        for _ in loader:
            pass
    return num_epochs * len(crops) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="different files (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="timed passes over them in a row (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timings; the fastest counts (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of workers to try (0 2)")
    parser.add_argument("--batch_size", type=int, default=4, help="crops at once (%(default)s)")
    parser.add_argument("--crop_size", type=int, default=384, help="side of the crops (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    machine_name = machine("cpu")
    torch.set_num_threads(1)  # as in the workers
    with tempfile.TemporaryDirectory() as folder:
        for name in ("images", "stuffthingmaps"):
            (Path(folder) / name / "train2017").mkdir(parents=True)
        generator = np.random.default_rng(0)
        num_bytes = sum(write_pair(Path(folder), index, generator) for index in range(arguments.images))
        dataset = load_segmentation_data(folder, "train")
        crops = TrainingCrops(dataset, NUM_LABELS, arguments.crop_size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, seed=0)
        rates = {
            str(num_workers): max(
                crops_per_second(crops, num_workers, arguments.epochs, arguments.batch_size)
                for _ in range(arguments.repeats)
            )
            for num_workers in arguments.workers
        }
    result = {
        "case": "data loading",
        **{name: value for name, value in vars(arguments).items() if name not in ("json", "workers")},
        "machine": machine_name,
        "torch": torch.__version__,
        "kilobytes_per_pair": num_bytes / arguments.images / 1e3,
        "crops_per_second_by_workers": rates,
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
