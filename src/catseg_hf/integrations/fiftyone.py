"""FiftyOne: a model for `dataset.apply_model`."""

from types import SimpleNamespace

import numpy as np

from ..annotations.segmented_images import read_results
from ..class_words_catseg import read_classes
from ..pipeline_catseg import OpenVocabularySegmentationPipeline


try:
    import fiftyone
    from fiftyone.core.models import Model
except ImportError as error:
    raise ImportError('This needs FiftyOne: `pip install "catseg_hf[fiftyone]"`.') from error


class CATSegFiftyOneModel(Model):
    """
    Finds classes named in words in a FiftyOne dataset.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        labels (`str` or `list[str]`): The classes, as the pipeline takes them.
        background_labels (`str` or `list[str]`, *optional*): As the pipeline takes them.
        instances (`bool`): Whether the predictions are `Detections` with masks, one for each 8-connected part of a
            class, instead of one `Segmentation`.
        min_area (`int`): Detections of fewer pixels are left out.

    Attributes:
        mask_targets (`dict[int, str]`): What values of a `Segmentation` stand for, from 1; 0 is no class. For
            `dataset.default_mask_targets`.

    Raises:
        UserError: What [`read_classes`] refuses of the labels.
    """

    media_type = "image"
    ragged_batches = True  # images have sizes of their own
    transforms = None
    preprocess = False

    def __init__(
        self,
        segmenter: OpenVocabularySegmentationPipeline,
        labels: str | list[str],
        *,
        background_labels: str | list[str] | None = None,
        instances: bool = False,
        min_area: int = 1,
    ):
        self.segmenter = segmenter
        self.classes = read_classes(labels, background_labels)
        self.instances, self.min_area = instances, min_area
        self.config = SimpleNamespace(confidence_thresh=None)  # which `apply_model` sets
        self.mask_targets = dict(enumerate(self.classes.names, start=1))

    def predict(self, image: np.ndarray) -> "fiftyone.Segmentation | fiftyone.Detections":
        """The classes of an image (H, W, 3), uint8. With `confidence_thresh` of `apply_model`, pixels whose class is
        less probable have none."""
        result = self.segmenter(
            image, self.classes, threshold=self.config.confidence_thresh, return_segmentation_map=True
        )
        if not self.instances:
            dtype = np.uint8 if len(self.mask_targets) < 256 else np.uint16
            return fiftyone.Segmentation(mask=(result["segmentation"].numpy() + 1).astype(dtype))
        (segmented,) = read_results(result, self.classes.names, "image", instances=True, min_area=self.min_area)
        height, width = segmented.size
        detections = []
        for region in segmented.regions:
            left, top, box_width, box_height = region.box
            box = [left / width, top / height, box_width / width, box_height / height]
            detections.append(
                fiftyone.Detection(label=region.label, bounding_box=box, mask=region.mask, confidence=region.score)
            )
        return fiftyone.Detections(detections=detections)
