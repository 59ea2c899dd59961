"""Classes as people type them."""

from catseg_hf.errors import UserError
from catseg_hf.pipeline_catseg import MAX_LABELS


def parse_labels(text: str) -> list[str]:
    """
    The labels in a text: one per line, where commas list synonyms, or a single line of labels separated by commas.
    Blanks around labels, and repeated labels, are dropped.

    Raises:
        UserError: If there are none, or more than are segmented together.
    """
    lines = text.strip().splitlines()
    parts = lines[0].split(",") if len(lines) == 1 else lines
    labels = list(dict.fromkeys(label for part in parts if (label := " ".join(part.split()).strip(", "))))
    if not labels:
        raise UserError("No classes were named: type at least one, or choose a preset.")
    if len(labels) > MAX_LABELS:
        raise UserError(f"{len(labels)} classes were named, but at most {MAX_LABELS} are accepted: leave some out.")
    return labels


def format_labels(labels: list[str]) -> str:
    """A text of which `parse_labels` makes the same labels, if they are several."""
    return ("\n" if any("," in label for label in labels) else ", ").join(labels)
