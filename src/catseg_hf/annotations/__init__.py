"""Labels in the files of the tools that people annotate with: read from them, and written for them."""

from importlib import import_module
from typing import Any


_MODULES = {
    "prepare": "preparation",
    "to_coco": "coco",
    "to_coco_panoptic": "coco_panoptic",
    "to_cvat": "cvat",
    "to_label_studio": "label_studio",
    "to_labelme": "labelme",
    "to_supervision": "detections",
    "to_voc": "voc",
    "to_yolo": "yolo",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Imported when they are asked for, so that the registry of formats alone imports little."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
