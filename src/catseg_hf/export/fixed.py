"""The fixed artefact of a model: one graph with one image's shapes, and the words in it.

`pixel_values` `(1, 3, image_size, image_size)`, normalised, to `probabilities` `(1, num_classes, h, w)` in 0..1 and
`labels` `(1, h, w)`, int32. For geographic information systems: `image` `(1, 3, image_size, image_size)`, RGB in 0..1,
to `probabilities` of its own size and nothing else.
"""

import json
import os
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import nn
from transformers.exporters import ExportedModel

from ..class_words_catseg import ClassWords, read_classes
from ..errors import UserError
from ..loading import resolve_model
from ..modeling_catseg import CATSegForSemanticSegmentation
from ..processing_catseg import CATSegProcessor
from ..tensor_ops_catseg import resize_bilinear
from ..utils.files import built_aside, check_output_folder
from .formats import FORMATS, GIS
from .graphs import GraphExporter, Segmenter, check_difference, load, run_in_float32
from .metadata import artefact_metadata, gis_metadata


# Of activations at most this many bytes at a time: one class after the other would be slow in a graph, all of them
# would take gigabytes.
_CHUNK_BYTES = 48 * 2**20
_COMPARED_IMAGES = 2
# Pixels whose two most probable classes are nearer than this may be of either.
_TIE = 1e-3
_MAX_GIS_CLASSES = 255


