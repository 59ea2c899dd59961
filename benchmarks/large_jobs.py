"""Times `catseg-hf segment` on a folder: one step after the other, with reading and writing beside the model, and in
several processes, and with `--ray` in as many of Ray's actors.

    python benchmarks/large_jobs.py --json result.json

Images are made first, JPEGs of coloured regions with some grain. The model is the one that comes with the package. The
time to start processes and to load the model is not counted. Several processes share the cores.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.class_words_catseg import read_classes
from catseg_hf.image_sources_catseg import read_pixels
from catseg_hf.images.origins import Settings
from catseg_hf.images.results import write_result
from catseg_hf.images.segmentation import FileSegmenter
from catseg_hf.loading import load_segmenter
from catseg_hf.utils.processes import Processes, join_processes, own_accelerator
from measure import machine, write_json


LABELS = ["grass", "water", "snow", "sand", "balloon", "broccoli"]
BLOCK = 64  # Side of the regions in pixels.


def write_images(folder: Path, count: int, height: int, width: int):
    generator = np.random.default_rng(0)
    for index in range(count):
        colors = generator.integers(0, 236, (-(-height // BLOCK), -(-width // BLOCK), 3), dtype=np.uint8)
        pixels = np.kron(colors, np.ones((BLOCK, BLOCK, 1), dtype=np.uint8))[:height, :width]
        pixels += generator.integers(0, 20, (height, width, 1), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06d}.jpg", quality=92)


def build_job(arguments: argparse.Namespace, folder: Path) -> FileSegmenter:
    device = torch.device("cpu") if arguments.device == "cpu" else own_accelerator() or torch.device("cuda")
    segmenter = load_segmenter(EMBEDDED_MODEL, device)
    settings = Settings(EMBEDDED_MODEL, None, read_classes(LABELS), None, None, str(segmenter.model.dtype))
    images = sorted(str(path) for path in folder.glob("*.jpg"))
    return FileSegmenter(segmenter, images, folder / "output", settings)


def run_sequentially(job: FileSegmenter):
    """Reads, segments and writes one image after the other."""
    origin = {"settings": job.settings.digests(), "input": ""}
    for image, path in zip(job.images, job.paths, strict=True):
        pixels = read_pixels(image, job.segmenter.processor.image_processor)
        result = job.segmenter(pixels, LABELS, return_segmentation_map=True)
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        write_result(path, image, result, LABELS, False, origin)


def images_per_second(run: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        run()
    return count / (time.perf_counter() - start)


def time_alone(arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    job = build_job(arguments, folder)
    job.segmenter(job.images[0], LABELS)
    runs = {"sequential": lambda: run_sequentially(job), "overlapping": lambda: job.run(Processes(), [])}
    rates = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            rates[name].append(images_per_second(run, len(job.images)))
    return {name: max(values) for name, values in rates.items()}


def time_shared(arguments: argparse.Namespace, folder: Path, num_processes: int) -> float:
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_processes}"]
    command = [*launcher, __file__, *sys.argv[1:], "--share", folder]
    threads = max(1, torch.get_num_threads() // num_processes)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return json.loads((folder / "rate.json").read_text())


def time_ray(folder: Path, num_actors: int) -> float:
    """From the first result to the last, since every job starts actors of its own."""
    images = sorted(folder.glob("*.jpg"))
    output = folder / "ray"
    options = ["--engine=ray", f"--actors={num_actors}", "--labels", ", ".join(LABELS), f"--output={output}"]
    subprocess.run([sys.executable, "-m", "catseg_hf.cli", "segment", *images, *options], check=True)
    times = sorted(path.stat().st_mtime for path in output.glob("*_labels.png"))
    return (len(times) - num_actors) / (times[-1] - times[num_actors - 1])


def share(arguments: argparse.Namespace, folder: Path):
    """What each of several processes does."""
    with join_processes() as processes:
        job = build_job(arguments, folder)
        job.segmenter(job.images[0], LABELS)
        rates = []
        for _ in range(arguments.repeats):
            processes.each(lambda: None)
            rates.append(images_per_second(lambda: job.run(processes, []), len(job.images)))
        processes.first(lambda: (folder / "rate.json").write_text(json.dumps(max(rates))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="how many (%(default)s)")
    parser.add_argument("--height", type=int, default=512, help="of an image (%(default)s)")
    parser.add_argument("--width", type=int, default=683, help="of an image (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that share the images (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="timings of each; the fastest counts (%(default)s)")
    parser.add_argument("--ray", action="store_true", help="time Ray's actors too, which needs Ray")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--share", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share is not None:
        share(arguments, arguments.share)
        return

    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), arguments.images, arguments.height, arguments.width)
        rates = time_alone(arguments, Path(folder))
        rates[f"{arguments.processes} processes"] = time_shared(arguments, Path(folder), arguments.processes)
        if arguments.ray:
            rates[f"{arguments.processes} actors of Ray"] = time_ray(Path(folder), arguments.processes)
    result = {
        "case": "large jobs",
        **{name: value for name, value in vars(arguments).items() if name not in ("json", "share", "ray")},
        "machine": machine(arguments.device),
        "torch": torch.__version__,
        "load_average": [load_before, os.getloadavg()[0]],
        "images_per_second": rates,
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
