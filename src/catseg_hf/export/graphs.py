"""The open artefact of a model, two graphs made by transformers' exporters, and what it shares with the fixed one.

`text_encoder` computes the text features of prompts, once for a vocabulary, and `segmenter` the logits of images, any
number of them and of classes at a time (with ExecuTorch as many as `batch_size` and `num_classes` say). Beside them
are the settings of the image processor, the tokenizer, and the model's own vocabulary with its text features.
"""

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from transformers import AutoModelForSemanticSegmentation, AutoProcessor
from transformers.exporters import (
    AutoExportConfig,
    AutoHfExporter,
    ExportedComponent,
    ExportedModel,
    OnnxRuntimeDynamicConfig,
    OnnxRuntimeQuantizer,
)

from ..errors import UserError, first_line
from ..loading import resolve_model
from ..modeling_catseg import CATSegForSemanticSegmentation
from ..modeling_catseg_decoder import CATSegDecoderStage
from ..processing_catseg import CATSegProcessor
from ..utils.files import built_aside, check_output_folder
from .formats import FORMATS, FREE_SIZES, INT8
from .metadata import CARD, LICENCE, NOTICE, model_file


# Batch sizes and numbers of classes that the graphs are compared with the model at, one after the other: runtimes were
# seen to keep the sizes of an earlier call.
COMPARED_SIZES = ((1, 1), (3, 20), (1, 300), (3, 20), (1, 1))
TOLERANCE = 1e-4


class TextEncoder(nn.Module):
    """Token ids `(num_classes, num_prompts, length)` to text features `(num_classes, num_prompts, projection_dim)`."""

    def __init__(self, model: CATSegForSemanticSegmentation):
        super().__init__()
        self.model = copy.deepcopy(model.catseg)
        del self.model.aggregator, self.model.clip.vision_model  # torch.export keeps all weights, used or not

    def forward(self, input_ids: torch.LongTensor) -> dict[str, torch.FloatTensor]:
        clip, prompts = self.model.clip, input_ids.flatten(0, 1)
        end_of_text = clip.config.text_config.eos_token_id
        # CLIP's first configs name a wrong id: there the highest id ends the text.
        ends = prompts.argmax(dim=-1) if end_of_text == 2 else (prompts == end_of_text).int().argmax(dim=-1)
        hidden_states = clip.text_model(prompts).last_hidden_state
        # A product with 0 and 1 in place of indices, which would be a GatherND.
        is_end = torch.arange(prompts.shape[-1], device=prompts.device) == ends[:, None]
        pooled = (is_end[:, None].to(hidden_states.dtype) @ hidden_states).squeeze(1)
        text_embeds = F.normalize(clip.text_projection(pooled), dim=-1)
        return {"text_embeds": text_embeds.unflatten(0, input_ids.shape[:2])}


class FoldedDecoderStage(CATSegDecoderStage):
    """
    A stage of the decoder for maps of one size, what depends on weights alone computed in advance: runtimes are fast
    at transposed convolutions, or can do them at all, if the kernel is a constant.

    Args:
        stage ([`CATSegDecoderStage`]): The stage; its other layers are shared.
        side (`int`): Height and width of the maps that it upsamples.
    """

    @torch.no_grad()
    def __init__(self, stage: CATSegDecoderStage, side: int):
        nn.Module.__init__(self)
        self.guidance_conv1, self.norm1, self.conv2, self.norm2 = (
            stage.guidance_conv1,
            stage.norm1,
            stage.conv2,
            stage.norm2,
        )
        self.register_buffer("kernel", stage.upsampling_kernel(like=stage.conv1.weight))
        zeros = stage.conv1.weight.new_zeros(1, stage.upsample.in_channels, side, side)
        self.register_buffer("offset", stage.conv1(stage.upsample(zeros)))

    def upsampling_kernel(self, like: torch.Tensor) -> torch.Tensor:
        return self.kernel

    def project_guidance(self, guidance: torch.Tensor) -> torch.Tensor:
        return self.guidance_conv1(guidance) + self.offset


class Segmenter(nn.Module):
    """Normalised pixels `(batch_size, 3, image_size, image_size)` and text features to logits `(batch_size,
    num_classes, h, w)`."""

    def __init__(self, model: CATSegForSemanticSegmentation):
        super().__init__()
        self.model = copy.deepcopy(model)
        del self.model.clip.text_model
        resize_positions(self.model)
        stages, side = self.model.decoder.stages, model.config.feature_size
        self.model.decoder.stages = nn.ModuleList(
            FoldedDecoderStage(stage, side * 2**index) for index, stage in enumerate(stages)
        )

    def forward(self, pixel_values: torch.FloatTensor, text_embeds: torch.FloatTensor) -> dict[str, torch.FloatTensor]:
        return {"logits": self.model(pixel_values, text_embeds=text_embeds, sliding_window=False).logits}


