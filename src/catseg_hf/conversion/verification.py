"""Compares a converted folder, loaded as its users will load it, with the tests' literal implementation."""

import os

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from ..modeling_catseg import CATSegForSemanticSegmentation
from . import literal


TOLERANCE = 1e-4
NUM_CLASSES = 3
# Fewer padded classes than the released 256 keep the literal implementation, which builds every one, small. Both sides
# use the same number, and all weights take part.
NUM_CLASS_TOKENS = 16


def fixed_inputs(model: CATSegForSemanticSegmentation) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pixels `(1, 3, S, S)` and token ids `(T, P, L)`, the same in every run."""
    config = model.config
    text_config = config.clip_config.text_config
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, config.image_size, config.image_size, generator=generator)
    length = min(12, text_config.max_position_embeddings)
    shape = (NUM_CLASSES, config.num_prompts, length)
    input_ids = torch.randint(text_config.vocab_size - 2, shape, generator=generator)
    # As CLIP's text model finds the end of text: by the highest id, or by the configured one.
    input_ids[..., -1] = text_config.vocab_size - 1 if text_config.eos_token_id == 2 else text_config.eos_token_id
    return pixel_values, input_ids


@torch.no_grad()
def literal_logits(model: CATSegForSemanticSegmentation) -> torch.Tensor:
    """
    Logits `(1, T, h, w)` of the fixed inputs by the literal implementation with the weights of `model`, in float32.
    """
    pixel_values, input_ids = fixed_inputs(model)
    text_embeds = _text_embeds(model, input_ids)
    num_class_tokens = model.config.num_class_tokens
    model.config.num_class_tokens = min(num_class_tokens, NUM_CLASS_TOKENS)
    try:
        return literal.literal_logits(model, pixel_values, text_embeds)
    finally:
        model.config.num_class_tokens = num_class_tokens


@torch.no_grad()
def largest_difference(folder: str | os.PathLike, expected: torch.Tensor | None = None) -> float:
    """
    How far the logits of the model in `folder` are from `expected`, or if not given from those that the literal
    implementation computes with the folder's own weights. The folder is loaded with the Auto classes in float32,
    whatever it is stored in, so that rounding to half precision is not mistaken for an error.
    """
    config = AutoConfig.from_pretrained(folder)
    config.num_class_tokens = min(config.num_class_tokens, NUM_CLASS_TOKENS)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    if expected is None:
        expected = literal_logits(model)
    pixel_values, input_ids = fixed_inputs(model)
    logits = model(pixel_values, input_ids=input_ids, sliding_window=False).logits
    if logits.shape != expected.shape:
        return float("inf")
    difference = (logits - expected).abs().max().item()
    return difference if difference == difference else float("inf")


def _text_embeds(model: CATSegForSemanticSegmentation, input_ids: torch.Tensor) -> torch.Tensor:
    """`(T, P, D)` by CLIP's text tower as transformers runs it, at full length and one prompt at a time."""
    features = [model.catseg.clip.get_text_features(ids[None]).pooler_output for ids in input_ids.flatten(0, 1)]
    return F.normalize(torch.cat(features), dim=-1).unflatten(0, input_ids.shape[:2])
