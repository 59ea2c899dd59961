"""Everything that `catseg_hf` exports. Importing it registers CAT-Seg with the Auto classes, and its task."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .class_padding_catseg import pad_classes
from .configuration_catseg import CATSegConfig
from .hub.pretrained import pretrained
from .image_processing_catseg import CATSegImageProcessor, CATSegImageProcessorPil
from .modeling_catseg import (
    CATSegForSemanticSegmentation,
    CATSegModel,
    CATSegModelOutput,
    CATSegPreTrainedModel,
)
from .pipeline_catseg import OpenVocabularySegmentationPipeline
from .processing_catseg import CATSegProcessor
from .refinement import refine_with_masks
from .remote_code_catseg import OPEN_VOCABULARY_TASK
from .vocabularies import VOCABULARIES, load_vocabulary


AutoConfig.register("catseg", CATSegConfig)
AutoModel.register(CATSegConfig, CATSegModel)
AutoModelForSemanticSegmentation.register(CATSegConfig, CATSegForSemanticSegmentation)
AutoImageProcessor.register(
    CATSegConfig, image_processor_classes={"torchvision": CATSegImageProcessor, "pil": CATSegImageProcessorPil}
)
AutoProcessor.register(CATSegConfig, CATSegProcessor)
PIPELINE_REGISTRY.register_pipeline(
    OPEN_VOCABULARY_TASK,
    pipeline_class=OpenVocabularySegmentationPipeline,
    pt_model=AutoModelForSemanticSegmentation,
    type="multimodal",
)

__all__ = [
    "CATSegConfig",
    "CATSegForSemanticSegmentation",
    "CATSegImageProcessor",
    "CATSegImageProcessorPil",
    "CATSegModel",
    "CATSegModelOutput",
    "CATSegPreTrainedModel",
    "CATSegProcessor",
    "OpenVocabularySegmentationPipeline",
    "VOCABULARIES",
    "load_vocabulary",
    "pad_classes",
    "pretrained",
    "refine_with_masks",
]
