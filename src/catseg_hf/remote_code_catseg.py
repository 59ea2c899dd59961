"""What makes a saved folder complete for people who have not installed the package (`trust_remote_code=True`)."""

from typing import TYPE_CHECKING


# transformers copies a file with the siblings that its import lines name: these lines make every file name all others.
if TYPE_CHECKING:
    from .configuration_catseg import CATSegConfig  # noqa: F401
    from .image_processing_catseg import CATSegImageProcessor  # noqa: F401
    from .modeling_catseg import CATSegModel  # noqa: F401
    from .pipeline_catseg import OpenVocabularySegmentationPipeline  # noqa: F401
    from .processing_catseg import CATSegProcessor  # noqa: F401

IMAGE_PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_catseg.CATSegImageProcessor",
        "pil": "image_processing_catseg.CATSegImageProcessorPil",
    }
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_catseg.CATSegProcessor"}
AUTO_MAP = {
    "AutoConfig": "configuration_catseg.CATSegConfig",
    "AutoModel": "modeling_catseg.CATSegModel",
    "AutoModelForSemanticSegmentation": "modeling_catseg.CATSegForSemanticSegmentation",
    **IMAGE_PROCESSOR_AUTO_MAP,
    **PROCESSOR_AUTO_MAP,
}

OPEN_VOCABULARY_TASK = "zero-shot-image-segmentation"
CUSTOM_PIPELINES = {
    OPEN_VOCABULARY_TASK: {
        "impl": "pipeline_catseg.OpenVocabularySegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
        "type": "multimodal",
    }
}
