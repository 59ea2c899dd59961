"""CAT-Seg's cost volume (sections 3.1 and 3.2 of the paper): CLIP's features of every patch, their similarity to those
of every prompt, and the classes that this leaves."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from .tracing_catseg import is_exporting


CUT_CLASS_LOGIT = -100.0


def embed_patches(embeddings: CLIPVisionEmbeddings, pixel_values: torch.Tensor) -> torch.Tensor:
    """CLIP's tokens `(batch_size, 1 + num_patches, vision_hidden_size)`, class token first, of images of any size."""
    if not embeddings.position_embedding.weight.is_meta:
        pixel_values = pixel_values.to(embeddings.position_embedding.weight.device)
        return embeddings(pixel_values, interpolate_pos_encoding=True)
    # Offloaded weights are brought back for a module that is called, but to resize these CLIP only reads them.
    positions = {"position_embedding.weight": embeddings.position_embedding(embeddings.position_ids)[0]}
    return functional_call(embeddings, positions, (pixel_values,), {"interpolate_pos_encoding": True})


def dense_image_features(
    clip: CLIPModel, pixel_values: torch.Tensor, guidance_layers: Sequence[int]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """
    CLIP's features of every patch (section 3.1). The last vision block attends to nothing: each position keeps its own
    value, added to the class token instead of to itself.

    Args:
        clip (`CLIPModel`): The CLIP model.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): Normalised pixels.
        guidance_layers (`Sequence[int]`): 0-based blocks whose outputs are returned too.

    Returns:
        The projected features `(batch_size, rows, columns, projection_dim)` and, for each guidance layer, its output
        `(batch_size, rows, columns, vision_hidden_size)`.
    """
    vision_model = clip.vision_model
    grid = [side // vision_model.embeddings.patch_size for side in pixel_values.shape[-2:]]
    hidden_states = vision_model.pre_layrnorm(embed_patches(vision_model.embeddings, pixel_values))

    *blocks, last_block = vision_model.encoder.layers
    guidance_states = []
    for index, block in enumerate(blocks):
        hidden_states = block(hidden_states, None)
        if index in guidance_layers:
            guidance_states.append(hidden_states[:, 1:].unflatten(1, grid))

    class_token, patch_tokens = hidden_states[:, :1], hidden_states[:, 1:]
    values = last_block.self_attn.v_proj(last_block.layer_norm1(patch_tokens))
    patch_tokens = last_block.self_attn.out_proj(values) + class_token
    patch_tokens = patch_tokens + last_block.mlp(last_block.layer_norm2(patch_tokens))
    image_embeds = clip.visual_projection(vision_model.post_layernorm(patch_tokens))
    return image_embeds.unflatten(1, grid), tuple(guidance_states)


def unused_parameters(clip: CLIPModel) -> set[torch.Tensor]:
    """Those of CLIP that no feature depends on, and no gradient reaches: the temperature, and queries and keys of the
    last vision block, which attends to nothing."""
    last_attention = clip.vision_model.encoder.layers[-1].self_attn
    return {clip.logit_scale, *last_attention.q_proj.parameters(), *last_attention.k_proj.parameters()}


def cost_volume(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """
    Cosine similarity of every position with every prompt (section 3.2, equation 1).

    Args:
        image_embeds (`torch.FloatTensor` of shape `(batch_size, rows, columns, projection_dim)`): Image features.
        text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`): Normalised text
        features.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_prompts, num_classes, rows, columns)`, in [-1, 1].
    """
    grid = image_embeds.shape[1:3]
    image_embeds = F.normalize(image_embeds, dim=-1).flatten(1, 2)  # (B, H * W, D)
    # One product of matrices and not an einsum, which exported graphs would keep and not every runtime computes.
    cost = (image_embeds @ text_embeds.flatten(0, 1).T).unflatten(-1, text_embeds.shape[:2])  # (B, H * W, T, P)
    return cost.permute(0, 3, 2, 1).unflatten(-1, grid)


def most_similar_classes(cost: torch.Tensor, num_kept_classes: int) -> torch.Tensor:
    """Indices `(B, num_kept_classes)`, ascending, of the classes with the highest maximum in a cost volume
    `(B, P, T, H, W)`."""
    similarity = cost.amax(dim=(1, 3, 4))
    indices = similarity.topk(num_kept_classes, dim=1).indices
    return indices.topk(num_kept_classes, dim=1, largest=False).values  # sorted as ExecuTorch can


def cut_classes(
    cost: torch.Tensor, text_embeds: torch.Tensor, class_limit: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Keeps the classes that are most similar to each image.

    Args:
        cost (`torch.FloatTensor` of shape `(batch_size, num_prompts, num_classes, rows, columns)`): The cost volume.
        text_embeds (`torch.FloatTensor` of shape `(num_classes, num_prompts, projection_dim)`): Text features.
        class_limit (`int`): How many to keep at most; 0 keeps all.

    Returns:
        The cost volume and the text features `(batch_size or 1, num_kept_classes, num_prompts, projection_dim)` of the
        kept classes, and their indices `(batch_size, num_kept_classes)`, or `None` if all were kept.
    """
    num_classes = cost.shape[2]
    # A graph for any number of classes must do for many: of few, it takes the most similar ones too, that is all.
    is_any_number = is_exporting() and isinstance(num_classes, torch.SymInt)
    if class_limit == 0 or (not is_any_number and num_classes <= class_limit):
        return cost, text_embeds[None], None
    class_indices = most_similar_classes(cost, torch.sym_min(class_limit, num_classes))
    # In four axes and along one of them, as WebGPU can.
    indices = class_indices[:, None, :, None].expand(-1, cost.shape[1], -1, cost.shape[3] * cost.shape[4])
    kept_cost = cost.flatten(3).gather(2, indices).unflatten(3, cost.shape[3:])
    kept_text_embeds = text_embeds.index_select(0, class_indices.flatten()).unflatten(0, class_indices.shape)
    return kept_cost, kept_text_embeds, class_indices


def restore_classes(logits: torch.Tensor, class_indices: torch.Tensor, num_classes: int) -> torch.Tensor:
    """The inverse of [`cut_classes`] for logits `(B, num_kept_classes, h, w)`: those of all classes, with
    `CUT_CLASS_LOGIT` for the others."""
    all_logits = logits.new_full((logits.shape[0], num_classes, *logits.shape[2:]), CUT_CLASS_LOGIT)
    return all_logits.scatter(1, class_indices[:, :, None, None].expand_as(logits), logits)
