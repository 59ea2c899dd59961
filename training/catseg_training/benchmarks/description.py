"""What there is to know about a benchmark, in one place; and such descriptions from a user's JSON file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from catseg_hf import VOCABULARIES, load_vocabulary
from catseg_hf.errors import UserError
from catseg_hf.image_pixels_catseg import check_value_range
from catseg_hf.utils.files import read_json, stays_inside


MAX_ID = 65535
# Ways to store labels, see `labels.py`.
LABEL_FORMATS = ("ids", "ade20k_full", "matlab", "context_json")
RULES = {
    "mean_iou_present": "mean over the classes that occur in the labels (detectron2 since July 2022, the paper)",
    "mean_iou": "mean over the classes that occur in labels or predictions (evaluate, mmsegmentation, MESS)",
}
JSON_KEYS = (
    "name",
    "vocabulary",
    "images",
    "labels",
    "ignore_index",
    "label_map",
    "image_suffix",
    "label_suffix",
    "value_range",
)
REQUIRED_JSON_KEYS = JSON_KEYS[:4]


@dataclass(frozen=True)
class Benchmark:
    """
    A benchmark.

    Of `roots`, `images`, `labels` the first ones that exist count, since downloads are unpacked in several ways.

    Attributes:
        name (`str`): Short name, as on the command line.
        vocabulary (`tuple[str, ...]`): What the model is prompted with.
        images, labels (`tuple[str, ...]`): Folders in the root; for the format "context_json" `labels` is one file.
        ignore_index (`int`): The label of pixels that do not count, behind all classes; up to 65535.
        label_map (`Mapping[int, int]`): From stored ids to classes or `ignore_index`.
        ignores_other_ids (`bool`): Whether ids that are not in `label_map` are ignored. Otherwise they are errors.
        background (`str`, *optional*):
            A class behind the classes that labels have. The names that the vocabulary has from its index on stand for
            it, so that predictions of any of them count as this class.
        roots (`tuple[str, ...]`): Folders in the data root.
        image_suffix, label_suffix (`str`): How names of files end. What comes before is the same for both.
        id_list (`str`, *optional*): File in the root with the names of the images, one in each line.
        own_id_list (`str`, *optional*): The same, of this package. Names without a label are left out.
        labels_decide (`bool`): Whether images without a label are no part of the benchmark.
        label_format (`str`): One of `LABEL_FORMATS`.
        value_range (`tuple[float, float]`, *optional*): Stored values of images that are black and white.
        max_shortest_edge (`int`, *optional*): Images and labels whose shorter side is longer are shrunk to it.
        skips_unlabelled (`bool`): Whether images without a pixel that counts are no part of the benchmark.
        num_images (`int`, *optional*): How many images the published benchmark has.
        rule (`str`): The score that published figures of it have, one of `RULES`.
        classes_of_interest (`tuple[int, ...]`): Scored classes whose mean IoU is given as well (`coi_mean_iou`).
        title, source, licence (`str`): For people: full name, where to get it, on which terms.
        preparation (`str`): In place of `source`, the command that prepares it, to be followed by the data root.
        published (`Mapping[str, float]`): The paper's mean IoU in percent by model, "base" and "large".
    """

    name: str
    vocabulary: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    ignore_index: int
    label_map: Mapping[int, int]
    ignores_other_ids: bool = False
    background: str | None = None
    roots: tuple[str, ...] = ("",)
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    id_list: str | None = None
    own_id_list: str | None = None
    labels_decide: bool = False
    label_format: str = "ids"
    value_range: tuple[float, float] | None = None
    max_shortest_edge: int | None = None
    skips_unlabelled: bool = False
    num_images: int | None = None
    rule: str = "mean_iou_present"
    classes_of_interest: tuple[int, ...] = ()
    title: str = ""
    source: str = ""
    licence: str = ""
    preparation: str = ""
    published: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the classes that are scored."""
        if self.background is None:
            return list(self.vocabulary)
        num_objects = max(index for index in self.label_map.values() if index != self.ignore_index)
        return [*self.vocabulary[:num_objects], self.background]

    @cached_property
    def label_table(self) -> np.ndarray:
        """(65536,) int32: from stored ids to classes or `ignore_index`; -1 for ids that are errors."""
        table = np.full(MAX_ID + 1, self.ignore_index if self.ignores_other_ids else -1, dtype=np.int32)
        table[list(self.label_map)] = list(self.label_map.values())
        return table

    @property
    def last_class(self) -> int:
        """The last scored class, which stands for all later names of the vocabulary as well."""
        return len(self.class_names) - 1

    @cached_property
    def repeated_prompts(self) -> dict[int, int]:
        """Indices whose first synonym, and so whose prompt, a lower index has already, and the lowest one."""
        names = [label.split(",")[0].strip() for label in self.vocabulary]
        return {index: names.index(name) for index, name in enumerate(names) if names.index(name) < index}


