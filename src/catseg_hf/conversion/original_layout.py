"""The names and layouts of the authors' checkpoints, and the table that turns them into ours."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch

from ..configuration_catseg import CATSegConfig
from ..errors import UserError


Transform = Callable[[torch.Tensor, CATSegConfig], Sequence[torch.Tensor]]


def keep(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    return (tensor,)


def transpose(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    return (tensor.mT,)


def drop_first_axis(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    return (tensor.squeeze(0),)


def split_in_three(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    return tensor.chunk(3)


def split_guidance(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    """A linear layer of the concatenation [tokens, guidance] is the sum of one of each."""
    return tensor[:, : config.hidden_size], tensor[:, config.hidden_size :]


def split_decoder_guidance(stage: int) -> Transform:
    """A convolution of the concatenation [maps, guidance] is the sum of one of each."""

    def split(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
        guidance_size = config.decoder_guidance_sizes[stage]
        return tensor[:, :-guidance_size], tensor[:, -guidance_size:]

    return split


CLIP_BLOCK = [
    (r"attn\.in_proj_(weight|bias)", [rf"self_attn.{name}_proj.\2" for name in "qkv"], split_in_three),
    (r"attn\.([qkv])_proj_weight", [r"self_attn.\2_proj.weight"], keep),
    (r"attn\.out_proj\.(weight|bias)", [r"self_attn.out_proj.\2"], keep),
    (r"ln_([12])\.(weight|bias)", [r"layer_norm\2.\3"], keep),
    (r"mlp\.c_fc\.(weight|bias)", [r"mlp.fc1.\2"], keep),
    (r"mlp\.c_proj\.(weight|bias)", [r"mlp.fc2.\2"], keep),
]
CLIP = [
    (r"visual\.class_embedding", ["vision_model.embeddings.class_embedding"], keep),
    (r"visual\.conv1\.weight", ["vision_model.embeddings.patch_embedding.weight"], keep),
    (r"visual\.positional_embedding", ["vision_model.embeddings.position_embedding.weight"], keep),
    (r"visual\.ln_pre\.(weight|bias)", [r"vision_model.pre_layrnorm.\1"], keep),
    (r"visual\.ln_post\.(weight|bias)", [r"vision_model.post_layernorm.\1"], keep),
    (r"visual\.proj", ["visual_projection.weight"], transpose),
    (r"token_embedding\.weight", ["text_model.embeddings.token_embedding.weight"], keep),
    (r"positional_embedding", ["text_model.embeddings.position_embedding.weight"], keep),
    (r"ln_final\.(weight|bias)", [r"text_model.final_layer_norm.\1"], keep),
    (r"text_projection", ["text_projection.weight"], transpose),
    (r"logit_scale", ["logit_scale"], keep),
]
GUIDED_ATTENTION = [
    (r"attn\.([qk])\.weight", [r"attention.\2_proj.weight", r"attention.guidance_\2_proj.weight"], split_guidance),
    (r"attn\.([qk])\.bias", [r"attention.\2_proj.bias"], keep),
    (r"attn\.v\.(weight|bias)", [r"attention.v_proj.\2"], keep),
]
SPATIAL_BLOCK = [
    *GUIDED_ATTENTION,
    (r"attn\.proj\.(weight|bias)", [r"attention.out_proj.\2"], keep),
    (r"norm([12])\.(weight|bias)", [r"layer_norm\2.\3"], keep),
    (r"mlp\.fc([12])\.(weight|bias)", [r"mlp.fc\2.\3"], keep),
]
CLASS_BLOCK = [
    *((source.replace("attn", "attention"), targets, transform) for source, targets, transform in GUIDED_ATTENTION),
    (r"padding_tokens", ["padding_token"], drop_first_axis),
    (r"padding_guidance", ["padding_guidance"], drop_first_axis),
    (r"norm([12])\.(weight|bias)", [r"layer_norm\2.\3"], keep),
    (r"MLP\.0\.(weight|bias)", [r"mlp.fc1.\2"], keep),
    (r"MLP\.2\.(weight|bias)", [r"mlp.fc2.\2"], keep),
]
AGGREGATOR = [
    (r"conv1\.(weight|bias)", [r"cost_embedding.\1"], keep),
    (r"guidance_projection\.0\.(weight|bias)", [r"appearance_projection.\1"], keep),
    (r"text_guidance_projection\.0\.(weight|bias)", [r"text_projection.\1"], keep),
]
DECODER = [
    (r"decoder_guidance_projection\.([01])\.0\.(weight|bias)", [r"guidance_projections.\1.\2"], keep),
    (r"head\.(weight|bias)", [r"head.\1"], keep),
]


def decoder_stage(stage: int) -> list[tuple[str, list[str], Transform]]:
    split = split_decoder_guidance(stage)
    return [
        (r"up\.(weight|bias)", [r"upsample.\1"], keep),
        (r"conv\.double_conv\.0\.weight", ["conv1.weight", "guidance_conv1.weight"], split),
        (r"conv\.double_conv\.1\.(weight|bias)", [r"norm1.\1"], keep),
        (r"conv\.double_conv\.3\.weight", ["conv2.weight"], keep),
        (r"conv\.double_conv\.4\.(weight|bias)", [r"norm2.\1"], keep),
    ]


ORIGINAL_CLIP, ORIGINAL_AGGREGATOR = (
    r"sem_seg_head\.predictor\.clip_model\.",
    r"sem_seg_head\.predictor\.transformer\.",
)
LAYER = ORIGINAL_AGGREGATOR + r"layers\.(\d+)\."
# Prefix of the authors' names, prefix of ours, and what stands below them.
SECTIONS = [
    (ORIGINAL_CLIP, "catseg.clip.", CLIP),
    (
        ORIGINAL_CLIP + r"visual\.transformer\.resblocks\.(\d+)\.",
        r"catseg.clip.vision_model.encoder.layers.\1.",
        CLIP_BLOCK,
    ),
    (ORIGINAL_CLIP + r"transformer\.resblocks\.(\d+)\.", r"catseg.clip.text_model.encoder.layers.\1.", CLIP_BLOCK),
    (ORIGINAL_AGGREGATOR, "catseg.aggregator.", AGGREGATOR),
    *(
        (
            LAYER + rf"swin_block\.block_{block + 1}\.",
            rf"catseg.aggregator.layers.\1.spatial_aggregation.blocks.{block}.",
            SPATIAL_BLOCK,
        )
        for block in range(2)
    ),
    (
        LAYER + r"swin_block\.",
        r"catseg.aggregator.layers.\1.spatial_aggregation.",
        [(r"guidance_norm\.(weight|bias)", [r"guidance_norm.\2"], keep)],
    ),
    (LAYER + r"attention\.", r"catseg.aggregator.layers.\1.class_aggregation.block.", CLASS_BLOCK),
    (ORIGINAL_AGGREGATOR, "decoder.", DECODER),
    *(
        (ORIGINAL_AGGREGATOR + rf"decoder{stage + 1}\.", f"decoder.stages.{stage}.", decoder_stage(stage))
        for stage in range(2)
    ),
    *(
        (rf"upsample{stage + 1}\.", f"decoder.guidance_upsamplers.{stage}.", [(r"(weight|bias)", [r"\1"], keep)])
        for stage in range(2)
    ),
]
RULES = [
    (re.compile(prefix + source), [target_prefix + target for target in targets], transform)
    for prefix, target_prefix, rules in SECTIONS
    for source, targets, transform in rules
]
# Derived from the architecture, or of the training loop: not carried over.
DROPPED = re.compile(
    r".*\.attn_mask|pixel_mean|pixel_std|clip_pixel_mean|clip_pixel_std|.*(train|test)_text_features|"
    + ORIGINAL_CLIP
    + r"(input_resolution|context_length|vocab_size)"
)


def original_tensors(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """
    The tensors of a checkpoint under the authors' bare names: taken out of "model" (or "state_dict"), without the
    `module.` of distributed training.

    Raises:
        UserError: If two names become the same, or something else than a tensor stands among them.
    """
    for wrapper in ("model", "state_dict"):
        if isinstance(checkpoint.get(wrapper), Mapping):
            checkpoint = checkpoint[wrapper]
            break
    tensors = {}
    for key, tensor in checkpoint.items():
        name = re.sub(r"^(module\.)+", "", str(key))
        if name in tensors:
            raise UserError(f"The checkpoint has {name!r} twice, with and without `module.` in front.")
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"The checkpoint's {key!r} is a {type(tensor).__name__} and not a tensor.")
        tensors[name] = tensor
    return tensors


def dropped_keys(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not carried over, since they follow from the architecture."""
    return sorted(key for key in tensors if DROPPED.fullmatch(key))


def source_names(num_layers: int) -> dict[str, str]:
    """For every parameter of ours, with up to `num_layers` layers in each stack, the authors' tensor that gives it."""
    names = {}
    for pattern, targets, _ in RULES:
        pieces = re.split(r"\(([^)]*)\)", pattern.pattern)
        choices = [_alternatives(piece, num_layers) for piece in pieces[1::2]]
        for choice in product(*choices):
            literals = [piece.replace("\\", "") for piece in pieces[::2]]
            source = literals[0] + "".join(
                chosen + literal for chosen, literal in zip(choice, literals[1:], strict=True)
            )
            match = pattern.fullmatch(source)
            names.update({match.expand(target): source for target in targets})
    return names


def _alternatives(group: str, num_layers: int) -> list[str]:
    """What a group of a rule's pattern stands for: `\\d+`, `[abc]` or `a|b`."""
    if group == r"\d+":
        return [str(index) for index in range(num_layers)]
    return list(group[1:-1]) if group.startswith("[") else group.split("|")
