"""What `max_classes_per_image` saves and what it costs.

    PYTHONPATH=training python benchmarks/max_classes.py --json result.json

Time and memory are those of one crop with random weights ("auto" is timed by builds.py). Mean IoU is that of the model
in the package on the tests' scenes, with its own words as the vocabulary and with other names around them, up to 847;
it aggregates 32 classes at most by its configuration, so that only lower limits change anything.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor, load_vocabulary
from catseg_training.metric import load_metric
from catseg_training.world.evaluation import read_scenes
from catseg_training.world.folders import NO_CLASS
from catseg_training.world.words import classes, seen_words
from measure import ARCHITECTURES, ROOT, build_model, machine, measure, random_inputs, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
LARGE_VOCABULARY = 847
LIMITS, SCENE_LIMITS = (None, 128, 64, 32), (None, 24, 16, 12, 8)


@torch.inference_mode()
def crop_rows(architecture: str, vocabularies: list[int], repeats: int) -> list[dict]:
    """Seconds and peak memory of a crop for every size of the vocabulary and every limit."""
    model, rows = build_model(architecture, "cpu"), []
    for num_classes in vocabularies:
        pixel_values, text_embeds = random_inputs(model, num_classes, model.config.image_size, 1, "cpu")
        for limit in LIMITS:
            options = {"text_embeds": text_embeds, "sliding_window": False, "max_classes_per_image": limit}
            seconds, peak, _ = measure(partial(model, pixel_values, **options), "cpu", repeats)
            row = {"classes": num_classes, "max_classes_per_image": limit}
            rows.append({**row, "seconds": seconds, "peak_memory_mb": peak})
    return rows


@torch.inference_mode()
def scene_rows(num_scenes: int) -> list[dict]:
    """Mean IoU, in 0..1, of the words with masks and of those without for every vocabulary and every limit."""
    model = CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).eval()
    processor = CATSegProcessor.from_pretrained(EMBEDDED_MODEL)
    images, labels = read_scenes(SCENES, "gate", num_scenes)
    views = [processor(images=Image.fromarray(image), sliding_window=False).pixel_values for image in images]
    others = [name for name in load_vocabulary("ade20k_847") if name not in classes()]
    is_seen = np.isin(classes(), seen_words())
    rows = []
    for vocabulary in (classes(), [*classes(), *others][:LARGE_VOCABULARY]):
        text_embeds = model.get_text_embeds(processor(text=list(vocabulary)).input_ids)
        for limit in SCENE_LIMITS:
            metric = load_metric(len(vocabulary), NO_CLASS)
            options = {"text_embeds": text_embeds, "sliding_window": False, "max_classes_per_image": limit}
            for pixel_values, label in zip(tqdm(views, unit="scene"), labels, strict=True):
                logits = F.interpolate(model(pixel_values, **options).logits, size=label.shape, mode="bilinear")
                metric.add(prediction=logits[0].argmax(dim=0), reference=label)
            ious = metric.compute()["per_category_iou"][: len(classes())]
            row = {"classes": len(vocabulary), "max_classes_per_image": limit}
            rows.append({**row, "seen": np.nanmean(ious[is_seen]), "unseen": np.nanmean(ious[~is_seen])})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="of the crop (%(default)s)")
    parser.add_argument("--classes", type=int, nargs="+", default=[171, LARGE_VOCABULARY], help="(%(default)s)")
    parser.add_argument("--scenes", type=int, default=100, help="of the tests, at most 100 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    result = {
        "case": "max_classes_per_image",
        "architecture": arguments.architecture,
        "scenes": arguments.scenes,
        "machine": machine("cpu"),
        "torch": torch.__version__,
        "crops": crop_rows(arguments.architecture, arguments.classes, arguments.repeats),
        "mean_iou": scene_rows(arguments.scenes),
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
