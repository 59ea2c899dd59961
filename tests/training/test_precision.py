"""Mixed precision where the processor has no units for it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from catseg_hf import CATSegForSemanticSegmentation
from catseg_hf.errors import UserError
from catseg_testing.tiny_training import QUICK, history, run_train, save_checkpoint, write_pairs
from catseg_training.attention import SDPA_IN_FLOAT32, attention_in_float32
from catseg_training.processes import usable_precision


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.fixture
def without_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)


@pytest.mark.parametrize("wanted, usable", [("bf16", "bf16"), ("no", "no"), (None, None)])
def test_with_bfloat16(monkeypatch, wanted, usable):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert usable_precision(wanted) == usable


@pytest.mark.parametrize(
    "wanted, launcher, usable", [("bf16", None, "no"), (None, "bf16", "no"), ("no", "bf16", "no")]
)
def test_without_bfloat16(monkeypatch, without_bfloat16, wanted, launcher, usable):
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    assert usable_precision(wanted) == usable


@pytest.mark.parametrize("launcher", [None, "fp16"])
def test_float16_needs_a_gpu(monkeypatch, launcher):
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    with pytest.raises(UserError, match="fp16 needs a GPU.*give bf16 or no"):
        usable_precision("fp16" if launcher is None else None)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_in_float32_for_gradients_only(masked):
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 4, 9, 8, generator=generator).bfloat16() for _ in range(3)]
    mask = (torch.rand(2, 1, 9, 9, generator=generator) < 0.5).bfloat16() * -1e4 if masked else None
    expected = F.scaled_dot_product_attention(*(x.float() for x in states), None if mask is None else mask.float())
    module = nn.Module()
    with torch.autocast("cpu", torch.bfloat16):
        trained, _ = attention_in_float32(module, *states, mask, is_causal=False)
        with torch.no_grad():
            segmented, _ = attention_in_float32(module, *states, mask, is_causal=False)
    torch.testing.assert_close(trained, expected.transpose(1, 2), rtol=0, atol=1e-6)
    assert segmented.dtype == torch.bfloat16


@pytest.mark.parametrize("precision, attention", [("bf16", SDPA_IN_FLOAT32), ("no", "sdpa")])
def test_train_chooses_the_attention(precision, attention, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    used = []

    def spy(model, *args, **kwargs):
        used.append({module.config._attn_implementation for module in model.modules() if hasattr(module, "config")})
        return forward(model, *args, **kwargs)

    forward = CATSegForSemanticSegmentation.forward
    monkeypatch.setattr(CATSegForSemanticSegmentation, "forward", spy)
    data, checkpoint = write_pairs(tmp_path / "data"), save_checkpoint(tmp_path / "checkpoint")
    command = ["--model_name_or_path", checkpoint, "--dataset_name", data, "--max_train_steps", 1, "--skip_evaluation"]
    output = tmp_path / "output"
    assert run_train(*command, *QUICK, "--mixed_precision", precision, "--output_dir", output) == 0
    assert used and all(names == {attention} for names in used)
    assert CATSegForSemanticSegmentation.from_pretrained(output).config._attn_implementation == "sdpa"


def test_train_goes_on_in_float32(without_bfloat16, tmp_path, caplog):
    data, checkpoint = write_pairs(tmp_path / "data"), save_checkpoint(tmp_path / "checkpoint")
    command = ["--model_name_or_path", checkpoint, "--dataset_name", data, "--max_train_steps", 1, "--skip_evaluation"]
    losses = {}
    for precision in ("bf16", "no"):
        output = tmp_path / precision
        assert run_train(*command, *QUICK, "--mixed_precision", precision, "--output_dir", output) == 0
        losses[precision] = history(output)[0]["loss"]
    assert "--mixed_precision bf16 is known to be faster than float32 on CPUs with AVX-512's" in caplog.text
    assert "training in float32, as with --mixed_precision no" in caplog.text
    assert losses["bf16"] == losses["no"]
