"""CAT-Seg's published optimisation: AdamW with a small learning rate for CLIP and a cosine schedule (section 4.1)."""

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup


# Gradients of all parameters together are clipped to this norm.
MAX_GRAD_NORM = 0.01
NO_DECAY_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)


def build_optimizer(
    model: nn.Module, learning_rate: float = 2e-4, clip_lr_multiplier: float = 0.01, weight_decay: float = 1e-4
) -> AdamW:
    """
    AdamW over the trainable parameters. Those of CLIP learn more slowly; norm layers and embeddings do not decay.

    Args:
        model ([`CATSegForSemanticSegmentation`]): The model, after [`~CATSegForSemanticSegmentation.freeze_clip`].
        learning_rate (`float`, *optional*, defaults to 2e-4): Of everything outside CLIP.
        clip_lr_multiplier (`float`, *optional*, defaults to 0.01): CLIP's learning rate, as a share of it.
        weight_decay (`float`, *optional*, defaults to 1e-4): Decoupled weight decay.

    Returns:
        `torch.optim.AdamW` with one parameter group for each combination of learning rate and weight decay.
    """
    clip_parameters = set(model.clip.parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        decay = 0.0 if isinstance(module, NO_DECAY_MODULES) else weight_decay
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                rate = learning_rate * (clip_lr_multiplier if parameter in clip_parameters else 1.0)
                groups.setdefault((rate, decay), []).append(parameter)
    return AdamW(
        [{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()],
        lr=learning_rate,
    )


def build_scheduler(optimizer: torch.optim.Optimizer, num_training_steps: int, num_warmup_steps: int = 0) -> LambdaLR:
    """Cosine decay of every group's learning rate to 0 over `num_training_steps`, after a linear warmup."""
    return get_cosine_schedule_with_warmup(optimizer, num_warmup_steps, num_training_steps)
