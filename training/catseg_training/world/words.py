"""The words of the emoji world, and which of them training shows no mask of."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType


WORDS_FILE = Path(__file__).with_name("words.json")


@cache
def _word_list() -> dict:
    return json.loads(WORDS_FILE.read_text())


@cache
def things() -> Mapping[str, str]:
    """Every thing's word, in alphabetical order, with its emoji."""
    return MappingProxyType(dict(sorted(_word_list()["things"].items())))


@cache
def backgrounds() -> tuple[str, ...]:
    """The words of the textures behind the things, in alphabetical order."""
    return tuple(sorted(_word_list()["backgrounds"]))


@cache
def classes() -> tuple[str, ...]:
    """All words in the order of their class ids: the things, then the backgrounds."""
    return (*things(), *backgrounds())


def _every_fifth(words: Sequence[str]) -> Sequence[str]:
    return words[2::5]


@cache
def unseen_words() -> tuple[str, ...]:
    """
    The words that are in images and captions, but never in a label map: of the things and of the backgrounds, each in
    alphabetical order, the third and every fifth after it.
    """
    return (*_every_fifth(list(things())), *_every_fifth(backgrounds()))


@cache
def seen_words() -> tuple[str, ...]:
    """The words that label maps name, in the order of their class ids."""
    unseen = set(unseen_words())
    return tuple(word for word in classes() if word not in unseen)


def noun_phrase(word: str) -> str:
    """The word as it stands in a sentence: "an apple", "grass"."""
    if word in _word_list()["without_article"]:
        return word
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
