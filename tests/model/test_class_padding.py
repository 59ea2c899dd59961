"""Vocabularies filled up to a fixed number of rows, and the one graph that they share."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from catseg_hf import pad_classes
from catseg_testing.host_waits import HostWaits


NUM_ROWS = 8


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def text_embeds(num_classes: int) -> torch.Tensor:
    noise = torch.randn(num_classes, 1, 64, generator=torch.Generator().manual_seed(num_classes))
    return F.normalize(noise, dim=-1)


def padded(num_classes: int) -> dict[str, torch.Tensor]:
    rows, class_mask = pad_classes(text_embeds(num_classes), NUM_ROWS)
    return {"text_embeds": rows, "class_mask": class_mask}


@torch.no_grad()
@pytest.mark.parametrize("num_class_tokens", [256, NUM_ROWS, 0])
@pytest.mark.parametrize("num_classes", [1, 5, NUM_ROWS])
def test_classes_are_segmented_as_without_padding(model, pixel_values, num_classes, num_class_tokens):
    model.config.num_class_tokens = num_class_tokens
    for layer in model.catseg.aggregator.layers:
        layer.class_aggregation.block.num_class_tokens = num_class_tokens
    expected = model(pixel_values, text_embeds=text_embeds(num_classes), sliding_window=False).logits
    logits = model(pixel_values, **padded(num_classes), sliding_window=False).logits
    torch.testing.assert_close(logits[:, :num_classes], expected, rtol=0, atol=1e-5)
    assert (logits[:, num_classes:] == -100).all()


@torch.no_grad()
def test_padding_in_half_precision(model, pixel_values):
    model, pixel_values = model.to(torch.bfloat16), pixel_values.to(torch.bfloat16)
    expected = model(pixel_values, text_embeds=text_embeds(5), sliding_window=False).logits
    logits = model(pixel_values, **padded(5), sliding_window=False).logits[:, :5]
    assert (logits - expected).abs().mean() < 0.01


@torch.no_grad()
def test_padding_with_the_sliding_window(model):
    image = torch.randn(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    expected = model(image, text_embeds=text_embeds(2), sliding_window=True).logits
    logits = model(image, **padded(2), sliding_window=True).logits
    torch.testing.assert_close(logits[:, :2], expected, rtol=0, atol=1e-4)
    assert (logits[:, 2:] < -80).all()


@pytest.mark.slow
@torch.no_grad()
def test_one_graph_for_every_vocabulary(model, pixel_values):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=counter)
    for num_classes in (1, 3, NUM_ROWS):
        expected = model(pixel_values, text_embeds=text_embeds(num_classes), sliding_window=False).logits
        logits = compiled(pixel_values, **padded(num_classes), sliding_window=False).logits
        torch.testing.assert_close(logits[:, :num_classes], expected, rtol=0, atol=1e-4)
    torch._dynamo.reset()
    assert counter.frame_count == 1


@torch.no_grad()
def test_the_host_waits_for_nothing(model, pixel_values):
    inputs = padded(5)
    with HostWaits() as host:
        pad_classes(inputs["text_embeds"], 2 * NUM_ROWS)
        model(pixel_values, **inputs, sliding_window=False, check_values=False)
    assert host.waits == []


def test_too_many_classes():
    with pytest.raises(ValueError, match=r"9 classes cannot be filled up to 8: give at least its own number"):
        pad_classes(text_embeds(NUM_ROWS + 1), NUM_ROWS)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"class_mask": torch.ones(7, dtype=torch.bool)}, r"shape \(7,\) .* \(num_classes,\) = \(8,\)"),
        ({"class_mask": torch.ones(NUM_ROWS)}, "torch.float32 must be booleans"),
        ({"max_classes_per_image": 7}, "8 rows, but the model aggregates 7 classes at most"),
        ({"labels": torch.zeros(2, 96, 96, dtype=torch.long)}, "both `labels` and `class_mask`"),
    ],
)
def test_refusals(model, pixel_values, bad, message):
    with pytest.raises(ValueError, match=message):
        model(pixel_values, **{**padded(5), **bad}, sliding_window=False)


def test_softmax_over_classes_takes_no_mask(model, pixel_values):
    model.config.attention_type = "full"
    with pytest.raises(ValueError, match="needs `config.attention_type` 'linear', but it is 'full'"):
        model(pixel_values, **padded(5), sliding_window=False)
