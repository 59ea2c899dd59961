"""The released base model by name, in its full size."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

import catseg_hf
from catseg_hf.conversion import TOKENIZER
from catseg_hf.conversion.openai_tokenizer import load_tokenizer
from catseg_testing.full_size import ARCHITECTURES, assert_golden, full_size_state_dict
from catseg_testing.hub_environment import SPACE, stand_in
from catseg_testing.tokenizer import openai_vocabulary


@pytest.mark.slow
def test_base(tmp_path, monkeypatch):
    torch.save({"model": full_size_state_dict(ARCHITECTURES[0])}, tmp_path / "model_base.pth")
    load_tokenizer(str(openai_vocabulary())).save_pretrained(tmp_path / "tokenizer")
    files = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    with stand_in(monkeypatch, tmp_path) as hub:
        hub.repositories["spaces", SPACE].files["model_base.pth"] = (tmp_path / "model_base.pth").read_bytes()
        (tmp_path / "model_base.pth").unlink()
        hub.add("models", TOKENIZER, {**files, "config.json": b'{"model_type": "clip"}'})
        folder = catseg_hf.pretrained("base")
    assert_golden(AutoModelForSemanticSegmentation.from_pretrained(folder), ARCHITECTURES[0])
