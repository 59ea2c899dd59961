"""CVAT: an auto-annotation function for cvat-sdk.

cvat-cli task auto-annotate 7 --function-module catseg_hf.integrations.cvat \
    -p model=str:base -p "labels=str:cat, sofa|couch" --allow-unmatched-labels
"""

from typing import TYPE_CHECKING

from PIL import Image

from ..annotations.contours import trace_borders
from ..annotations.rle import encode_cvat
from ..annotations.segmented_images import read_results
from ..class_words_catseg import read_classes
from ..loading import load_segmenter
from ..pipeline_catseg import OpenVocabularySegmentationPipeline


try:
    import cvat_sdk.auto_annotation as cvataa
except ImportError as error:
    raise ImportError('This needs cvat-sdk: `pip install "catseg_hf[cvat]"`.') from error
if TYPE_CHECKING:
    from cvat_sdk import models


class CATSegFunction:
    """
    A detection function of cvat-sdk that finds classes named in words.

    Args:
        segmenter ([`OpenVocabularySegmentationPipeline`]): The model with its processor.
        labels (`str` or `list[str]`): The classes, as the pipeline takes them. Of several words for a class the first
            is the label's name in CVAT, in the same case.
        background_labels (`str` or `list[str]`, *optional*): As the pipeline takes them.
        instances (`bool`): Whether every 8-connected part of a class is a shape of its own.
        min_area (`int`): Shapes of fewer pixels are left out.

    Raises:
        UserError: What [`read_classes`] refuses of the labels, and if OpenCV is needed and not installed.
    """

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

    @property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """The labels, whose ids are the indices of the classes."""
        labels = [cvataa.label_spec(name, index, type="mask") for index, name in enumerate(self.classes.names)]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: Image.Image
    ) -> "list[models.LabeledShapeRequest]":
        """The shapes in an image: masks, or polygons with `conv_mask_to_poly`, one for each 8-connected part. With a
        `conf_threshold`, pixels whose class is less probable are in none."""
        result = self.segmenter(image, self.classes, threshold=context.conf_threshold, return_segmentation_map=True)
        (segmented,) = read_results(
            result,
            self.classes.names,
            context.frame_name,
            instances=self.instances or context.conv_mask_to_poly,
            min_area=self.min_area,
        )
        shapes = []
        for region in segmented.regions:
            if context.conv_mask_to_poly:
                (polygon,) = trace_borders(region.mask)
                points = (polygon + (region.left, region.top)).ravel().astype(float).tolist()
                shapes.append(cvataa.polygon(region.index, points, z_order=0, score=region.score))
            else:
                left, top, width, height = region.box
                points = [*encode_cvat(region.mask), left, top, left + width - 1, top + height - 1]
                shapes.append(cvataa.mask(region.index, list(map(float, points)), z_order=0, score=region.score))
        return shapes


def create(
    model: str,
    labels: str,
    background_labels: str | None = None,
    device: str | None = None,
    instances: bool = False,
    min_area: int = 1,
) -> CATSegFunction:
    """
    What cvat-cli calls with its `-p` parameters.

    Args:
        model (`str`): "base", "large", a folder or a Hub id.
        device (`str`, *optional*): Where it runs; by default an accelerator, if any.
        labels, background_labels, instances, min_area: As [`CATSegFunction`] takes them.
    """
    return CATSegFunction(
        load_segmenter(model, device),
        labels,
        background_labels=background_labels,
        instances=instances,
        min_area=min_area,
    )
