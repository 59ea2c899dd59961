"""How CAT-Seg's modules resize maps, and how much they work on at once."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .tracing_catseg import is_exporting


# Bytes of the largest activation of the slices worked on together: what a core's cache holds, or what keeps an
# accelerator busy.
CPU_CHUNK_BYTES, ACCELERATOR_CHUNK_BYTES = 6 * 2**20, 2**28


def resize_bilinear(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images `(B, C, H, W)` at another size, bilinear, with pixel centres aligned and no antialiasing."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def bilinear_weights(source: int, size: int, start: int, stop: int) -> tuple[int, np.ndarray]:
    """What `source` values give those from `start` to `stop` of `size`, resized as [`resize_bilinear`] does: the first
    that counts, and a matrix of shape (stop - start, values that count)."""
    places = np.maximum((np.arange(start, stop) + 0.5) * (source / size) - 0.5, 0)
    lower = places.astype(int)
    upper = np.minimum(lower + 1, source - 1)
    first = lower[0]
    matrix = np.zeros((stop - start, upper[-1] - first + 1))
    rows = np.arange(stop - start)
    matrix[rows, lower - first] += lower + 1 - places
    matrix[rows, upper - first] += places - lower
    return int(first), matrix


def shrink_bilinear(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[`resize_bilinear`] of one image `(C, H, W)` of any type, which looks at no pixels but those that count: of a
    large image that becomes a small one, few. Differs by rounding."""
    factors = []
    for axis, new in ((1, size[0]), (2, size[1])):
        first, matrix = bilinear_weights(image.shape[axis], new, 0, new)
        counts = np.flatnonzero(matrix.any(axis=0))
        image = image.index_select(axis, torch.from_numpy(counts + first).to(image.device))
        factors.append(torch.from_numpy(matrix[:, counts]).float().to(image.device))
    rows, columns = factors
    return rows @ (image.float() @ columns.T)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, for what is summed over a whole image; other types as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def all_true(conditions: Sequence[torch.Tensor]) -> bool:
    """Whether all of these booleans without axes hold. For them all an accelerator is waited for once."""
    return bool(torch.stack([condition.to(conditions[0].device) for condition in conditions]).all())


def independent_chunks(
    tensor: torch.Tensor, dim: int, numel_per_slice: int, size: int | None = None
) -> Sequence[torch.Tensor]:
    """
    Parts of a tensor along `dim`, whose slices (classes or positions) are worked on alone, so that any number of them
    at once gives the same result.

    Args:
        tensor (`torch.Tensor`): The tensor to split.
        dim (`int`): Axis of the slices.
        numel_per_slice (`int`): Numbers in the largest activation that comes of one slice.
        size (`int`, *optional*): Slices in each part; by default as many as keep that activation within a fixed number
            of bytes. A graph that is compiled or exported has one part, but for a number of slices that it fixes and
            a size.
    """
    is_fixed = is_exporting() and size is not None and isinstance(tensor.shape[dim], int)
    if torch.compiler.is_compiling() and not is_fixed:
        return (tensor,)
    if size is None:
        chunk_bytes = CPU_CHUNK_BYTES if tensor.device.type == "cpu" else ACCELERATOR_CHUNK_BYTES
        size = max(1, chunk_bytes // (numel_per_slice * tensor.element_size()))
    return tensor.split(size, dim=dim)
