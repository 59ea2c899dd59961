"""Decodes one image with its label map, and checks the label's ids against the vocabulary."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils.file_utils import xopen

from catseg_hf.errors import UserError, first_line
from catseg_hf.image_io_catseg import open_image
from catseg_hf.image_pixels_catseg import rgb_pixels
from catseg_hf.label_maps_catseg import read_label_ids, whole_ids

from .coco_stuff import MISSING_RAW_IDS, NUM_CLASSES, RAW_TO_CONTIGUOUS, UNLABELLED


LABEL_IDS = ("contiguous", "coco_stuff_raw")

MAX_ID = 65535
_OUT_OF_RANGE = -1


def read_example(
    example: Mapping[str, Any], num_labels: int, ignore_index: int = 255
) -> tuple[np.ndarray, np.ndarray]:
    """
    Decodes a row of [`load_segmentation_data`] and checks its labels.

    Args:
        example (`Mapping`): The row.
        num_labels (`int`): Size of the vocabulary.
        ignore_index (`int`, *optional*, defaults to 255):
            The label that stands for no class, up to 65535. Unlabelled pixels of raw COCO-Stuff ids become it.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The image `(H, W, 3)`, RGB, uint8, and its labels `(H, W)`, int32, in
        0..num_labels-1 or `ignore_index`.

    Raises:
        UserError: If a file is missing or damaged, the two differ in size, or an id is out of range; the message
            names the file, the id and the likely cause.
    """
    image_name, label_name = (_described(example, column) for column in ("image", "label"))
    image = read_image(example["image"], image_name, example["value_range"])
    label = read_label(example, num_labels, ignore_index)
    if label.shape != image.shape[:2]:
        sizes = " and ".join(f"{width} x {height}" for height, width in (label.shape, image.shape[:2]))
        raise UserError(
            f"{label_name} and {image_name} differ in size (width x height): {sizes}. A label needs its image's "
            "size, after the rotation that EXIF data may ask for: make it again."
        )
    return image, label


def read_label(example: Mapping[str, Any], num_labels: int, ignore_index: int = 255) -> np.ndarray:
    """The label map of [`read_example`] without its image."""
    name = _described(example, "label")
    ids = stored_ids(example["label"], name)
    table = _label_table(example["label_ids"], example["reduce_labels"], num_labels, ignore_index)
    fits_table = ids.dtype in (np.uint8, np.uint16) or (ids.min() >= 0 and ids.max() <= MAX_ID)
    label = np.take(table, ids) if fits_table else None
    if label is None or label.min() == _OUT_OF_RANGE:
        raise UserError(_refusal(np.unique(ids), table, name, example, num_labels, ignore_index))
    return label


class EvaluationImages(torch.utils.data.Dataset):
    """
    Images and labels at their own size.

    Args:
        dataset (`datasets.Dataset`): Of [`load_segmentation_data`].
        num_labels (`int`): Size of the vocabulary.
        ignore_index (`int`, *optional*, defaults to 255): The label that stands for no class.
    """

    def __init__(self, dataset: datasets.Dataset, num_labels: int, ignore_index: int = 255):
        self.dataset = dataset
        self.num_labels = num_labels
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image` (H, W, 3), RGB, uint8, `label` (H, W), integers (both numpy arrays), and `name`."""
        row = self.dataset[index]
        image, label = read_example(row, self.num_labels, self.ignore_index)
        return {"image": image, "label": label, "name": row["name"]}


def _described(example: Mapping[str, Any], column: str) -> str:
    """What messages call an image or label: its file, or else its row."""
    value = example[column]
    path = value.get("path") if isinstance(value, Mapping) else None
    if path is None:
        return f"The {column} of {example['name']}"
    return str(path) if value.get("bytes") is None else f"{path} ({column} of {example['name']})"


def encoded_image(value: Mapping[str, Any] | None, name: str) -> bytes:
    """The image file in a row's value, `{"path": ..., "bytes": ...}`. Errors (UserError) call it by `name`."""
    if value is None or value["path"] is value["bytes"] is None:
        raise UserError(f"{name} is missing: take the row out.")
    if value["bytes"] is not None:
        return value["bytes"]
    try:
        with xopen(value["path"], "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{name} does not exist: restore the file or take it out of the data.") from None
    except OSError as error:
        raise UserError(f"{name} could not be read: {first_line(error)}.") from None


def read_image(value: Mapping[str, Any] | None, name: str, value_range: Sequence[float] | None = None) -> np.ndarray:
    """The image in a row's value, upright, in RGB `(H, W, 3)`, uint8, as the pipeline reads it."""
    image = open_image(encoded_image(value, name), name, value_range)
    return rgb_pixels(image, name).permute(1, 2, 0).numpy()


