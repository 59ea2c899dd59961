import unittest

from tests.test_processing_common import ProcessorTesterMixin
from transformers.utils import is_torchvision_available

from catseg_hf import CATSegImageProcessor, CATSegImageProcessorPil, CATSegProcessor
from catseg_testing.tokenizer import tiny_tokenizer


class CATSegProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = CATSegProcessor
    # CLIP has 77 positions.
    images_text_kwargs_max_length = 77
    images_text_kwargs_override_max_length = 72

    @classmethod
    def _setup_image_processor(cls):
        image_processor_class = CATSegImageProcessor if is_torchvision_available() else CATSegImageProcessorPil
        return image_processor_class(size={"shortest_edge": 40}, window_image_size=40, sliding_window_size=24)

    @classmethod
    def _setup_tokenizer(cls):
        return tiny_tokenizer()

    def prepare_text_inputs(self, batch_size=None, modalities=None):
        """Labels, of which none may occur twice."""
        text = super().prepare_text_inputs(batch_size, modalities)
        return text if batch_size is None else [f"{label} {index}" for index, label in enumerate(text)]

    @unittest.skip("The processor makes prompts of its text, which the tokenizer alone does not")
    def test_subprocessor_defaults_0_text(self):
        pass
