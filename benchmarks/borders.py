"""What guided upsampling gains at borders, and what it costs.

    python training/emoji_world.py --output scenes --num_scenes 500 --seed 1003 --split test
    PYTHONPATH=training python benchmarks/borders.py --scenes scenes --split test --json result.json

Scores are those of the model in the package with all of the emoji world's words, on the tests' scenes unless others
are given: mean IoU and Boundary IoU of the words with masks and of those without, and the words whose IoU falls by
more than two points. Time is that of the whole pipeline with random weights for one image: the two post-processings
are timed on the same logits, since the pipeline's own time varies by more than they take.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from catseg_hf import (
    EMBEDDED_MODEL,
    CATSegImageProcessorPil,
    CATSegProcessor,
    OpenVocabularySegmentationPipeline,
    load_vocabulary,
)
from catseg_hf.guided_upsampling_catseg import UPSAMPLINGS, as_guide
from catseg_training.world.evaluation import Segmenter, boundary_ious, mean_ious, read_scenes
from catseg_training.world.scoring import word_iou
from catseg_training.world.words import classes
from measure import ARCHITECTURES, ROOT, build_model, machine, measure, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
IMAGE_SIZE = (640, 480)
LOSS = 0.02


def scene_scores(folder: Path, split: str, num_scenes: int | None) -> dict:
    """Scores, in 0..1, of both upsamplings, and the words that lose."""
    images, labels = read_scenes(folder, split, num_scenes)
    every = np.arange(len(classes()))
    scores, ious = {}, {}
    for upsampling in UPSAMPLINGS:
        segment = Segmenter(Path(EMBEDDED_MODEL), upsampling=upsampling)
        predictions = np.stack([segment(image, every) for image in tqdm(images, unit="scene", mininterval=20)])
        scores[upsampling] = mean_ious(predictions, labels) | boundary_ious(predictions, labels)
        ious[upsampling] = word_iou(predictions, labels)
    gains = {word: ious["guided"][word] - ious["bilinear"][word] for word in classes()}
    losses = {word: round(gain, 4) for word, gain in gains.items() if gain < -LOSS}
    return {"scenes": len(images), "scores": scores, "losses": losses}


@torch.inference_mode()
def time_row(architecture: str, num_classes: int, sliding_window: bool, repeats: int) -> dict:
    """Seconds of the pipeline for an image, and those with guided upsampling in their relation."""
    model = build_model(architecture, "cpu")
    tokenizer = CATSegProcessor.from_pretrained(EMBEDDED_MODEL).tokenizer
    processor = CATSegProcessor(CATSegImageProcessorPil.from_model_config(model.config), tokenizer)
    names = load_vocabulary("ade20k_847")[:num_classes]
    input_ids = processor(text=names).input_ids
    end_of_text = model.config.clip_config.text_config.eos_token_id
    model.set_vocabulary(names, input_ids.where(input_ids != tokenizer.eos_token_id, end_of_text))
    pipe = OpenVocabularySegmentationPipeline(model, processor)
    image = Image.open(ROOT / "demo" / "scene.png").convert("RGB").resize(IMAGE_SIZE)
    outputs = model(**processor(images=image, sliding_window=sliding_window), sliding_window=sliding_window)
    post_process = partial(processor.image_processor.post_process_most_probable_class, outputs, [image.size[::-1]])
    whole, _, _ = measure(lambda: pipe(image, sliding_window=sliding_window), "cpu", repeats)
    bilinear, bilinear_mb, _ = measure(post_process, "cpu", max(repeats, 3))
    guided, guided_mb, _ = measure(lambda: post_process([as_guide(image)]), "cpu", max(repeats, 3))
    return {
        "classes": num_classes,
        "sliding_window": sliding_window,
        "pipeline_seconds": whole,
        "bilinear_seconds": bilinear,
        "guided_seconds": guided,
        "ratio": (whole - bilinear + guided) / whole,
        "bilinear_peak_memory_mb": bilinear_mb,
        "guided_peak_memory_mb": guided_mb,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, default=SCENES, metavar="DIR", help="(default: the tests')")
    parser.add_argument("--split", default="gate", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--num_scenes", type=int, metavar="N", help="the first N only")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="that is timed (%(default)s)")
    parser.add_argument("--classes", type=int, nargs="+", default=[20, 171], help="(%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    arguments = parser.parse_args()
    times = [
        time_row(arguments.architecture, num_classes, sliding_window, arguments.repeats)
        for num_classes in arguments.classes
        for sliding_window in (True, False)
    ]
    result = {
        "case": "guided upsampling",
        "architecture": arguments.architecture,
        "image": IMAGE_SIZE,
        "machine": machine("cpu"),
        "torch": torch.__version__,
        "times": times,
        **scene_scores(arguments.scenes, arguments.split, arguments.num_scenes),
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
