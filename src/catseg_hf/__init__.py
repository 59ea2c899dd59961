"""CAT-Seg for transformers: open-vocabulary semantic segmentation by cost aggregation (Cho et al., CVPR 2024)."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__  # noqa: F401


EMBEDDED_MODEL = str(Path(__file__).with_name("embedded_model"))
"""Folder of a small checkpoint for scenes of emoji. Its `words.json` says which words it was shown masks of."""

# The console script answers `--help` and wrong arguments without torch and transformers, whose import takes seconds,
# and where there is no torch `catseg_hf.export.runtime` does without: there alone, everything else is imported when it
# is asked for.
_IS_LAZY = Path(sys.argv[0] if sys.argv else "").stem == "catseg-hf" or find_spec("torch") is None

if TYPE_CHECKING or not _IS_LAZY:
    from .registration import (
        VOCABULARIES,
        CATSegConfig,
        CATSegForSemanticSegmentation,
        CATSegImageProcessor,
        CATSegImageProcessorPil,
        CATSegModel,
        CATSegModelOutput,
        CATSegPreTrainedModel,
        CATSegProcessor,
        OpenVocabularySegmentationPipeline,
        load_vocabulary,
        pretrained,
        refine_with_masks,
    )
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import registration

        return getattr(registration, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "CATSegConfig",
    "CATSegForSemanticSegmentation",
    "CATSegImageProcessor",
    "CATSegImageProcessorPil",
    "CATSegModel",
    "CATSegModelOutput",
    "CATSegPreTrainedModel",
    "CATSegProcessor",
    "EMBEDDED_MODEL",
    "OpenVocabularySegmentationPipeline",
    "VOCABULARIES",
    "load_vocabulary",
    "pretrained",
    "refine_with_masks",
]
