import unittest

import torch
from tests.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import is_torchvision_available

from catseg_hf import CATSegImageProcessor, CATSegImageProcessorPil


class CATSegImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20, "longest_edge": 80})
        kwargs.setdefault("window_image_size", 20)
        kwargs.setdefault("sliding_window_size", 12)
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        classes = {"torchvision": CATSegImageProcessor} if is_torchvision_available() else {}
        return {**classes, "pil": CATSegImageProcessorPil}

    def expected_output_image_shape(self, images):
        return self.num_channels, self.window_image_size, self.window_image_size

    def prepare_post_process_semantic_segmentation_inputs(self):
        logits = torch.randn(self.batch_size, 5, 6, 7)
        return {"outputs": SemanticSegmenterOutput(logits=logits)}, {"num_labels": 5, "height": 6, "width": 7}


class CATSegImageProcessingTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = CATSegImageProcessingTester

    @unittest.skip("CLIP takes RGB: with other channels an image is refused")
    def test_call_numpy_4_channels(self):
        pass

    @unittest.skipUnless(
        is_torchvision_available(), "The torchvision backend needs torchvision, which is not installed"
    )
    def test_new_models_require_torchvision_backend(self):
        super().test_new_models_require_torchvision_backend()
