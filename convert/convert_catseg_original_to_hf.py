"""Converts an original CAT-Seg checkpoint (Cho et al., CVPR 2024) into a folder for transformers.

python convert/convert_catseg_original_to_hf.py --checkpoint_path model_base.pth --output_dir catseg-base
"""

import argparse
import re
from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path

import torch
from transformers import AutoTokenizer, CLIPConfig

from catseg_hf import CATSegConfig, CATSegForSemanticSegmentation, CATSegImageProcessorPil, CATSegProcessor


Transform = Callable[[torch.Tensor, CATSegConfig], Sequence[torch.Tensor]]

CLIP_HEAD_SIZE = 64
DEFAULT_FEATURE_SIZE = 24
DEFAULT_CLASS_TOKENS = 256


def keep(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    return (tensor,)


def transpose(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    return (tensor.T,)


def drop_first_axis(tensor: torch.Tensor, config: CATSegConfig) -> Sequence[torch.Tensor]:
    return (tensor[0],)


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
DROPPED = re.compile(r".*\.attn_mask|pixel_mean|pixel_std|clip_pixel_mean|clip_pixel_std|.*(train|test)_text_features")


def infer_config(state_dict: dict[str, torch.Tensor]) -> CATSegConfig:
    """
    The architecture of an original checkpoint, read off its tensors' shapes. What leaves no trace in them is taken as
    published: 4 aggregator heads, linear attention, 256 class tokens, guidance from the blocks after one and after two
    thirds of the vision tower.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Tensors under the authors' names.

    Returns:
        [`CATSegConfig`], with COCO-Stuff's labels.
    """
    clip = {key.removeprefix("sem_seg_head.predictor.clip_model."): value.shape for key, value in state_dict.items()}
    head = {key.removeprefix("sem_seg_head.predictor.transformer."): value.shape for key, value in state_dict.items()}

    def count(prefix: str, shapes: dict[str, torch.Size]) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})

    def tower(prefix: str, width: int) -> dict[str, int]:
        return {
            "hidden_size": width,
            "num_hidden_layers": count(f"{prefix}transformer.resblocks.", clip),
            "num_attention_heads": width // CLIP_HEAD_SIZE,
            "intermediate_size": clip[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
            "projection_dim": embed_dim,
        }

    vision_width, _, _, patch_size = clip["visual.conv1.weight"]
    vocab_size, text_width = clip["token_embedding.weight"]
    embed_dim = clip["visual.proj"][1]
    clip_config = CLIPConfig(
        vision_config={
            **tower("visual.", vision_width),
            "patch_size": patch_size,
            "image_size": isqrt(clip["visual.positional_embedding"][0] - 1) * patch_size,
        },
        text_config={
            **tower("", text_width),
            "vocab_size": vocab_size,
            "max_position_embeddings": clip["positional_embedding"][0],
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
        },
        projection_dim=embed_dim,
    )

    num_blocks = clip_config.vision_config.num_hidden_layers
    hidden_size, num_prompts = head["conv1.weight"][:2]
    feature_size, window_size = DEFAULT_FEATURE_SIZE, 12
    if mask := head.get("layers.0.swin_block.block_2.attn_mask"):
        window_size = isqrt(mask[1])
        feature_size = isqrt(mask[0]) * window_size
    return CATSegConfig(
        clip_config=clip_config,
        image_size=feature_size * patch_size,
        guidance_layers=[-(-num_blocks // 3) - 1, -(-2 * num_blocks // 3) - 1],
        num_prompts=num_prompts,
        hidden_size=hidden_size,
        num_hidden_layers=count("layers.", head),
        mlp_ratio=head["layers.0.swin_block.block_1.mlp.fc1.weight"][0] // hidden_size,
        window_size=window_size,
        num_class_tokens=DEFAULT_CLASS_TOKENS if "layers.0.attention.padding_tokens" in head else 0,
        text_guidance_size=head["text_guidance_projection.0.weight"][0],
        appearance_guidance_size=head["guidance_projection.0.weight"][0],
        decoder_sizes=[head[f"decoder{stage}.conv.double_conv.0.weight"][0] for stage in (1, 2)],
        decoder_guidance_channels=[head[f"upsample{stage}.weight"][1] for stage in (1, 2)],
        decoder_guidance_sizes=[head[f"decoder_guidance_projection.{stage}.0.weight"][0] for stage in (0, 1)],
    )


def convert_state_dict(state_dict: dict[str, torch.Tensor], config: CATSegConfig) -> dict[str, torch.Tensor]:
    """
    Parameters of [`CATSegForSemanticSegmentation`] from an original checkpoint.

    Args:
        state_dict (`dict[str, torch.Tensor]`): Tensors under the authors' names.
        config (`CATSegConfig`): Their architecture.

    Returns:
        `dict[str, torch.Tensor]`: Every parameter of the model.

    Raises:
        ValueError: If a source tensor is of no known use, or one that the model needs is missing.
    """
    converted, unknown = {}, []
    for key, tensor in state_dict.items():
        if DROPPED.fullmatch(key):
            continue
        matches = [(pattern.fullmatch(key), targets, transform) for pattern, targets, transform in RULES]
        matches = [match for match in matches if match[0]]
        if not matches:
            unknown.append(key)
            continue
        ((match, targets, transform),) = matches
        for target, part in zip(targets, transform(tensor, config), strict=True):
            converted[match.expand(target)] = part.contiguous()
    if unknown:
        raise ValueError(f"{len(unknown)} tensors of the checkpoint are of no known use: {unknown[:10]}")
    return converted


def build_model(converted: dict[str, torch.Tensor], config: CATSegConfig) -> CATSegForSemanticSegmentation:
    """The model with these parameters, which must be all that it has, and no vocabulary yet."""
    with torch.device("meta"):
        expected = {
            name: parameter.shape for name, parameter in CATSegForSemanticSegmentation(config).named_parameters()
        }
    given = {name: tensor.shape for name, tensor in converted.items()}
    if wrong := sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)):
        details = [f"{name}: {given.get(name)} instead of {expected.get(name)}" for name in wrong[:10]]
        raise ValueError(f"{len(wrong)} parameters do not fit the architecture: {details}")
    model = CATSegForSemanticSegmentation(config)
    model.load_state_dict(converted, strict=False, assign=True)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint_path", type=Path, required=True, help="the authors' .pth file")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--tokenizer", default="openai/clip-vit-base-patch16", help="Hub id or folder of CLIP's tokenizer"
    )
    arguments = parser.parse_args()

    checkpoint = torch.load(arguments.checkpoint_path, map_location="cpu", weights_only=True)
    state_dict = checkpoint.get("model", checkpoint)
    config = infer_config(state_dict)
    converted = convert_state_dict(state_dict, config)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    model = build_model(converted, config)
    image_processor = CATSegImageProcessorPil(
        image_size=config.image_size,
        sliding_window=config.sliding_window,
        sliding_window_size=config.sliding_window_size,
        window_image_size=config.sliding_window_image_size,
    )
    processor = CATSegProcessor(image_processor, tokenizer)
    labels = list(config.id2label.values())
    model.set_vocabulary(labels, processor(text=labels).input_ids)
    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)
    print(f"Wrote {arguments.output_dir}")


if __name__ == "__main__":
    main()
