"""A small CLIPTokenizer: every byte, and merges that make one token of each word of the captions."""

import json

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from .captions import PROMPT, SENTENCES
from .words import classes, noun_phrase


CONTEXT_LENGTH = 77


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the emoji world. Words that it does not know become tokens of fewer letters, down to bytes."""
    bytes_only = CLIPTokenizer(vocab={}, merges=[])
    corpus = [
        *map(noun_phrase, classes()),
        *(sentence.format(things="", grounds="") for sentence in (*SENTENCES, "a photo of and")),
        PROMPT.format(""),
    ]
    trained = bytes_only.train_new_from_iterator(corpus, vocab_size=4096)
    merges = [tuple(merge) for merge in json.loads(trained.backend_tokenizer.to_str())["model"]["merges"]]
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), *special])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)
