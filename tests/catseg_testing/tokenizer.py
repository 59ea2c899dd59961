"""A real CLIP tokenizer that needs no download."""

import importlib.util
from pathlib import Path

import pytest
from transformers import CLIPTokenizer


TOKENIZER = Path(__file__).parent.parent / "fixtures" / "tokenizer"


def tiny_tokenizer() -> CLIPTokenizer:
    """
    CLIP's tokenizer without merges: 512 entries, one token per byte.

    The vocabulary is every byte, every byte of UTF-8 at the end of a word, `<|startoftext|>` (510) and `<|endoftext|>`
    (511).
    """
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def openai_vocabulary() -> Path:
    """OpenAI's vocabulary as open-clip-torch ships it; the package itself is not imported."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("needs the vocabulary file of open-clip-torch (pip install --no-deps open-clip-torch)")
    return Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
