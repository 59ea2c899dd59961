"""Time, size and accuracy of exported models beside PyTorch's.

    PYTHONPATH=convert:training python benchmarks/export.py --architecture base --json result.json

Time and size are those of a model with random weights, which segments one crop; mean IoU is that of the model in the
package on the tests' scenes, with all words as the vocabulary.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.exporters import ExportedModel

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor
from catseg_training.world.evaluation import mean_ious, read_scenes
from catseg_training.world.words import classes
from export_catseg import export_graphs
from measure import ARCHITECTURES, ROOT, build_model, machine, measure, random_inputs, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
VARIANTS = {"onnx": ("onnx", None), "onnx_int8": ("onnx", "int8"), "openvino": ("openvino", None)}
Segment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def segmenter(exported: ExportedModel) -> Segment:
    """Pixels and text features to logits."""
    run = exported.runners["segmenter"]
    return lambda pixel_values, text_embeds: run(pixel_values=pixel_values, text_embeds=text_embeds)["logits"]


def pytorch_segmenter(model: CATSegForSemanticSegmentation) -> Segment:
    return lambda pixel_values, text_embeds: model(pixel_values, text_embeds=text_embeds, sliding_window=False).logits


def size_mb(save: Callable[[Path], None], pattern: str) -> float:
    """Size of the files of a pattern that `save` writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).glob(pattern)) / 1e6


def scores(segment: Segment, processor: CATSegProcessor, text_embeds: torch.Tensor, num_scenes: int) -> dict:
    """Mean IoU of the words with masks in training and of those without."""
    images, labels = read_scenes(SCENES, "gate", num_scenes)
    predictions = []
    for image in images:
        pixel_values = processor(images=Image.fromarray(image), sliding_window=False).pixel_values
        logits = F.interpolate(segment(pixel_values, text_embeds), size=image.shape[:2], mode="bilinear")
        predictions.append(logits[0].argmax(dim=0).numpy())
    return mean_ious(np.stack(predictions), labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--classes", type=int, default=171, help="size of the vocabulary (%(default)s)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["onnx", "onnx_int8"])
    parser.add_argument("--scenes", type=int, default=40, help="of the tests, at most 40 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    model = build_model(arguments.architecture, "cpu")
    inputs = random_inputs(model, arguments.classes, model.config.image_size, 1, "cpu")
    embedded = CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).eval()
    processor = CATSegProcessor.from_pretrained(EMBEDDED_MODEL)
    results = {}

    def add(name: str, segment: Segment, embedded_segment: Segment, size: float, expected: torch.Tensor | None):
        seconds, peak, logits = measure(lambda: segment(*inputs), "cpu", arguments.repeats)
        results[name] = {"seconds": seconds, "peak_memory_mb": peak, "size_mb": size}
        if expected is not None:
            results[name]["max_abs_probability_difference"] = (
                (logits.sigmoid() - expected.sigmoid()).abs().max().item()
            )
        results[name]["mean_iou"] = scores(embedded_segment, processor, words, arguments.scenes)
        return logits

    with torch.no_grad():
        words = embedded.get_text_embeds(processor(text=list(classes())).input_ids)
        size = size_mb(model.save_pretrained, "*.safetensors")
        expected = add("pytorch", pytorch_segmenter(model), pytorch_segmenter(embedded), size, None)
        for name in arguments.variants:
            exported, small = (export_graphs(one, *VARIANTS[name]) for one in (model, embedded))
            pattern = "*.bin" if name == "openvino" else "*.onnx*"
            add(name, segmenter(exported), segmenter(small), size_mb(exported.save_pretrained, pattern), expected)

    result = {
        "case": "export",
        "architecture": arguments.architecture,
        "classes": arguments.classes,
        "scenes": arguments.scenes,
        "machine": machine("cpu"),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        **results,
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
