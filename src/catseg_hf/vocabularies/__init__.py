"""The class names of the benchmarks that CAT-Seg is evaluated on, in their order."""

import json
from pathlib import Path

from ..coco_stuff_catseg import COCO_STUFF_LABELS
from ..errors import UserError


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


__all__ = ["VOCABULARIES", "load_vocabulary"]
