"""The model and processor that a run starts from: a CAT-Seg checkpoint, or CLIP with a fresh aggregator."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoTokenizer, CLIPModel, CLIPTextConfig, PreTrainedConfig, PreTrainedTokenizerBase

from catseg_hf import (
    VOCABULARIES,
    CATSegConfig,
    CATSegForSemanticSegmentation,
    CATSegImageProcessorPil,
    CATSegProcessor,
    load_vocabulary,
)
from catseg_hf.configuration_catseg import guidance_layers_by_depth
from catseg_hf.errors import UNREADABLE_CHECKPOINT, UserError, first_line
from catseg_hf.loading import resolve_model
from catseg_hf.utils.files import read_json

from .lora import ADAPTER_CONFIG


# Side of the feature grid of both published models.
FEATURE_SIZE = 24
FRESH_VOCABULARY = "coco_stuff_171"
LARGEST_LABEL = 65535


def load_checkpoint(
    name: str, token: str | None = None, option: str = "--model_name_or_path"
) -> tuple[CATSegForSemanticSegmentation, CATSegProcessor]:
    """
    Model and processor of a CAT-Seg checkpoint, in float32.

    Args:
        name (`str`): "base" or "large" (see [`~catseg_hf.pretrained`]), a folder or a repository on the Hub.
        token (`str`, *optional*): For the Hub.
        option (`str`): What errors tell the user to change.

    Raises:
        UserError: If it cannot be loaded or is of another architecture.
    """
    name = resolve_model(name)
    try:
        if (Path(name) / ADAPTER_CONFIG).is_file():
            raise UserError(f"{name} is an adapter for peft: give the folder above it, which holds the merged model.")
        _check_architecture(name, "catseg", option, token)
        model = CATSegForSemanticSegmentation.from_pretrained(name, dtype=torch.float32, token=token)
        processor = CATSegProcessor.from_pretrained(name, token=token)
        # The protocol's, whether torchvision is installed or not: a model's scores must not depend on that.
        processor.image_processor = CATSegImageProcessorPil.from_pretrained(name, token=token)
        return model, processor
    except UNREADABLE_CHECKPOINT as error:
        raise UserError(
            f"Could not load the checkpoint {name!r}: {first_line(error)}. Give a converted CAT-Seg checkpoint to "
            f"{option}."
        ) from None


def build_from_clip(
    name: str,
    token: str | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    prior_probability: float | None = None,
) -> tuple[CATSegForSemanticSegmentation, CATSegProcessor]:
    """
    CLIP under a fresh aggregator and decoder, in float32. The image size follows from CLIP's patches (384 for 16,
    336 for 14), the guidance from its depth. The aggregator's weights are drawn from torch's generator.

    Args:
        name (`str`): A CLIP checkpoint: a folder or a repository on the Hub.
        token (`str`, *optional*): For the Hub.
        config_overrides (`Mapping[str, Any]`, *optional*): Fields of [`CATSegConfig`] for another architecture.
        prior_probability (`float`, *optional*):
            Of every class in every pixel, that the bias of the last convolution is set to.

    Raises:
        UserError: If it cannot be loaded, is of another architecture or does not suit CAT-Seg.
    """
    try:
        _check_architecture(name, "clip", "--clip_model_name_or_path", token)
        clip = CLIPModel.from_pretrained(name, dtype=torch.float32, token=token)
        tokenizer = AutoTokenizer.from_pretrained(name, token=token)
        _check_tokenizer(tokenizer, clip.config.text_config)
    except UNREADABLE_CHECKPOINT as error:
        raise UserError(
            f"Could not load the CLIP checkpoint {name!r}: {first_line(error)}. Give a CLIP with its tokenizer, such "
            "as openai/clip-vit-base-patch16, to --clip_model_name_or_path."
        ) from None
    fields = {
        "image_size": FEATURE_SIZE * clip.config.vision_config.patch_size,
        "guidance_layers": guidance_layers_by_depth(clip.config.vision_config.num_hidden_layers),
        **(config_overrides or {}),
    }
    known = {field.name for field in dataclasses.fields(CATSegConfig)} - {"clip_config"}
    if unknown := sorted(fields.keys() - known):
        raise UserError(f"--config_overrides has {unknown}: take the names from CATSegConfig, `clip_config` excepted.")
    clip.config.name_or_path = ""  # would be saved and uploaded, even if it is a folder of this machine
    try:
        config = CATSegConfig(clip_config=clip.config, **fields)
    except StrictDataclassError as error:
        raise UserError(f"The CLIP {name!r} does not suit CAT-Seg: {error.__cause__ or error}") from None
    model = CATSegForSemanticSegmentation(config)
    model.clip.load_state_dict(clip.state_dict())
    if prior_probability is not None:
        nn.init.constant_(model.decoder.head.bias, math.log(prior_probability / (1 - prior_probability)))
    image_processor = CATSegImageProcessorPil.from_model_config(config)
    return model, CATSegProcessor(image_processor, tokenizer)


def read_vocabulary(name: str) -> list[str]:
    """
    Class names by their ids.

    Args:
        name (`str`): One of `catseg_hf.VOCABULARIES`, or a JSON file with a list of names, a mapping of the ids 0, 1,
            ... to names, or a configuration with such an `id2label`.

    Raises:
        UserError: If it is none of these.
    """
    if name in VOCABULARIES:
        return load_vocabulary(name)
    try:
        names = read_json(name)
        if isinstance(names, dict):
            id2label = {int(index): label for index, label in names.get("id2label", names).items()}
            names = [id2label[index] for index in range(len(id2label))]
    except KeyError as error:
        raise UserError(
            f"{name} names {len(id2label)} classes, but none with the id {error}: ids are 0, 1, ..."
        ) from None
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"--vocabulary {name} is neither one of {', '.join(VOCABULARIES)} nor a JSON file with a list of names or "
            f"a mapping of ids to names ({error})."
        ) from None
    if not isinstance(names, list) or not names or not all(isinstance(label, str) for label in names):
        raise UserError(f"{name} must hold a list of class names or a mapping of ids to them.")
    return names


def set_classes(
    model: CATSegForSemanticSegmentation,
    processor: CATSegProcessor,
    labels: list[str] | None,
    ignore_index: int | None,
):
    """
    Gives the model its vocabulary and the label of pixels of no class.

    Args:
        model ([`CATSegForSemanticSegmentation`]), processor ([`CATSegProcessor`]): The model to change, and its
            processor.
        labels (`list[str]`, *optional*): Class names; the model's own if not given.
        ignore_index (`int`, *optional*):
            The label; if not given the model's own, or 65535 if that is the id of a class.

    Raises:
        UserError: If the names cannot be prompted, or `ignore_index` is a class.
    """
    if labels is not None:
        try:
            model.set_vocabulary(labels, processor(text=labels).input_ids)
        except ValueError as error:
            raise UserError(f"The vocabulary cannot be prompted: {error}") from None
    num_labels = model.config.num_labels
    if ignore_index is None:
        own = model.config.semantic_loss_ignore_index
        ignore_index = LARGEST_LABEL if 0 <= own < num_labels else own
    if ignore_index < num_labels:
        raise UserError(
            f"--ignore_index {ignore_index} is the id of a class: there are {num_labels}. Give an id from "
            f"{num_labels} to {LARGEST_LABEL}."
        )
    model.config.semantic_loss_ignore_index = ignore_index


def recompute_activations(model: CATSegForSemanticSegmentation, gradient_checkpointing: bool | None = None):
    """
    Has activations computed again for the gradients instead of kept.

    Args:
        model ([`CATSegForSemanticSegmentation`]): A model that keeps all of them, as it does when built or loaded.
        gradient_checkpointing (`bool`, *optional*):
            Those of all layers or of none. By default all but CLIP's, since the maps of all classes take far more
            memory than computing them again takes time.
    """
    if gradient_checkpointing is not False:
        model.activation_checkpointing_enable()
    if gradient_checkpointing is None:
        # Releases before 5.23 give this name to CAT-Seg's models only.
        CATSegForSemanticSegmentation.activation_checkpointing_disable(model.clip)


def freeze_unused(model: nn.Module, config: CATSegConfig, num_classes: int):
    """
    Freezes what [`~CATSegForSemanticSegmentation.freeze_clip`] leaves and no gradient can change: the padding tokens,
    where there are classes enough.

    Args:
        model (`nn.Module`): The model, with what is trained chosen.
        config ([`CATSegConfig`]): Its configuration.
        num_classes (`int`): How many classes it is trained with at a time.
    """
    if num_classes < config.num_class_tokens:
        return
    for name, parameter in model.named_parameters():
        if "block.padding_token" in name or "block.padding_guidance" in name:
            parameter.requires_grad_(False)


def _check_architecture(name: str, expected: str, option: str, token: str | None):
    fields, _ = PreTrainedConfig.get_config_dict(name, token=token)
    model_type = fields.get("model_type")
    if model_type is None:
        raise OSError("there is no config.json that names an architecture.")
    if model_type != expected:
        raise UserError(
            f"{name!r} is of the architecture {model_type!r}, but {option} takes {expected!r}"
            f"{' (a converted CAT-Seg checkpoint)' if expected == 'catseg' else ''}."
        )


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, text_config: CLIPTextConfig):
    # transformers makes an empty tokenizer where there are no files of one, and gives it CLIP's name.
    end = text_config.eos_token_id
    if not 256 < len(tokenizer) <= text_config.vocab_size or tokenizer.eos_token_id not in (end, len(tokenizer) - 1):
        raise OSError(f"its tokenizer ({len(tokenizer)} tokens) is not the one of its text tower.")
