"""Reads the architecture of an original CAT-Seg checkpoint off the shapes of its tensors."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig

from ..configuration_catseg import CATSegConfig, guidance_layers_by_depth
from ..errors import UserError
from .original_layout import original_tensors


CLIP_HEAD_SIZE = 64
# What leaves no trace in a checkpoint, as published.
DEFAULT_FEATURE_SIZE = 24
DEFAULT_WINDOW_SIZE = 12
DEFAULT_CLASS_TOKENS = 256

CLIP = "sem_seg_head.predictor.clip_model."
AGGREGATOR = "sem_seg_head.predictor.transformer."


def infer_config(state_dict: Mapping[str, Any]) -> CATSegConfig:
    """
    The architecture of an original checkpoint, read off its tensors' shapes. What leaves no trace in them is taken as
    published: 4 aggregator heads, linear attention, 256 class tokens, guidance from the blocks after one and after two
    thirds of the vision tower.

    Every size is read off all the tensors that share it, and the most common value is taken: a tensor that is missing
    or has another shape than the rest does not change the architecture, and [`convert_state_dict`] names it.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            Tensors under the authors' names, possibly with `module.` in front or under "model".

    Returns:
        [`CATSegConfig`], with COCO-Stuff's labels.

    Raises:
        UserError: If it is no checkpoint of CAT-Seg, or what it describes cannot work.
    """
    tensors = original_tensors(state_dict)
    refuse_other_models(tensors)
    shapes = _Shapes(tensors)
    text_tower, vision_tower = _tower_config(shapes, ""), _tower_config(shapes, "visual.")
    vocab_size = shapes.read(f"{CLIP}token_embedding.weight[0]")
    positions = shapes.read(f"{CLIP}visual.positional_embedding[0]")
    patch_size = shapes.read(f"{CLIP}visual.conv1.weight[2]", f"{CLIP}visual.conv1.weight[3]")
    stages = (1, 2)
    hidden_size = shapes.read(
        f"{AGGREGATOR}conv1.weight[0]",
        f"{AGGREGATOR}conv1.bias[0]",
        f"{AGGREGATOR}decoder1.up.weight[0]",
        f"{AGGREGATOR}layers.0.swin_block.block_1.norm1.weight[0]",
        f"{AGGREGATOR}layers.0.attention.norm1.weight[0]",
    )
    mlp_size = shapes.read(
        *(f"{AGGREGATOR}layers.0.swin_block.block_{block}.mlp.fc1.bias[0]" for block in (1, 2)),
        f"{AGGREGATOR}layers.0.swin_block.block_1.mlp.fc1.weight[0]",
        f"{AGGREGATOR}layers.0.attention.MLP.0.weight[0]",
    )
    fields = {
        "num_prompts": shapes.read(f"{AGGREGATOR}conv1.weight[1]"),
        "hidden_size": hidden_size,
        "num_hidden_layers": shapes.count(f"{AGGREGATOR}layers."),
        "mlp_ratio": mlp_size // hidden_size,
        "num_class_tokens": DEFAULT_CLASS_TOKENS if shapes.ending_with(".attention.padding_tokens") else 0,
        "text_guidance_size": shapes.read(
            f"{AGGREGATOR}text_guidance_projection.0.weight[0]",
            f"{AGGREGATOR}text_guidance_projection.0.bias[0]",
            f"{AGGREGATOR}layers.0.attention.padding_guidance[2]",
        ),
        "appearance_guidance_size": shapes.read(
            f"{AGGREGATOR}guidance_projection.0.weight[0]",
            f"{AGGREGATOR}guidance_projection.0.bias[0]",
            f"{AGGREGATOR}layers.0.swin_block.guidance_norm.weight[0]",
        ),
        "decoder_sizes": [
            shapes.read(*(f"{AGGREGATOR}decoder{stage}.conv.double_conv.{layer}.weight[0]" for layer in (0, 1, 3, 4)))
            for stage in stages
        ],
        "decoder_guidance_channels": [
            shapes.read(
                f"upsample{stage}.weight[1]",
                f"upsample{stage}.bias[0]",
                f"{AGGREGATOR}decoder_guidance_projection.{stage - 1}.0.weight[1]",
            )
            for stage in stages
        ],
        "decoder_guidance_sizes": [
            shapes.read(
                *(f"{AGGREGATOR}decoder_guidance_projection.{stage - 1}.0.{leaf}[0]" for leaf in ("weight", "bias"))
            )
            for stage in stages
        ],
    }
    if shapes.unreadable:
        raise UserError(f"The checkpoint lacks tensors that tell its architecture: {listing(shapes.unreadable)}")

    feature_size, window_size = DEFAULT_FEATURE_SIZE, DEFAULT_WINDOW_SIZE
    for num_windows, num_tokens, _ in shapes.ending_with(".block_2.attn_mask"):
        window_size = isqrt(num_tokens)
        feature_size = isqrt(num_windows) * window_size
    num_blocks = vision_tower["num_hidden_layers"]
    try:
        return CATSegConfig(
            clip_config=CLIPConfig(
                vision_config={
                    **vision_tower,
                    "patch_size": patch_size,
                    "image_size": isqrt(positions - 1) * patch_size,
                },
                text_config={
                    **text_tower,
                    "vocab_size": vocab_size,
                    "max_position_embeddings": shapes.read(f"{CLIP}positional_embedding[0]"),
                    "bos_token_id": vocab_size - 2,
                    "eos_token_id": vocab_size - 1,
                },
                projection_dim=vision_tower["projection_dim"],
            ),
            image_size=feature_size * patch_size,
            guidance_layers=guidance_layers_by_depth(num_blocks),
            window_size=window_size,
            **fields,
        )
    except StrictDataclassError as error:
        raise UserError(
            f"The tensors' shapes describe an architecture that cannot work: {error.__cause__ or error}"
        ) from None


def _tower_config(shapes: "_Shapes", tower: str) -> dict[str, int]:
    prefix, block = f"{CLIP}{tower}", f"{CLIP}{tower}transformer.resblocks.0."
    norms = ("visual.ln_pre", "visual.ln_post") if tower else ("ln_final",)
    width = shapes.read(
        *(f"{CLIP}{norm}.{leaf}[0]" for norm in norms for leaf in ("weight", "bias")), f"{block}ln_1.weight[0]"
    )
    return {
        "hidden_size": width,
        "num_hidden_layers": shapes.count(f"{prefix}transformer.resblocks."),
        "num_attention_heads": max(1, width // CLIP_HEAD_SIZE),
        "intermediate_size": shapes.read(
            f"{block}mlp.c_fc.weight[0]", f"{block}mlp.c_fc.bias[0]", f"{block}mlp.c_proj.weight[1]"
        ),
        "projection_dim": shapes.read(
            f"{CLIP}visual.proj[1]",
            f"{CLIP}text_projection[1]",
            f"{AGGREGATOR}guidance_projection.0.weight[1]",
            f"{AGGREGATOR}text_guidance_projection.0.weight[1]",
        ),
    }


class _Shapes:
    """Looks sizes up in the tensors' shapes and remembers those that could not be found."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        self.unreadable: list[str] = []

    def read(self, *places: str) -> int:
        """The most common size at places "KEY[AXIS]"; 1 where there is none, which is remembered."""
        sizes = Counter()
        for place in places:
            key, axis = place.removesuffix("]").split("[")
            shape = self.shapes.get(key, ())
            if int(axis) < len(shape) and shape[int(axis)] > 0:
                sizes[shape[int(axis)]] += 1
        if not sizes:
            self.unreadable.append(places[0].split("[")[0])
            return 1
        return sizes.most_common(1)[0][0]

    def count(self, prefix: str) -> int:
        """How many layers there are below a prefix."""
        return len({key[len(prefix) :].split(".")[0] for key in self.shapes if key.startswith(prefix)})

    def ending_with(self, suffix: str) -> list[tuple[int, ...]]:
        """Shapes with three axes of the tensors whose names end so."""
        return [shape for key, shape in self.shapes.items() if key.endswith(suffix) and len(shape) == 3]


