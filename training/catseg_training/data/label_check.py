"""Looks at some label maps before a run, for labels from which nothing, or something else, would be learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from catseg_hf.errors import UserError

from .coco_stuff import UNLABELLED
from .examples import read_label, stored_ids


MAX_LABELS = 64
MASK_REMEDY = (
    "Masks of 0 for the background and 255 for the foreground have to be written anew with the class ids themselves, "
    "0 and 1"
)


def check_labels(rows: Sequence[Any], split: str, names: Sequence[str], ignore_index: int = 255) -> str | None:
    """
    Counts the pixels of each class, as mapped to the vocabulary, in up to 64 label maps that are evenly spaced.

    Args:
        rows (`Sequence`): Of [`load_segmentation_data`], not streamed.
        split (`str`): What messages call them.
        names (`Sequence[str]`): The vocabulary.
        ignore_index (`int`, *optional*, defaults to 255): The label that stands for no class.

    Returns:
        `str`, *optional*: A warning with counts, if a single class occurs, or if most pixels are ignored while a class
        never occurs.

    Raises:
        UserError: If all pixels are ignored, or the labels are masks of 0 and 255 whose 255 is ignored; or as of
            [`read_label`].
    """
    sample = [rows[int(index)] for index in np.linspace(0, len(rows) - 1, min(len(rows), MAX_LABELS))]
    counts = np.zeros(len(names) + 1, dtype=np.int64)
    for row in sample:
        label = read_label(row, len(names), ignore_index)
        counts += np.bincount(np.minimum(label, len(names)).ravel(), minlength=len(counts))
    *classes, ignored = counts.tolist()
    present = [index for index, count in enumerate(classes) if count]
    looked_at = f"{len(sample):,} of the {len(rows):,} labels of the split {split!r}"
    if ignored and len(present) <= 1 and (reason := _why_unusable(sample, present, ignore_index)):
        raise UserError(f"Nothing can be learned from {looked_at}: {reason}")
    share = ignored / counts.sum()
    is_single = len(present) == 1 and (len(names) > 1 or not ignored)
    is_mostly_ignored = len(present) < len(names) and share > 0.5
    if not (is_single or is_mostly_ignored):
        return None
    shown = ", ".join(f"{names[index]} ({classes[index]:,} pixels)" for index in present[:5])
    return (
        f"In {looked_at}, {len(present)} of {len(names)} classes occur: {shown}{', ...' if len(present) > 5 else ''}. "
        f"{share:.0%} of the pixels ({ignored:,}) are ignored. If that is not meant, check the labels."
    )


def _why_unusable(sample: Sequence[Any], present: list[int], ignore_index: int) -> str | None:
    stored = set()
    for row in sample:
        stored.update(np.unique(stored_ids(row["label"], f"The label of {row['name']}")).tolist())
    are_contiguous, is_reduced = sample[0]["label_ids"] == "contiguous", sample[0]["reduce_labels"]
    may_be_masks = are_contiguous and stored == {0, UNLABELLED}
    if present:
        if not may_be_masks or is_reduced:
            return None
        return (
            f"they hold only the ids 0 and 255, and {ignore_index} is ignored. {MASK_REMEDY}. If 0 is the only class "
            "and 255 is unlabelled, write 1 and 0 instead, and add --reduce_labels."
        )
    held = ", ".join(map(str, sorted(stored)))
    reason = f"all pixels are ignored; they hold {held}, "
    if may_be_masks:
        return f"{reason}and --reduce_labels makes 0 unlabelled. {MASK_REMEDY}, and used without --reduce_labels."
    if is_reduced and 0 in stored:
        return f"{reason}and --reduce_labels makes 0 unlabelled. If 0 is a class, leave it out."
    return f"{reason}which stands for no class. Write the ids of classes, from 0, into them."
