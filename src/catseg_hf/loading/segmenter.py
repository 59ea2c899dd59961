"""Pipelines of checkpoints, by name, folder or Hub id."""

import torch

from ..configuration_catseg import CATSegConfig
from ..errors import UserError, first_line
from ..modeling_catseg import CATSegForSemanticSegmentation
from ..pipeline_catseg import OpenVocabularySegmentationPipeline
from ..processing_catseg import CATSegProcessor
from ..remote_code_catseg import OPEN_VOCABULARY_TASK
from .names import resolve_model


def load_segmenter(
    model: str, device: str | torch.device | None = None, dtype: str = "auto"
) -> OpenVocabularySegmentationPipeline:
    """
    The pipeline of a checkpoint.

    Args:
        model (`str`): "base" or "large" (see [`~catseg_hf.pretrained`]), a folder or a Hub id.
        device (`str` or `torch.device`, *optional*): Where it runs; by default an accelerator, if any.
        dtype (`str`, *optional*, defaults to `"auto"`): Type of the weights. `"auto"` is the checkpoint's own, but
            float32 on a CPU that is slower with that.

    Raises:
        UserError: If there is no such device, or the model cannot be loaded or is not CAT-Seg.
    """
    _check_device(device)
    model = resolve_model(model)
    try:
        config, _ = CATSegConfig.get_config_dict(model)
    except Exception as error:  # transformers raises all kinds for damaged files
        raise UserError(f"The model {model!r} could not be loaded: {first_line(error)}.") from error
    if not config:
        raise UserError(f"The model {model!r} could not be loaded: it has no config.json.")
    if (model_type := config.get("model_type")) != "catseg":
        raise UserError(f"The model {model!r} is of type {model_type!r}, but a CAT-Seg checkpoint is needed.")
    try:
        segmenter = OpenVocabularySegmentationPipeline(
            model=CATSegForSemanticSegmentation.from_pretrained(model, dtype=dtype),
            processor=CATSegProcessor.from_pretrained(model),
            device=device,
            task=OPEN_VOCABULARY_TASK,
        )
    except Exception as error:
        raise UserError(f"The model {model!r} could not be loaded: {first_line(error)}.") from error
    if dtype == "auto" and segmenter.device.type == "cpu" and not is_fast_on_cpu(segmenter.model.dtype):
        segmenter.model.float()
    return segmenter


def _check_device(device: str | torch.device | None):
    try:
        torch.empty(0, device=device)
    except Exception as error:  # of all kinds, by the backend
        raise UserError(f"There is no device {str(device)!r} here: name another one, such as cpu.") from error


def is_fast_on_cpu(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for the type; without them it takes ten times as long as float32."""
    # Processors with AMX have AVX-512's instructions for bfloat16 as well.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported())
