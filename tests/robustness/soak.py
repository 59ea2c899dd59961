"""Segments images of random sizes into changing vocabularies with one pipeline; watches its memory and its results.

  make soak IMAGES=2000

After a warm-up, over the images' first tenth, the resident memory must not grow by more than 2 %, and every hundredth
result must be the one that a pipeline that has done nothing else gives. The exit status is 1 otherwise.
"""

import argparse
import json
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers.utils.logging import disable_progress_bar

from catseg_hf import EMBEDDED_MODEL, OpenVocabularySegmentationPipeline
from catseg_hf.loading import load_segmenter


TOLERANCE = 0.02
SPOT_CHECK_EVERY = 100
REPORTS = 10


def load(model: str) -> OpenVocabularySegmentationPipeline:
    return load_segmenter(model, device=torch.device("cpu"))


def random_call(generator: random.Random, words: Sequence[str], max_side: int) -> tuple[np.ndarray, list[str]]:
    """An image of noise and labels for it."""
    shape = generator.randint(1, max_side), generator.randint(1, max_side), 3
    image = np.random.default_rng(generator.getrandbits(32)).integers(0, 256, shape, dtype=np.uint8)
    return image, generator.sample(list(words), generator.randint(1, 20))


def resident_memory() -> float:
    """In megabytes."""
    return psutil.Process().memory_info().rss / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="how many (default: %(default)s)")
    parser.add_argument("--max_side", type=int, default=1000, help="of an image, in pixels (default: %(default)s)")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="checkpoint (default: the one of the package)")
    parser.add_argument("--sliding_window", action="store_true", help="average overlapping windows")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    disable_progress_bar()
    words = [word for words in json.loads(Path(EMBEDDED_MODEL, "words.json").read_text()).values() for word in words]
    generator = random.Random(0)
    segmenter = load(options.model)
    warm_up, report_every = options.images // 10, max(1, options.images // REPORTS)
    start, differences = 0.0, 0
    for number in range(1, options.images + 1):
        image, labels = random_call(generator, words, options.max_side)
        settings = {
            "candidate_labels": labels,
            "return_segmentation_map": True,
            "sliding_window": options.sliding_window,
        }
        result = segmenter(image, **settings)["segmentation"]
        if number % SPOT_CHECK_EVERY == 0:
            differences += not torch.equal(result, load(options.model)(image, **settings)["segmentation"])
        if number == warm_up:
            start = resident_memory()
        if number % report_every == 0:
            print(f"{number:,} images: {resident_memory():.1f} MB, {differences} results differ", flush=True)
    growth = resident_memory() / start - 1
    print(f"Memory after {warm_up:,} images {start:.1f} MB, growth until {options.images:,}: {growth:+.2%}")
    return 1 if growth > TOLERANCE or differences else 0


if __name__ == "__main__":
    sys.exit(main())
