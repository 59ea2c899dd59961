"""Classes as people type them."""

from catseg_hf.class_words_catseg import ClassWords, read_classes
from catseg_hf.errors import UserError


def parse_labels(text: str) -> list[str]:
    """The labels in a text: one per line, where commas list synonyms, or a single line of labels separated by commas.
    Blanks around labels, and repeated labels, are dropped."""
    lines = text.strip().splitlines()
    parts = lines[0].split(",") if len(lines) == 1 else lines
    return list(dict.fromkeys(label for part in parts if (label := " ".join(part.split()).strip(", "))))


def parse_classes(text: str, background: str = "") -> ClassWords:
    """
    The classes in a text, and the words in another that stand for none of them.

    Raises:
        UserError: If there are none, or what [`read_classes`] refuses.
    """
    labels = parse_labels(text)
    if not labels:
        raise UserError("No classes were named: type at least one, or choose a preset.")
    return read_classes(labels, parse_labels(background))


def format_labels(labels: list[str]) -> str:
    """A text of which `parse_labels` makes the same labels, if they are several."""
    return ("\n" if any("," in label for label in labels) else ", ").join(labels)
