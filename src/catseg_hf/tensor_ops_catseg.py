"""How CAT-Seg's modules resize maps and how many classes they work on at once."""

import torch
import torch.nn.functional as F

from .configuration_catseg import CATSegConfig


# Bytes of the largest activation of the slices worked on together: what a core's cache holds, or what keeps an
# accelerator busy.
CPU_CHUNK_BYTES, ACCELERATOR_CHUNK_BYTES = 2**22, 2**28


def resize_bilinear(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images `(B, C, H, W)` at another size, bilinear, with pixel centres aligned and no antialiasing."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, for what is summed over a whole picture; other types as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def chunk_size(num_slices: int, slice_numel: int, like: torch.Tensor) -> int:
    """How many of `num_slices` independent slices (classes, or rows) to work on at once: as many as have their largest
    activation, of `slice_numel` numbers each, within a fixed number of bytes. Any number gives the same result."""
    if torch.compiler.is_compiling():
        return num_slices
    chunk_bytes = CPU_CHUNK_BYTES if like.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
    return max(1, chunk_bytes // (slice_numel * like.element_size()))


def class_chunk_size(config: CATSegConfig, hidden_states: torch.Tensor) -> int:
    """[`chunk_size`] for the classes of tokens `(B, T, H, W, C)`, unless the config overrides it."""
    if config.class_chunk_size is not None:
        return config.class_chunk_size
    num_classes = hidden_states.shape[1]
    return chunk_size(num_classes, hidden_states[:, 0].numel() * config.mlp_ratio, hidden_states)
