"""Finds the columns of images and of label maps in a dataset."""

from collections.abc import Sequence
from typing import Any

import datasets

from catseg_hf.errors import UserError


IMAGE_COLUMNS = ("image", "images", "img", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = (
    "label",
    "labels",
    "annotation",
    "annotations",
    "mask",
    "label_map",
    "semantic_mask",
    "semantic_seg_map",
    "segmentation",
    "segmentation_mask",
    "segmentation_map",
    "segmentation_maps",
    "seg_map",
    "seg.png",
)


def find_columns(
    features: datasets.Features, source: str, image_column: str | None = None, label_column: str | None = None
) -> list[str]:
    """
    The columns of images and of label maps: as named, or else the only one of a usual name, or else the only one of
    a fitting type.

    Args:
        features (`datasets.Features`): The columns with their types.
        source (`str`): What messages call the dataset.
        image_column (`str`, *optional*), label_column (`str`, *optional*): Their names, if known.

    Raises:
        UserError: If there is no such column, or several; it lists what there is.
    """
    listing = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    if image_column is not None and image_column == label_column:
        raise UserError(f"One column of {source}, {image_column!r}, cannot hold both images and labels: {listing}.")
    for kind, name in (("image", image_column), ("label", label_column)):
        if name is not None and name not in features:
            raise UserError(f"{source} has no column {name!r} (--{kind}_column): its columns are {listing}.")
        if name is not None and not _may_hold(kind, features[name]):
            raise UserError(
                f"The column {name!r} of {source} (--{kind}_column) holds neither images nor, for labels, nested "
                f"integers: its columns are {listing}."
            )
    if label_column is None:
        candidates = [name for name, feature in features.items() if _is_label_map(feature) and name != image_column]
        arrays = [name for name in candidates if is_label_array(features[name])]
        label_column = _only_one(candidates, LABEL_COLUMNS, IMAGE_COLUMNS) or _only_one(arrays)
    if image_column is None:
        candidates = [name for name, feature in features.items() if _is_image(feature) and name != label_column]
        image_column = _only_one(candidates, IMAGE_COLUMNS, LABEL_COLUMNS)
    found = {"--image_column": image_column, "--label_column": label_column}
    missing = [option for option, name in found.items() if name is None]
    if missing:
        raise UserError(
            f"Which columns of {source} hold images and label maps? Name what was not found with "
            f"{' and '.join(missing)}: its columns are {listing}. (Files in folders are found as "
            "images/SPLIT/NAME.jpg and labels/SPLIT/NAME.png.)"
        )
    return list(found.values())


def is_label_array(feature: Any) -> bool:
    """Whether a column's values are nested integers `(H, W)` or `(H, W, 1)`."""
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return "int" in feature.dtype
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    return depth in (2, 3) and isinstance(feature, datasets.Value) and "int" in feature.dtype


def _is_image(feature: Any) -> bool:
    return isinstance(feature, datasets.Image)


def _is_label_map(feature: Any) -> bool:
    return _is_image(feature) or is_label_array(feature)


def _may_hold(kind: str, feature: Any) -> bool:
    """Whether a column that the user names is accepted: also what can be cast to images."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary", "string", "large_string")
    if isinstance(feature, dict):
        types = {name: getattr(value, "dtype", None) for name, value in feature.items()}
        return bool(types) and types.items() <= {"bytes": "binary", "path": "string"}.items()
    return _is_image(feature) or (_is_pixel_list(feature) if kind == "image" else is_label_array(feature))


def _is_pixel_list(feature: Any) -> bool:
    """Whether a column's values are nested lists `(H, W, 3)` of uint8."""
    depth = 0
    while isinstance(feature, datasets.List):
        feature, depth = feature.feature, depth + 1
    return depth == 3 and isinstance(feature, datasets.Value) and feature.dtype == "uint8"


def _only_one(
    candidates: Sequence[str], usual_names: Sequence[str] = (), other_names: Sequence[str] = ()
) -> str | None:
    """The candidate of a usual name, or else one whose name says nothing; none if there are several."""
    found = [name for name in candidates if name in usual_names]
    found = found or [name for name in candidates if name not in other_names]
    return found[0] if len(found) == 1 else None


def _type_name(feature: Any) -> str:
    if isinstance(feature, datasets.Value):
        return feature.dtype
    return "nested integers" if is_label_array(feature) else type(feature).__name__
