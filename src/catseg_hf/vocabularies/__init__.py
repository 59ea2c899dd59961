"""The class names of the benchmarks that CAT-Seg is evaluated on, in their order."""

import json
import os
from pathlib import Path

from ..coco_stuff_catseg import COCO_STUFF_LABELS
from ..errors import UserError, first_line


VOCABULARIES = (
    "coco_stuff_171",
    "ade20k_150",
    "ade20k_847",
    "pascal_context_59",
    "pascal_context_459",
    "pascal_voc_20",
    "pascal_voc_20b",
)


def load_vocabulary(name: str) -> list[str]:
    """
    The class names of a benchmark, index by index, spelled as the published prompts spell them.

    `pascal_voc_20b` has the 59 names that PASCAL VOC with background is prompted with: the 20 objects, then 39 of the
    things around them. Every prediction from 20 on counts as background.

    Args:
        name (`str`): One of `VOCABULARIES`.

    Returns:
        `list[str]`: A new list. A name "a, b" lists synonyms, of which prompts take the first.

    Raises:
        UserError: If there is no vocabulary of that name.
    """
    if name not in VOCABULARIES:
        raise UserError(f"There is no vocabulary {name!r}: choose one of {', '.join(VOCABULARIES)}.")
    if name == "coco_stuff_171":
        return list(COCO_STUFF_LABELS)
    path = Path(__file__).with_name(f"{name}.json")
    id2label = json.loads(path.read_text(encoding="utf-8"))
    return [id2label[str(index)] for index in range(len(id2label))]


def read_vocabulary(path: str | os.PathLike) -> list[str]:
    """
    The labels in a file: a JSON list of them, or a label on each line.

    Args:
        path (`str`): The file, in UTF-8; JSON if its name ends so.

    Raises:
        UserError: If it cannot be read, or holds no labels.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        labels = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"The vocabulary {str(path)!r} could not be read ({reason}): name a file with a label on each line or a "
            f"JSON list of labels, or one of {', '.join(VOCABULARIES)}."
        ) from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"The vocabulary {str(path)!r} holds no JSON list of strings: write the labels as one.")
    labels = [label.strip() for label in labels if label.strip()]
    if not labels:
        raise UserError(f"The vocabulary {str(path)!r} holds no labels: write one on each line.")
    return labels


__all__ = ["VOCABULARIES", "load_vocabulary", "read_vocabulary"]
