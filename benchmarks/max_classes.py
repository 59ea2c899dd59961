"""What `max_classes_per_image` saves and what it costs.

    PYTHONPATH=training python benchmarks/max_classes.py --json result.json

Time and memory are those of one crop with random weights. "auto" is timed with the numbers of classes at its three
stages forced to `--kept`, since margins mean nothing to random weights, in CPU seconds beside all classes. Mean IoU
is that of the model in the package on the tests' scenes, with its own words as the vocabulary and with other names
around them, up to 847; it aggregates 32 classes at most by its configuration, so that only lower limits change
anything.
"""

import argparse
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor, load_vocabulary
from catseg_hf.class_selection_catseg import ClassSelection, sample_weights, shortfalls
from catseg_hf.configuration_catseg import SELECTION_STAGES
from catseg_training.metric import load_metric
from catseg_training.world.evaluation import read_scenes
from catseg_training.world.folders import NO_CLASS
from catseg_training.world.words import classes, seen_words
from measure import (
    ARCHITECTURES,
    ROOT,
    build_model,
    cpu_seconds,
    machine,
    measure,
    peak_memory,
    random_inputs,
    write_json,
)


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
LARGE_VOCABULARY = 847
PARTS = ("crops", "auto", "mean_iou")
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
def selection_rows(architecture: str, vocabularies: list[int], repeats: int, kept: dict[str, int]) -> list[dict]:
    """CPU seconds, the shortest of runs in turn, and peak memory of a crop with all classes, and with so many kept at
    each stage as "auto" would by its margins."""
    model, rows = build_model(architecture, "cpu"), []
    model.config.class_selection = {**dict.fromkeys(SELECTION_STAGES, 0.0), "weights": sample_weights(model)}

    def closest(selection: ClassSelection, scores: torch.Tensor, stage: str) -> torch.Tensor:
        missing = shortfalls(scores)[0]
        indices = missing.topk(min(kept[stage], len(missing)), largest=False).indices
        return torch.zeros_like(missing, dtype=torch.bool).index_fill_(0, indices, True)

    with patch.object(ClassSelection, "_can_win", closest):
        for num_classes in vocabularies:
            pixel_values, text_embeds = random_inputs(model, num_classes, model.config.image_size, 1, "cpu")
            options = {"text_embeds": text_embeds, "sliding_window": False}
            runs = [partial(model, pixel_values, **options, max_classes_per_image=limit) for limit in (None, "auto")]
            peaks = [peak_memory(run, "cpu") for run in runs]
            seconds = np.array([[cpu_seconds(run) for run in runs] for _ in range(repeats)]).min(axis=0)
            row = {"classes": num_classes, "kept": kept, "exact_cpu_seconds": seconds[0], "cpu_seconds": seconds[1]}
            row |= {"ratio": seconds[0] / seconds[1], "exact_peak_memory_mb": peaks[0], "peak_memory_mb": peaks[1]}
            rows.append(row)
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
    parser.add_argument(
        "--kept",
        type=int,
        nargs=3,
        default=[48, 32, 16],
        metavar=("COST", "LAYERS", "DECODER"),
        help="classes that auto leaves for the first layer, further layers and the decoder (%(default)s)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (all)")
    parser.add_argument("--scenes", type=int, default=100, help="of the tests, at most 100 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    crops = (arguments.architecture, arguments.classes, arguments.repeats)
    kept = dict(zip(SELECTION_STAGES, arguments.kept, strict=True))
    parts = {
        "crops": partial(crop_rows, *crops),
        "auto": partial(selection_rows, *crops, kept),
        "mean_iou": partial(scene_rows, arguments.scenes),
    }
    result = {
        "case": "max_classes_per_image",
        "architecture": arguments.architecture,
        "scenes": arguments.scenes,
        "machine": machine("cpu"),
        "torch": torch.__version__,
        **{name: part() for name, part in parts.items() if name in arguments.parts},
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