class FixedSegmenter(nn.Module):
    """
    Normalised pixels `(1, 3, image_size, image_size)` to probabilities `(1, num_classes, h, w)` and the most probable
    class `(1, h, w)`.

    Args:
        model ([`CATSegForSemanticSegmentation`]): The model, at evaluation.
        text_embeds (`torch.FloatTensor` of shape `(num_words, num_prompts, projection_dim)`): Features of all words.
        classes ([`ClassWords`]): The classes that the words are of.
    """

    def __init__(self, model: CATSegForSemanticSegmentation, text_embeds: torch.FloatTensor, classes: ClassWords):
        super().__init__()
        self.segmenter = Segmenter(model)
        config = self.segmenter.model.config
        if config.class_chunk_size is None:
            config.class_chunk_size = classes_at_once(model)
        self.register_buffer("text_embeds", text_embeds)
        counts = [len(classes.words_of(index)) for index in range(len(classes.names))]
        self.words_of_classes = None if classes.are_words else [*pairwise(accumulate(counts, initial=0))]

    def probabilities(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """Of a class of several words the highest."""
        probabilities = self.segmenter(pixel_values, self.text_embeds)["logits"].sigmoid()
        if self.words_of_classes is None:
            return probabilities
        merged = [probabilities[:, start:stop].amax(dim=1, keepdim=True) for start, stop in self.words_of_classes]
        return torch.cat(merged, dim=1)

    def forward(self, pixel_values: torch.FloatTensor) -> dict[str, torch.Tensor]:
        probabilities = self.probabilities(pixel_values)
        return {"probabilities": probabilities, "labels": probabilities.argmax(dim=1).to(torch.int32)}


class GisSegmenter(FixedSegmenter):
    """An image `(1, 3, image_size, image_size)`, RGB in 0..1, to probabilities `(1, num_classes, image_size,
    image_size)`."""

    def __init__(
        self,
        model: CATSegForSemanticSegmentation,
        text_embeds: torch.FloatTensor,
        classes: ClassWords,
        processor: CATSegProcessor,
    ):
        super().__init__(model, text_embeds, classes)
        settings = processor.image_processor
        self.register_buffer("image_mean", torch.tensor(settings.image_mean).view(3, 1, 1))
        self.register_buffer("image_std", torch.tensor(settings.image_std).view(3, 1, 1))

    def forward(self, image: torch.FloatTensor) -> dict[str, torch.FloatTensor]:
        probabilities = self.probabilities((image - self.image_mean) / self.image_std)
        return {"probabilities": resize_bilinear(probabilities, tuple(image.shape[-2:]))}


def classes_at_once(model: CATSegForSemanticSegmentation) -> int:
    """Of how many classes the aggregation's and the decoder's activations are in memory together."""
    config = model.config
    numel = config.feature_size**2 * max(config.hidden_size * config.mlp_ratio, 16 * config.decoder_sizes[1])
    return max(1, _CHUNK_BYTES // (4 * numel))


def export_fixed(
    model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    export_format: str,
    labels: str | Sequence[str],
    target: str | None = None,
    quantize: str | None = None,
    resolution: float = 10.0,
) -> Path:
    """
    Writes one graph for one image and a vocabulary into a folder, after a comparison with the model.

    Args:
        model_name_or_path (`str`): The model: "base" or "large" (see [`~catseg_hf.pretrained`]), a folder or a Hub id.
        output_dir (`str`): The folder to write, which must not exist yet or be empty.
        export_format (`str`): One of `FORMATS`.
        labels (`str` or `Sequence[str]`): The classes, as the pipeline's `candidate_labels` takes them; bars separate
            several words for one.
        target (`"gis"`, *optional*): What the graph is for: QGIS Deepness and GeoDeep.
        quantize (`"int8"`, *optional*): Keeps the weights of ONNX graphs' matrix products as 8-bit integers.
        resolution (`float`): For GIS, the centimetres on the ground that a pixel of the graph's input is wide.

    Returns:
        `Path`: The folder.

    Raises:
        UserError: If anything does not fit, in words for the user. Nothing is written then.
    """
    if target is not None:
        FORMATS[export_format].check_can(GIS, f"--target {target}")
    classes = read_classes(labels)
    if target == GIS and not 2 <= len(classes.names) <= _MAX_GIS_CLASSES:
        raise UserError(
            f"There are {len(classes.names)} classes, but --target {target} takes 2 to {_MAX_GIS_CLASSES}, since its "
            "readers take the most probable one and keep it in 8 bits: name what else there is, or fewer."
        )
    folder = check_output_folder(output_dir)
    exporter = GraphExporter(export_format, quantize)
    source = resolve_model(model_name_or_path)
    model, processor = load(source)
    with torch.no_grad():
        text_embeds = model.get_text_embeds(processor(text=classes.words).input_ids)
    module = FixedSegmenter(model, text_embeds, classes)
    if target == GIS:
        module = GisSegmenter(model, text_embeds, classes, processor)
    module.eval().requires_grad_(False)
    exported = export_fixed_graph(module, exporter)
    check_difference(largest_fixed_difference(exported, module, model), export_format, quantize)
    metadata = artefact_metadata(model, processor, classes, os.fspath(model_name_or_path), source)
    if target == GIS:
        metadata = gis_metadata(metadata, resolution)
    metadata = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    with built_aside(folder) as aside:
        exporter.module.save(exported.components["model"], aside / exporter.module.FILE, metadata)
    print(f"Wrote {folder / exporter.module.FILE}")
    return folder


def export_fixed_graph(module: FixedSegmenter, exporter: GraphExporter) -> ExportedModel:
    """The graph `model` of a fixed segmenter."""
    example = {input_name(module): random_image(module, seed=0)}
    component = exporter.export(module, example, {name: {} for name in example})
    return ExportedModel({"model": component}, exporter.format.exporter)


def input_name(module: FixedSegmenter) -> str:
    """What the graph's only input is called."""
    return "image" if isinstance(module, GisSegmenter) else "pixel_values"


def random_image(module: FixedSegmenter, seed: int) -> torch.FloatTensor:
    """An input: in 0..1 for GIS, normalised otherwise."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand if isinstance(module, GisSegmenter) else torch.randn
    side = module.segmenter.model.config.image_size
    return draw(1, 3, side, side, generator=generator)


@torch.no_grad()
def largest_fixed_difference(
    exported: ExportedModel, module: FixedSegmenter, model: CATSegForSemanticSegmentation
) -> float:
    """How far the graph's probabilities are at most from the model's, for images one after the other. A most probable
    class that is another one than the model's, but where two are alike, counts as 1."""
    run_in_float32(exported)
    differences = []
    for seed in range(_COMPARED_IMAGES):
        image = random_image(module, seed)
        outputs = exported.runners["model"](**{input_name(module): image})
        expected = expected_probabilities(module, model, image)
        differences.append((outputs["probabilities"] - expected).abs().max().item())
        if "labels" in outputs:
            highest = expected.amax(dim=1)
            chosen = expected.gather(1, outputs["labels"].long()[:, None])[:, 0]
            differences.append(float((highest - chosen > _TIE).any()))
    return max(differences)


def expected_probabilities(
    module: FixedSegmenter, model: CATSegForSemanticSegmentation, image: torch.FloatTensor
) -> torch.FloatTensor:
    """What the model itself makes of an input of the graph, by its own way through all words."""
    pixel_values = (image - module.image_mean) / module.image_std if isinstance(module, GisSegmenter) else image
    logits = model(pixel_values, text_embeds=module.text_embeds, sliding_window=False).logits
    probabilities = logits.sigmoid()
    if module.words_of_classes is not None:
        merged = [probabilities[:, start:stop].amax(dim=1) for start, stop in module.words_of_classes]
        probabilities = torch.stack(merged, dim=1)
    if isinstance(module, GisSegmenter):
        probabilities = resize_bilinear(probabilities, tuple(image.shape[-2:]))
    return probabilities
