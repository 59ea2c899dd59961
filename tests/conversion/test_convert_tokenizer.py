"""The tokenizers that the converter takes."""

import gzip
import json

import pytest

from catseg_hf import CATSegConfig, CATSegImageProcessorPil, CATSegProcessor
from catseg_hf.conversion.openai_tokenizer import check_tokenizer, load_tokenizer
from catseg_testing.tokenizer import TOKENIZER, openai_vocabulary, tiny_tokenizer
from conftest import FIXTURES


def test_every_prompt_of_every_vocabulary(tmp_path):
    expected = json.loads(gzip.decompress((FIXTURES / "prompt_token_ids.json.gz").read_bytes()))
    tokenizer = load_tokenizer(str(openai_vocabulary()))
    check_tokenizer(tokenizer, CATSegConfig())
    tokenizer.save_pretrained(tmp_path)
    assert len(expected) == 7
    for loaded in (tokenizer, load_tokenizer(str(tmp_path))):
        processor = CATSegProcessor(CATSegImageProcessorPil(), loaded)
        for vocabulary in expected.values():
            input_ids = processor(text=vocabulary["labels"], return_tensors=None)["input_ids"]
            for ids, wanted in zip(input_ids, vocabulary["prompt_token_ids"], strict=True):
                assert ids == wanted + [tokenizer.eos_token_id] * (len(ids) - len(wanted))


def test_plain_text_file(tmp_path):
    content = gzip.decompress(openai_vocabulary().read_bytes())
    (tmp_path / "vocabulary.txt").write_bytes(content)
    assert (
        load_tokenizer(str(tmp_path / "vocabulary.txt")).get_vocab()
        == load_tokenizer(str(openai_vocabulary())).get_vocab()
    )


def test_folder():
    assert load_tokenizer(str(TOKENIZER)).get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a vocabulary",
        gzip.compress(b"#version\na b\n", mtime=0),  # one name in every process
        b"\x1f\x8b damaged",
        bytes(range(256)),
    ],
)
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not OpenAI's bpe_simple_vocab_16e6.txt.gz"):
        load_tokenizer(str(path))


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="ends texts with 511, but the checkpoint has 49408"):
        check_tokenizer(tiny_tokenizer(), CATSegConfig())