def refuse_other_models(keys: Iterable[str]):
    """
    Tells checkpoints of other models by the names of their tensors.

    Raises:
        UserError: If these are not the names of CAT-Seg (CVPR 2024), with a sentence that says what they are.
    """
    keys = list(keys)

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in keys)

    examples = f" (it has {listing(keys)})" if keys else ""
    if has("sem_seg_head.") and has("backbone."):
        kind = (
            "This is one of the authors' earlier checkpoints of 2023, which have a ResNet or Swin backbone and other "
            "dimensions: take `model_base.pth` or `model_large.pth` of the CVPR 2024 release"
        )
        examples = f" (it has {listing(key for key in keys if key.startswith('backbone.'))})"
    elif has("sem_seg_head.predictor."):
        return
    elif has("decode_head.", "auxiliary_head."):
        kind = "This is a checkpoint of mmsegmentation and not of CAT-Seg: take the authors' own `.pth` file"
    elif has("catseg."):
        kind = "This is converted already: load its folder with `from_pretrained`"
    elif has("visual.", "vision_model.", "text_model.", "token_embedding.", "clip."):
        kind = (
            "This is a plain CLIP checkpoint and not CAT-Seg, of which CLIP is a part: take `model_base.pth` or "
            "`model_large.pth` of CAT-Seg's release"
        )
    elif has("backbone."):
        kind = "This is a checkpoint of another segmentation model with a `backbone.` and not of CAT-Seg"
    elif keys:
        kind = "This is a checkpoint of another model: CAT-Seg's tensors begin with `sem_seg_head.predictor.`"
    else:
        kind = "There are no tensors in this file"
    raise UserError(f"{kind}{examples}.")


def listing(names: Iterable[str], limit: int = 10) -> str:
    """Names in one line, at most `limit` and then how many more there are."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
