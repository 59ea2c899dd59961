"""A real CLIP tokenizer that needs no download."""

from pathlib import Path

from transformers import CLIPTokenizer


TOKENIZER = Path(__file__).parent.parent / "fixtures" / "tokenizer"


def tiny_tokenizer() -> CLIPTokenizer:
    """
    CLIP's tokenizer without merges: 512 entries, one token per byte.

    The vocabulary is every byte, every byte of UTF-8 at the end of a word, `<|startoftext|>` (510) and `<|endoftext|>`
    (511).
    """
    return CLIPTokenizer.from_pretrained(TOKENIZER)
