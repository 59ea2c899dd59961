"""Both released architectures against what the authors' code computes."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from conftest import FIXTURES, converted_model, normalise
from full_size import ARCHITECTURES, full_size_state_dict


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_size(architecture):
    expected = load_file(FIXTURES / "full" / f"{architecture}.safetensors")
    inputs = load_file(FIXTURES / "full" / f"{ARCHITECTURES[0]}.safetensors")
    model = converted_model(full_size_state_dict(architecture))
    with torch.no_grad():
        text_embeds = model.get_text_embeds(inputs["input_ids"])
        pixel_values = normalise(inputs["pixel_values_uint8"])[None]
        logits = model(pixel_values, text_embeds=text_embeds, sliding_window=False).logits
    torch.testing.assert_close(text_embeds, expected["text_embeds"], rtol=0, atol=1e-4)
    probabilities = F.interpolate(logits.sigmoid(), size=(384, 384), mode="bilinear")[0]
    torch.testing.assert_close(
        probabilities[:, ::12, ::12], expected["sem_seg_probabilities_stride12"], rtol=0, atol=1e-5
    )
