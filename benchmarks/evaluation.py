"""Times a whole evaluation against its model alone, in one run: what loading, arg max and metric cost beside it.

    PYTHONPATH=training python benchmarks/evaluation.py --architecture embedded --json result.json

Images and labels are made first, in a temporary folder in the layout of ADE20K-150. The model alone gets images that
lie prepared in memory. `segmentation` is the model with the arg max over its probabilities at the image's own size.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import AutoTokenizer

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegImageProcessorPil, CATSegProcessor
from catseg_training.benchmarks.evaluation import evaluate_benchmark
from catseg_training.benchmarks.files import find_files
from catseg_training.benchmarks.images import BenchmarkImages
from catseg_training.benchmarks.predictors import ModelPredictor
from catseg_training.benchmarks.published import find_benchmark
from catseg_training.views import Views
from measure import ARCHITECTURES, build_model, machine, write_json


SIZES = [(512, 683), (683, 512), (512, 768)]
BLOCK = 32  # Side of the regions in pixels.


def write_dataset(root: Path, count: int):
    """Noisy images of coloured regions, and their label maps."""
    images, labels = (root / "ADEChallengeData2016" / kind / "validation" for kind in ("images", "annotations"))
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        regions = generator.integers(0, 151, (-(-height // BLOCK), -(-width // BLOCK)), dtype=np.uint8)
        label = np.kron(regions, np.ones((BLOCK, BLOCK), dtype=np.uint8))[:height, :width]
        pixels = np.stack([label, 255 - label, label * 7 % 200], axis=-1) + generator.normal(0, 12, (height, width, 1))
        name = f"ADE_val_{index + 1:08d}"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / f"{name}.jpg", quality=92)
        Image.fromarray(label).save(labels / f"{name}.png")


def load_model(architecture: str, device: str) -> tuple[CATSegForSemanticSegmentation, CATSegProcessor]:
    """The model that comes with the package, or one of random weights, for which the tokens make no difference."""
    if architecture == "embedded":
        model = CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).to(device).eval()
        return model, CATSegProcessor.from_pretrained(EMBEDDED_MODEL)
    model, tokenizer = build_model(architecture, device), AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    model.config.clip_config.text_config.eos_token_id = tokenizer.eos_token_id
    return model, CATSegProcessor(CATSegImageProcessorPil.from_model_config(model.config), tokenizer)


def images_per_second(run: Callable[[], None], count: int, device: str) -> float:
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--architecture",
        choices=("embedded", *ARCHITECTURES),
        default="base",
        help="the package's own model, or random weights of a released size (%(default)s)",
    )
    parser.add_argument("--sliding_window", action="store_true", help="average windows and a global view")
    parser.add_argument("--images", type=int, default=24, help="how many (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=1, help="images that the model gets at once (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each; the fastest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    device, batch_size, count = arguments.device, arguments.batch_size, arguments.images

    model, processor = load_model(arguments.architecture, device)
    benchmark, accelerator = find_benchmark("ade20k_150"), Accelerator(cpu=device == "cpu")
    views = Views(arguments.sliding_window)
    predictor = ModelPredictor(
        model,
        processor,
        arguments.architecture,
        torch.device(device),
        "no",
        views,
        batch_size,
        arguments.workers,
        exact=batch_size == 1,
    )
    predictor.prepare(benchmark)
    rates = {"model": [], "segmentation": [], "evaluation": []}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), count)
        files = find_files(benchmark, Path(folder))
        images = BenchmarkImages(benchmark, files.files)
        loaded = [images[index]["image"] for index in range(min(count, max(batch_size, len(SIZES))))]
        inputs = processor(images=[*map(Image.fromarray, loaded)], sliding_window=views.sliding_window).to(device)

        @torch.inference_mode()
        def run_model() -> Iterator[tuple[object, list[tuple[int, int]]]]:
            """Outputs, and the sizes of their images."""
            for first in range(0, count, batch_size):
                places = [place % len(loaded) for place in range(first, min(first + batch_size, count))]
                batch = {name: pixels[places] for name, pixels in inputs.items()}
                outputs = model(**batch, sliding_window=views.sliding_window)
                yield outputs, [loaded[place].shape[:2] for place in places]

        def run_alone():
            for _ in run_model():
                pass

        @torch.inference_mode()
        def run_segmentation():
            for outputs, sizes in run_model():
                processor.post_process_semantic_segmentation(outputs, sizes)

        next(run_model())
        for repeat in range(arguments.repeats):
            rates["model"].append(images_per_second(run_alone, count, device))
            rates["segmentation"].append(images_per_second(run_segmentation, count, device))
            result = evaluate_benchmark(benchmark, files, predictor, accelerator, Path(folder) / f"tally{repeat}")
            rates["evaluation"].append(result.values["images_per_second"])
    best = {name: max(values) for name, values in rates.items()}
    result = {
        "case": "evaluation",
        **{name: value for name, value in vars(arguments).items() if name != "json"},
        "classes": len(benchmark.class_names),
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [load_before, os.getloadavg()[0]],
        "images_per_second": best,
        "share_of_model": best["evaluation"] / best["model"],
        "share_of_segmentation": best["evaluation"] / best["segmentation"],
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
