"""The label map of a large image and the scores of its segments, of bands of its rows that need not be kept."""

from numbers import Real
from typing import Any

import torch

from .bands_catseg import Band
from .class_words_catseg import ClassWords
from .errors import UserError


# Counting takes several times the memory of what is counted.
_ROWS_AT_ONCE = 256


class SegmentTally:
    """
    What is kept of an image's bands.

    Args:
        size (`tuple[int, int]`): Height and width of the image.
        classes ([`ClassWords`]): What is told apart: bands hold words, and the label map classes.
        threshold (`float`, *optional*): Pixels less probable than this are of no class.

    Attributes:
        segmentation (`torch.ShortTensor` of shape (H, W)): The class of every pixel, -1 for none.
        totals (`torch.DoubleTensor` of shape (2, T)): Of each class its pixels, and the sum of their probabilities.
    """

    def __init__(self, size: tuple[int, int], classes: ClassWords, threshold: float | None = None):
        self.classes, self.threshold = classes, threshold
        self.segmentation = torch.empty(size, dtype=torch.int16)
        self.totals = torch.zeros(2, len(classes.names), dtype=torch.float64)

    def add(self, band: Band):
        """Takes rows of the image."""
        own = self.segmentation[band.top : band.top + len(band.segmentation)]
        parts = (tensor.split(_ROWS_AT_ONCE) for tensor in (own, band.segmentation.cpu(), band.probability.cpu()))
        for rows, segmentation, probability in zip(*parts, strict=True):
            segmentation = self.classes.merge_segmentation(segmentation)
            segmentation, totals = count_segments(segmentation, probability, len(self.classes.names), self.threshold)
            rows.copy_(segmentation)
            self.totals += totals


def count_segments(
    segmentation: torch.Tensor, probability: torch.Tensor, num_classes: int, threshold: float | None
) -> tuple[torch.Tensor, torch.DoubleTensor]:
    """
    The segments of a label map.

    Args:
        segmentation (`torch.LongTensor` or `torch.IntTensor` of shape (H, W)): The class of every pixel, -1 for none.
        probability (`torch.FloatTensor` of shape (H, W)): Its probability, in 0..1.
        num_classes (`int`): T.
        threshold (`float`, *optional*): Pixels less probable than this are of no class.

    Returns:
        The label map with the threshold, and `totals` as [`SegmentTally`] has them.
    """
    if threshold is not None:
        segmentation = segmentation.masked_fill(probability < threshold, -1)
    classes = (segmentation + 1).flatten()
    areas = torch.bincount(classes, minlength=num_classes + 1)[1:]
    sums = torch.bincount(classes, weights=probability.flatten().double(), minlength=num_classes + 1)[1:]
    return segmentation, torch.stack([areas.double(), sums])


def check_threshold(threshold: Any) -> float:
    """
    Raises:
        UserError: If it is no probability.
    """
    is_number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if not is_number or not 0 <= threshold <= 1:
        raise UserError(f"`threshold` must be a probability between 0 and 1, got {threshold!r}.")
    return threshold
