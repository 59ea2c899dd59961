"""Results as detections of supervision."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .segmented_images import read_results


if TYPE_CHECKING:
    import supervision


def to_supervision(
    result: Any, labels: Sequence[str] | None = None, *, instances: bool = False, min_area: int = 1
) -> "supervision.Detections":
    """
    A result of the pipeline as `supervision.Detections`: `mask`, `xyxy` (behind the last pixel), `confidence`,
    `class_id` and, in `data`, `class_name`.

    Args:
        result: A result of [`OpenVocabularySegmentationPipeline`].
        labels (`list[str]`, *optional*): All classes, whose order gives the ids; by default those of the result in the
            order of their names.
        instances (`bool`): Whether every 8-connected part of a class is a detection of its own.
        min_area (`int`): Detections of fewer pixels are left out.

    Raises:
        UserError: If supervision is not installed, or a segment is of no class in `labels`.
    """
    try:
        import supervision
    except ImportError as error:
        raise UserError("`to_supervision` needs supervision: `pip install supervision`.") from error
    segments = result["segments"] if isinstance(result, dict) else result
    if labels is None:
        labels = sorted(segment["label"] for segment in segments)
    if not segments:
        return supervision.Detections.empty()
    (image,) = read_results(result, labels, "image", instances=instances, min_area=min_area)
    if not image.regions:
        return supervision.Detections.empty()
    boxes = [(left, top, left + width, top + height) for left, top, width, height in (r.box for r in image.regions)]
    return supervision.Detections(
        xyxy=np.array(boxes, np.float32),
        mask=np.stack([region.draw(image.size) for region in image.regions]),
        confidence=np.array([region.score for region in image.regions], np.float32),
        class_id=np.array([region.index for region in image.regions]),
        data={"class_name": np.array([region.label for region in image.regions])},
    )
