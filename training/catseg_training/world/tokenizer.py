"""A small CLIPTokenizer: every byte, and merges that make one token of each word of the captions."""

from pathlib import Path

from transformers import CLIPTokenizer


TOKENIZER = Path(__file__).with_name("tokenizer")


def load_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the emoji world. Words that it does not know become tokens of fewer letters, down to bytes."""
    return CLIPTokenizer.from_pretrained(TOKENIZER)