def stored_ids(value: Any, name: str) -> np.ndarray:
    """A label map as it is stored, `(H, W)`, in its own integer type."""
    if not isinstance(value, list | np.ndarray):
        return read_label_ids(encoded_image(value, name), name)
    try:
        ids = np.asarray(value)
    except ValueError:  # rows of different lengths
        ids = np.empty(0, dtype=object)
    if ids.ndim == 3 and ids.shape[-1] == 1:
        ids = ids[..., 0]
    if ids.ndim == 2 and ids.dtype.kind == "f":
        return whole_ids(ids, name)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise UserError(f"{name} is no array of integers with rows of one length: check the label column.")
    return ids


@lru_cache(maxsize=8)
def _label_table(label_ids: str, reduce_labels: bool, num_labels: int, ignore_index: int) -> np.ndarray:
    """(65536,) int32: from the stored id to the label, `_OUT_OF_RANGE` for ids that are neither class nor ignored."""
    if not num_labels <= ignore_index <= MAX_ID:
        raise UserError(
            f"The ignore index {ignore_index} must be no class of a vocabulary of {num_labels} names and fit into 16 "
            f"bits: choose one from {num_labels} to {MAX_ID}."
        )
    table = np.full(MAX_ID + 1, _OUT_OF_RANGE, dtype=np.int32)
    if label_ids == "coco_stuff_raw":
        if num_labels < NUM_CLASSES:
            raise UserError(
                f"Raw COCO-Stuff ids are mapped to the {NUM_CLASSES} classes of COCO-Stuff, but the vocabulary has "
                f"{num_labels} names: use coco_stuff_171."
            )
        raw_ids = np.flatnonzero(RAW_TO_CONTIGUOUS != UNLABELLED)
        table[raw_ids] = RAW_TO_CONTIGUOUS[raw_ids]
        unlabelled = UNLABELLED
    else:
        table[:num_labels] = np.arange(num_labels)
        unlabelled = ignore_index
    if reduce_labels:
        table = np.roll(table, 1)
        table[0] = ignore_index
    # With ids from 1 to N, N is the last class, even if N is the ignore index.
    if table[unlabelled] == _OUT_OF_RANGE:
        table[unlabelled] = ignore_index
    table.flags.writeable = False
    return table


def _refusal(
    ids: np.ndarray, table: np.ndarray, name: str, example: Mapping[str, Any], num_labels: int, ignore_index: int
) -> str:
    """Why a label map with these (sorted, different) ids is refused."""
    bad = [number for number in ids.tolist() if not 0 <= number <= MAX_ID or table[number] == _OUT_OF_RANGE]
    label_ids, reduce_labels = example["label_ids"], example["reduce_labels"]
    if label_ids == "coco_stuff_raw":
        accepted = f"raw COCO-Stuff ids are 0 to 181 without {', '.join(map(str, MISSING_RAW_IDS))}, and {UNLABELLED}"
    else:
        accepted = f"the vocabulary has {num_labels} names, ids 0 to {num_labels - 1}, and {ignore_index} is ignored"
    if reduce_labels:
        accepted += ", after 1 has been taken from every id (--reduce_labels)"
    return f"{name} holds the id {bad[0]}, but {accepted}. {_likely_cause(ids, bad, example, num_labels)}"


def _likely_cause(ids: np.ndarray, bad: list[int], example: Mapping[str, Any], num_labels: int) -> str:
    classes = ids[(ids >= 0) & (ids != UNLABELLED)]
    may_begin_at_1 = not example["reduce_labels"] and _are_raw_ids(classes[classes > 0] - 1)
    causes = []
    if example["label_ids"] == "coco_stuff_raw":
        if np.all(classes < NUM_CLASSES):
            causes.append("The ids may be contiguous already: say so with --label_ids contiguous.")
        if may_begin_at_1:
            causes.append("The ids may begin at 1, with 0 where nothing is labelled: add --reduce_labels.")
        return " Or: ".join(causes) or "These are no labels of COCO-Stuff as it is released."
    if num_labels == NUM_CLASSES and _are_raw_ids(classes):
        causes.append("These may be raw COCO-Stuff ids: say so with --label_ids coco_stuff_raw.")
    if not example["reduce_labels"] and bad == [num_labels]:
        causes.append("The ids may begin at 1, with 0 for background or unlabelled pixels: add --reduce_labels.")
    elif num_labels == NUM_CLASSES and may_begin_at_1:
        causes.append("Raw COCO-Stuff ids may begin at 1 here: add --label_ids coco_stuff_raw --reduce_labels.")
    if ids.tolist() == [0, UNLABELLED]:
        causes.append("A mask of 0 and 255 has to be written anew with the class ids 0 and 1.")
    if bad == [UNLABELLED]:
        causes.append(f"{UNLABELLED} usually marks unlabelled pixels: add --ignore_index {UNLABELLED}.")
    return " Or: ".join(causes) or "Give the vocabulary that these labels were made with, class by class in id order."


def _are_raw_ids(ids: np.ndarray) -> bool:
    return bool(np.all(ids <= 181) and not np.isin(ids, MISSING_RAW_IDS).any())
