import unittest

import torch
from PIL import Image
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.pipelines import ImageSegmentationPipeline
from transformers.utils import is_torchvision_available

from catseg_hf import CATSegForSemanticSegmentation, OpenVocabularySegmentationPipeline
from transformers_tests import IMAGE, add_tiny_models


BACKENDS = (
    ["CATSegImageProcessor", "CATSegImageProcessorPil"] if is_torchvision_available() else ["CATSegImageProcessorPil"]
)
add_tiny_models(BACKENDS)

from tests.test_pipeline_mixin import PipelineTesterMixin, pipeline_test_mapping  # noqa: E402


PROCESSOR_MAPPING_NAMES.setdefault("catseg", "CATSegProcessor")
pipeline_test_mapping["image-segmentation"] = {"test": f"{__name__}.BuiltInPipelineTests"}
pipeline_test_mapping["zero-shot-image-segmentation"] = {"test": f"{__name__}.OpenVocabularyPipelineTests"}


class SegmentationPipelineTests(unittest.TestCase):
    """What both pipelines must give, for lack of transformers' own tests of them in its source distribution."""

    def run_pipeline_test(self, pipeline, examples):
        for segments in [pipeline(examples[0]), *pipeline(examples, batch_size=2)]:
            self.assertGreater(len(segments), 0)
            for segment in segments:
                self.assertEqual(set(segment), {"label", "mask", "score"})
                self.assertIn(segment["label"], pipeline.model.config.id2label.values())
                self.assertEqual((segment["mask"].mode, segment["mask"].size), ("L", Image.open(IMAGE).size))
        with self.assertRaises(ValueError):
            pipeline(examples[0], subtask="panoptic")


class BuiltInPipelineTests(SegmentationPipelineTests):
    def get_test_pipeline(self, model, tokenizer, image_processor, processor, dtype):
        pipeline = ImageSegmentationPipeline(model=model, image_processor=image_processor, dtype=dtype)
        return pipeline, [str(IMAGE), Image.open(IMAGE)]


class OpenVocabularyPipelineTests(SegmentationPipelineTests):
    def get_test_pipeline(self, model, tokenizer, image_processor, processor, dtype):
        processor.image_processor = image_processor
        model = model.to(getattr(torch, dtype))
        pipeline = OpenVocabularySegmentationPipeline(model=model, processor=processor, dtype=dtype)
        return pipeline, [str(IMAGE), Image.open(IMAGE)]


class CATSegPipelineTest(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {
        "image-segmentation": CATSegForSemanticSegmentation,
        "zero-shot-image-segmentation": CATSegForSemanticSegmentation,
    }

    def test_pipeline_image_segmentation(self):  # without timm, which CAT-Seg does not need
        self.run_task_tests(task="image-segmentation")

    def test_pipeline_image_segmentation_fp16(self):
        self.run_task_tests(task="image-segmentation", dtype="float16")

    def test_pipeline_zero_shot_image_segmentation(self):
        self.run_task_tests(task="zero-shot-image-segmentation")

    def test_pipeline_zero_shot_image_segmentation_fp16(self):
        self.run_task_tests(task="zero-shot-image-segmentation", dtype="float16")


del SegmentationPipelineTests
