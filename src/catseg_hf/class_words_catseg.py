"""Classes as people name them: of one word or of several, and words that stand for none of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .errors import UserError


# All words of a call are segmented together: at 640 x 640 each takes 1.6 MB of logits for every image.
MAX_WORDS = 4096
BAR = "|"


@dataclass(frozen=True)
class ClassWords:
    """
    Classes, and the words that are segmented for them.

    Args:
        names (`list[str]`): The T classes.
        words (`list[str]`): The W words, at least one for each class, then those of the background.
        class_indices (`list[int]`): The class of each word, in its place; -1 for the background.
    """

    names: list[str]
    words: list[str]
    class_indices: list[int]

    @property
    def are_words(self) -> bool:
        """Whether every class is one word, and there is no background."""
        return self.words == self.names

    @property
    def has_background(self) -> bool:
        """Whether some words stand for none of the classes."""
        return -1 in self.class_indices

    def words_of(self, index: int) -> list[str]:
        """The words of a class, or with -1 those of the background."""
        return [word for word, own in zip(self.words, self.class_indices, strict=True) if own == index]

    def described(self) -> dict[str, Any]:
        """What is to be said beside the names: the `words` of each class, and those of the `background`, if they are
        not the names alone."""
        if self.are_words:
            return {}
        return {"words": [self.words_of(index) for index in range(len(self.names))], "background": self.words_of(-1)}

    def merge_segmentation(self, segmentation: torch.LongTensor) -> torch.LongTensor:
        """A map of words as a map of classes, -1 for the background; of any shape."""
        return segmentation if self.are_words else torch.tensor(self.class_indices).to(segmentation)[segmentation]

    def merge_probabilities(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Probabilities of words `(W, h, w)` as those of classes `(T, h, w)`: of several words the highest."""
        if self.are_words:
            return probabilities
        merged = probabilities.new_zeros(len(self.names), *probabilities.shape[1:])
        for index, probability in zip(self.class_indices, probabilities, strict=True):
            if index >= 0:
                torch.maximum(merged[index], probability, out=merged[index])
        return merged


def split_labels(labels: str | Iterable[str]) -> list[str]:
    """
    Labels as a list: a string is split at its commas.

    Raises:
        UserError: If they are no collection of labels.
    """
    if isinstance(labels, str):
        return [label.strip() for label in labels.split(",") if label.strip()]
    if not isinstance(labels, Iterable):
        raise UserError(
            f"The vocabulary is {labels!r}, but a list of labels, or a string of labels separated by commas, is "
            "needed."
        )
    return list(labels)


def read_classes(
    candidate_labels: "str | Iterable[str] | ClassWords", background_labels: str | Iterable[str] | None = None
) -> ClassWords:
    """
    What [`OpenVocabularySegmentationPipeline`] takes for classes.

    Args:
        candidate_labels (`str` or `Iterable[str]`): The classes, a list or a string of them separated by commas. In
            each, bars separate several words for one class, of which the first one is shown: "sofa|couch|settee".
        background_labels (`str` or `Iterable[str]`, *optional*): Words that stand for none of the classes, in the same
            form.

    Raises:
        UserError: If there are no labels or too many, they are no collection of labels, there is nothing between two
            bars, two classes would be shown as the same, or a word of the background is one of a class.
    """
    if isinstance(candidate_labels, ClassWords):
        return candidate_labels
    labels = split_labels(candidate_labels)
    if not labels:
        raise UserError("`candidate_labels` has no labels: name at least one class to look for.")
    background = [] if background_labels is None else split_labels(background_labels)
    words_of_classes = [_split_words(label) for label in labels]
    words_of_background = [word for label in background for word in _split_words(label)]
    names = [words[0] for words in words_of_classes]
    for index, name in enumerate(names):
        if name in names[:index] and labels[index] not in labels[:index]:
            raise UserError(
                f"The labels {labels[names.index(name)]!r} and {labels[index]!r} would both be shown as {name!r}: "
                "join them, or begin one with another word."
            )
    words = [word for words in words_of_classes for word in words]
    if words_of_background and set(words) <= set(words_of_background):
        raise UserError(f"All labels, {', '.join(words)}, are background labels: name at least one class beside them.")
    for word in words_of_background:
        if word in words:
            raise UserError(f"{word!r} is a label and a background label: leave it out of one of them.")
    words += words_of_background
    if len(words) > MAX_WORDS:
        raise UserError(
            f"There are {len(words)} labels and words, but at most {MAX_WORDS} are accepted, since all of them are "
            "segmented together: leave some out."
        )
    class_indices = [index for index, own in enumerate(words_of_classes) for _ in own]
    return ClassWords(names, words, class_indices + [-1] * len(words_of_background))


def _split_words(label: str) -> Sequence[str]:
    if not isinstance(label, str) or BAR not in label:
        return [label]
    words = [word.strip() for word in label.split(BAR)]
    if not all(words):
        raise UserError(f"The label {label!r} has a bar with no word on one side: write one there, or leave it out.")
    return words
