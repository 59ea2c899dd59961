"""What several words for a class and a background are worth, on the tests' scenes of the emoji world.

PYTHONPATH=training python benchmarks/words.py --json benchmarks/results/words.json

Bars: every class is two of the world's words, drawn at random. Its map is the highest of the words' maps, as in
"cat|dog"; beside it the map of the mean of their text features, renormalised, and that of the first word alone.

Background: twenty of the words are looked for, drawn at random, in scenes that show others as well. Without a
background, with a threshold, and with the other words as the background. Scores are mean IoU over classes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from catseg_hf import EMBEDDED_MODEL
from catseg_hf.class_words_catseg import read_classes
from catseg_hf.loading import load_segmenter
from catseg_training.world.evaluation import read_scenes
from catseg_training.world.words import classes
from measure import ROOT, machine, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
NUM_LABELS = 20
THRESHOLDS = (0.3, 0.5, 0.7)


def mean_iou(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Mean over the classes that occur; -1 is none of them, in either."""
    ious = []
    for index in range(num_classes):
        predicted, true = predictions == index, labels == index
        if true.any():
            ious.append((predicted & true).sum() / (predicted | true).sum())
    return round(float(np.mean(ious)), 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100, help="how many scenes (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the scores")
    arguments = parser.parse_args()
    images, labels = (np.stack(part[: arguments.scenes]) for part in read_scenes(SCENES, "gate"))
    segmenter = load_segmenter(EMBEDDED_MODEL, "cpu")
    model, processor, names = segmenter.model, segmenter.processor, list(classes())
    order = np.random.default_rng(0).permutation(len(names))

    @torch.inference_mode()
    def segment(text_embeds: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The most probable class of every pixel of all scenes, and its probability."""
        maps = []
        for image in images:
            outputs = model(**processor(images=Image.fromarray(image)), text_embeds=text_embeds)
            maps += processor.image_processor.post_process_most_probable_class(outputs, [labels.shape[1:]])
        return tuple(torch.stack(part).numpy() for part in zip(*maps, strict=True))

    with torch.inference_mode():
        text_embeds = model.get_text_embeds(processor(text=names).input_ids)
    by_word, _ = segment(text_embeds)

    pairs = [order[start : start + 2] for start in range(0, len(order) - 1, 2)]
    read = read_classes(["|".join(names[word] for word in pair) for pair in pairs])
    class_of_word = np.full(len(names), -1)
    class_of_word[[names.index(word) for word in read.words]] = read.class_indices
    of_pairs = class_of_word[labels]
    means = F.normalize(torch.stack([text_embeds[pair].mean(dim=0) for pair in pairs]), dim=-1)
    bars = {
        "highest_map": mean_iou(class_of_word[by_word], of_pairs, len(pairs)),
        "mean_of_features": mean_iou(segment(means)[0], of_pairs, len(pairs)),
        "first_word": mean_iou(segment(text_embeds[[pair[0] for pair in pairs]])[0], of_pairs, len(pairs)),
    }

    wanted, others = order[:NUM_LABELS], order[NUM_LABELS:]
    index_of_word = np.full(len(names), -1)
    index_of_word[wanted] = np.arange(NUM_LABELS)
    of_wanted = index_of_word[labels]
    alone, probability = segment(text_embeds[wanted])
    beside, _ = segment(text_embeds[np.concatenate([wanted, others])])
    background = {"without": mean_iou(alone, of_wanted, NUM_LABELS)}
    for threshold in THRESHOLDS:
        kept = np.where(probability < threshold, -1, alone)
        background[f"threshold_{threshold}"] = mean_iou(kept, of_wanted, NUM_LABELS)
    background["background"] = mean_iou(np.where(beside < NUM_LABELS, beside, -1), of_wanted, NUM_LABELS)
    result = {"machine": machine("cpu"), "scenes": len(images), "bars": bars, "background": background}
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
