"""Time, size and accuracy of exported models beside PyTorch's.

    PYTHONPATH=training python benchmarks/export.py --json benchmarks/results/export.json

Twice: of a model with random weights, which segments one crop, and of the model in the package, with all words as the
vocabulary, of which also the mean IoU on the tests' scenes is taken.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import TorchAoConfig

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor
from catseg_hf.export.graphs import export_graphs
from catseg_training.world.evaluation import mean_ious, read_scenes
from catseg_training.world.words import classes
from measure import ARCHITECTURES, ROOT, build_model, machine, measure, random_inputs, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
# Format, quantisation and files of the exported variants.
EXPORTED = {
    "onnx": ("onnx", None, "*.onnx*"),
    "onnx_int8": ("onnx", "int8", "*.onnx*"),
    "openvino": ("openvino", None, "*.bin"),
    "torch_export": ("torch_export", None, "*.pt2"),
    "executorch": ("executorch", None, "*.pte"),
}
Segment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_variant(name: str, model: CATSegForSemanticSegmentation, num_classes: int) -> tuple[Segment, float]:
    """How a variant of a model makes logits of pixels and text features, and the size of its files in megabytes."""
    if name in EXPORTED:
        export_format, quantize, files = EXPORTED[name]
        sizes = (1, num_classes) if export_format == "executorch" else None
        exported = export_graphs(model, export_format, quantize, sizes)
        size = size_mb(exported.save_pretrained, files)
        segmenter = exported.runners["segmenter"]

        def run(exported=exported, **inputs):  # which must outlive ExecuTorch's runner
            return segmenter(**inputs)
    else:
        model = quantized(model) if name == "pytorch_int8" else model
        size = size_mb(model.save_pretrained, "*.safetensors")
        run = partial(model, sliding_window=False)
    return lambda pixel_values, text_embeds: run(pixel_values=pixel_values, text_embeds=text_embeds)["logits"], size


def quantized(model: CATSegForSemanticSegmentation) -> CATSegForSemanticSegmentation:
    """The model with 8-bit weights, by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = TorchAoConfig(Int8WeightOnlyConfig())
        return CATSegForSemanticSegmentation.from_pretrained(folder, quantization_config=config).eval()


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
    parser.add_argument(
        "--variants", nargs="+", choices=[*EXPORTED, "pytorch_int8"], default=["onnx", "onnx_int8"], help="%(choices)s"
    )
    parser.add_argument("--scenes", type=int, default=40, help="of the tests, at most 40 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()

    model = build_model(arguments.architecture, "cpu")
    embedded = CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).eval()
    processor = CATSegProcessor.from_pretrained(EMBEDDED_MODEL)

    @torch.no_grad()
    def rows(model: CATSegForSemanticSegmentation, pixel_values: torch.Tensor, text_embeds: torch.Tensor) -> dict:
        results, expected = {}, None
        for name in ("pytorch", *arguments.variants):
            segment, size = build_variant(name, model, len(text_embeds))
            seconds, peak, logits = measure(partial(segment, pixel_values, text_embeds), "cpu", arguments.repeats)
            results[name] = {"seconds": seconds, "peak_memory_mb": peak, "size_mb": size}
            expected = logits.sigmoid() if expected is None else expected
            results[name]["max_abs_probability_difference"] = (logits.sigmoid() - expected).abs().max().item()
            if model is embedded:
                results[name]["mean_iou"] = scores(segment, processor, text_embeds, arguments.scenes)
        return results

    inputs = random_inputs(model, arguments.classes, model.config.image_size, 1, "cpu")
    pixel_values, _ = random_inputs(embedded, 1, embedded.config.image_size, 1, "cpu")
    with torch.no_grad():
        words = embedded.get_text_embeds(processor(text=list(classes())).input_ids)
    result = {
        "case": "export",
        "classes": arguments.classes,
        "scenes": arguments.scenes,
        "machine": machine("cpu"),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        arguments.architecture: rows(model, *inputs),
        "embedded": rows(embedded, pixel_values, words),
    }
    write_json(result, arguments.json)


if __name__ == "__main__":
    main()
