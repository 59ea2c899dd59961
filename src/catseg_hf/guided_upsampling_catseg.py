"""Upsampling that follows the borders in the image: the fast guided filter with a colour guide ("Guided Image
Filtering", ECCV 2010; "Fast Guided Filter", 2015), for the arg max over classes in bounded memory.

Around every cell of a grid, a class's probabilities are fitted by a linear function of the image's colours. The
functions, not the probabilities, are resized to the image and applied to its colours there: borders lie where colours
change. All lengths are in cells, so that they follow the model's resolution and not the image's.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .bands_catseg import Band, join_bands
from .errors import UserError


UPSAMPLINGS = ("bilinear", "guided")
"""How probabilities get from the model's resolution to the image's."""
RADIUS = 3
"""Cells on each side of a window that a function is fitted in, and of one that functions are averaged in."""
MARGIN = 2 * RADIUS + 1
"""Cells around a pixel that its class depends on."""
EPSILON = 3e-4
"""Variance of colours in 0..1 below which a window counts as of one colour."""
MAX_CELLS = 160
"""Most cells on a side: what the models decode for a whole image that is cut into windows."""

# Cells and pixels on a side, and classes, that are worked on at a time. They bound the memory whatever their numbers.
_BLOCK_CELLS, _BLOCK_PIXELS, _BLOCK_CLASSES = 32, 256, 16
_POOLED_VALUES = 2**23
# Far below any probability, also where a class may win at one of four cells only.
_NEVER = -1e6


def check_upsampling(upsampling: Any) -> str:
    """
    Raises:
        UserError: If there is no such upsampling.
    """
    if upsampling not in UPSAMPLINGS:
        accepted = " or ".join(map(repr, UPSAMPLINGS))
        raise UserError(f"`upsampling` is {upsampling!r}, but {accepted} is accepted: name one of them.")
    return upsampling


def as_guide(image: Image.Image | np.ndarray) -> torch.Tensor:
    """An image in RGB, of PIL or uint8 of shape (H, W, 3), as a guide (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def most_probable_guided_class(logits: torch.Tensor, guide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The most probable class of every pixel, where the image's colours have been followed.

    Args:
        logits (`torch.Tensor` of shape (T, h, w)): The model's logits of an image, on any device.
        guide (`torch.Tensor` of shape (3, H, W)): The image in RGB and in its own size, uint8 or float in 0..1.

    Returns:
        Two tensors of shape (H, W): the class, int64, and its probability, float32 in 0..1.
    """
    return join_bands(most_probable_guided_bands(logits, guide), guide.shape[1:])


def most_probable_guided_bands(logits: torch.Tensor, guide: torch.Tensor) -> Iterator[Band]:
    """What [`most_probable_guided_class`] is made of, from top to bottom."""
    logits, guide = logits.detach(), guide.to(logits.device)
    grid = tuple(min(MAX_CELLS, *sides) for sides in zip(logits.shape[1:], guide.shape[1:], strict=True))
    per_chunk = max(1, _POOLED_VALUES // logits[0].numel())
    best = torch.full(grid, -1.0, device=logits.device)
    winner = torch.zeros(grid, dtype=torch.int64, device=logits.device)
    for indices in torch.arange(len(logits), device=logits.device).split(per_chunk):
        score, place = _at_cells(logits[indices], grid).max(dim=0)
        is_better = score > best
        winner = torch.where(is_better, indices[place], winner)
        best = torch.where(is_better, score, best)
    classes = winner.unique()
    probabilities = torch.cat([_at_cells(logits[indices], grid) for indices in classes.split(per_chunk)])
    for top, segmentation, probability in guided_bands(probabilities, guide):
        yield Band(top, classes[segmentation], probability)


def _at_cells(logits: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mean probabilities of the pixels that each cell covers."""
    return _means_at_cells(logits.float().sigmoid(), grid)


def _means_at_cells(probabilities: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    return probabilities if probabilities.shape[1:] == grid else F.adaptive_avg_pool2d(probabilities, grid)


def guided_bands(probabilities: torch.Tensor, guide: torch.Tensor) -> Iterator[Band]:
    """
    Arg max over classes of probabilities that are resized from a grid of cells to the image, following its colours.
    Of a pixel's classes only those that are the most probable one of a cell near it can win.

    A rectangle of a larger image, cut at the borders of cells of one size, gets the same result as in the whole, up to
    rounding, but for [`MARGIN`] cells along the cuts.

    Args:
        probabilities (`torch.Tensor` of shape (T, h, w)): Probabilities in 0..1 of T classes.
        guide (`torch.Tensor` of shape (3, H, W)): The image in RGB, uint8 or float in 0..1, on the same device. At
            least of the grid's size.

    Returns:
        An iterator of [`Band`], with indices among the T classes, int64, from top to bottom.
    """
    grid, size = probabilities.shape[1:], guide.shape[1:]
    colours = _mean_colours(guide, grid)
    winner = probabilities.argmax(dim=0)
    all_columns = _blocks(grid[1], size[1], guide.device)
    for rows in _blocks(grid[0], size[0], guide.device):
        parts = []
        for columns in all_columns:
            cells = (slice(None), rows.cells, columns.cells)
            best = _best_of_block(
                probabilities[cells],
                winner[cells[1:]],
                _LinearFit(colours[cells]),
                guide[:, rows.pixels, columns.pixels],
                (rows.weights, columns.weights.T),
            )
            parts.append(best)
        yield Band(rows.pixels.start, *(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))


def fit_functions(probabilities: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    """
    The linear functions of colours, for images whose parts are fitted one by one.

    Args:
        probabilities (`torch.Tensor` of shape (T, h, w)): Of T classes in 0..1.
        guide (`torch.Tensor` of shape (3, H, W)): The part of the image in RGB, uint8 or float in 0..1, on the same
            device.

    Returns:
        `torch.Tensor` of shape (5, T, h', w') at cells, h by w of them or fewer: the mean probability of each, its
        function's three slopes, and the intercept.
    """
    grid = tuple(min(MAX_CELLS, *sides) for sides in zip(probabilities.shape[1:], guide.shape[1:], strict=True))
    means = _means_at_cells(probabilities, grid)
    slopes, intercept = _LinearFit(_mean_colours(guide, grid))(means)
    return torch.stack([means, *slopes, intercept])


def apply_functions(functions: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    """Values (T, H, W) of linear functions (4, T, H, W), three slopes and an intercept for every pixel, at the colours
    of a guide (3, H, W). Takes the place of the intercepts."""
    *slopes, values = functions
    for slope, colour in zip(slopes, _as_colours(guide), strict=True):
        values.addcmul_(slope, colour)
    return values


def _best_of_block(
    probabilities: torch.Tensor,
    winner: torch.Tensor,
    fit: "_LinearFit",
    guide: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arg max, and its value, of a block of pixels `guide` (3, H, W): of probabilities (T, h, w) at
    cells, whose most probable class is `winner` (h, w), resized by `weights` of rows (H, h) and of columns (w, W)."""
    best = probabilities.new_full(guide.shape[1:], -torch.inf)
    segmentation = torch.zeros_like(best, dtype=torch.int64)
    for classes in winner.unique().split(_BLOCK_CLASSES):
        slopes, intercept = fit(probabilities[classes])
        is_near = fit.mean((winner == classes[:, None, None]).to(intercept.dtype)) > 0
        intercept = intercept.masked_fill(~is_near, _NEVER)
        functions = weights[0] @ torch.cat([slopes, intercept[None]]) @ weights[1]
        score, place = apply_functions(functions, guide).max(dim=0)
        is_better = score > best
        segmentation = torch.where(is_better, classes[place], segmentation)
        best = torch.where(is_better, score, best)
    return segmentation, best.clamp(0, 1)


class _LinearFit:
    """
    Fits values at cells by linear functions of their colours, in windows around every cell.

    Args:
        colours (`torch.Tensor` of shape (3, h, w)): Of the cells, in -0.5..0.5.
    """

    def __init__(self, colours: torch.Tensor):
        self.colours = colours
        self.windows = [_windows(side, colours) for side in colours.shape[1:]]
        self.mean_colours = self.mean(colours)
        products = self.mean(colours[:, None] * colours)  # (3, 3, h, w)
        covariance = products - self.mean_colours[:, None] * self.mean_colours
        spread = covariance.permute(2, 3, 0, 1) + EPSILON * torch.eye(3, device=colours.device)
        self.inverse = torch.linalg.inv(spread).permute(2, 3, 0, 1).contiguous()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Means `(..., h, w)` over the window around every cell, of the part inside the grid."""
        rows, columns = self.windows
        return rows @ values @ columns.T

    def __call__(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Slopes `(3, T, h, w)` and intercepts `(T, h, w)` for values `(T, h, w)`, the mean of those of all windows
        that a cell is in."""
        means = self.mean(values)
        covariance = self.mean(values * self.colours[:, None]) - means * self.mean_colours[:, None]
        slopes = torch.stack(
            [sum(weight * part for weight, part in zip(row[:, None], covariance, strict=True)) for row in self.inverse]
        )
        intercept = means - (slopes * self.mean_colours[:, None]).sum(dim=0)
        return self.mean(slopes), self.mean(intercept)


def _windows(side: int, like: torch.Tensor) -> torch.Tensor:
    """Weights `(side, side)` of the means over windows in one direction, of the part inside the grid."""
    places = torch.arange(side, device=like.device)
    inside = ((places[:, None] - places).abs() <= RADIUS).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _as_colours(guide: torch.Tensor) -> torch.Tensor:
    """Pixels in -0.5..0.5, about which sums of squares lose fewer digits."""
    return (guide / 255 if guide.dtype == torch.uint8 else guide.float()) - 0.5


def _mean_colours(guide: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mean colours `(3, h, w)` of the pixels that each cell covers; a few rows of the image are held as floats."""
    height, rows = guide.shape[1], []
    for row in range(grid[0]):
        covered = guide[:, row * height // grid[0] : ceil((row + 1) * height / grid[0])]
        rows.append(F.adaptive_avg_pool1d(_as_colours(covered).mean(dim=1), grid[1]))
    return torch.stack(rows, dim=1)


class _Block(NamedTuple):
    """Neighbouring `pixels` in one direction, the `cells` that they depend on, and the weights (pixels, cells) of a
    bilinear resize."""

    pixels: slice
    cells: slice
    weights: torch.Tensor


def _blocks(num_cells: int, num_pixels: int, device: torch.device) -> list[_Block]:
    """All pixels of one direction of an image, block by block."""
    step = max(1, min(_BLOCK_CELLS * num_pixels // num_cells, _BLOCK_PIXELS))
    blocks = []
    for start in range(0, num_pixels, step):
        pixels = torch.arange(start, min(start + step, num_pixels), dtype=torch.float64)
        places = ((pixels + 0.5) * num_cells / num_pixels - 0.5).clamp(0, num_cells - 1)
        first, last = int(places[0]) - MARGIN + 1, int(places[-1]) + MARGIN
        cells = torch.arange(max(0, first), min(last + 1, num_cells))
        weights = (1 - (places[:, None] - cells).abs()).clamp(min=0).to(device, torch.float32)
        blocks.append(_Block(slice(start, start + len(pixels)), slice(int(cells[0]), int(cells[-1]) + 1), weights))
    return blocks
