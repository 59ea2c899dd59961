"""CLIP's tokenizer: from the Hub, a folder, or OpenAI's own vocabulary file."""

import gzip
from pathlib import Path

from transformers import AutoTokenizer, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..configuration_catseg import CATSegConfig
from ..errors import UserError, first_line


CONTEXT_LENGTH = 77
# OpenAI's file has more merges than CLIP uses.
NUM_MERGES = 49152 - 256 - 2
# What transformers would save with a tokenizer although it is of this machine.
HOW_IT_WAS_LOADED = ("is_local", "local_files_only")


def load_tokenizer(source: str) -> CLIPTokenizer:
    """
    CLIP's tokenizer.

    Args:
        source (`str`): A model on the Hub, a folder, or a file `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
        UserError: With one sentence, if there is no tokenizer.
    """
    path = Path(source)
    if path.is_file():
        return tokenizer_from_merges(path)
    if path.is_dir() and not (path / "tokenizer_config.json").exists() and not (path / "tokenizer.json").exists():
        raise UserError(f"The folder {source} holds no tokenizer (no tokenizer.json).")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # anything from a missing network to a damaged file
        raise UserError(
            f"Could not load the tokenizer {source!r}: give a model on the Hub, a folder, or OpenAI's "
            f"bpe_simple_vocab_16e6.txt.gz to --tokenizer ({first_line(error)})"
        ) from None
    for name in HOW_IT_WAS_LOADED:
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def tokenizer_from_merges(path: Path) -> CLIPTokenizer:
    """
    CLIP's tokenizer from the merges of OpenAI's `bpe_simple_vocab_16e6.txt.gz` (gzipped or not).

    Raises:
        UserError: If the file is something else.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        lines = content.decode().split("\n")[1 : NUM_MERGES + 1]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not OpenAI's bpe_simple_vocab_16e6.txt.gz ({error}).") from None
    merges = [tuple(line.split()) for line in lines]
    if len(merges) != NUM_MERGES or any(len(merge) != 2 for merge in merges):
        raise UserError(f"{path} is not OpenAI's bpe_simple_vocab_16e6.txt.gz: it needs {NUM_MERGES} pairs to merge.")
    symbols = list(bytes_to_unicode().values())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)


def check_tokenizer(tokenizer: CLIPTokenizer, config: CATSegConfig):
    """
    Raises:
        UserError: If the model does not know the tokenizer's ids, or ends texts with another one.
    """
    text_config = config.clip_config.text_config
    if len(tokenizer) > text_config.vocab_size or tokenizer.eos_token_id != text_config.eos_token_id:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens and ends texts with {tokenizer.eos_token_id}, but the "
            f"checkpoint has {text_config.vocab_size} and ends them with {text_config.eos_token_id}: name the one "
            "that it was trained with (--tokenizer)."
        )
