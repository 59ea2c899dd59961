"""Checkpoints of the two released architectures under the authors' names, filled from the names of their tensors."""

import json
import zlib
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from catseg_hf import CATSegForSemanticSegmentation
from conftest import FIXTURES, normalise


ARCHITECTURES = ["vit_b_16_384", "vit_l_14_336"]


def full_size_state_dict(architecture: str) -> dict[str, torch.Tensor]:
    """The float32 tensors that the goldens of `architecture` were computed with."""
    manifest = json.loads((FIXTURES / "full" / f"{architecture}.manifest.json").read_text())
    return {
        name: torch.zeros(shape) if name.endswith("attn_mask") else _tensor_for(name, tuple(shape))
        for name, shape in manifest.items()
    }


def assert_golden(model: CATSegForSemanticSegmentation, architecture: str):
    """Text features within 1e-4 and probabilities within 1e-5 of what the authors' code computes for one image."""
    expected = load_file(FIXTURES / "full" / f"{architecture}.safetensors")
    inputs = load_file(FIXTURES / "full" / f"{ARCHITECTURES[0]}.safetensors")
    with torch.no_grad():
        text_embeds = model.get_text_embeds(inputs["input_ids"])
        pixel_values = normalise(inputs["pixel_values_uint8"])[None]
        logits = model(pixel_values, text_embeds=text_embeds, sliding_window=False).logits
    torch.testing.assert_close(text_embeds, expected["text_embeds"], rtol=0, atol=1e-4)
    probabilities = F.interpolate(logits.sigmoid(), size=(384, 384), mode="bilinear")[0]
    torch.testing.assert_close(
        probabilities[:, ::12, ::12], expected["sem_seg_probabilities_stride12"], rtol=0, atol=1e-5
    )


def _tensor_for(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    noise = generator.standard_normal(shape, dtype=np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if name.endswith("logit_scale"):
        values = np.float32(4.6052)
    elif any(part in name for part in ("ln_", "norm", "bn", "double_conv.1.", "double_conv.4.")):
        values = 1 + 0.1 * noise if leaf == "weight" else 0.1 * noise
    elif leaf in ("bias", "in_proj_bias"):
        values = 0.02 * noise
    elif "padding" in leaf:
        values = 0.5 * noise
    elif any(part in name for part in ("token_embedding", "positional_embedding", "class_embedding")):
        values = 0.05 * noise
    elif leaf in ("proj", "text_projection"):
        values = noise / np.sqrt(shape[0])
    else:
        fan_in = prod(shape[1:]) if len(shape) > 1 else shape[0]
        values = noise / np.sqrt(max(fan_in, 1))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
