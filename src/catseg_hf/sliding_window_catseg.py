"""CAT-Seg's sliding window: an image is cut into overlapping windows, whose probabilities are averaged again."""

from collections.abc import Sequence

import torch

from .configuration_catseg import CATSegConfig
from .tensor_ops_catseg import at_least_float32, independent_chunks, resize_bilinear


def split_windows(pixel_values: torch.Tensor, config: CATSegConfig) -> list[torch.Tensor]:
    """The four overlapping windows `(B, 3, size, size)`, row by row, of images `(B, 3, H, W)` of any size."""
    size, stride = config.sliding_window_size, config.sliding_window_stride
    pixel_values = resize_bilinear(pixel_values, (config.sliding_window_image_size,) * 2)
    return [pixel_values[..., y : y + size, x : x + size] for y in (0, stride) for x in (0, stride)]


def merge_windows(logits: Sequence[torch.Tensor], config: CATSegConfig) -> torch.Tensor:
    """
    The inverse of [`split_windows`] for logits `(B, T, h, w)` of the four windows, then of the global view. Returns
    logits `(B, T, image_size, image_size)`, at least in float32, of averaged probabilities: over the windows that
    cover a pixel, then with the global view.
    """
    size, stride = config.sliding_window_size, config.sliding_window_stride
    image_size = config.sliding_window_image_size
    views = at_least_float32(torch.stack(tuple(logits), dim=2))  # (B, T, 5, h, w)
    batch_size, num_classes = views.shape[:2]
    starts = [(y, x) for y in (0, stride) for x in (0, stride)]
    coverage = views.new_zeros(image_size, image_size)
    for y, x in starts:
        coverage[y : y + size, x : x + size] += 1

    merged = coverage.new_empty(batch_size, num_classes, image_size, image_size)
    first = 0
    for chunk in independent_chunks(views, 1, batch_size * image_size**2):
        probabilities = resize_bilinear(chunk.flatten(0, 2)[:, None], (size, size)).sigmoid()
        *window_views, global_view = probabilities.view(*chunk.shape[:3], size, size).unbind(2)
        windows = merged.new_zeros(*chunk.shape[:2], image_size, image_size)
        for (y, x), window in zip(starts, window_views, strict=True):
            windows[:, :, y : y + size, x : x + size] += window
        mean = (windows / coverage + resize_bilinear(global_view, (image_size, image_size))) / 2
        merged[:, first : first + chunk.shape[1]] = finite_logit(mean)
        first += chunk.shape[1]
    return merged


def finite_logit(probabilities: torch.Tensor) -> torch.Tensor:
    """Logits of probabilities in [0, 1], finite at both ends, in the same order."""
    bounds = torch.finfo(probabilities.dtype)
    return probabilities.clamp(bounds.tiny, 1 - bounds.eps / 2).logit()
