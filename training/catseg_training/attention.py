"""Attention for training in bfloat16 on a CPU."""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


SDPA_IN_FLOAT32 = "sdpa_in_float32"


def attention_in_float32(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' scaled dot product attention, in float32 also under autocast where gradients are wanted."""
    if not torch.is_grad_enabled():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


def choose_attention(model: PreTrainedModel, device: torch.device, mixed_precision: str):
    """Has a model that is trained under bfloat16 autocast on a CPU attend in float32: PyTorch 2.13's fused attention
    takes 2 to 10 times as long backwards in bfloat16 there."""
    if mixed_precision == "bf16" and device.type == "cpu":
        model.set_attn_implementation(SDPA_IN_FLOAT32)


AttentionInterface.register(SDPA_IN_FLOAT32, attention_in_float32)
AttentionMaskInterface.register(SDPA_IN_FLOAT32, sdpa_mask)