def read_description(path: Path) -> Benchmark:
    """
    A benchmark out of a JSON file: an object with "name", "vocabulary" (a list of names or one of
    `catseg_hf.VOCABULARIES`), "images" and "labels" (folders in the data root), and perhaps "ignore_index" (255; 65535
    if that is a class), "label_map" (stored ids to classes or `ignore_index`; null if the ids are the classes),
    "image_suffix" (".jpg"), "label_suffix" (".png") and "value_range" (the two stored values of images that are black
    and white).

    Raises:
        UserError: If the file cannot be read or a value is not accepted; names the file, the key and the value.
    """
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object with the keys {', '.join(JSON_KEYS)}.")
    if unknown := sorted(values.keys() - set(JSON_KEYS)):
        raise UserError(f"{path} has the unknown key {unknown[0]!r}: accepted are {', '.join(JSON_KEYS)}.")
    if missing := [key for key in REQUIRED_JSON_KEYS if key not in values]:
        raise UserError(f"{path} lacks {', '.join(map(repr, missing))}.")
    values = {key: value for key, value in values.items() if value is not None}
    for key in ("name", "images", "labels", "image_suffix", "label_suffix"):
        if key in values and not (isinstance(values[key], str) and values[key]):
            raise UserError(f"{path}: {key!r} is {values[key]!r}, but must be text.")
    name = values["name"]
    if Path(name).name != name or name.startswith(".") or not stays_inside(name):
        raise UserError(f"{path}: the name {name!r} cannot be that of a folder, as results need.")
    vocabulary = _vocabulary(path, values["vocabulary"])
    ignore_index = values.get("ignore_index", 255 if len(vocabulary) <= 255 else MAX_ID)
    if not isinstance(ignore_index, int) or not len(vocabulary) <= ignore_index <= MAX_ID:
        raise UserError(
            f"{path}: 'ignore_index' is {ignore_index!r}, but must be no class: an integer from {len(vocabulary)} to "
            f"{MAX_ID}."
        )
    if "value_range" in values:
        try:
            values["value_range"] = check_value_range(values["value_range"])
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    return Benchmark(
        name=name,
        vocabulary=vocabulary,
        images=(values["images"],),
        labels=(values["labels"],),
        ignore_index=ignore_index,
        label_map=_label_map(path, values.get("label_map"), len(vocabulary), ignore_index),
        title=name,
        **{key: values[key] for key in ("image_suffix", "label_suffix", "value_range") if key in values},
    )


def _vocabulary(path: Path, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        if value not in VOCABULARIES:
            raise UserError(
                f"{path}: there is no vocabulary {value!r}; give a list of names or one of {', '.join(VOCABULARIES)}."
            )
        return tuple(load_vocabulary(value))
    if not isinstance(value, list) or not value or not all(isinstance(label, str) for label in value):
        raise UserError(f"{path}: 'vocabulary' must be a list of names or the name of a vocabulary.")
    if repeated := [label for label in value if value.count(label) > 1]:
        raise UserError(f"{path}: the vocabulary has the name {repeated[0]!r} more than once.")
    return tuple(value)


def _label_map(path: Path, value: Any, num_classes: int, ignore_index: int) -> dict[int, int]:
    label_map = {ignore_index: ignore_index}
    if value is None:
        return label_map | {index: index for index in range(num_classes)}
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: 'label_map' must be an object from stored ids to classes, or null.")
    for raw, index in value.items():
        if not (raw.isdecimal() and int(raw) <= MAX_ID):
            raise UserError(f"{path}: 'label_map' has the stored id {raw!r}; ids are 0 to {MAX_ID}.")
        if type(index) is not int or not (0 <= index < num_classes or index == ignore_index):
            raise UserError(
                f"{path}: 'label_map' maps {raw} to {index!r}; classes are 0 to {num_classes - 1}, and {ignore_index} "
                "is ignored."
            )
        label_map[int(raw)] = index
    return label_map
