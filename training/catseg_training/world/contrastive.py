"""A CLIP that learns words from captions: on the class token, as CLIP does, and weakly on the patches."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel

from ..attention import SDPA_IN_FLOAT32


BEST_PATCHES = 4
MAX_LOGIT_SCALE = 100.0


def patch_states(clip: CLIPModel, pixel_values: torch.Tensor, corner: Sequence[int]) -> torch.Tensor:
    """What CLIP's blocks get for images `(B, 3, H, W)` whose first patch stands at `corner` (row, column) of the grid
    of its position embeddings: `(B, 1 + N, D)`. Small images then have patches as far apart as large ones."""
    embeddings = clip.vision_model.embeddings
    patches = embeddings.patch_embedding(pixel_values)
    (top, left), (rows, columns) = corner, patches.shape[-2:]
    positions = embeddings.position_embedding.weight
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].unflatten(0, (side, side))[top : top + rows, left : left + columns].flatten(0, 1)
    class_token = (embeddings.class_embedding + positions[0]).expand(len(patches), 1, -1)
    return torch.cat([class_token, patches.flatten(2).mT + grid], dim=1)


def image_embeds(
    clip: CLIPModel, pixel_values: torch.Tensor, corner: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    CLIP's embedding of images `(B, 3, H, W)` and, from the same blocks, of their patches as CAT-Seg reads them.
    `corner` is that of [`patch_states`]; without it the position embeddings are resized to the images.

    Returns:
        `clip.get_image_features` `(B, D)` and `dense_image_features` `(B, N, D)`, neither normalised. The last block
        runs once for both: only its class token attends.
    """
    vision_model = clip.vision_model
    if corner is None:
        hidden_states = vision_model.embeddings(pixel_values, interpolate_pos_encoding=True)
    else:
        hidden_states = patch_states(clip, pixel_values, corner)
    hidden_states = vision_model.pre_layrnorm(hidden_states)
    *blocks, last_block = vision_model.encoder.layers
    for block in blocks:
        hidden_states = block(hidden_states, None)

    attention = last_block.self_attn
    normed, class_token = last_block.layer_norm1(hidden_states), hidden_states[:, :1]
    values = attention.v_proj(normed)
    query, key, value = (
        states.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for states in (attention.q_proj(normed[:, :1]), attention.k_proj(normed), values)
    )
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    tokens = attention.out_proj(torch.cat([attended, values[:, 1:]], dim=1)) + class_token
    tokens = tokens + last_block.mlp(last_block.layer_norm2(tokens))
    embeds = clip.visual_projection(vision_model.post_layernorm(tokens))
    return embeds[:, 0], embeds[:, 1:]


def text_embeds(clip: CLIPModel, input_ids: torch.Tensor) -> torch.Tensor:
    """CLIP's normalised embedding of texts `(T, L)`: `(T, D)`."""
    return F.normalize(clip.get_text_features(input_ids).pooler_output, dim=-1)


def soft_cross_entropy(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of rows of logits with equal shares for each row's `positives` (bool), mean over the rows."""
    share = positives / positives.sum(dim=-1, keepdim=True)
    return -(share * logits.log_softmax(dim=-1)).sum(dim=-1).mean()


class ContrastivePretraining(nn.Module):
    """
    CLIP with the losses that captions give.

    Args:
        clip (`CLIPModel`): The model.
        word_ids (`torch.LongTensor` of shape `(T, L)`): The prompts of all words.
        patch_weight (`float`): Weight of the patches' losses beside the class token's. 0 leaves plain CLIP, which
            learns from whole captions only and not from their single words.
        bfloat16 (`bool`): Whether the image tower runs under autocast. Attention between patches and the losses stay
            in float32.
    """

    def __init__(self, clip: CLIPModel, word_ids: torch.Tensor, patch_weight: float = 1.0, bfloat16: bool = False):
        super().__init__()
        if bfloat16:
            clip.vision_model.set_attn_implementation(SDPA_IN_FLOAT32)
        self.clip = clip
        self.word_ids = nn.Buffer(word_ids, persistent=False)
        self.patch_weight = patch_weight
        self.bfloat16 = bfloat16

    def forward(
        self,
        pixel_values: torch.Tensor,
        caption_ids: torch.Tensor,
        caption_words: torch.Tensor,
        corner: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, 3, H, W)`): Normalised images.
            caption_ids (`torch.LongTensor` of shape `(B, L)`): Their captions.
            caption_words (`torch.BoolTensor` of shape `(B, T)`): The words in each caption.
            corner (`Sequence[int]`, *optional*): See [`patch_states`].

        Returns:
            The losses `"contrastive"` and, unless `patch_weight` is 0, `"word"`, `"purity"` and `"presence"`; their
            weighted sum `"loss"`.
        """
        with torch.autocast(pixel_values.device.type, torch.bfloat16, enabled=self.bfloat16):
            class_embeds, patch_embeds = image_embeds(self.clip, pixel_values, corner)
        class_embeds, patch_embeds = class_embeds.float(), patch_embeds.float()
        scale = self.clip.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
        class_embeds = F.normalize(class_embeds, dim=-1)
        logits = scale * class_embeds @ text_embeds(self.clip, caption_ids).T
        # A caption whose words are all in an image describes it, whichever image it was written for.
        words = caption_words.float()
        describes = words @ words.T == words.sum(dim=-1)
        contrastive = (soft_cross_entropy(logits, describes) + soft_cross_entropy(logits.T, describes.T)) / 2
        if not self.patch_weight:
            return {"loss": contrastive, "contrastive": contrastive}

        word_embeds = text_embeds(self.clip, self.word_ids)
        word = soft_cross_entropy(scale * class_embeds @ word_embeds.T, caption_words)
        patch_logits = scale * F.normalize(patch_embeds, dim=-1) @ word_embeds.T  # (B, N, T)
        log_probabilities = patch_logits.log_softmax(dim=-1)
        unnamed = ~caption_words[:, None]
        purity = -log_probabilities.masked_fill(unnamed, -torch.inf).logsumexp(dim=-1).mean()
        best = log_probabilities.topk(BEST_PATCHES, dim=1).values.mean(dim=1)
        presence = -(best * words).sum() / words.sum()
        loss = contrastive + word + self.patch_weight * (purity + presence)
        return {"loss": loss, "contrastive": contrastive, "word": word, "purity": purity, "presence": presence}
