"""CAT-Seg for transformers: open-vocabulary semantic segmentation by cost aggregation (Cho et al., CVPR 2024)."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForSemanticSegmentation,
    AutoProcessor,
)

from .configuration_catseg import CATSegConfig
from .image_processing_catseg import CATSegImageProcessor, CATSegImageProcessorPil
from .modeling_catseg import CATSegForSemanticSegmentation, CATSegModel
from .processing_catseg import CATSegProcessor


AutoConfig.register("catseg", CATSegConfig)
AutoModel.register(CATSegConfig, CATSegModel)
AutoModelForSemanticSegmentation.register(CATSegConfig, CATSegForSemanticSegmentation)
AutoImageProcessor.register(
    CATSegConfig, image_processor_classes={"torchvision": CATSegImageProcessor, "pil": CATSegImageProcessorPil}
)
AutoProcessor.register(CATSegConfig, CATSegProcessor)

__version__ = "0.1.0"

__all__ = [
    "CATSegConfig",
    "CATSegForSemanticSegmentation",
    "CATSegImageProcessor",
    "CATSegImageProcessorPil",
    "CATSegModel",
    "CATSegProcessor",
]
