"""Class-agnostic masks of Segment Anything, for [`~refinement.refine_with_masks`]."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from transformers import pipeline
from transformers.utils import is_torchvision_available

from ..errors import UNREADABLE_CHECKPOINT, UserError, first_line


# Every point gives three float masks of the image's size: 12 bytes a pixel, which are held several times over.
_POINTS_TIMES_PIXELS = 2**26
_MAX_POINTS = 64


def load_mask_generator(
    model: str, device: torch.device | None = None, **kwargs: Any
) -> Callable[[Image.Image], dict[str, Any]]:
    """
    What `mask_generator` of [`OpenVocabularySegmentationPipeline`] takes, from a checkpoint of SAM, SAM 2 or SAM 3:
    the pipeline for "mask-generation", with fewer points at a time the larger the image is, to bound its memory.

    Args:
        model (`str`): Folder or Hub id.
        device (`torch.device`, *optional*): Where it runs; by default an accelerator, if any.
        kwargs: Arguments of the pipeline, such as `points_per_crop`.

    Raises:
        UserError: If torchvision is missing, which transformers needs for it, or the model cannot be loaded.
    """
    if not is_torchvision_available():
        raise UserError("Segment Anything needs torchvision, which is not installed here: `pip install torchvision`.")
    try:
        generator = pipeline("mask-generation", model=model, device=device, **kwargs)
    except (*UNREADABLE_CHECKPOINT, ValueError) as error:
        raise UserError(
            f"The Segment Anything model {model!r} could not be loaded: {first_line(error)}. A folder or Hub id of "
            "SAM, SAM 2 or SAM 3 is needed."
        ) from error

    def generate(image: Image.Image) -> dict[str, Any]:
        points = _POINTS_TIMES_PIXELS // (image.width * image.height)
        return generator(image, points_per_batch=min(max(points, 1), _MAX_POINTS))

    return generate
