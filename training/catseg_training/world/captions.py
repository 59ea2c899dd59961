"""Sentences that name what is in a scene."""

from collections.abc import Sequence

import numpy as np

from .words import noun_phrase


SENTENCES = (
    "{things} on {grounds}",
    "{things} in front of {grounds}",
    "{grounds} with {things}",
    "a photo of {things} on {grounds}",
    "a picture of {things} and {grounds}",
    "there is {things} over {grounds}",
    "a scene with {things}, behind it {grounds}",
)
PROMPT = "A photo of a {} in the scene"


def enumeration(words: Sequence[str]) -> str:
    """ "a cat, a rocket and grass" """
    *first, last = map(noun_phrase, words)
    return f"{', '.join(first)} and {last}" if first else last


def caption(things: Sequence[str], grounds: Sequence[str], rng: np.random.Generator) -> str:
    """A sentence that names all of `things` and `grounds`, each in a random order."""
    sentence = SENTENCES[rng.integers(len(SENTENCES))]
    if not things:
        return f"a photo of {enumeration(rng.permutation(grounds).tolist())}"
    return sentence.format(
        things=enumeration(rng.permutation(things).tolist()), grounds=enumeration(rng.permutation(grounds).tolist())
    )
