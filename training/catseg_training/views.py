"""How the model looks at an image: once, or at several sizes and in the mirror as well (test-time augmentation)."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from catseg_hf.guided_upsampling_catseg import most_probable_guided_class
from catseg_hf.sliding_window_catseg import finite_logit, resize_bilinear
from catseg_hf.tensor_ops_catseg import independent_chunks


# Around an image that is to look smaller, as around the crops of training.
PADDING = 128


@dataclass(frozen=True)
class View:
    """
    A part of an image, which the model is given as if it were an image.

    Attributes:
        scale (`float`):
            How large the model sees things, compared with the whole image: the part has `1 / scale` of the image's
            height and width. Below 1 it is the whole image in a frame.
        row, column (`float`): Where the part lies, from 0 (top, left) to 1 (bottom, right).
    """

    scale: float = 1.0
    row: float = 0.0
    column: float = 0.0

    def box(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the part in an image `(height, width)`, which end outside of it if it is framed."""
        return self._side(height, self.row), self._side(width, self.column)

    def _side(self, length: int, position: float) -> slice:
        side = max(1, round(length / self.scale))
        begin = round(position * max(0, length - side))
        return slice(begin, begin + side)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of an image `(H, W, 3)`, uint8."""
        rows, columns = self.box(*image.shape[:2])
        part = image[rows, columns]
        missing = (rows.stop - rows.start - part.shape[0], columns.stop - columns.start - part.shape[1])
        return np.pad(part, ((0, missing[0]), (0, missing[1]), (0, 0)), constant_values=PADDING)


@dataclass(frozen=True)
class Views:
    """
    All views of an image. Their probabilities are averaged at the image's own size: where parts of one scale overlap,
    and then over the scales and the two directions.

    The model's input has one size, whatever the image's, so that resizing an image first would not change what it
    sees. Scales change which part of the image fills the input.

    Attributes:
        sliding_window (`bool`): Whether the model averages windows and a global view, of every part.
        scales (`tuple[float, ...]`): See [`View`]. The parts of a scale above 1 cover the image together.
        flip (`bool`): Whether to look at the mirror image of every part, too.
    """

    sliding_window: bool
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @cached_property
    def parts(self) -> tuple[View, ...]:
        """What is looked at, scale by scale."""
        return tuple(
            View(scale, row, column)
            for scale in self.scales
            for row in _positions(scale)
            for column in _positions(scale)
        )

    @property
    def is_single(self) -> bool:
        """Whether there is nothing to average."""
        return self.parts == (View(),) and not self.flip


def _positions(scale: float) -> list[float]:
    count = math.ceil(scale)
    return [index / (count - 1) for index in range(count)] if count > 1 else [0.0]


class MeanProbabilities:
    """
    The sum of an image's probabilities over its views, each pixel's with the weight that makes it the mean.

    Args:
        views ([`Views`]): All views that will be added.
        height (`int`), width (`int`): Of the image.
    """

    def __init__(self, views: Views, height: int, width: int):
        self.views = views
        self.size = (height, width)
        self.total: torch.Tensor | None = None

    def add(self, view: View, logits: torch.Tensor):
        """Adds the model's logits `(T, h, w)` for a part of the image, or for its mirror image, mirrored back."""
        rows, columns = view.box(*self.size)
        part_size = (rows.stop - rows.start, columns.stop - columns.start)
        if self.total is None:
            self.total = torch.zeros(len(logits), *self.size, device=logits.device)
        weights = 1 / self._coverage(view.scale)[rows, columns].to(logits.device)
        inside = tuple(map(slice, weights.shape))
        for mean, chunk in zip(
            independent_chunks(self.total, 0, math.prod(part_size)),
            independent_chunks(logits.float(), 0, math.prod(part_size)),
            strict=True,
        ):
            probabilities = resize_bilinear(chunk[None].sigmoid(), part_size)[0]
            mean[:, rows, columns] += probabilities[(slice(None), *inside)] * weights

    def _coverage(self, scale: float) -> torch.Tensor:
        """How many parts of this scale cover a pixel `(H, W)`."""
        coverage = torch.zeros(self.size)
        for part in self.views.parts:
            if part.scale == scale:
                coverage[part.box(*self.size)] += 1
        return coverage

    def most_probable_class(self, guide: torch.Tensor | None = None) -> torch.Tensor:
        """`(H, W)`, int64; of equal classes the first. With a `guide`, the image `(3, H, W)` in uint8, borders follow
        those in it."""
        if guide is not None:
            return most_probable_guided_class(finite_logit(self.total), guide)[0]
        return self.total.argmax(dim=0)
