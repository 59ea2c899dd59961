"""What artefacts say of themselves, and of the model that they are made of."""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from transformers.utils import cached_file
from yaml import YAMLError

from ..class_words_catseg import ClassWords
from ..modeling_catseg import CATSegForSemanticSegmentation
from ..processing_catseg import CATSegProcessor
from ..version import __version__
from ..visualization.colors import class_color


CARD, NOTICE, LICENCE = "README.md", "NOTICE", "LICENSE"
"""The files of a model that say whose it is and on what terms."""
# By how many per cent GIS plugins let tiles overlap, unless they are told otherwise.
_GIS_TILES_OVERLAP = 15


def artefact_metadata(
    model: CATSegForSemanticSegmentation, processor: CATSegProcessor, classes: ClassWords, name: str, source: str
) -> dict[str, Any]:
    """
    Args:
        model ([`CATSegForSemanticSegmentation`]): The model.
        processor ([`CATSegProcessor`]): Its processor.
        classes ([`ClassWords`]): What the graph segments.
        name (`str`): What the model was named by: that of a released model, a folder or a Hub id.
        source (`str`): The folder or Hub id that this stands for.

    Returns:
        `dict[str, Any]`: `class_names`, and for each class its `words` and colour in the `palette`, RGB in 0..255; the
        input's `size` (height, width), and what pixels in 0..1 are normalised with, `mean` and `std`;
        `preprocessor_config`, the image processor's settings; `licence`, `model` and `commit`, and the version of
        `catseg_hf`. `None` stands for what is not known: a folder has no commit, a model without a card no licence.
    """
    settings = {key: value for key, value in processor.image_processor.to_dict().items() if key != "auto_map"}
    indices = range(len(classes.names))
    return {
        "class_names": classes.names,
        "words": [classes.words_of(index) for index in indices],
        "palette": [class_color(index) for index in indices],
        "size": [model.config.image_size] * 2,
        "mean": list(settings["image_mean"]),
        "std": list(settings["image_std"]),
        "preprocessor_config": settings,
        "licence": card_licence(model_file(source, CARD)),
        "model": Path(name).resolve().name if os.path.isdir(name) else name,
        "commit": getattr(model.config, "_commit_hash", None),
        "catseg_hf": __version__,
    }


def gis_metadata(metadata: dict[str, Any], resolution: float) -> dict[str, Any]:
    """The metadata of an artefact for QGIS Deepness and GeoDeep, which read these names; `resolution` is in
    centimetres on the ground for each pixel. Nothing is left to be normalised, and neither a threshold nor a filter of
    small segments comes after the most probable class."""
    kept = {key: value for key, value in metadata.items() if key not in ("mean", "std", "preprocessor_config")}
    return {
        **kept,
        "model_type": "Segmentor",
        "class_names": {str(index): name for index, name in enumerate(metadata["class_names"])},
        "resolution": resolution,
        "tile_size": metadata["size"][0],
        "tiles_overlap": _GIS_TILES_OVERLAP,
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
    }


def model_file(source: str, name: str) -> Path | None:
    """One of the files of a model, a folder or a Hub id, if it has it and the Hub can be reached."""
    try:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return None if path is None else Path(path)


def card_licence(card: Path | None) -> str | None:
    """The licence that a model's card names, as the Hub abbreviates it; None if there is none, or no card."""
    try:
        metadata = metadata_load(card) if card else None
    except (ValueError, YAMLError):  # a card that is not well-formed names none
        return None
    return None if metadata is None else metadata.get("license")
