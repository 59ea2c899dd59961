"""Time, memory, size and accuracy of exported models beside PyTorch's.

    PYTHONPATH=training python benchmarks/export.py --json benchmarks/results/export.json --table

Twice: of a model with random weights, which segments one crop, and of the model in the package, with all words as the
vocabulary, of which also the mean IoU on the tests' scenes is taken. Formats whose packages are missing are left out,
with a line that says so.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import TorchAoConfig

from catseg_hf import EMBEDDED_MODEL, CATSegForSemanticSegmentation, CATSegProcessor
from catseg_hf.class_words_catseg import read_classes
from catseg_hf.errors import UserError
from catseg_hf.export.fixed import FixedSegmenter, export_fixed_graph
from catseg_hf.export.formats import FORMATS, FREE_SIZES, INT8
from catseg_hf.export.graphs import GraphExporter, export_graphs
from catseg_training.world.evaluation import mean_ious, read_scenes
from catseg_training.world.words import classes
from measure import ARCHITECTURES, ROOT, build_model, machine, measure, random_inputs, write_json


SCENES = ROOT / "tests" / "fixtures" / "emoji_world"
# Format, kind of artefact and quantisation of the exported variants.
EXPORTED = {
    f"{name}_{kind}{'' if quantize is None else f'_{quantize}'}": (name, kind, quantize)
    for name, known in FORMATS.items()
    for kind in ("open", "fixed")
    for quantize in (None, INT8)
    if quantize not in known.cannot
}
# Pixels and text features to probabilities.
Segment = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_variant(name: str, model: CATSegForSemanticSegmentation, text_embeds: torch.Tensor) -> tuple[Segment, float]:
    """How a variant of a model makes probabilities, and the size of what it needs for that in megabytes."""
    if name not in EXPORTED:
        model = quantized(model) if name == "pytorch_int8" else model
        run = partial(model, sliding_window=False)
        return lambda pixel_values, text_embeds: run(
            pixel_values=pixel_values, text_embeds=text_embeds
        ).logits.sigmoid(), size_mb(model.save_pretrained)
    export_format, kind, quantize = EXPORTED[name]
    exporter = GraphExporter(export_format, quantize)
    if kind == "fixed":
        module = FixedSegmenter(model, text_embeds, read_classes([f"class {i}" for i in range(len(text_embeds))]))
        fixed = export_fixed_graph(module.eval().requires_grad_(False), exporter).to()
        size = size_mb(
            lambda folder: exporter.module.save(fixed.components["model"], folder / exporter.module.FILE, {})
        )
        return lambda pixel_values, _: fixed(pixel_values=pixel_values)["probabilities"], size
    sizes = (1, len(text_embeds)) if FREE_SIZES in FORMATS[export_format].cannot else None
    exported = export_graphs(model, exporter, sizes).to()
    size = size_mb(exported.save_pretrained)

    def segment(pixel_values: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        return exported.runners["segmenter"](pixel_values=pixel_values, text_embeds=text_embeds)["logits"].sigmoid()

    return segment, size


def quantized(model: CATSegForSemanticSegmentation) -> CATSegForSemanticSegmentation:
    """The model with 8-bit weights, by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = TorchAoConfig(Int8WeightOnlyConfig())
        return CATSegForSemanticSegmentation.from_pretrained(folder, quantization_config=config).eval()


def size_mb(save: Callable[[Path], None]) -> float:
    """Size of the files that `save` writes into a folder, without settings."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).iterdir() if path.suffix != ".json") / 1e6


def scores(segment: Segment, processor: CATSegProcessor, text_embeds: torch.Tensor, num_scenes: int) -> dict:
    """Mean IoU of the words with masks in training and of those without."""
    images, labels = read_scenes(SCENES, "gate", num_scenes)
    predictions = []
    for image in images:
        pixel_values = processor(images=Image.fromarray(image), sliding_window=False).pixel_values
        probabilities = F.interpolate(segment(pixel_values, text_embeds), size=image.shape[:2], mode="bilinear")
        predictions.append(probabilities[0].argmax(dim=0).numpy())
    return mean_ious(np.stack(predictions), labels)


def table(result: dict, architecture: str) -> str:
    """A result as Markdown, a row for each variant."""
    rows = [
        f"| | {architecture}: size | seconds | peak memory | difference | embedded: seconds | mIoU | runtime |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, large in result[architecture].items():
        small = result["embedded"][name]
        iou = " / ".join(f"{value:.3f}" for value in small["mean_iou"].values())
        rows.append(
            f"| {name.replace('_', ' ')} | {large['size_mb']:.0f} MB | {large['seconds']:.2f} | "
            f"{large['peak_memory_mb'] / 1000:.2f} GB | {large['max_abs_probability_difference']:.0e} | "
            f"{small['seconds']:.3f} | {iou} | {large['runtime']} |"
        )
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="base", help="released size (%(default)s)")
    parser.add_argument("--classes", type=int, default=171, help="size of the vocabulary (%(default)s)")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=[*EXPORTED, "pytorch_int8"],
        default=[*EXPORTED],
        help="%(choices)s (exported)",
    )
    parser.add_argument("--scenes", type=int, default=40, help="of the tests, at most 40 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs; the shortest counts (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--table", action="store_true", help="print it as a table too")
    arguments = parser.parse_args()

    variants = ["pytorch"]
    for name in arguments.variants:
        try:
            if name in EXPORTED:
                FORMATS[EXPORTED[name][0]].check_installed()
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            variants.append(name)
    model = build_model(arguments.architecture, "cpu")
    embedded = CATSegForSemanticSegmentation.from_pretrained(EMBEDDED_MODEL).eval()
    processor = CATSegProcessor.from_pretrained(EMBEDDED_MODEL)

    @torch.no_grad()
    def rows(model: CATSegForSemanticSegmentation, pixel_values: torch.Tensor, text_embeds: torch.Tensor) -> dict:
        results, expected = {}, None
        for name in variants:
            segment, size = build_variant(name, model, text_embeds)
            run = partial(segment, pixel_values, text_embeds)
            seconds, peak, probabilities = measure(run, "cpu", arguments.repeats)
            expected = probabilities if expected is None else expected
            results[name] = {
                "seconds": seconds,
                "peak_memory_mb": peak,
                "size_mb": size,
                "max_abs_probability_difference": (probabilities - expected).abs().max().item(),
                "runtime": runtime_of(name),
            }
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
    if arguments.table:
        print(table(result, arguments.architecture))


def runtime_of(name: str) -> str:
    """What runs a variant, and its version."""
    package = FORMATS[EXPORTED[name][0]].runtime if name in EXPORTED else "torch"
    return f"{package} {version(package)}"


if __name__ == "__main__":
    main()