@torch.no_grad()
def resize_positions(model: CATSegForSemanticSegmentation):
    """Gives CLIP the positions of patches at the model's image size, which it would make anew for every image."""
    embeddings, side = model.clip.vision_model.embeddings, model.config.image_size
    num_positions = 1 + (side // embeddings.patch_size) ** 2
    like = embeddings.position_embedding.weight.new_empty(1, num_positions, embeddings.embed_dim)
    positions = embeddings.interpolate_pos_encoding(like, side, side)[0]
    embeddings.position_embedding = nn.Embedding.from_pretrained(positions)
    embeddings.position_ids = torch.arange(num_positions, device=positions.device)[None]


def export(
    model_name_or_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    export_format: str,
    quantize: str | None = None,
    batch_size: int = 1,
    num_classes: int | None = None,
) -> Path:
    """
    Writes a model's graphs, and what is needed to use them, into a folder, after a comparison with the model.

    Args:
        model_name_or_path (`str`): The model: "base" or "large" (see [`~catseg_hf.pretrained`]), a folder or a Hub id.
        output_dir (`str`): The folder to write, which must not exist yet or be empty.
        export_format (`str`): One of `FORMATS`.
        quantize (`"int8"`, *optional*): Keeps the weights of ONNX graphs' matrix products as 8-bit integers.
        batch_size, num_classes (`int`): What ExecuTorch graphs take; by default one image and as many classes as
            the model's own vocabulary has.

    Returns:
        `Path`: The folder.

    Raises:
        UserError: If anything does not fit, in words for the user. Nothing is written then.
    """
    folder = check_output_folder(output_dir)
    exporter = GraphExporter(export_format, quantize)
    source = resolve_model(model_name_or_path)
    model, processor = load(source)
    sizes = None
    if FREE_SIZES in FORMATS[export_format].cannot:
        sizes = batch_size, num_classes or model.config.num_labels
    exported = export_graphs(model, exporter, sizes)
    difference = largest_difference(exported, model, COMPARED_SIZES if sizes is None else (sizes,))
    check_difference(difference, export_format, quantize)
    with built_aside(folder) as aside:
        exported.save_pretrained(aside)
        save_surroundings(model, processor, source, aside)
    print(f"Wrote {folder}")
    return folder


def check_difference(difference: float, export_format: str, quantize: str | None):
    """
    Tells how far a graph's outputs are from the model's.

    Raises:
        UserError: If that is too far. In integers everything is accepted.
    """
    print(f"Largest difference from the model: {difference:.1e}")
    if quantize is None and not difference <= TOLERANCE:
        raise UserError(
            f"The graphs' outputs are {difference:.1e} away from the model's, more than {TOLERANCE:.0e}: install "
            f"other versions of what --format {export_format} needs."
        )


def load(model_name_or_path: str | os.PathLike) -> tuple[CATSegForSemanticSegmentation, CATSegProcessor]:
    """
    Raises:
        UserError: If it is no CAT-Seg model.
    """
    model_name_or_path = resolve_model(model_name_or_path)
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(model_name_or_path, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(model_name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(f"{model_name_or_path} does not load as a CAT-Seg model: {first_line(error)}.") from None
    if not isinstance(model, CATSegForSemanticSegmentation):
        raise UserError(f"{model_name_or_path} is a {type(model).__name__}, not a CAT-Seg model.")
    return model.eval().requires_grad_(False), processor


def export_graphs(
    model: CATSegForSemanticSegmentation, exporter: "GraphExporter", sizes: tuple[int, int] | None = None
) -> ExportedModel:
    """
    The graphs `text_encoder` and `segmenter` of a model.

    Args:
        model (`CATSegForSemanticSegmentation`): The model, at evaluation and in float32.
        exporter ([`GraphExporter`]): For the format.
        sizes (`tuple[int, int]`, *optional*): The only batch size and number of classes that the graphs take, and
            all of the text model's tokens; any by default.
    """
    dynamic_shapes = {"input_ids": {}, "pixel_values": {}, "text_embeds": {}}
    if sizes is None:
        classes = Dim("num_classes", min=1)
        length = Dim("length", min=2, max=model.config.clip_config.text_config.max_position_embeddings)
        dynamic_shapes = {
            "input_ids": {0: classes, 2: length},
            "pixel_values": {0: Dim("batch_size", min=1)},
            "text_embeds": {0: classes},
        }
    inputs = random_inputs(model, *(sizes or (2, 5)))
    components = {}
    for name, (module, names) in graph_modules(model).items():
        shapes = {input_name: dynamic_shapes[input_name] for input_name in names}
        example = {input_name: inputs[input_name] for input_name in names}
        components[name] = exporter.export(module, example, shapes)
    return ExportedModel(components, exporter.format.exporter, config=model.config)


class GraphExporter:
    """
    transformers' exporter for a format, and what the format's module adds to it.

    Args:
        export_format (`str`): One of `FORMATS`.
        quantize (`"int8"`, *optional*): See [`export`].

    Raises:
        UserError: If a package is missing, or the format has no such integers.
    """

    def __init__(self, export_format: str, quantize: str | None = None):
        self.format = FORMATS[export_format]
        self.format.check_installed()
        # What cannot be proven of shapes is left to checks in the graph, of which one refuses a single class.
        self.options = {"export_format": self.format.exporter, "prefer_deferred_runtime_asserts_over_guards": True}
        if quantize is not None:
            self.format.check_can(INT8, "--quantize")
            config = OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gather"])
            self.options["quantizer"] = OnnxRuntimeQuantizer(config)
        try:
            self.exporter = AutoHfExporter.from_config(self.options)
        except ImportError as error:
            raise UserError(f"--format {export_format} needs other packages: {first_line(error)}.") from None
        self.module = self.format.load()

    def export(
        self, module: nn.Module, example: Mapping[str, torch.Tensor], dynamic_shapes: Mapping[str, Mapping[int, Dim]]
    ) -> ExportedComponent:
        """The graph of a module, from inputs as an example and, of each, the axes of which any size is taken."""
        config = AutoExportConfig.from_dict({**self.options, **self.module.OPTIONS, "dynamic_shapes": dynamic_shapes})
        self.module.prepare(module)
        component = self.exporter.export(module, dict(example), config).components["model"]
        self.module.finish(component.program, example, dynamic_shapes)
        return component


def graph_modules(model: CATSegForSemanticSegmentation) -> dict[str, tuple[nn.Module, tuple[str, ...]]]:
    """What is exported under which name, and its inputs."""
    return {
        "text_encoder": (TextEncoder(model), ("input_ids",)),
        "segmenter": (Segmenter(model), ("pixel_values", "text_embeds")),
    }


def random_inputs(model: CATSegForSemanticSegmentation, batch_size: int, num_classes: int) -> dict[str, torch.Tensor]:
    """Prompts as long as the text model takes, normalised pixels and text features."""
    generator = torch.Generator().manual_seed(num_classes)
    config, clip = model.config, model.config.clip_config
    vocabulary = (num_classes, config.num_prompts)
    context_length, end_of_text = clip.text_config.max_position_embeddings, clip.text_config.eos_token_id
    input_ids = torch.randint(clip.text_config.vocab_size, (*vocabulary, context_length), generator=generator)
    input_ids[..., -1] = end_of_text
    text_embeds = torch.randn(*vocabulary, clip.projection_dim, generator=generator)
    return {
        "input_ids": input_ids,
        "pixel_values": torch.randn(batch_size, 3, config.image_size, config.image_size, generator=generator),
        "text_embeds": F.normalize(text_embeds, dim=-1),
    }


@torch.no_grad()
def largest_difference(
    exported: ExportedModel, model: CATSegForSemanticSegmentation, sizes: Sequence[tuple[int, int]]
) -> float:
    """How far the graphs' outputs are at most from the model's, for these batch sizes and numbers of classes, one
    after the other in the same runtime object. With several, prompts are of several lengths too."""
    run_in_float32(exported)
    differences = []
    for batch_size, num_classes in sizes:
        inputs = random_inputs(model, batch_size, num_classes)
        input_ids, pixel_values, text_embeds = (inputs[name] for name in ("input_ids", "pixel_values", "text_embeds"))
        if len(sizes) > 1:
            input_ids = input_ids[..., -4 - num_classes :]
        pairs = (
            (exported.runners["text_encoder"](input_ids=input_ids)["text_embeds"], model.get_text_embeds(input_ids)),
            (
                exported.runners["segmenter"](pixel_values=pixel_values, text_embeds=text_embeds)["logits"],
                model(pixel_values, text_embeds=text_embeds, sliding_window=False).logits,
            ),
        )
        differences += [(found - expected).abs().max().item() for found, expected in pairs]
    return max(differences)


def run_in_float32(exported: ExportedModel):
    """Loads graphs into their runtime, to compute as the model does."""
    if exported.export_format == "openvino":  # by default in bfloat16, where the processor has it
        exported.to(config={"INFERENCE_PRECISION_HINT": "f32"})


def save_surroundings(model: CATSegForSemanticSegmentation, processor: CATSegProcessor, source: str, folder: Path):
    """What the graphs need beside them: the settings of the processor, its tokenizer, and the model's own vocabulary
    with its text features; and the card, the notice and the licence of the model, those that it has at its `source`, a
    folder or Hub id."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    labels = model.config.label_names
    (folder / "vocabulary.json").write_text(json.dumps(labels, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    with torch.no_grad():
        text_embeds = model.get_text_embeds(processor(text=labels).input_ids)
    np.save(folder / "text_embeds.npy", text_embeds.numpy())
    for name in (CARD, NOTICE, LICENCE):
        if path := model_file(source, name):
            shutil.copyfile(path, folder / name)
