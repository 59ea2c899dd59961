"""CAT-Seg's loss (section 4.1 of the paper)."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_catseg import CATSegConfig
from .tensor_ops_catseg import at_least_float32, independent_chunks, resize_bilinear


class CATSegCrossEntropy(GradientCheckpointingLayer):
    """Binary cross-entropy of every pixel and class, summed."""

    def forward(self, logits: torch.Tensor, own_class: torch.Tensor) -> torch.Tensor:
        """
        Logits `(B, T, h, w)`, resized to `own_class` `(B, H, W)`, each pixel's class or any number outside [0, T) for
        none.

        With one-hot targets it is softplus(logit), less the logit of each pixel's own class, so that no targets are
        built.
        """
        logits = at_least_float32(resize_bilinear(logits, own_class.shape[-2:]))
        has_class = (own_class >= 0) & (own_class < logits.shape[1])
        own_logits = logits.gather(1, torch.where(has_class, own_class, 0)[:, None])[:, 0]
        return F.softplus(logits).sum() - own_logits.masked_fill(~has_class, 0.0).sum()


class CATSegLoss(nn.Module):
    """Binary cross-entropy of every pixel and class, averaged over all of them. Pixels to be ignored count too: they
    belong to no class."""

    def __init__(self, config: CATSegConfig):
        super().__init__()
        self.config = config
        self.cross_entropy = CATSegCrossEntropy()

    def forward(self, logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
        """The loss, without axes, of logits `(B, T, h, w)` for `labels` `(B, H, W)`, a few classes at a time."""
        own_class = labels.long().masked_fill(labels == self.config.semantic_loss_ignore_index, -1)
        total, first = 0.0, 0
        for chunk in independent_chunks(logits, 1, labels.numel()):
            total = total + self.cross_entropy(chunk, own_class - first)
            first += chunk.shape[1]
        return total / (logits.shape[1] * labels.numel())
